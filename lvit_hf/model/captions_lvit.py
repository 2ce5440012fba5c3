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
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from .caption_grammar_lvit import (
    PLACE_WORDS,
    TOP_BOTTOM,
    TOP_MIDDLE_BOTTOM,
    UPPER_LOWER,
    UPPER_MIDDLE_LOWER,
    WORD,
    Attribute,
    Caption,
    CaptionFamily,
    Contradiction,
    Draft,
    Finding,
    PlaceWords,
    place_attribute,
)
from .caption_statements_lvit import REST, cut_pieces, has_kind, split_words
from .caption_words_lvit import (
    BREAST_FILLERS,
    BREAST_LIKENESSES,
    BREAST_OTHER_FILLERS,
    BREAST_OTHERS,
    BREAST_PHRASES,
    LUNG_FILLERS,
    LUNG_OTHERS,
    LUNG_PHRASES,
    NUCLEI_FILLERS,
    NUCLEI_ORGANS,
    NUCLEI_OTHER_FILLERS,
    NUCLEI_PHRASES,
    NUMBER_WORDS,
    NUMBERS,
    POLYP_FILLERS,
    POLYP_LIKENESSES,
    POLYP_OTHER_FILLERS,
    POLYP_OTHERS,
    POLYP_PHRASES,
    SIDES_NAMED,
)


class NucleiFamily(CaptionFamily):
    """How nuclei are distributed; its places are those where there are many."""

    def _read_clause(self, words: Sequence[str]) -> list[Draft]:
        parts = [piece.words for piece in cut_pieces(words)]
        sparse = [part for part in parts if "sparsely" in part and self._names_place(part)]
        others = [part for part in parts if part not in sparse]
        if any(map(self._names_place, others)):
            # "Dense on the left, sparse elsewhere" says where there are many.
            sparse += [part for part in others if "sparsely" in part and REST & set(part)]
        if sparse:
            words = [word for part in parts if part not in sparse for word in (",", *part)][1:]
        return [
            {name: value for name, value in finding.items() if name == "distribution" or "sparsely" not in words}
            for finding in super()._read_clause(words)
        ]

    def _names_place(self, words: Sequence[str]) -> bool:
        return has_kind(words, self.kind, "place")


