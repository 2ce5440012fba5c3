import itertools
import random

import pytest

from lvit_hf.model.caption_words_lvit import COMMON, NEGATIONS
from lvit_hf.model.captions_lvit import (
    FAMILIES,
    LUNG_INFECTION,
    NUCLEI,
    NUMBERS,
    POLYP,
    TOP_BOTTOM,
    Attribute,
    Caption,
    CaptionFamily,
    lung_finding,
    names_a_place,
    parse_caption,
    place_attribute,
    register_family,
    render_caption,
    rewrite_caption,
)


ZONES = ("upper", "middle", "lower")
FLIPS = [
    dict(zip(("flip_horizontal", "flip_vertical", "transpose"), bits)) for bits in itertools.product((0, 1), repeat=3)
]


@pytest.fixture
def moles():
    family = CaptionFamily(
        name="mole",
        nouns=("mole", "nevus"),
        attributes=(Attribute("size", ("small", "large"), {"tiny": "small"}), place_attribute(TOP_BOTTOM)),
        templates=("One {size} mole on the {place}.",),
    )
    register_family(family)
    yield family
    FAMILIES.pop("mole")
    parse_caption.cache_clear()


@pytest.mark.parametrize("family", [LUNG_INFECTION, POLYP, NUCLEI], ids=lambda family: family.name)
def test_every_caption_is_read_back_as_it_was_written(family):
    captions = list(family.captions())
    assert len({render_caption(caption) for caption in captions}) == len(captions)
    for caption in captions:
        parsed = parse_caption(render_caption(caption))
        assert parsed == caption and parsed.unknown_words == ()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_what_people_write_stands_for_what_the_table_says(family):
    """No phrase is in vain, because its words are corrected or replaced before it is looked for."""
    for phrase, words in {**NEGATIONS, **COMMON, **family.phrases}.items():
        assert family.read_words(phrase)[0] == tuple(words.split()), phrase


def test_a_family_is_read_as_soon_as_it_is_registered():
    text = "one verruca at the top left"
    assert parse_caption(text) is None
    register_family(CaptionFamily("wart", ("verruca",), (place_attribute(TOP_BOTTOM),), ("One wart on the {place}.",)))
    try:
        assert parse_caption(text).findings == ({"place": "top left"},)
    finally:
        FAMILIES.pop("wart")
        parse_caption.cache_clear()


def test_a_caption_of_a_family_that_is_not_registered_names_what_it_states():
    caption = Caption("retina", ({"size": "small", "quadrants": ("upper", "nasal")},))
    assert render_caption(caption) == "retina: size small, quadrants upper and nasal"


def test_every_count_of_infected_areas_is_read_back():
    zones = [tuple(zone for zone, bit in zip(ZONES, bits) if bit) for bits in itertools.product((0, 1), repeat=3)]
    for left, right, count in itertools.product(zones, zones, NUMBERS):
        if left or right:
            caption = Caption(LUNG_INFECTION.name, ({**lung_finding(left, right), "count": count},))
            assert parse_caption(render_caption(caption)) == caption


def test_several_polyps_are_read_back():
    findings = [caption.findings[0] for caption in POLYP.captions()]
    draw = random.Random(0)
    for count in (2, 3) * 50:
        caption = Caption(POLYP.name, tuple(draw.sample(findings, count)))
        assert parse_caption(render_caption(caption)) == caption


@pytest.mark.parametrize("left_out", ["size", "shape", "surface", "place"])
def test_polyps_of_which_something_is_not_stated_are_read_back(left_out):
    finding = {"size": "large", "shape": "circular", "surface": "ulcerated", "place": "top left"}
    del finding[left_out]
    caption = Caption(POLYP.name, (finding,))
    text = render_caption(caption)
    assert parse_caption(text) == caption
    assert ",," not in text and " ," not in text and ", " not in text


@pytest.mark.parametrize(
    ("text", "left", "right"),
    [
        ("BILATERAL pulmonary infections; two areas: lower RIGHT lung, upper-left lung", ("upper",), ("lower",)),
        ("bilaterial infection, uper left lungs and  lower rigth lung", ("upper",), ("lower",)),
        ("infection of both lungs, lower and middle zones", ("middle", "lower"), ("middle", "lower")),
        ("left lung upper, right lung lower", ("upper",), ("lower",)),
        ("Unilateral pulmonary infection, one infected area, all left lung.", ZONES, ()),
        ("pulmonary infection. right lung", (), ZONES),
        ("lower, middle and upper right lung", (), ZONES),
    ],
)
def test_lungs_in_other_words(text, left, right):
    caption = parse_caption(text)
    (finding,) = caption.findings
    assert (finding["left lung"], finding["right lung"]) == (left, right)
    assert caption.unknown_words == ()


