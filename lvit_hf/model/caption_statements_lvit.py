# Copyright 2026 The lvit_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""What the words of a caption state: what is there, what is absent, what is only asked, what is of another kind."""

import itertools
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass


SEPARATORS = (",", ";", ":", "and", "or", "but", "except")
CUES = ("no", "absent", "clear", "asked")
# Stands for a finding of any family.
ANYTHING = "abnormality"
# A negation with one of these denies only what was not said to be there.
REST = frozenset(
    ["other", "additional", "otherwise", "elsewhere", "else", "further", "remaining", "rest", "remainder"]
)

# What a word is to a family: the name of its finding, an organ in which that may be, a place, another thing that it
# states, a finding of another kind, a word that describes what captions of its data do not tell apart, a word that
# says nothing, or one that it does not know.
Kinds = Callable[[str], str]
CONTENT = ("noun", "organ", "place", "value", "other", "unknown")
SAYS_NOTHING = ("descriptor", "filler")


@dataclass
class Piece:
    """Words between two separators.

    Args:
        separator: What stands before it.
        words: Its words.
        negative: Whether it says that something is absent; `None` where that depends on its neighbours.
        reaches_back: Whether it says so of pieces before it too: "the left and the right lung are clear".
    """

    separator: str
    words: list[str]
    negative: bool | None = None
    reaches_back: bool = False


@dataclass(frozen=True)
class Statements:
    """What words state.

    Args:
        there: Words of what is said to be there, with separators.
        scopes: Words of each scope of a negation.
        set_aside: Words that speak of what the family does not know, and whose places are not those of its findings.
        has_exception: Whether what is there is an exception from what is absent.
    """

    there: list[str]
    scopes: list[list[str]]
    set_aside: list[str]
    has_exception: bool


def read_statements(words: Sequence[str], kind: Kinds, sides: Container[str] = ()) -> Statements:
    """Tells what is said to be there from what is said to be absent, and from what is asked or of another kind.

    Args:
        words: Words and separators, with the cues of `NEGATIONS`.
        kind: What a word is to the family.
        sides: Words of place which hold on for other places of a sentence: "not in the left base, but in its apex".
    """
    stated = _without_questions(_join_headings(cut_pieces(words), kind), kind)
    asserted = [part for piece in stated for part in _split_others(piece, kind)]
    pieces = [marked for piece in asserted for marked in _mark_piece(piece, kind)]
    _share_places(pieces, kind)
    scopes: list[list[Piece]] = []
    positive: list[Piece] = []
    scope: list[Piece] | None = None
    has_exception = False
    for index, piece in enumerate(pieces):
        if piece.separator == "except" and piece.negative is None:
            is_first = scope is None and any(later.negative for later in pieces[index + 1 : index + 2])
            has_exception |= is_first or scope is not None
            scope = [] if scope is None and not is_first else None
            scopes += [] if scope is None else [scope]
            _keep_side(piece, pieces[:index], kind, sides)
        elif piece.negative:
            _keep_side(piece, pieces[:index], kind, sides)
            scope = _reach_back(piece, positive, kind) if piece.reaches_back else []
            scopes.append(scope)
        elif scope is not None and not _continues(pieces, index, scope, kind):
            scope = None
        (positive if scope is None else scope).append(piece)
    strange = [
        piece
        for piece, following in zip(positive, [*positive[1:], Piece("", [])])
        if _is_strange(piece.words, kind) and not _shares_noun(piece, following, kind, sides)
    ]
    return Statements(
        _join(piece for piece in positive if piece not in strange and not _is_of_others(piece.words, kind)),
        [_join(piece for piece in scope if not _is_of_others(piece.words, kind)) for scope in scopes],
        [word for piece in strange for word in piece.words],
        has_exception,
    )


def has_kind(words: Sequence[str], kind: Kinds, *kinds: str) -> bool:
    return any(kind(word) in kinds for word in words)


def _is_of_others(words: Sequence[str], kind: Kinds) -> bool:
    """Whether words speak of findings of another kind alone."""
    return has_kind(words, kind, "other") and not has_kind(words, kind, "noun")