class LungInfectionFamily(CaptionFamily):
    """Infected zones of two lungs, whose sentence has a grammar of its own.

    `all` stands for all three zones, and so does a lung without one; a lung that is not named has none.
    """

    LUNGS = {"left": "left lung", "right": "right lung"}
    ZONES = ("upper", "middle", "lower")
    # A number may stand before one of these instead of the finding.
    COUNTED = frozenset(
        ("area", "areas", "zone", "zones", "lobe", "lobes", "field", "fields", "region", "regions", "focus", "foci")
    )
    # Zones of no lung are those of both where one of these is said.
    PLURALS = frozenset(("zones", "lobes", "fields", "lungs", "bilateral", "all"))

    def render_finding(self, finding: Finding) -> str:
        count = finding.get("count")
        parts = [f"{finding.get('sides', '')} pulmonary infection".strip()]
        parts += [f"{count} infected area{'s' * (count != 'one')}"] if count else []
        parts += [
            self._render_lungs(
                {lung: zones for lung, zones in finding.items() if lung in self.LUNGS.values() and zones}
            )
        ]
        return ", ".join(filter(None, parts)) + "."

    def render_absence(self, finding: Finding) -> str:
        if not finding:
            return "No pulmonary infection."
        parts = {lung: () if zones == self.ZONES else zones for lung, zones in finding.items()}
        return f"No infection in the {self._render_lungs(parts)}."

    def _render_lungs(self, finding: Finding) -> str:
        return " and ".join(" ".join([*finding[lung], lung]) for lung in self.LUNGS.values() if lung in finding)

    def write(self, caption: Caption) -> str:
        findings = [
            {**finding, **lung_finding(*lungs)} if any(lungs) else finding
            for finding in caption.findings
            for lungs in [[finding.get(lung, ()) for lung in self.LUNGS.values()]]
        ]
        return super().write(replace(caption, findings=tuple(findings)))

    def captions(self) -> Iterator[Caption]:
        subsets = [
            tuple(zone for zone, is_in in zip(self.ZONES, bits) if is_in)
            for bits in itertools.product((False, True), repeat=3)
        ]
        for left, right in itertools.product(subsets, repeat=2):
            if left or right:
                yield Caption(self.name, (lung_finding(left, right),))

    @property
    def sides(self) -> tuple[str, ...]:
        return (*self.LUNGS, "both")

    def _list_lost(self, words: Sequence[str], findings: Sequence[Finding]) -> list[str]:
        lungs = [side for side, lung in self.LUNGS.items() if any(finding.get(lung) for finding in findings)]
        whole = [finding for finding in findings if finding.keys() >= {*self.LUNGS.values()}]  # none that is absent
        infected = [lung for finding in whole for lung in self.LUNGS.values() if finding[lung]]
        zones = {zone for finding in findings for lung in self.LUNGS.values() for zone in finding.get(lung, ())}
        kept = {*lungs, *zones}
        is_otherwise = {1: {"bilateral", "both"}, 2: {"unilateral"}}.get(len(infected), set())
        return [word for word in words if word in is_otherwise] + [
            *dict.fromkeys(word for word in words if word in (*self.LUNGS, *self.ZONES) and word not in kept)
        ]

    @property
    def _numbers(self) -> tuple[str, ...]:
        return NUMBERS

    @cached_property
    def _place_names(self) -> set[str]:
        return {*self.ZONES, *self.LUNGS, "both", "all"}

    def _counts(self, words: Sequence[str], index: int) -> bool:
        is_of_areas = words[index] in NUMBER_WORDS and {*words[index + 1 : index + 3]} & self.COUNTED
        return bool(is_of_areas) or super()._counts(words, index)

    def _read_findings(self, words: Sequence[str]) -> list[Finding]:
        """The one finding: all sentences speak of the same two lungs."""
        counted = [word for index, word in enumerate(words) if word not in NUMBER_WORDS or self._counts(words, index)]
        found = self._find_values([word for word in counted if word not in self.ZONES])
        finding: dict[str, str | tuple[str, ...]] = {name: values[0] for name, values in found.items()}
        finding |= self._read_lungs([("," if word == ";" else word) for word in words], self.PLURALS & set(words))
        return [finding] if finding or has_kind(words, self.kind, "noun") else []

    def _read_absences(self, words: Sequence[str]) -> list[Finding]:
        if not has_kind(words, self.kind, "noun", "organ", "place"):
            return []
        return [{lung: zones for lung, zones in self._read_lungs(words, True).items() if zones}]

    def _reconcile(
        self, findings: list[Finding], absent: list[Finding], has_exception: bool, has_rest: bool
    ) -> tuple[list[Finding], list[Finding]]:
        if not absent:
            return findings, absent
        names = self.LUNGS.values()
        denied = {lung: {zone for finding in absent for zone in finding.get(lung, ())} for lung in names}
        cleared = {lung: tuple(zone for zone in self.ZONES if zone in denied[lung]) for lung in names}
        is_whole = {} in absent or all(zones == self.ZONES for zones in cleared.values())
        left = [
            {lung: tuple(zone for zone in finding[lung] if zone not in denied[lung]) for lung in names}
            for finding in findings
            if finding.keys() >= set(names)
        ]
        if left and has_exception:
            kept = findings[0]
            cleared = {lung: tuple(zone for zone in cleared[lung] if zone not in kept[lung]) for lung in names}
        elif left and any(left[0].values()):
            findings = [{**findings[0], **left[0]}]
        elif left or (is_whole and findings and not (has_exception or has_rest)):
            raise Contradiction
        parts = {lung: zones for lung, zones in cleared.items() if zones}
        if is_whole and not findings:
            return [], [{}]
        return findings, [parts] if parts and not (is_whole and findings) else []

    def _read_lungs(self, words: Sequence[str], with_both: object) -> dict[str, tuple[str, ...]]:
        """Zones of both lungs, none of one that is not named; nothing where no lung is named.

        Args:
            words: Words, with commas between parts.
            with_both: Whether zones of no lung are those of both.
        """
        groups = _attach_zones(
            [group for part in split_words(words, ",") for group in _attach_zones(self._group_words(part))]
        )
        if any(group.zones for group in groups):
            # "Both lungs infected, upper left and lower right" says of both what follows.
            groups = [group for group in groups if group.zones or len(group.sides) < len(self.LUNGS)]
        lungs: dict[str, set[str]] = {}
        for group in groups:
            for side in group.sides or (self.LUNGS if with_both else ()):
                lungs[side] = lungs.get(side, set()) | group.zones
        if not lungs:
            return {}
        return {
            name: tuple(zone for zone in self.ZONES if zone in (lungs[side] or self.ZONES)) if side in lungs else ()
            for side, name in self.LUNGS.items()
        }

    def _group_words(self, words: Sequence[str]) -> list["_Zones"]:
        """Sides and zones that stand together: "upper left lung", "left upper and lower" are two and two."""
        groups: list[_Zones] = []
        for chunk in split_words(["and" if word == "or" else word for word in words], "and"):
            group = _Zones()
            if {*self.ZONES} & {*chunk}:  # "all upper zones" are not all zones
                chunk = [word for word in chunk if word != "all"]
                if not {*self.LUNGS, "both"} & {*chunk}:  # "lower zones bilaterally"
                    chunk = ["both" if word == "bilateral" else word for word in chunk]
            for word in chunk:
                if word in self.LUNGS or word == "both":
                    if group.sides and (group.is_closed or (group.is_side_first and group.zones)):
                        groups.append(group)
                        group = _Zones()
                    group.is_side_first |= not group.zones
                    group.sides += self.LUNGS if word == "both" else [word]
                elif word in self.ZONES or word == "all":
                    if group.sides and not group.is_side_first:
                        groups.append(group)
                        group = _Zones()
                    group.zones |= set(self.ZONES) if word == "all" else {word}
                elif word in ("lung", "lungs") and group.sides:
                    group.is_closed = True
            groups.append(group)
        return [group for group in groups if group.sides or group.zones]


