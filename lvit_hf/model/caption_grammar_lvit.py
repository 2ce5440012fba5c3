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

"""The grammar of captions: from a text to what it states, and back, by the schema of a family.

A text is cut into words, misspelt ones are corrected, phrases are replaced by words that the families know, and what
is said to be absent is told from what is said to be there.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher, get_close_matches
from functools import cached_property, lru_cache
from string import Formatter

from .caption_statements_lvit import (
    ANYTHING,
    CONTENT,
    CUES,
    REST,
    SAYS_NOTHING,
    SEPARATORS,
    cut_pieces,
    has_kind,
    is_measure,
    read_statements,
    split_words,
)
from .caption_words_lvit import (
    CHINESE,
    COMMON,
    DEVICES,
    ENDINGS,
    FILLERS,
    FOREIGN,
    MEASURE,
    NEGATIONS,
    NOT_MISSPELT,
    NUMBER_WORDS,
    PHRASINGS,
    PREFIXES,
    QUESTION,
    RANGE,
    REQUEST,
    SPELLINGS,
    TRADITIONAL,
)


# Shorter words have too many neighbours to be corrected.
SHORTEST_CORRECTED = 4
SIMILARITY = 0.8
# From how many letters on two of them may be wrong, and not only one.
TWO_WRONG = 12
# Letters of a cue of negation into which a misspelt word is corrected; shorter ones have too many neighbours.
LONG_CUE = 7

WORD = re.compile(r"[^\W_]+")

_CHINESE_TERMS = "|".join(sorted(CHINESE, key=len, reverse=True))
# A term after "not" that is no term itself means something else, and so it is left as it is.
_CHINESE_TERM = re.compile(rf"{_CHINESE_TERMS}|[不非](?:{_CHINESE_TERMS})")
_TOKEN = re.compile(rf"{MEASURE}|{RANGE}|[^\W_]+|[,;.]|:(?=\s|$)")
_RANGE = re.compile(RANGE)


def cut_words(text: str) -> list[str]:
    """The words of a text in lower case, with ",", ":" and, at the ends of sentences, ";" between them.

    Questions are left out.
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(TRADITIONAL)
    text = re.sub(QUESTION, lambda match: match[0] if re.match(REQUEST, match[0]) else "", text)
    for pattern, replacement in (*SPELLINGS, *PHRASINGS):
        text = re.sub(pattern, replacement, text)
    text = _CHINESE_TERM.sub(lambda match: f" {CHINESE.get(match[0], match[0])} ", text)
    return [_plain_word(match[0]) for match in _TOKEN.finditer(text)]


def _plain_word(token: str) -> str:
    if token == ".":
        return ";"
    if _RANGE.fullmatch(token):
        return "several"
    is_counted = token.isdecimal() and len(token) < 3 and 0 < int(token) <= len(NUMBER_WORDS)
    return NUMBER_WORDS[int(token) - 1] if is_counted else token


def correct_word(word: str, known: Container[str], in_phrases: Container[str], targets: Sequence[str]) -> str:
    """A known word that a word, its singular or its misspelling is, or else the word itself.

    Args:
        word: The word, in lower case.
        known: Words that are right as they are.
        in_phrases: Words that are right as parts of phrases.
        targets: Words into which a misspelt one may be corrected.
    """
    for form in (word, word.removesuffix("s")):
        if form in known or form in in_phrases:
            return form
    is_right = word in NOT_MISSPELT or not FOREIGN.isdisjoint((word, word.removesuffix("s")))
    if len(word) < SHORTEST_CORRECTED or is_right or not word.isalpha():
        return word
    near = get_close_matches(word, [form for form in targets if form[0] == word[0]], 3, SIMILARITY)
    return next((form for form in near if _is_misspelt(word, form)), word)


def _is_misspelt(word: str, form: str) -> bool:
    """Whether a word may be another one with a letter or two that are wrong, and is none that means something else."""
    longest = max(len(word), len(form))
    wrong = 1 + (longest >= TWO_WRONG)
    short, long = sorted((word, form), key=len)
    is_near = len(long) - len(short) <= wrong and SequenceMatcher(None, form, word).ratio() >= 1 - wrong / longest
    is_inflected = long.startswith(short) and long.removeprefix(short) in ENDINGS
    return is_near and not is_inflected and not _stems(word) & _stems(form)