def _is_strange(words: Sequence[str], kind: Kinds) -> bool:
    """Whether words say where something is that the family does not know."""
    is_known = has_kind(words, kind, "noun", "other")
    unknown = [word for word in words if kind(word) == "unknown" and not is_measure(word)]
    return not is_known and bool(unknown) and has_kind(words, kind, "place", "organ")


def _shares_noun(piece: Piece, following: Piece, kind: Kinds, sides: Container[str]) -> bool:
    """Whether words end in a place that goes on in the next ones: "increase in right upper and lower zone opacity"."""
    before = list(itertools.takewhile(lambda word: kind(word) != "noun", following.words))
    goes_on = following.separator == "and" and len(before) < len(following.words) and has_kind(before, kind, "place")
    is_of_both = {word for word in before if word in sides} <= set(piece.words)
    return goes_on and is_of_both and kind(piece.words[-1]) == "place"


def is_measure(word: str) -> bool:
    return not word.isalpha()


def _join_headings(pieces: Sequence[Piece], kind: Kinds) -> list[Piece]:
    """Joins a place with what is said of it: "Left lung: no infection", "In the left lung, no infection"."""
    joined: list[Piece] = []
    for piece in pieces:
        heading = joined[-1] if joined else Piece("", [])
        is_place = has_kind(heading.words, kind, "place", "organ") and not has_kind(
            heading.words, kind, "noun", "value", "other", "unknown", "cue"
        )
        is_denied = (
            piece.separator == ","
            and heading.separator in ("", ";", "but")
            and "no" in piece.words
            and has_kind(piece.words, kind, "noun")
            and not has_kind(piece.words, kind, "place")
        )
        if is_place and (is_denied or piece.separator == ":"):
            heading.words += piece.words
        else:
            joined.append(Piece("," if piece.separator == ":" else piece.separator, piece.words))
    return joined


def _without_questions(pieces: Sequence[Piece], kind: Kinds) -> list[Piece]:
    """The pieces without what is only asked, or was so before."""
    kept: list[Piece] = []
    asked: list[str] = []
    is_asked = goes_on = False
    for piece in pieces:
        if "asked" in piece.words:
            cue = piece.words.index("asked")
            is_asked, goes_on, asked = True, cue == len(piece.words) - 1, piece.words[cue + 1 :]
            kept += [Piece(piece.separator, piece.words[:cue])] if cue else []
        elif goes_on or (is_asked and piece.separator == "or"):
            goes_on, asked = False, piece.words
        elif is_asked and "no" in piece.words and not has_kind(piece.words, kind, *CONTENT, "descriptor"):
            kept.append(Piece(piece.separator, ["no", *asked]))  # "History of polyps; none today"
        else:
            is_asked = False
            kept.append(piece)
    return kept


def _split_others(piece: Piece, kind: Kinds) -> list[Piece]:
    """Two pieces where "with" stands between a finding and one of another kind, each of which has its own places."""
    if "with" in piece.words:
        cue = piece.words.index("with")
        before, after = piece.words[:cue], piece.words[cue + 1 :]
        is_one_of_others = _is_of_others(before, kind) != _is_of_others(after, kind) and all(
            has_kind(words, kind, "noun", "other") for words in (before, after)
        )
        is_strange = _is_strange(before, kind) and has_kind(after, kind, "noun") and has_kind(after, kind, "place")
        shares_place = has_kind(before, kind, "noun") and not has_kind(before, kind, "place")
        if (is_one_of_others and not shares_place) or is_strange:
            return [Piece(piece.separator, before), Piece(",", after)]
    return [piece]


def _share_places(pieces: Sequence[Piece], kind: Kinds):
    """Gives a finding the places that it shares with one of another kind: "opacity and effusion at the left base"."""
    for first, second in itertools.pairwise(pieces):
        for own, other, step in ((first, second, 1), (second, first, -1)):
            if (
                second.separator in ("and", "or")
                and has_kind(own.words, kind, "noun")
                and not has_kind(own.words, kind, "place")
                and _is_of_others(other.words, kind)
            ):
                words = other.words[::step]
                named = next(index for index, word in enumerate(words) if kind(word) == "other")
                own.words += words[named + 1 :][::step]


