"""What captions mean, in the words of reports: a table of captions with their meanings, and what follows from them."""

import csv
import itertools
from pathlib import Path

import pytest

from lvit_hf.captions import FAMILIES, Caption, name_side, parse_caption, read_caption, render_caption, turn_sides
from lvit_hf.model.captions_lvit import BREAST_LESION, LUNG_INFECTION, NUCLEI, POLYP, names_a_place, rewrite_caption


with (Path(__file__).parent / "meanings.csv").open(encoding="utf-8", newline="") as file:
    TABLE = list(csv.DictReader(file))

LUNGS = {"left lung": "left", "right lung": "right"}


def written(findings) -> list[dict[str, str]]:
    """Findings as the table writes them: of lungs their zones alone."""
    return [
        {LUNGS[name]: " ".join(zones) for name, zones in finding.items() if name in LUNGS and zones}
        if LUNGS.keys() & finding.keys() or finding.keys() <= {"sides", "count"}
        else dict(finding)
        for finding in findings
    ]


def read_cell(cell: str) -> list[dict[str, str]]:
    """Findings of a cell: "some" and "all" are empty ones."""
    cells = [part.strip() for part in cell.split("|") if part.strip()]
    pairs = [[] if part in ("some", "all") else part.split(", ") for part in cells]
    return [dict(pair.split(": ") for pair in part) for part in pairs]


def test_the_table_is_large_and_says_different_things():
    assert len(TABLE) >= 150 and len({row["text"] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["text"])
def test_captions_in_the_words_of_reports(row):
    reading = read_caption(row["text"])
    assert reading.understood == bool(row["family"]), reading.message
    if reading.understood:
        caption = reading.caption
        assert caption.family == row["family"]
        assert written(caption.findings) == read_cell(row["there"])
        assert written(caption.absent) == read_cell(row["absent"])
        assert reading.absent == (row["absent"] == "all")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["text"])
def test_what_the_network_gets_means_the_same_and_has_words_of_its_data(row):
    reading = read_caption(row["text"])
    if reading.text is None:
        assert not reading.understood or not reading.caption.findings
        return
    family = FAMILIES[reading.caption.family]
    assert family.uses_own_words(reading.text) or reading.absent
    again = read_caption(reading.text)
    assert again.text == reading.text
    assert written(again.caption.findings) == written(reading.caption.findings)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["text"])
def test_a_mirrored_caption_is_true_of_the_mirrored_image(row):
    caption = parse_caption(row["text"])
    if caption is None:
        return
    mirrored = parse_caption(rewrite_caption(row["text"], flip_horizontal=True))
    swap = {"left": "right", "right": "left"}

    def mirror(finding):
        moved = {swap.get(name, name): value for name, value in finding.items()}
        words = moved.get("place", "").split()
        return moved | ({"place": " ".join(swap.get(word, word) for word in words)} if words else {})

    assert written(mirrored.findings) == [mirror(finding) for finding in written(caption.findings)]
    assert written(mirrored.absent) == [mirror(finding) for finding in written(caption.absent)]


@pytest.mark.parametrize("family", [POLYP, NUCLEI, BREAST_LESION], ids=lambda family: family.name)
def test_absences_are_read_back_as_they_were_written(family):
    stated = [{}, *(dict([pair]) for caption in family.captions() for pair in caption.findings[0].items())]
    for finding in stated:
        caption = Caption(family.name, (), absent=(finding,))
        assert parse_caption(render_caption(caption)) == caption
    there = next(family.captions()).findings
    for finding in stated[1:]:
        caption = Caption(family.name, there, absent=(finding,))
        if finding.items() <= there[0].items():
            assert parse_caption(render_caption(caption)).contradicts_itself
        else:
            assert parse_caption(render_caption(caption)) == caption


def test_zones_without_infection_are_read_back_as_they_were_written():
    found = [caption.findings[0] for caption in LUNG_INFECTION.captions()]
    lungs = [{name: zones for name, zones in finding.items() if name in LUNGS and zones} for finding in found]
    for absent in lungs[:-1]:
        caption = Caption(LUNG_INFECTION.name, (), absent=(absent,))
        assert parse_caption(render_caption(caption)) == caption
    for finding, (there, absent) in zip(
        [finding for finding in found for _ in lungs], itertools.product(lungs, lungs)
    ):
        if not any(set(there.get(name, ())) & set(absent.get(name, ())) for name in LUNGS):
            caption = Caption(LUNG_INFECTION.name, (finding,), absent=(absent,))
            assert parse_caption(render_caption(caption)) == caption