def test_polyps_in_the_words_of_the_paraphrases():
    caption = parse_caption("two small, medium white round polyp, located in left, top left of the image")
    assert caption.findings == (
        {"size": "small", "shape": "circular", "place": "middle left"},
        {"size": "medium", "shape": "circular", "place": "top left"},
    )
    # Two sizes of three polyps do not say which is which.
    caption = parse_caption("three small, medium pink oval polyp, located in top, left, bottom of the image")
    assert [finding["place"] for finding in caption.findings] == ["top middle", "middle left", "bottom middle"]
    assert all("size" not in finding for finding in caption.findings)


def test_typos_of_the_data_are_read():
    caption = parse_caption("One medium,,smooth colonic polyp on the middle right.")
    assert caption.findings == ({"size": "medium", "surface": "smooth", "place": "middle right"},)


def test_what_is_not_understood_is_said():
    assert parse_caption("a photo of a dog") is None
    assert parse_caption("unknown") is None
    assert parse_caption("") is None
    assert parse_caption("one small triangular polyp, center").unknown_words == ("triangular",)
    assert parse_caption("a tumor in the upper outer quadrant").unknown_words == ("upper outer quadrant",)
    assert parse_caption("no polyp").is_absent


def test_a_caption_agrees_with_what_it_leaves_open():
    finding = {"size": "large", "shape": "circular", "surface": "smooth", "place": "top left"}
    assert parse_caption("a large polyp").agrees_with(finding)
    assert not parse_caption("a large polyp in the center").agrees_with(finding)
    assert parse_caption("Two colonic polyps. One small polyp, center. One large polyp, left top.").agrees_with(
        finding
    )


def test_a_family_of_ones_own(moles):
    assert parse_caption("Tiny nevus, left top").findings == ({"size": "small", "place": "top left"},)
    assert names_a_place("one mole, center")
    captions = list(moles.captions())
    assert len(captions) == 18
    for caption, flips in itertools.product(captions, FLIPS):
        text = render_caption(caption)
        assert parse_caption(text) == caption
        flip_only = {name: bit for name, bit in flips.items() if name != "transpose"}
        assert rewrite_caption(rewrite_caption(text, **flip_only), **flip_only) == text


@pytest.mark.parametrize("family", [POLYP, NUCLEI], ids=lambda family: family.name)
@pytest.mark.parametrize("flips", FLIPS)
def test_a_rewritten_caption_names_the_cell_where_the_object_went(family, flips):
    names = next(attribute.values for attribute in family.attributes if attribute.name == "place")
    for caption in family.captions():
        finding = dict(caption.findings[0])
        if "place" in finding:
            row, column = divmod(names.index(finding["place"]), 3)
            if flips["transpose"]:
                row, column = column, row
            row = 2 - row if flips["flip_vertical"] else row
            column = 2 - column if flips["flip_horizontal"] else column
            finding["place"] = names[3 * row + column]
        moved = parse_caption(rewrite_caption(render_caption(caption), **flips))
        assert moved.findings == (finding,)


def test_a_mirrored_caption_swaps_the_lungs():
    for caption in LUNG_INFECTION.captions():
        (finding,) = caption.findings
        mirrored = parse_caption(rewrite_caption(render_caption(caption), flip_horizontal=True))
        assert mirrored.findings == (lung_finding(finding["right lung"], finding["left lung"]),)


@pytest.mark.parametrize("flip", ["flip_horizontal", "flip_vertical", "transpose"])
def test_rewriting_twice_is_the_identity_for_any_run_of_words(flip):
    words = ["polyp", "Top", "bottom", "left", "RIGHT", "middle", "center", "dog", ",", "the"]
    draw = random.Random(0)
    for _ in range(200):
        text = " ".join(draw.choices(words, k=8))
        assert rewrite_caption(rewrite_caption(text, **{flip: True}), **{flip: True}) == text


def test_sentences_that_no_family_understands_are_rewritten_by_their_words():
    text = "A dark spot in the Upper left corner, nothing on the right."
    assert rewrite_caption(text, flip_horizontal=True) == text.replace("Upper left", "Upper right").replace(
        "the right", "the left"
    )
    assert rewrite_caption(text, transpose=True) == text.replace("right", "lower")
    assert names_a_place(text)
    assert rewrite_caption("a photo of a dog", True, True, True) == "a photo of a dog"
    assert not names_a_place("a photo of a dog")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_attributes_of_which_several_values_hold_and_no_others_have_a_tuple_of_them(family):
    multiple = {attribute.name: attribute.multiple for attribute in family.attributes}
    caption = next(family.captions())
    for finding in (*caption.findings, *parse_caption(family.render(caption)).findings):
        assert {name: isinstance(value, tuple) for name, value in finding.items()}.items() <= multiple.items()


@pytest.mark.parametrize("text", ["infection in the upper left lung", "infection in the lower right lung"])
def test_either_lung_is_a_place(text):
    assert names_a_place(text)