def _keep_side(piece: Piece, before: Sequence[Piece], kind: Kinds, sides: Container[str]):
    """Gives a piece that names a place and no side the one side that its sentence has named before."""
    start = max((index for index, earlier in enumerate(before) if earlier.separator == ";"), default=0)
    named = {word for earlier in before[start:] for word in earlier.words if word in sides}
    has_place = has_kind([word for word in piece.words if word not in sides], kind, "place")
    if piece.separator != ";" and len(named) == 1 and has_place and not any(word in sides for word in piece.words):
        piece.words.insert(0, *named)


def cut_pieces(words: Sequence[str]) -> list[Piece]:
    pieces = [Piece("", [])]
    for word in words:
        if word in SEPARATORS:
            pieces.append(Piece(word, []))
        else:
            pieces[-1].words.append(word)
    # Of two separators in a row the first counts at the end of a sentence, and else the second.
    for piece, following in zip(pieces, pieces[1:]):
        if not piece.words and piece.separator in (";", "but", "except") and following.separator in (",", "and"):
            following.separator = piece.separator
    return [piece for piece in pieces if piece.words]


def _mark_piece(piece: Piece, kind: Kinds) -> list[Piece]:
    """The piece with what its own cues say of it, or two pieces where it is negative from a cue on."""
    words = piece.words
    if "no" in words:
        return _mark_no(piece, kind)
    rest = [word for word in words if word not in CUES]
    if {"absent", "clear"} & set(words) and not has_kind(rest, kind, *CONTENT, "descriptor"):
        return [Piece(piece.separator, words, negative=True, reaches_back=True)]
    if "absent" in words and has_kind(rest, kind, "noun", "organ", "place", "value"):
        return [Piece(piece.separator, rest, negative=True, reaches_back=True)]
    if "clear" not in words:
        return [piece]
    cue = words.index("clear")
    if has_kind(words[:cue], kind, "noun") and _names_organ(
        words[cue:], kind
    ):  # "opacity in one with clear other lung"
        return [Piece(piece.separator, words[:cue]), Piece("", words[cue + 1 :], negative=True)]
    # With a finding beside it "clear" is an adjective.
    return [Piece(piece.separator, rest, *([True, True] if _names_organ(rest, kind) else []))]


def _names_organ(words: Sequence[str], kind: Kinds) -> bool:
    """Whether words name an organ or a place, and no finding in it."""
    return has_kind(words, kind, "organ", "place") and not has_kind(words, kind, "noun")


def _mark_no(piece: Piece, kind: Kinds) -> list[Piece]:
    if not has_kind(piece.words, kind, *CONTENT, "descriptor"):
        return [Piece(piece.separator, piece.words, negative=True, reaches_back=True)]
    cue = piece.words.index("no")
    before, after = piece.words[:cue], [word for word in piece.words[cue + 1 :] if word != "no"]
    rest = [word for word in after if word not in CUES]
    if len(rest) < len(after) and not has_kind(after, kind, "noun"):
        return [Piece(piece.separator, before + rest)]  # not clear, not absent
    if not before:
        return [Piece(piece.separator, rest, negative=True)]
    names_organ = (
        _names_organ(before, kind)
        and not has_kind(before, kind, "other")
        and has_kind(rest, kind, "noun", "other", "unknown")
    )
    says_more = has_kind(rest, kind, *CONTENT, "descriptor")  # "the mass is not calcified" denies no mass
    if names_organ or (has_kind(before, kind, "noun", "organ", "place") and not says_more):
        known = [word for word in before if kind(word) not in ("unknown", *(["value"] if names_organ else []))]
        return [Piece(piece.separator, known + rest, negative=True, reaches_back=True)]
    end = _end_of_property(before, rest, kind)
    there = [*_mark_piece(Piece(piece.separator, before), kind), Piece(",", rest[end:], negative=False)]
    return [*there[: None if rest[end:] else -1], Piece("", rest[:end], negative=True)]