@pytest.mark.parametrize(
    ("text", "word", "not_read_as"),
    [
        ("The nuclei are unevenly distributed.", "unevenly", "evenly"),
        ("one regular polyp, center", "regular", "irregular"),
        ("lateral pulmonary infection", "lateral", "bilateral"),
        ("one unsmooth polyp", "unsmooth", "smooth"),
        ("nonulcerated small polyp", "nonulcerated", "ulcerated"),
        ("uninfected left lung", "uninfected", "infected"),
        ("multilateral pulmonary infection", "multilateral", "bilateral"),
        ("infection spred in the left lung", "spred", "spared"),
        ("one charged polyp", "charged", "changed"),
    ],
)
def test_a_word_is_not_corrected_into_its_opposite(text, word, not_read_as):
    caption = parse_caption(text)
    assert word not in dict(caption.corrections)
    assert not_read_as not in [value for finding in caption.findings for value in finding.values()]


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [
        ("lungs witout infection", "lungs without infection"),
        ("right lower lobe consolidaton", "right lower lobe consolidation"),
        ("right lower lobe consoldaton", "right lower lobe consolidation"),
        ("one small gleaming poylp", "one small polyp"),
    ],
)
def test_captions_of_one_meaning_are_equal_with_misspelt_and_unknown_words(misspelt, right):
    caption = parse_caption(misspelt)
    assert caption == parse_caption(right) and (caption.corrections or caption.unknown_words)
    assert caption.findings or caption.absent


@pytest.mark.parametrize("text", ["No tumors or cysts", "除右肺下叶外，双肺清晰", "no large polyp at the top left"])
def test_words_of_what_is_not_there_are_understood_too(text):
    reading = read_caption(text)
    assert reading.caption.unknown_words == () and "Not understood" not in reading.message


@pytest.mark.parametrize("count", ["two", "several", "3"])
def test_nuclei_are_not_counted(count):
    assert read_caption(f"{count} cells").text == read_caption("cells").text
    assert parse_caption(f"{count} cells") == parse_caption("cells")


def test_what_is_corrected_is_said():
    reading = read_caption("bilaterial infection, uper left lungs and lower rigth lung")
    assert reading.corrections == (("bilaterial", "bilateral"), ("uper", "upper"), ("rigth", "right"))
    assert "rigth to right" in reading.message
    assert read_caption("small polyps, top left").corrections == ()


def test_a_caption_in_the_words_of_the_data_is_passed_on_as_it_is():
    for family in FAMILIES.values():
        for caption in family.captions():
            text = render_caption(caption)
            assert read_caption(text).text == text
    for text in ("one infected area, lower left lung", "one medium white kidney polyp, located in right of the image"):
        assert read_caption(text).text == text


def test_other_words_are_put_in_those_of_the_data():
    expected = "unilateral pulmonary infection, one infected area, lower right lung."
    for text in ("COVID infection in the right lower lobe", "RLL pneumonia", "右肺下叶肺炎"):
        assert read_caption(text).text == expected


def test_a_caption_of_the_patient_s_side_is_turned_where_a_patient_has_sides():
    right = read_caption("RLL pneumonia", side="patient")
    assert right.caption.findings[0]["left lung"] == ("lower",)
    assert right.text == "unilateral pulmonary infection, one infected area, lower left lung."
    assert right.side == "patient" and "image left, the patient's right" in right.message
    assert read_caption("small polyp, top left", side="patient").text == "small polyp, top left"
    own = "unilateral pulmonary infection, one infected area, lower left lung."
    assert read_caption(own, side="patient").text == own.replace("left", "right")
    # A caption that says whose side it means is taken at its word.
    said = read_caption("consolidation in the patient's right lung, lower zone")
    assert said.side == "patient" and said.caption.findings[0]["left lung"] == ("lower",)
    with pytest.raises(ValueError, match='"image" or "patient"'):
        read_caption(own, side="left")


@pytest.mark.parametrize("side", ["image", "patient"])
@pytest.mark.parametrize(
    ("text", "lung"),
    {
        "Opacity in the left base (on the right of the image)": "right",
        "Opacity in the left base (on the left of the image)": "left",
        "Opacity in the right base, i.e. on the left side of the image": "left",
        "Opacity in the left base (patient's left)": "right",
        "Opacity in the left base (the patient's right)": "left",
    }.items(),
)
def test_a_caption_that_names_a_side_twice_says_by_it_whose_side_it_means(text, lung, side):
    finding = read_caption(text, side=side).caption.findings[0]
    assert {name: zones for name, zones in finding.items() if name.endswith("lung") and zones} == {
        f"{lung} lung": ("lower",)
    }


