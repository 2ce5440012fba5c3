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

"""What captions mean: families of captions, each with a schema, a tolerant parser and a renderer.

The augmentation asks here how a caption changes with its image, the caption head which captions there are, and the
consistency check what a user's caption says.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from string import Formatter
from typing import Any


NUMBERS = ("one", "two", "three", "four", "five", "six")

# Shorter words have too many neighbours to be corrected.
SHORTEST_CORRECTED = 4
SIMILARITY = 0.8

_WORD = re.compile(r"[a-z0-9]+")
_WORD_OR_COMMA = re.compile(r"[a-z0-9]+|,")
_SENTENCE_END = re.compile(r"[.;]")

# What one finding states: the value of each attribute, or its values, where several may hold at once.
Finding = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Caption:
    """A caption that was understood.

    Args:
        family: Name of its family.
        findings: What it states of each object. An attribute that it does not state is missing.
        unknown_words: Words that the family does not know; they do not count when captions are compared.
    """

    family: str
    findings: tuple[Finding, ...]
    unknown_words: tuple[str, ...] = field(default=(), compare=False)

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


@dataclass(frozen=True)
class Attribute:
    """Something that a caption may state.

    Args:
        name: Its name, unique in its family.
        values: What it can be.
        synonyms: Other names, each with the value that it stands for.
        multiple: Whether several values may hold at once; a finding has a tuple of them then, ordered as `values`.
        is_place: Whether it says where something is, which is not true of a part of the image.
    """

    name: str
    values: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    multiple: bool = False
    is_place: bool = False

    @property
    def names(self) -> dict[str, str]:
        """Every name that is understood, with the value that it stands for."""
        return {**self.synonyms, **{value: value for value in self.values}}


def place_attribute(words: PlaceWords, name: str = "place") -> Attribute:
    """The nine places, named by `words`, and understood in the words of other families and in either order too."""
    synonyms: dict[str, str] = {"centre": words.center, "central": words.center, "middle": words.center}
    for style in PLACE_WORDS:
        for other, value in zip(style.names, words.names):
            synonyms |= {other: value, " ".join(reversed(other.split())): value}
    return Attribute(name, words.names, synonyms, is_place=True)


@dataclass(frozen=True)
class CaptionFamily:
    """A schema, with the words to read and to write captions in it.

    Args:
        name: Its name.
        nouns: Words of which a caption of this family has at least one.
        attributes: What its captions state.
        templates: Sentences with the names of attributes in braces. A finding is written in the first one that has
            all that it states.
        header: Begins a caption of several findings, with their number as `{count}`.
        place_words: Its words for places, by which captions are rewritten when an image is flipped or turned.
        fillers: Words that say nothing about an attribute.
        is_upright: Whether its images are never turned or put upside down.

    Example:

    ```python
    >>> size, place = Attribute("size", ("small", "large"), {"tiny": "small"}), place_attribute(TOP_BOTTOM)
    >>> moles = CaptionFamily("mole", ("mole",), (size, place), ("One {size} mole on the {place}.",))
    >>> register_family(moles)
    >>> parse_caption("a Tiny mole, left top").findings
    ({'size': 'small', 'place': 'top left'},)
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

    def parse(self, text: str) -> Caption | None:
        """Reads a caption, or returns `None` where none of the family's nouns is in it."""
        if not any(word in self.nouns for word in self.read_words(text)):
            return None
        clauses = [self._read_clause(self.read_words(clause)) for clause in _SENTENCE_END.split(text)]
        findings = [finding for clause, _ in clauses for finding in clause]
        unknown = [word for _, words in clauses for word in words]
        return Caption(self.name, tuple(findings), tuple(unknown))

    def render(self, caption: Caption) -> str:
        """Writes a caption as the family's data do.

        Raises:
            ValueError: If a finding states what no template of the family has together.
        """
        sentences = [self.render_finding(finding) for finding in caption.findings]
        if self.header and len(sentences) > 1:
            sentences.insert(0, self.header.format(count=NUMBERS[len(sentences) - 1].capitalize()))
        return "".join(sentences)

    def render_finding(self, finding: Finding) -> str:
        """Writes one finding; see `render`."""
        for template in self.templates:
            names = _field_names(template)
            if finding.keys() <= set(names):
                text = template.format(**{name: finding.get(name, "") for name in names})
                return re.sub(r",(?=[,\s])|(?<=\s),|\s(?=\s)", "", text)
        raise ValueError(f"No sentence about {self.name} states {', '.join(finding)} together.")

    def captions(self) -> Iterator[Caption]:
        """Every complete caption of one finding."""
        values = {attribute.name: attribute.values for attribute in self.attributes}
        for template in self.templates:
            names = _field_names(template)
            for chosen in itertools.product(*(values[name] for name in names)):
                yield Caption(self.name, (dict(zip(names, chosen)),))

    def read_words(self, text: str) -> list[str]:
        """The words and commas of a text in lower case, misspelt ones and plurals as the family spells them."""
        return [self._correct(word) for word in _WORD_OR_COMMA.findall(text.lower())]

    @cached_property
    def _phrases(self) -> dict[tuple[str, ...], tuple[Attribute, str]]:
        return {
            tuple(_WORD.findall(name.lower())): (attribute, value)
            for attribute in self.attributes
            for name, value in attribute.names.items()
        }

    @cached_property
    def _vocabulary(self) -> set[str]:
        return {*self.nouns, *self.fillers, *FILLERS, *NUMBERS, *itertools.chain(*self._phrases)}

    def _correct(self, word: str) -> str:
        for known in (word, word.removesuffix("s")):
            if known in self._vocabulary:
                return known
        if len(word) < SHORTEST_CORRECTED:
            return word
        return next(iter(get_close_matches(word, sorted(self._vocabulary), 1, SIMILARITY)), word)

    def _read_clause(self, words: list[str]) -> tuple[list[Finding], list[str]]:
        """Findings of one sentence and the words that are not known."""
        found, unknown = self._find_values(words)
        counts = [NUMBERS.index(word) + 1 for word in words if word in NUMBERS]
        count = max(counts, default=1)
        findings: list[dict[str, str | tuple[str, ...]]] = [{} for _ in range(count if found else 0)]
        for name, values in found.items():
            # One value each, or one for all; anything else does not say which finding has which.
            if len(values) in (1, count):
                for finding, value in zip(findings, itertools.cycle(values)):
                    finding[name] = value
        return [*findings], unknown

    def _find_values(self, words: Sequence[str]) -> tuple[dict[str, list], list[str]]:
        """Values of each attribute in the order of the words, and words that are not known."""
        found: dict[str, list] = {}
        unknown = []
        longest = max(map(len, self._phrases))
        position = 0
        while position < len(words):
            lengths = range(min(longest, len(words) - position), 0, -1)
            spans = (tuple(words[position : position + length]) for length in lengths)
            phrase = next((span for span in spans if span in self._phrases), None)
            if phrase is not None:
                attribute, value = self._phrases[phrase]
                found.setdefault(attribute.name, []).append(value)
            elif words[position] not in self._vocabulary:
                unknown.append(words[position])
            position += len(phrase or (words[position],))
        return found, unknown


class LungInfectionFamily(CaptionFamily):
    """Infected zones of two lungs, whose sentence has a grammar of its own.

    `all` stands for all three zones, and so does a lung without one; a lung that is not named has none.
    """

    LUNGS = {"left": "left lung", "right": "right lung"}
    ZONES = ("upper", "middle", "lower")

    def render_finding(self, finding: Finding) -> str:
        lungs = [(finding.get(lung, ()), lung) for lung in self.LUNGS.values()]
        count = finding.get("count")
        parts = [f"{finding.get('sides', '')} pulmonary infection".strip()]
        parts += [f"{count} infected area{'s' * (count != 'one')}"] if count else []
        parts += [" and ".join(f"{' '.join(zones)} {lung}" for zones, lung in lungs if zones)]
        return ", ".join(filter(None, parts)) + "."

    def captions(self) -> Iterator[Caption]:
        subsets = [
            tuple(zone for zone, is_in in zip(self.ZONES, bits) if is_in)
            for bits in itertools.product((False, True), repeat=3)
        ]
        for left, right in itertools.product(subsets, repeat=2):
            if left or right:
                yield Caption(self.name, (lung_finding(left, right),))

    def parse(self, text: str) -> Caption | None:
        return super().parse(_SENTENCE_END.sub(",", text))  # all sentences speak of the same two lungs

    def _read_clause(self, words: list[str]) -> tuple[list[Finding], list[str]]:
        found, unknown = self._find_values([word for word in words if word not in self.ZONES])
        finding: dict[str, str | tuple[str, ...]] = {name: values[0] for name, values in found.items()}
        lungs = self._read_lungs(words)
        if lungs:
            for side, name in self.LUNGS.items():
                finding[name] = tuple(zone for zone in self.ZONES if zone in lungs.get(side, ()))
        return [finding] if finding else [], unknown

    def _read_lungs(self, words: list[str]) -> dict[str, set[str]]:
        """Zones of each lung that is named: those before it, or those between it and the next comma."""
        lungs: dict[str, set[str]] = {}
        named: list[str] = []  # the lungs named last, while their zones are not known
        sides: list[str] = []
        zones: set[str] = set()
        for word in [*words, ","]:
            if word in self.ZONES or word == "all":
                zones |= set(self.ZONES) if word == "all" else {word}
            elif word in self.LUNGS or word == "both":
                sides += self.LUNGS if word == "both" else [word]
            elif word == "lung" and sides:
                lungs |= {side: lungs.get(side, set()) | zones for side in sides}
                named, sides, zones = [] if zones else sides, [], set()
            elif word == "," and named and zones and not sides:
                lungs |= {side: lungs[side] | zones for side in named}
                named, zones = [], set()
        return {side: zones or set(self.ZONES) for side, zones in lungs.items()}


def lung_finding(left: Sequence[str], right: Sequence[str]) -> Finding:
    """The finding of infected zones, one area in each.

    Args:
        left: Infected zones of the lung on the image's left, in the order upper, middle, lower.
        right: Infected zones of the other lung.
    """
    return {
        "sides": "bilateral" if left and right else "unilateral",
        "count": NUMBERS[len(left) + len(right) - 1],
        "left lung": tuple(left),
        "right lung": tuple(right),
    }


def _field_names(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name]


FILLERS = (
    ",",
    "a",
    "an",
    "the",
    "and",
    "in",
    "of",
    "on",
    "with",
    "is",
    "are",
    "it",
    "image",
    "located",
    "at",
    "there",
)

LUNG_INFECTION = LungInfectionFamily(
    name="lung infection",
    nouns=("lung", "pulmonary"),
    attributes=(
        Attribute("sides", ("unilateral", "bilateral")),
        Attribute("count", NUMBERS),
        Attribute("left lung", LungInfectionFamily.ZONES, multiple=True, is_place=True),
        Attribute("right lung", LungInfectionFamily.ZONES, multiple=True, is_place=True),
    ),
    templates=(),
    place_words=UPPER_MIDDLE_LOWER,
    fillers=("infection", "infected", "area", "left", "right", "both", "all", "zone"),
    is_upright=True,
    finding="infection",
)
POLYP = CaptionFamily(
    name="polyp",
    finding="polyp",
    nouns=("polyp",),
    attributes=(
        Attribute("size", ("small", "medium", "large")),
        Attribute(
            "shape",
            ("circular", "elliptical", "irregular", "cauliflower-shaped"),
            {"round": "circular", "circle": "circular", "oval": "elliptical", "ovoid": "elliptical"},
        ),
        Attribute("surface", ("smooth", "partially smooth", "ulcerated")),
        place_attribute(TOP_MIDDLE_BOTTOM),
    ),
    templates=("One {size},{shape},{surface} colonic polyp on the {place}.",),
    header="{count} colonic polyps.",
    place_words=TOP_MIDDLE_BOTTOM,
    # Paraphrases name colours, which the schema does not hold.
    fillers=("colonic", "shape", "white", "yellow", "brown", "pink", "orange", "tan", "red", "black", "gray", "peach"),
)
NUCLEI = CaptionFamily(
    name="nuclei",
    finding="nuclei",
    nouns=("nuclei", "nucleus"),
    attributes=(
        Attribute("distribution", ("evenly", "sparsely", "irregularly")),
        place_attribute(UPPER_LOWER),
        Attribute("periphery", ("around",), {"periphery": "around"}, is_place=True),
    ),
    templates=(
        "The nuclei are {distribution} distributed.",
        "The nuclei density in the {place} is high.",
        "The nuclei density is higher {periphery}.",
    ),
    place_words=UPPER_LOWER,
    fillers=("density", "high", "higher", "distributed"),
)

FAMILIES: dict[str, CaptionFamily] = {}


def register_family(family: CaptionFamily):
    """Makes a family known to everything that reads or writes captions; one of the same name is replaced."""
    FAMILIES[family.name] = family
    parse_caption.cache_clear()
    _place_vocabulary.cache_clear()


@lru_cache(maxsize=4096)
def parse_caption(text: str) -> Caption | None:
    """Reads a caption of any registered family.

    Case, order, plurals, punctuation and small misspellings do not matter.

    Returns:
        What the caption states, in the family that knows most of its words, or `None` where no family has its nouns.
    """
    captions = [caption for family in FAMILIES.values() if (caption := family.parse(text)) is not None]
    return min(captions, key=lambda caption: len(caption.unknown_words), default=None)


def render_caption(caption: Caption) -> str:
    """Writes a caption; `parse_caption` reads the same caption from it."""
    return FAMILIES[caption.family].render(caption)


def names_a_place(text: str) -> bool:
    """Whether a caption says where something is, which is true of the whole image but not of a part of it."""
    return any(word in _place_vocabulary() for word in _WORD.findall(text.lower()))


@lru_cache(maxsize=1)
def _place_vocabulary() -> frozenset[str]:
    attributes = [attribute for family in FAMILIES.values() for attribute in family.attributes if attribute.is_place]
    names = itertools.chain(*(attribute.names for attribute in attributes), _swaps("columns"), _swaps("rows"))
    return frozenset(word for name in names for word in _WORD.findall(name.lower()))


def rewrite_caption(
    text: str, flip_horizontal: bool = False, flip_vertical: bool = False, transpose: bool = False
) -> str:
    """Rewrites a caption so that it stays true of a transformed image. Only its words of place change.

    "Left" is the image's left. The image is first transposed (rows become columns), then flipped; rotations by 90
    degrees are a transposition and one flip. Each of the three is its own inverse. A sentence that no family
    understands is rewritten too, by the words of place that it has.

    Args:
        text: The caption of the image before.
        flip_horizontal: Whether left and right change places.
        flip_vertical: Whether top and bottom change places.
        transpose: Whether rows and columns change places.

    Raises:
        ValueError: If the caption speaks of lungs, or of anything else that is upright, and the image would be turned
            or put upside down.
    """
    if not (flip_horizontal or flip_vertical or transpose):
        return text
    caption = parse_caption(text)
    family = None if caption is None else FAMILIES[caption.family]
    if (flip_vertical or transpose) and family is not None and family.is_upright:
        raise ValueError(f"An image of {family.name} is not turned or put upside down: {text!r}.")
    if transpose:
        text = _transpose(text, family.place_words if family else TOP_BOTTOM)
    for flip, axis in ((flip_horizontal, "columns"), (flip_vertical, "rows")):
        if flip:
            text = _replace_words(text, _swaps(axis))
    return text


def _swaps(axis: str) -> dict[str, str]:
    """Words at one end of an axis, "rows" or "columns", in any family, with the word for its other end."""
    styles = [*PLACE_WORDS, *(family.place_words for family in FAMILIES.values())]
    ends = [(getattr(style, axis)[0], getattr(style, axis)[2]) for style in styles]
    return dict(ends) | {last: first for first, last in ends}


def _transpose(text: str, words: PlaceWords) -> str:
    """Turns row words into column words and the reverse, with row words that the text has, or else `words`."""
    used = set(_WORD.findall(text.lower()))
    styles = [style for style in (*PLACE_WORDS, words) if used & {style.rows[0], style.rows[2]}]
    chosen = next(iter(styles), words)
    turned = {style.rows[end]: style.columns[end] for style in (*PLACE_WORDS, words) for end in (0, 2)}
    turned |= {chosen.columns[end]: chosen.rows[end] for end in (0, 2)}
    turned |= {"middle": "middle"}
    # A place of two words names the row first, and so each run of words is turned round.
    alternatives = "|".join(turned)
    run = re.compile(rf"\b(?:{alternatives})(?:[\s-]+(?:{alternatives}))*\b", re.IGNORECASE)

    def turn(match: re.Match) -> str:
        places = [turned[word.lower()] for word in re.findall(r"\w+", match[0])]
        return re.sub(r"\w+", lambda word: _match_case(word[0], places.pop()), match[0])

    return run.sub(turn, text)


def _replace_words(text: str, replacements: Mapping[str, str]) -> str:
    pattern = re.compile(rf"\b({'|'.join(replacements)})\b", re.IGNORECASE)
    return pattern.sub(lambda match: _match_case(match[0], replacements[match[0].lower()]), text)


def _match_case(old: str, new: str) -> str:
    if old.isupper():
        return new.upper()
    return new.capitalize() if old[0].isupper() else new


def candidate_captions(families: Iterable[CaptionFamily]) -> Iterator[tuple[Caption, str]]:
    """Every complete caption of the families, with its text."""
    for family in families:
        for caption in family.captions():
            yield caption, family.render(caption)


for _family in (LUNG_INFECTION, POLYP, NUCLEI):
    register_family(_family)


# Agreement below which an attribute is named as one that does not fit.
AGREEMENT = 0.5


@dataclass(frozen=True)
class CaptionCheck:
    """Whether a caption fits its image.

    Args:
        score: Probability in [0, 1] that the caption belongs to the image, when half of all captions belong to other
            ones.
        disagreements: One sentence for each attribute in which they differ.
        mask_agreement: Soft Dice in [0, 1] of the masks with the caption and with the null text; `None` where the
            network did not read it.
    """

    score: float
    disagreements: tuple[str, ...]
    mask_agreement: float | None = None


def find_disagreements(caption: Caption, described: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences about what a caption states and its image does not show.

    Args:
        caption: What the caption states. Of several findings the one that fits best counts: the image is described as
            if it had one.
        described: What the image shows, as `LViTCaptionHead.decode` returns it. Attributes and values that it does not
            know are passed over.
    """
    probability = described["families"].get(caption.family, 0.0)
    if probability < AGREEMENT:
        other = max(described["families"], key=described["families"].get)
        shown = described["families"][other]
        return (f"the caption speaks of {caption.family}, the image of {other} ({shown:.2f})",)
    attributes = {row["name"]: row["values"] for row in described["attributes"] if row["family"] == caption.family}
    compared = [
        [
            _compare_values(name, stated, attributes[name], probability)
            for name, stated in finding.items()
            if name in attributes and set(_as_tuple(stated)) <= attributes[name].keys()
        ]
        for finding in caption.findings
    ]
    best = max(compared, key=lambda rows: sum(agreement for agreement, _ in rows) / max(len(rows), 1), default=[])
    return tuple(sentence for _, sentence in best if sentence)


def _compare_values(
    name: str, stated: str | tuple[str, ...], values: Mapping[str, float], family: float
) -> tuple[float, str | None]:
    """Agreement in [0, 1] of an attribute's stated values with their probabilities, and a sentence where it is low."""
    if isinstance(stated, str):
        agreement, likeliest = values[stated], max(values, key=lambda value: values[value])
        probability = values[likeliest]
    else:
        # A value that is not stated is denied, and one that is wrong is enough.
        agreement = min(shown if value in stated else family - shown for value, shown in values.items())
        likeliest = " and ".join(value for value, shown in values.items() if shown > AGREEMENT) or "none"
        probability = math.prod(max(shown, 1 - shown) for shown in values.values())
        stated = " and ".join(stated) or "none"
    if agreement >= AGREEMENT or likeliest == stated:
        return agreement, None
    return agreement, f"{name}: the caption says {stated}, the image speaks for {likeliest} ({probability:.2f})"


def _as_tuple(values: str | tuple[str, ...]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else values


# STUB
@dataclass(frozen=True)
class Reading:
    given: str
    text: str | None
    understood: bool
    caption: Caption | None
    unknown_words: tuple[str, ...] = ()
    corrections: tuple[tuple[str, str], ...] = ()
    absent: bool = False
    judged: bool = True
    side: str = "image"
    message: str = ""


def read_caption(text, families=None, side="image"):
    families = [name for name in families if name in FAMILIES] if families is not None else list(FAMILIES)
    if not families:
        return Reading(text, text, False, None, judged=False)
    caption = parse_caption(text)
    understood = caption is not None and caption.family in families
    unknown = () if caption is None else caption.unknown_words
    return Reading(text, text if understood else None, understood, caption, unknown)