def _end_of_property(before: Sequence[str], rest: Sequence[str], kind: Kinds) -> int:
    """How many words deny a property of a finding: "a polyp without ulceration on the left" is on the left."""
    others = [] if has_kind(before, kind, "place") else ["other"]
    is_property = has_kind(rest, kind, "value", *others) and not has_kind(rest, kind, "noun", "organ")
    if has_kind(before, kind, "noun") and is_property:
        return next((index for index, word in enumerate(rest) if kind(word) == "place"), len(rest))
    return len(rest)


def _reach_back(piece: Piece, positive: list[Piece], kind: Kinds) -> list[Piece]:
    """Takes from the pieces before one those that it speaks of too."""
    scope: list[Piece] = []
    following = piece
    if not has_kind(piece.words, kind, *CONTENT):
        # "Pneumonia, now clear", "Lungs: clear", but not "opacity, otherwise clear"
        is_said = {"absent", "no", "now"} & set(piece.words) or (positive and _names_organ(positive[-1].words, kind))
        is_near = piece.separator in (",", "and", "but") and not REST & set(piece.words)
        return [_without_unknown(positive.pop(), kind)] if positive and is_near and is_said else []
    while positive and not (
        has_kind(positive[-1].words, kind, "noun") and has_kind(piece.words, kind, "place", "organ")
    ):
        is_list = following.separator in ("and", "or") and "is" not in piece.words
        is_longer_list = following.separator == "," and scope
        if not (is_list or is_longer_list):
            break
        following = _without_unknown(positive.pop(), kind)
        scope.insert(0, following)
    return scope


def _without_unknown(piece: Piece, kind: Kinds) -> Piece:
    """What is clear is so, whatever else is said of it: "both lungs are well expanded and clear"."""
    if _names_organ(piece.words, kind):
        piece.words = [word for word in piece.words if kind(word) != "unknown"]
    return piece


def _continues(pieces: Sequence[Piece], index: int, scope: Sequence[Piece], kind: Kinds) -> bool:
    """Whether a negation goes on in a piece that has no cue of its own."""
    piece = pieces[index]
    has_place = any(has_kind(before.words, kind, "place") for before in scope)
    match piece.separator:
        case "or":
            return True
        case "and":
            # "... and dense on the right" says something else of another place
            says_place = has_kind(piece.words, kind, "place") and has_kind(piece.words, kind, "value", "descriptor")
            return not (has_place and (says_place or has_kind(piece.words, kind, "noun")))
        case ",":
            is_property = scope[0].separator == "" and scope[0] is not pieces[0]  # "a mass without a halo, left"
            is_open = not (has_place or is_property)
            return _is_listed(pieces, index) or (is_open and _is_place_of(scope, piece, kind))
    return False


def _is_listed(pieces: Sequence[Piece], index: int) -> bool:
    """Whether "or" joins a piece with later ones: "no a, b or c"."""
    listed = itertools.takewhile(
        lambda piece: piece.negative is None and piece.separator in (",", "or"), pieces[index + 1 :]
    )
    return any(piece.separator == "or" for piece in listed)


def _is_place_of(scope: Sequence[Piece], piece: Piece, kind: Kinds) -> bool:
    """Whether a piece only says where what is denied is not: "no opacity, on the left"."""
    is_place = has_kind(piece.words, kind, "place") and not has_kind(piece.words, kind, "noun", "value", "unknown")
    return is_place and any(has_kind(before.words, kind, "noun") for before in scope)


def _join(pieces: Iterable[Piece]) -> list[str]:
    words: list[str] = []
    for piece in pieces:
        separator = piece.separator if piece.separator in (",", ";", "and", "or") else ","
        words += [separator, *piece.words] if words else piece.words
    return words


def split_words(words: Sequence[str], separator: str) -> list[list[str]]:
    groups = itertools.groupby(words, lambda word: word == separator)
    return [list(group) for is_separator, group in groups if not is_separator]