def _stems(word: str) -> set[str]:
    """A word with and without what may be a prefix."""
    return {word} | {word.removeprefix(prefix) for prefix in PREFIXES if len(word) >= len(prefix) + 4}


def cut_phrases(words: Sequence[str], phrases: Collection[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Cuts words into phrases, the longest first, from left to right, and words that are in none."""
    longest = max(map(len, phrases), default=1)
    position = 0
    while position < len(words):
        spans = (tuple(words[position : position + length]) for length in range(longest, 1, -1))
        phrase = next((span for span in spans if span in phrases), (words[position],))
        yield phrase
        position += len(phrase)


# A number does not count what stands behind one of these.
ENDS_OF_NUMBERS = frozenset(("in", "at", "on", "of", "with", "from", "by", "to", "near", ";", *NUMBER_WORDS))

# What one finding states: the value of each attribute, or its values, where several may hold at once.
Finding = Mapping[str, str | tuple[str, ...]]
Draft = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Caption:
    """A caption that was understood.

    Args:
        family: Name of its family.
        findings: What it states of each object. An attribute that it does not state is missing; an empty finding says
            that there is an object, and no more.
        unknown_words: Words that the family does not know; they do not count when captions are compared.
        absent: What is said not to be there, as findings: `{"place": "center"}` says that there is none in the center,
            and an empty finding that there is none at all.
        corrections: Misspelt words, each with the word that it was read as; they do not count either.
        contradicts_itself: Whether it says of the same thing that it is there and that it is not. It states nothing.
    """

    family: str
    findings: tuple[Finding, ...]
    unknown_words: tuple[str, ...] = field(default=(), compare=False)
    absent: tuple[Finding, ...] = ()
    corrections: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    contradicts_itself: bool = field(default=False, compare=False)

    @property
    def is_absent(self) -> bool:
        """Whether it says that there is nothing to find."""
        return not self.findings and {} in self.absent

    def agrees_with(self, finding: Finding) -> bool:
        """Whether all that this caption states of one of its objects is so in `finding`."""
        return any(stated.items() <= finding.items() for stated in self.findings)


@dataclass(frozen=True)
class PlaceWords:
    """The words of a family for places, of which the names of a 3 x 3 grid are made. "Left" is the image's left.

    Args:
        rows: Words for the top, the middle and the bottom row; a blank one is left out of names.
        columns: Words for the left, the middle and the right column.
        center: Name of the place in the middle of both.
    """

    rows: tuple[str, str, str]
    columns: tuple[str, str, str] = ("left", "", "right")
    center: str = "center"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nine places, row by row."""
        names = [f"{row} {column}".strip() for row, column in itertools.product(self.rows, self.columns)]
        names[4] = self.center
        return tuple(names)


TOP_MIDDLE_BOTTOM = PlaceWords(("top", "middle", "bottom"), ("left", "middle", "right"))
TOP_BOTTOM = PlaceWords(("top", "", "bottom"))
UPPER_LOWER = PlaceWords(("upper", "", "lower"))
UPPER_MIDDLE_LOWER = PlaceWords(("upper", "middle", "lower"))
PLACE_WORDS = (TOP_MIDDLE_BOTTOM, TOP_BOTTOM, UPPER_MIDDLE_LOWER, UPPER_LOWER)

# What people call rows and columns; that in the middle may be left out.
ROWS = (("top", "upper"), ("", "middle", "center"), ("bottom", "lower"))
COLUMNS = (("left",), ("", "middle", "center"), ("right",))


@dataclass(frozen=True)
class Attribute:
    """Something that a caption may state.

    Args:
        name: Its name, unique in its family.
        values: What it can be.
        synonyms: Other names, each with the value that it stands for.
        multiple: Whether several values may hold at once; a finding has a tuple of them then, ordered as `values`.
        is_place: Whether it says where something is, which is not true of a part of the image.
        is_derived: Whether it follows from the places, where they are stated.
    """

    name: str
    values: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    multiple: bool = False
    is_place: bool = False
    is_derived: bool = False

    @property
    def names(self) -> dict[str, str]:
        """Every name that is understood, with the value that it stands for."""
        return {**self.synonyms, **{value: value for value in self.values}}


def place_attribute(words: PlaceWords, name: str = "place") -> Attribute:
    """The nine places, named by `words`, and understood in the words of other families and in either order too."""
    synonyms: dict[str, str] = {"centre": words.center, "central": words.center}
    for (rows, columns), value in zip(itertools.product(ROWS, COLUMNS), words.names):
        for row, column in itertools.product(rows, columns):
            synonyms |= {f"{row} {column}".strip(): value, f"{column} {row}".strip(): value}
    del synonyms[""]
    return Attribute(name, words.names, synonyms, is_place=True)


@dataclass(frozen=True)
class CaptionFamily:
    """A schema, with the words to read and to write captions in it.

    Args:
        name: Its name.
        nouns: Names of what its captions speak of, of which a caption has at least one, or one of `organs`.
        attributes: What its captions state.
        templates: Sentences with the names of attributes in braces; what stands in brackets is left out where a name
            in it is not stated. A finding is written in the first one that has all that it states.
        header: Begins a caption of several findings, with their number as `{count}`.
        place_words: Its words for places, by which captions are rewritten when an image is flipped or turned.
        fillers: Words of its data that say nothing about an attribute.
        likenesses: Words of its data that say what no attribute holds; they are reported as not understood.
        is_upright: Whether its images are never turned or put upside down.
        finding: Plain name of what a mask shows; the first noun by default.
        has_sides: Whether left and right may be a patient's, who faces the viewer.
        organs: Names of what is imaged. They tell the family as nouns do; one that is "clear" has no finding.
        others: Findings of another kind in such images, which its masks do not show.
        known: Words that people use and its data do not, and that say nothing about an attribute.
        phrases: What people write, each with the family's words for it.
        several: A sentence that states several findings which differ in their place alone.
        absence: The sentence by which its data say that there is no finding.

    Example:

    ```python
    >>> size, place = Attribute("size", ("small", "large"), {"tiny": "small"}), place_attribute(TOP_BOTTOM)
    >>> moles = CaptionFamily("mole", ("mole",), (size, place), ("One {size} mole[ on the {place}].",))
    >>> register_family(moles)
    >>> parse_caption("a Tiny mole, left top").findings
    ({'size': 'small', 'place': 'top left'},)
    >>> parse_caption("no mole on the left").absent
    ({'place': 'left'},)
    ```
    """

    name: str
    nouns: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    templates: tuple[str, ...]
    header: str = ""
    place_words: PlaceWords = TOP_BOTTOM
    fillers: tuple[str, ...] = ()
    is_upright: bool = False
    finding: str = ""
    has_sides: bool = False
    organs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    phrases: Mapping[str, str] = field(default_factory=dict)
    several: str = ""
    absence: str = ""
    likenesses: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "finding", self.finding or self.nouns[0])

    def parse(self, text: str) -> Caption | None:
        """Reads a caption, or returns `None` where it is not of this family.

        It is where it has one of the family's nouns or organs, no thing of another kind, and not more words that the
        family does not know than such that it does.
        """
        words, corrections = self.read_words(text)
        own = self._without_foreign(words)
        content = [kind for word in own if (kind := self.kind(word)) not in SAYS_NOTHING]
        said = read_statements(own, self.kind, self.sides)
        strange = [word for word in own if self.kind(word) == "unknown" and not is_measure(word)]
        set_aside = [word for word in said.set_aside if word in strange]
        if not self.is_named_in(text) or not own or 2 * (len(strange) - len(set_aside)) > len(content):
            return None
        scopes = [(scope, self._read_scope(scope)) for scope in said.scopes]
        denied = [finding for _, findings in scopes for finding in findings]
        unread = [word for scope, findings in scopes if not findings for word in (";", *scope)]
        unsaid = self.list_unknown_words(text)
        has_rest = any(REST & set(scope) for scope in said.scopes)
        there = self._read_findings(said.there)
        if {} in denied and not (self._names_finding(said.there) or said.has_exception or has_rest):
            there = []  # "No tumor. BI-RADS 2, benign."
        try:
            findings, absent = self._reconcile(
                there, [{}] if content == ["cue"] else denied, said.has_exception, has_rest
            )
        except Contradiction:
            return Caption(self.name, (), unsaid, (), corrections, contradicts_itself=True)
        lost = self._list_lost([*said.there, ";", *said.set_aside, *unread], [*findings, *absent])
        return Caption(self.name, tuple(findings), (*unsaid, *lost), tuple(absent), corrections)

    @property
    def sides(self) -> tuple[str, ...]:
        """Words of place which hold on for other places of a sentence; see `read_statements`."""
        return ()

    def is_named_in(self, text: str) -> bool:
        """Whether a text has a noun or an organ of the family, or is only "normal", "negative" or "no abnormality"."""
        words = [word for word in self.read_words(text)[0] if self.kind(word) not in SAYS_NOTHING]
        names = any(self.kind(word) in ("noun", "organ") and word != ANYTHING for word in words)
        return names or words in (["clear"], ["absent"]) or sorted(words) == [ANYTHING, "no"]

    def list_unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of a text that say nothing to the family."""
        return tuple(word.replace("_", " ") for word in self.read_words(text)[0] if self.kind(word) == "unknown")

    def render(self, caption: Caption) -> str:
        """Writes a caption as the family's data do.

        Raises:
            ValueError: If a finding states what no template of the family has together.
        """
        absences = [self.render_absence(finding) for finding in caption.absent]
        positive = self.render_findings(caption.findings)
        return " ".join([positive, *absences] if positive else absences)

    def render_findings(self, findings: Sequence[Finding]) -> str:
        """Writes findings; see `render`."""
        alike = [{**finding, "place": ""} for finding in findings]
        places = [str(finding["place"]) for finding in findings if "place" in finding]
        if (
            self.several
            and len(findings) > 1
            and alike.count(alike[0]) == len(alike)
            and len(places) in (0, len(alike))
        ):
            place = {"place": ", ".join(places[:1] if len(set(places)) == 1 else places)} if places else {}
            return self._fill(self.several, {**findings[0], **place, "count": _count(len(findings))})
        sentences = [self.render_finding(finding) for finding in findings]
        if self.header and len(sentences) > 1:
            sentences.insert(0, self.header.format(count=_count(len(findings))))
        return "".join(sentences)

    def render_finding(self, finding: Finding) -> str:
        """Writes one finding; see `render`."""
        template = next((text for text in self.templates if finding.keys() <= set(_field_names(text))), None)
        if template is None:
            raise ValueError(f"No sentence about {self.name} states {', '.join(finding)} together.")
        return self._fill(template, finding)

    def render_absence(self, finding: Finding) -> str:
        """Writes that something is absent."""
        if not finding and self.absence:
            return self.absence
        return f"No {' '.join([*map(str, finding.values()), self.nouns[0]])}."

    def write(self, caption: Caption) -> str:
        """Writes what a caption says is there, as completely as the family's data do, whatever it states together."""
        if not caption.findings:
            return self.render(replace(caption, absent=({},))) if caption.is_absent else ""
        try:
            return self.render_findings(caption.findings)
        except ValueError:
            parts = [{name: value} for finding in caption.findings for name, value in finding.items()]
            return " ".join(self.render_finding(part) for part in parts)

    def captions(self) -> Iterator[Caption]:
        """Every complete caption of one finding."""
        values = {attribute.name: attribute.values for attribute in self.attributes}
        for template in self.templates:
            names = _field_names(template)
            for chosen in itertools.product(*(values[name] for name in names)):
                yield Caption(self.name, (dict(zip(names, chosen)),))

    @cached_property
    def read_words(self) -> Callable[[str], tuple[tuple[str, ...], tuple[tuple[str, str], ...]]]:
        """Reads the words of a text as the family spells them, and those that were corrected, with what they became.

        Sentences end with ";". Phrases of `phrases` are replaced, and cues of negation are "no", "absent" or "clear".
        """
        return lru_cache(maxsize=1024)(self._read_words)

    def _read_words(self, text: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
        typed = cut_words(text)
        words = [correct_word(word, self._known, self._spellings, self._targets) for word in typed]
        corrections = dict.fromkeys(
            (old, new) for old, new in zip(typed, words) if new not in (old, old.removesuffix("s"))
        )
        # What is a plural only in a phrase is none elsewhere: "both sides", but "sides".
        plain = itertools.chain(*(self._aliases.get(phrase, phrase) for phrase in cut_phrases(words, self._aliases)))
        return tuple(map(self._singular, plain)), tuple(corrections)

    def _singular(self, word: str) -> str:
        singular = word.removesuffix("s")
        return singular if word not in self._known and singular in self._known else word

    def put_in_words(self, text: str) -> str:
        """A text in words that the family knows; itself where it is in such already."""
        words, _ = self.read_words(text)
        plain = [";" if word == "." else word for word in re.findall(r"[^\W_]+|[,;.]", text.lower())]
        if [word.removesuffix("s") for word in plain] == [word.removesuffix("s") for word in words]:
            return text
        return " ".join(words).replace("_", " ").replace(" :", ":").replace(" ,", ",").replace(" ;", ".")

    def uses_own_words(self, text: str) -> bool:
        """Whether all words of a text are such as the family's data have."""
        words = WORD.findall(text.lower())
        own = {*self._own_words, *self.likenesses}
        return all(word in own or word.removesuffix("s") in own for word in words)

    def kind(self, word: str) -> str:
        """What a word is to the family; see `read_statements`."""
        return self._kinds.get(word, "unknown")

    @cached_property
    def _kinds(self) -> dict[str, str]:
        groups = {
            "descriptor": {word for word in self._own_words if word.removesuffix("s") not in self.nouns}
            | {*self.known},
            "filler": FILLERS,
            "value": {*itertools.chain(*self._values), *self._numbers},
            "place": self._place_names,
            "other": self.others,
            "organ": self.organs,
            "noun": {*self.nouns, ANYTHING},
            "cue": CUES,
        }
        return {word: kind for kind, words in groups.items() for word in words}

    @cached_property
    def _known(self) -> set[str]:
        return {*self._kinds, *self.likenesses}

    @property
    def _numbers(self) -> tuple[str, ...]:
        return NUMBER_WORDS

    @cached_property
    def _place_names(self) -> set[str]:
        return {word for phrase, (attribute, _) in self._values.items() if attribute.is_place for word in phrase}

    @cached_property
    def _values(self) -> dict[tuple[str, ...], tuple[Attribute, str]]:
        return {
            tuple(WORD.findall(name.lower())): (attribute, value)
            for attribute in self.attributes
            for name, value in attribute.names.items()
        }

    @cached_property
    def _own_words(self) -> set[str]:
        sentences = [re.sub(r"\{\w+\}", " ", text) for text in (*self.templates, self.header, self.several)]
        names = [name for attribute in self.attributes if not attribute.is_place for name in attribute.names]
        values = [value for attribute in self.attributes for value in attribute.values]
        texts = [*sentences, self.absence, *names, *values, *self.nouns, *self.fillers, *self._numbers]
        return {word for text in texts for word in WORD.findall(text.lower())}

    @cached_property
    def _aliases(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        tables = NEGATIONS | COMMON | dict(self.phrases)
        return {tuple(phrase.split()): tuple(words.split()) for phrase, words in tables.items()}

    @cached_property
    def _spellings(self) -> frozenset[str]:
        return frozenset(itertools.chain(*self._aliases))

    @cached_property
    def _targets(self) -> list[str]:
        content = {word for word, kind in self._kinds.items() if kind not in (*SAYS_NOTHING, "cue")}
        phrases = itertools.chain(*(phrase.split() for phrase in (*COMMON, *self.phrases)))
        cues = (word for phrase in NEGATIONS for word in phrase.split() if len(word) >= LONG_CUE)
        return sorted({*content, *self._own_words, *phrases, *cues} - FILLERS - {*NUMBER_WORDS})

    def _without_foreign(self, words: Sequence[str]) -> list[str]:
        """Words without sentences about other organs; nothing where the finding, or no organ of its own, is named."""
        sentences = split_words(words, ";")
        own = [sentence for sentence in sentences if not self._has_foreign(sentence) or DEVICES & set(sentence)]
        foreign = [word for sentence in sentences if sentence not in own for word in sentence]
        if foreign and (
            has_kind(foreign, self.kind, "noun", "organ") or not has_kind(_chain(own), self.kind, "organ")
        ):
            return []
        return [word for sentence in own for word in (";", *sentence)][1:]

    def _has_foreign(self, words: Iterable[str]) -> bool:
        unknown = [word for word in words if self.kind(word) == "unknown" and word not in self.likenesses]
        return any({word, word.removesuffix("s")} & FOREIGN for word in unknown)

    def _list_lost(self, words: Sequence[str], findings: Sequence[Finding]) -> list[str]:
        """What words state that no finding holds: places and values that do not go together, and other numbers."""
        stated = {(name, value) for finding in findings for name, value in finding.items()}
        found = self._find_values(words)
        lost = [value for name, values in found.items() for value in values if (name, value) not in stated]
        numbers = [
            word for index, word in enumerate(words) if word in NUMBER_WORDS[1:] and not self._counts(words, index)
        ]
        return [*dict.fromkeys((*lost, *numbers))]

    def _fill(self, template: str, finding: Mapping[str, object]) -> str:
        """Fills a template with what is stated, and leaves out what goes with what is not."""
        stated = finding.keys()
        text = re.sub(r"\[(.*?)\]", lambda match: match[1] if set(_field_names(match[1])) <= stated else "", template)
        text = re.sub(r"\{(\w+)\}", lambda match: match[0] if match[1] in stated else "", text)
        if text != template:
            text = re.sub(r"\s+(?=[\s.])", "", re.sub(r"(?<=\s),+|,+(?=\s)|,(?=,)", "", text))
        return text.format(**finding)

    def _read_findings(self, words: Sequence[str]) -> list[Finding]:
        """Findings of all sentences."""
        groups: list[list[Draft]] = []
        announced = 0
        for sentence in split_words(words, ";"):
            before = len(groups)
            # Objects that are told one by one: "two polyps, one small, one large".
            unnamed: Iterator[Draft] = iter(())
            for clause in self._split_objects(sentence):
                stated = self._read_clause(clause)
                is_named = has_kind(clause, self.kind, "noun")
                known = [finding for group in groups if any(group) for finding in group]
                if not is_named and (told := [*itertools.islice(unnamed, len(stated))]):
                    for finding, more in zip(told, stated):
                        finding.update(more)
                elif not is_named and len(known) == len(stated) == 1 and not stated[0].keys() & known[0].keys():
                    known[0].update(stated[0])
                elif is_named or any(stated):
                    groups.append(stated)
                    unnamed = iter(stated if len(stated) > 1 else ())
            announced = max(announced, sum(len(group) for group in groups[before:] if not any(group)))
        findings: list[Finding] = [finding for group in groups if any(group) for finding in group]
        # What has no sentence with a number is not counted, as nuclei are not.
        count = announced if self.header else min(announced, 1)
        return [*findings, *({} for _ in range(count - len(findings)))]

    def _split_objects(self, words: Sequence[str]) -> list[list[str]]:
        """The parts of a sentence that speak of different objects: "a small polyp and a large polyp"."""
        parts: list[list[str]] = [[]]
        is_named = False
        for piece in cut_pieces(words):
            names = has_kind(piece.words, self.kind, "noun")
            is_other = names and piece.separator == "and" and has_kind(parts[-1], self.kind, "noun")
            if is_other or (is_named and piece.words[0] in NUMBER_WORDS):
                parts.append(piece.words)
            else:
                parts[-1] += [piece.separator, *piece.words] if parts[-1] else piece.words
            is_named |= names
        return parts

    def _read_clause(self, words: Sequence[str]) -> list[Draft]:
        """Findings of words about one or several objects, all of which may be empty."""
        found = self._find_values(words)
        count = self._count_objects(words) or self._count_sides(words)
        findings: list[Draft] = [{} for _ in range(count)]
        for name, values in found.items():
            # One value each, or one for all; anything else does not say which finding has which.
            if len(values) == count or len(set(values)) == 1:
                for finding, value in zip(findings, itertools.cycle(values)):
                    finding[name] = value
        return findings

    def _names_finding(self, words: Sequence[str]) -> bool:
        """Whether words name the finding, or count it: "only a small one"."""
        counts = (self._counts(words, index) for index in range(len(words)))
        return has_kind(words, self.kind, "noun") or any(counts)

    def _count_objects(self, words: Sequence[str]) -> int:
        """The largest number that counts objects; 0 where none does."""
        counts = [NUMBER_WORDS.index(word) + 1 for index, word in enumerate(words) if self._counts(words, index)]
        return max(counts, default=0)

    def _count_sides(self, words: Sequence[str]) -> int:
        """How many objects are in places that one cannot have together: "a polyp on the left and on the right"."""
        pieces = cut_pieces(words)[-2:]
        if not (self.header and len(pieces) == 2 and pieces[1].separator == "and"):
            return 1
        if pieces[1].words[0] not in ("on", "in", "at"):  # "filling the left and right" is one
            return 1
        values = [value for piece in pieces for value in self._find_values(piece.words).get("place", [])]
        sides = {word for value in values for word in value.split()}
        axes = (self.place_words.rows, self.place_words.columns)
        return 2 if len(values) == 2 and any(sides >= {first, last} for first, _, last in axes) else 1

    def _counts(self, words: Sequence[str], index: int) -> bool:
        """Whether a word is a number before the finding's name, or at the start of words that leave the name out."""
        if words[index] not in NUMBER_WORDS:
            return False
        after = itertools.takewhile(lambda word: word not in ENDS_OF_NUMBERS, words[index + 1 :])
        is_first = index == 0 or words[index - 1] in SEPARATORS
        rest = [*itertools.takewhile(lambda word: word not in SEPARATORS, words[index + 1 :])]
        return has_kind([*after], self.kind, "noun") or (is_first and has_kind(rest, self.kind, "value", "place"))

    def _find_values(self, words: Sequence[str]) -> dict[str, list[str]]:
        """Values of each attribute in the order of the words."""
        found: dict[str, list[str]] = {}
        for phrase in cut_phrases(words, self._values):
            if phrase in self._values:
                attribute, value = self._values[phrase]
                found.setdefault(attribute.name, []).append(value)
        return found

    def _read_scope(self, words: Sequence[str]) -> list[Finding]:
        """What the words in the scope of a negation deny; nothing where they speak of something else."""
        words = without_others(words, self.kind)
        kinds = [kind for word in words if (kind := self.kind(word)) in CONTENT]
        return [] if is_of_another(kinds) else self._read_absences(words)

    def _read_absences(self, words: Sequence[str]) -> list[Finding]:
        """What words deny."""
        found = self._find_values(words)
        if not (found or has_kind(words, self.kind, "noun", "organ")):
            return []
        # "No tumor or cyst" denies both, and so does "no benign or malignant tumor".
        objects = sum(has_kind(piece.words, self.kind, "noun") for piece in cut_pieces(words))
        places = {attribute.name for attribute in self.attributes if attribute.is_place}
        values = {attribute.name: set(attribute.values) for attribute in self.attributes}
        found = {
            name: stated
            for name, stated in found.items()
            if name in places or (len(stated) >= objects and set(stated) != values[name])
        }
        count = max(map(len, found.values()), default=1)
        return [{name: values[index % len(values)] for name, values in found.items()} for index in range(count)]

    def _reconcile(
        self, findings: list[Finding], absent: list[Finding], has_exception: bool, has_rest: bool
    ) -> tuple[list[Finding], list[Finding]]:
        """What is there and what is absent, when a caption says both.

        Args:
            findings: What is said to be there.
            absent: What is said to be absent.
            has_exception: Whether the first is an exception from the second.
            has_rest: Whether only what is not there is said to be absent.

        Raises:
            Contradiction: If the same is said to be there and to be absent.
        """
        if not findings:
            return findings, [{}] if {} in absent else absent
        parts = [finding for finding in absent if finding]
        is_denied = {} in absent and not any(findings) and not (has_exception or has_rest)
        if is_denied or any(part.items() <= finding.items() for part in parts for finding in findings):
            raise Contradiction
        return findings, parts


class Contradiction(Exception):
    """A caption says of the same thing that it is there and that it is not."""


def without_others(words: Sequence[str], kind: Callable[[str], str]) -> list[str]:
    """Words of a negation without what is denied of the finding itself: "no vascularity in the mass"."""
    own: list[str] = []
    for piece in cut_pieces(words):
        before = [*itertools.takewhile(lambda word: kind(word) != "noun", piece.words)]
        if len(before) == len(piece.words) or not has_kind(before, kind, "other"):
            own += [piece.separator, *piece.words] if own else piece.words
    return own


def is_of_another(kinds: Sequence[str]) -> bool:
    """Whether what is denied is not the finding of a family, or only one of a kind that it does not know."""
    named = kinds.index("noun") if "noun" in kinds else len(kinds)
    return "unknown" in kinds[:named] or (named == len(kinds) and "other" in kinds)


def _chain(sentences: Iterable[Sequence[str]]) -> list[str]:
    return [word for sentence in sentences for word in sentence]


def _field_names(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name]


def _count(number: int) -> str:
    """A number at the beginning of a sentence."""
    return NUMBER_WORDS[number - 1].capitalize() if number <= len(NUMBER_WORDS) else str(number)