@dataclass
class _Zones:
    """Sides and zones of lungs in one run of words.

    Args:
        sides: The lungs, by their sides.
        zones: The zones.
        is_side_first: Whether a side stands before the zones.
        is_closed: Whether the word "lung" ends the sides.
    """

    sides: list[str] = field(default_factory=list)
    zones: set[str] = field(default_factory=set)
    is_side_first: bool = False
    is_closed: bool = False


def _attach_zones(groups: Sequence[_Zones]) -> list[_Zones]:
    """Gives zones without a side to the group that they belong to, and sides without "lung" to what follows."""
    attached: list[_Zones] = []
    waiting: set[str] = set()
    for index, group in enumerate(groups):
        before = attached[-1] if attached else None
        if not group.sides:
            follows = any(later.sides for later in groups[index + 1 :])
            if before is not None and (before.is_side_first or not follows):
                before.zones |= group.zones
            else:
                waiting |= group.zones
            continue
        if before is not None and before.sides and not before.is_closed:
            if before.is_side_first and not before.zones and group.is_side_first:  # left and right lower zone
                group.sides = before.sides + group.sides
                attached.pop()
            elif not before.is_side_first and not group.zones:  # lower left and right lung
                group.zones |= before.zones
        group.zones |= waiting
        waiting = set()
        attached.append(group)
    return attached + ([_Zones(zones=waiting)] if waiting else [])


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