def test_sides_are_named_and_turned_twice_are_the_same():
    assert name_side("left") == "image left, the patient's right"
    assert name_side("right") == "image right, the patient's left"
    for row in TABLE:
        caption = parse_caption(row["text"])
        if caption is not None:
            assert parse_caption(turn_sides(turn_sides(row["text"]))) == caption


def test_a_caption_of_another_kind_of_image_is_not_used():
    reading = read_caption("one small polyp, top left", ["lung infection"])
    assert not reading.understood and reading.text is None and reading.caption.family == "polyp"
    assert "polyp" in reading.message and "lung infection" in reading.message
    absent = read_caption("no polyp", ["lung infection"])
    assert not absent.understood and not absent.absent


def test_words_that_several_families_share_are_of_the_one_that_was_learnt():
    assert read_caption("small lesion, center").caption.family == "breast lesion"
    for family in ("polyp", "breast lesion", "lung infection"):
        assert read_caption("no abnormality", [family]).caption.family == family
    assert read_caption("small lesion, center", ["polyp"]).caption.family == "polyp"


def test_captions_cannot_be_judged_by_a_model_of_other_captions():
    for families in ([], ["fundus"]):
        reading = read_caption("two soft exudates", families)
        assert not reading.judged and reading.text == "two soft exudates"


@pytest.mark.parametrize("side", ["image", "patient"])
@pytest.mark.parametrize("learnt", [["polyp"], ["lung infection", "polyp"], list(FAMILIES)], ids=len)
def test_a_refused_caption_names_the_words_that_the_nearest_family_does_not_know(learnt, side):
    texts = [row["text"] for row in TABLE if not row["family"]]
    refused = 0
    for text in [*texts, "a photo of a dog", "colon with drusen and exudates", "chest of a horse and a cat"]:
        reading = read_caption(text, learnt, side)
        if reading.caption is None and text.strip():
            refused += 1
            named = [name for name in learnt if FAMILIES[name].is_named_in(text)] or learnt
            unknown = [FAMILIES[name].list_unknown_words(text) for name in named]
            assert reading.unknown_words in unknown and len(reading.unknown_words) == min(map(len, unknown))
            assert all(word in reading.message for word in reading.unknown_words)
            assert not reading.understood and reading.text is None and reading.side in ("image", side)
    assert refused > 2
    assert read_caption("a photo of a dog", learnt, side).side == side


def test_a_lung_that_is_named_ends_the_zones_of_the_one_before():
    for text in ("left lung right upper lung infection", "infection of the left lung, of the upper right lung"):
        [finding] = parse_caption(text).findings
        assert (finding["left lung"], finding["right lung"]) == (("upper", "middle", "lower"), ("upper",))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("zone", ["upper", "lower"])
@pytest.mark.parametrize(
    "text",
    [
        "no infection in the {side} lung except in the {again} {zone} zone",
        "infection of the {side} lung, except in the {again} {zone} zone",
        "opacity in the {side} middle zone, not in the {again} {zone} zone",
        "opacity in the {side} middle zone, no opacity in the {again} {zone} zone",
    ],
)
def test_a_side_holds_on_for_an_exception_and_for_what_is_denied(text, side, zone):
    shorter, longer = (parse_caption(text.format(side=side, zone=zone, again=again)) for again in ("", side))
    other = "right lung" if side == "left" else "left lung"
    assert shorter == longer and not any(part.get(other) for part in (*longer.findings, *longer.absent))


def test_nothing_is_made_of_no_caption():
    for text in (None, "", "  \n"):
        reading = read_caption(text)
        assert reading.text is None and not reading.understood and reading.judged and not reading.absent


@pytest.mark.parametrize("count", ["seven", "12", "twenty", "99", "100000000", "9" * 5000])
def test_any_number_of_objects_is_read(count):
    for text in (f"{count} small polyps", f"{count} infected areas in the left lung", f"{count} tumors"):
        reading = read_caption(text)
        assert reading.understood
        render_caption(reading.caption)


def test_places_are_seen_in_other_words():
    for text in ("RUL pneumonia", "lingula opacity", "左上方有一个小息肉", "polyp at 3 o'clock"):
        assert names_a_place(text)
    assert not names_a_place("normal chest")


def test_of_two_separators_in_a_row_the_stronger_counts():
    caption = parse_caption("left lung clear except, one infected area, upper right lung")
    plain = parse_caption("one infected area, upper right lung; left lung clear")
    assert (caption.findings, caption.absent) == (plain.findings, plain.absent)