LUNG_INFECTION = LungInfectionFamily(
    name="lung infection",
    nouns=("infection", "infected"),
    attributes=(
        Attribute("sides", ("unilateral", "bilateral"), is_derived=True),
        Attribute("count", NUMBERS, is_derived=True),
        Attribute("left lung", LungInfectionFamily.ZONES, multiple=True, is_place=True),
        Attribute("right lung", LungInfectionFamily.ZONES, multiple=True, is_place=True),
    ),
    templates=(),
    place_words=UPPER_MIDDLE_LOWER,
    fillers=("pulmonary", "area", "and", "lung", "left", "right"),
    is_upright=True,
    has_sides=True,
    organs=("lung", "lungs", "pulmonary", "chest", "thorax", "lobe", "lobes", "cxr"),
    others=LUNG_OTHERS,
    known=LUNG_FILLERS,
    phrases=LUNG_PHRASES,
)
POLYP = CaptionFamily(
    name="polyp",
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
    templates=("One {size},{shape},{surface} colonic polyp[ on the {place}].",),
    header="{count} colonic polyps.",
    place_words=TOP_MIDDLE_BOTTOM,
    fillers=POLYP_FILLERS,
    others=POLYP_OTHERS,
    organs=("colonic", "colon", "mucosa", "colonoscopy", "bowel", "rectum", "rectal", "cecum", "sigmoid"),
    known=POLYP_OTHER_FILLERS,
    likenesses=POLYP_LIKENESSES,
    phrases=POLYP_PHRASES,
)
NUCLEI = NucleiFamily(
    name="nuclei",
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
    fillers=NUCLEI_FILLERS,
    known=NUCLEI_OTHER_FILLERS,
    likenesses=NUCLEI_ORGANS,
    phrases=NUCLEI_PHRASES,
)
BREAST_LESION = CaptionFamily(
    name="breast lesion",
    nouns=("tumor",),
    attributes=(
        Attribute("size", ("small", "medium", "large")),
        Attribute("kind", ("benign", "malignant")),
        place_attribute(TOP_BOTTOM),
    ),
    templates=("One {size} {kind} tumor[ at the {place}] in the breast ultrasound image.",),
    header="{count} tumors in the breast ultrasound image.",
    several="{count} {size} {kind} tumors[ at the {place}] in the breast ultrasound image.",
    fillers=BREAST_FILLERS,
    finding="lesion",
    organs=("breast",),
    others=BREAST_OTHERS,
    known=BREAST_OTHER_FILLERS,
    likenesses=BREAST_LIKENESSES,
    phrases=BREAST_PHRASES,
    absence="No tumor in the breast ultrasound image.",
)

FAMILIES: dict[str, CaptionFamily] = {}


def register_family(family: CaptionFamily):
    """Makes a family known to everything that reads or writes captions; one of the same name is replaced."""
    FAMILIES[family.name] = family
    parse_caption.cache_clear()
    _place_vocabulary.cache_clear()


@lru_cache(maxsize=4096)
def parse_caption(text: str) -> Caption | None:
    """Reads a caption of any registered family. "Left" is the image's left.

    Case, order, plurals, punctuation and small misspellings do not matter.

    Returns:
        What the caption states, in the family that knows most of its words, or `None` where no family has its nouns.
    """
    return _parse(text, FAMILIES)


def _parse(text: str, preferred: Container[str]) -> Caption | None:
    """Of families that know as many words, one of those preferred, or else one whose finding is named."""
    captions = [caption for family in FAMILIES.values() if (caption := family.parse(text)) is not None]

    def rank(caption: Caption) -> tuple[int, bool, bool]:
        is_named = FAMILIES[caption.family].finding in text.lower()
        return len(caption.unknown_words), caption.family not in preferred, not is_named

    return min(captions, key=rank, default=None)


def render_caption(caption: Caption) -> str:
    """Writes a caption; `parse_caption` reads the same caption from it.

    Of a family that is not registered here, it names attributes and values.
    """
    if caption.family in FAMILIES:
        return FAMILIES[caption.family].render(caption)
    stated = [f"{name} {' and '.join(_as_tuple(value))}" for name, value in caption.findings[0].items()]
    return f"{caption.family}: {', '.join(stated)}"


@dataclass(frozen=True)
class Reading:
    """What a caption says, and what a network is to be given of it.

    Args:
        given: The text as it was typed.
        text: What the network is to be given: with left and right of the image, and in words that the data of its
            family have. `None` where nothing was said that a network could be given.
        understood: Whether the caption is understood and of a kind that the model sees.
        caption: What it states, with left and right of the image; `None` where no family reads it.
        unknown_words: Words that were not understood.
        corrections: Misspelt words, each with the word that it was read as.
        absent: Whether it says that there is nothing to find, so that the mask is empty.
        judged: Whether captions can be judged. They cannot where the model has learnt those of no registered family;
            `text` is then what was given.
        side: Whose left and right the text was taken to mean, `"image"` or `"patient"`.
        message: Sentences for the user: what was understood, and what was not.
    """

    given: str
    text: str | None = None
    understood: bool = False
    caption: Caption | None = None
    unknown_words: tuple[str, ...] = ()
    corrections: tuple[tuple[str, str], ...] = ()
    absent: bool = False
    judged: bool = True
    side: str = "image"
    message: str = ""


SIDES = ("image", "patient")


def read_caption(text: str | None, families: Iterable[str] | None = None, side: str = "image") -> Reading:
    """Reads a caption for a network that has learnt captions of certain families.

    Args:
        text: The caption as it was typed.
        families: Names of the families; all that are registered by default. Other names do not count.
        side: Whose left and right the caption means, in words, in abbreviations such as "RUL" and in names such as
            "lingula": `"image"`, or `"patient"`, who faces the viewer of a frontal chest image. A caption that says so
            itself ("the patient's left") is taken at its word. Only families with `has_sides` have a patient's side.

    Raises:
        ValueError: If `side` is something else.
    """
    if side not in SIDES:
        raise ValueError(f'side must be "image" or "patient", got {side!r}.')
    given = text or ""
    given, side = _settle_side(given, side)
    learnt = [name for name in FAMILIES if families is None or name in set(families)]
    if not given.strip():
        return Reading(given, side=side, message="No caption was given.")
    if not learnt:
        message = "The model has learnt captions that are not known here, so the text is used and cannot be judged."
        return Reading(given, given, judged=False, side=side, message=message)
    caption = _parse(given, learnt)
    if caption is None:
        able = [FAMILIES[name] for name in learnt]
        able = [family for family in able if family.is_named_in(given)] or able
        unknown = min((family.list_unknown_words(given) for family in able), key=len)
        return Reading(given, unknown_words=unknown, side=side, message=_refuse(unknown))
    family = FAMILIES[caption.family]
    turned = turn_sides(given) if side == "patient" else given
    if turned != given:
        caption = replace(family.parse(turned) or caption, corrections=caption.corrections)
    reading = Reading(
        given, None, False, caption, caption.unknown_words, caption.corrections, caption.is_absent, side=side
    )
    if caption.family not in learnt:
        message = f"The caption speaks of {caption.family}, and the model sees {' or '.join(learnt)}: it is not used."
        return replace(reading, absent=False, message=message)
    if caption.contradicts_itself:
        message = "The caption says of the same thing that it is there and that it is not: it is not used."
        return replace(reading, message=message)
    if not caption.findings and not caption.absent:
        message = f"The caption says nothing about {family.finding}. {_refuse(caption.unknown_words)}"
        return replace(reading, message=message)
    is_own = not caption.corrections and family.uses_own_words(given)
    is_plain = not caption.absent or caption.is_absent
    text = turned if is_own and is_plain else family.write(caption) or None
    return replace(reading, text=text, understood=True, message=_explain(caption, side))


def _settle_side(text: str, side: str) -> tuple[str, str]:
    """Whose left and right a caption means, by its own words if it says so, and the caption without saying it twice.

    "Opacity in the left base (on the right of the image)" means the patient's left.
    """
    for mark in re.finditer(r"\s*\(([^()]*)\)|,?\s*i\.?e\.?,?\s([^.;]*)", text, re.IGNORECASE):
        rest = text[: mark.start()] + text[mark.end() :]
        named, said = _name_sides(mark[0]), set(re.findall(r"\b(?:left|right)\b", rest.lower()))
        if len(named) == 1 and len(said) == 1:
            [(frame, told)] = named.items()
            other = next(name for name in SIDES if name != frame)
            return rest, frame if told in said else other
    named = _name_sides(text)
    return text, next(iter(named)) if len(named) == 1 else side


def _name_sides(text: str) -> dict[str, str]:
    """The sides that a text names as the image's or the patient's, by whose they are."""
    found = {name: re.search(pattern, text.lower()) for name, pattern in SIDES_NAMED.items()}
    return {name: next(filter(None, match.groups())) for name, match in found.items() if match}


def _refuse(unknown: Sequence[str]) -> str:
    if not unknown:
        return "The caption is not used: it names nothing that the model looks for."
    return f"The caption is not used. These words were not understood: {', '.join(dict.fromkeys(unknown))}."


def _explain(caption: Caption, side: str) -> str:
    """What was understood of a caption, and how."""
    family = FAMILIES[caption.family]
    absences = [family.render_absence(finding) for finding in caption.absent]
    says = " ".join(filter(None, [family.write(caption) if caption.findings else "", *absences]))
    sentences = [f"Read as: {says}"]
    if family.has_sides and {"left", "right"} & set(WORD.findall(says.lower())):
        turned = "Turned from the patient's side to the image's: left" if side == "patient" else "Left"
        sentences.append(f"{turned} is {name_side('left')}.")
    if caption.corrections:
        sentences.append(f"Corrected: {', '.join(f'{typed} to {read}' for typed, read in caption.corrections)}.")
    if caption.unknown_words:
        sentences.append(f"Not understood: {', '.join(dict.fromkeys(caption.unknown_words))}.")
    if caption.is_absent:
        sentences.append("So the mask is empty.")
    elif not caption.findings:
        sentences.append("The network has no words for a part without a finding, so it gets no caption.")
    return " ".join(sentences)


def turn_sides(text: str) -> str:
    """Turns a caption from the patient's left and right to the image's, or back; done twice, it says the same again.

    A caption of a family that has no patient's side is not changed.
    """
    caption = parse_caption(text)
    has_sides = caption is not None and FAMILIES[caption.family].has_sides
    return rewrite_caption(text, flip_horizontal=True) if has_sides else text


def name_side(side: str) -> str:
    """Names "left" or "right" of a frontal image for a report: `"image left, the patient's right"`."""
    return f"image {side}, the patient's {_swaps('columns')[side]}"


def names_a_place(text: str) -> bool:
    """Whether a caption says where something is, which is true of the whole image but not of a part of it."""
    caption = parse_caption(text)
    texts = [text] if caption is None else [text, FAMILIES[caption.family].put_in_words(text)]
    return any(word in _place_vocabulary() for text in texts for word in WORD.findall(text.lower()))


@lru_cache(maxsize=1)
def _place_vocabulary() -> frozenset[str]:
    attributes = [attribute for family in FAMILIES.values() for attribute in family.attributes if attribute.is_place]
    names = itertools.chain(*(attribute.names for attribute in attributes), _swaps("columns"), _swaps("rows"))
    return frozenset(word for name in names for word in WORD.findall(name.lower()))


def rewrite_caption(
    text: str, flip_horizontal: bool = False, flip_vertical: bool = False, transpose: bool = False
) -> str:
    """Rewrites a caption so that it stays true of a transformed image.

    Only its words of place change, unless it has words that its family's data do not have, such as "RUL": then it is
    put in the family's words first.

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
    if family is not None:
        text = family.put_in_words(text)
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
    used = set(WORD.findall(text.lower()))
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


for _family in (LUNG_INFECTION, POLYP, NUCLEI, BREAST_LESION):
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
    absence = described["absence"]
    if absence >= AGREEMENT and caption.findings:
        return (f"the caption says that there is {caption.family}, the image speaks for none ({absence:.2f})",)
    if absence < AGREEMENT and caption.is_absent:
        return (f"the caption says that there is no {caption.family}, the image speaks for some ({1 - absence:.2f})",)
    attributes = {row["name"]: row["values"] for row in described["attributes"] if row["family"] == caption.family}
    compared = [
        [
            _compare_values(name, stated, attributes[name], probability)
            for name, stated in _list_stated(caption.family, finding)
            if name in attributes and set(_as_tuple(stated)) <= attributes[name].keys()
        ]
        for finding in caption.findings
    ]
    best = max(compared, key=lambda rows: sum(agreement for agreement, _ in rows) / max(len(rows), 1), default=[])
    return tuple(sentence for _, sentence in best if sentence)


def _list_stated(family: str, finding: Finding) -> list[tuple[str, str | tuple[str, ...]]]:
    """What a finding states, without what follows from the places that it states."""
    attributes = FAMILIES[family].attributes if family in FAMILIES else ()
    has_place = any(attribute.is_place and finding.get(attribute.name) for attribute in attributes)
    derived = {attribute.name for attribute in attributes if attribute.is_derived and has_place}
    return [(name, stated) for name, stated in finding.items() if name not in derived]


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
