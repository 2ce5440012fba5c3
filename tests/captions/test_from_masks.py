import numpy as np
import pytest
from skimage.draw import disk, ellipse

from lvit_hf.captions import Caption, parse_caption, render_caption
from lvit_hf.captions.from_masks import describe_mask


def test_breast_lesions_are_described_by_size_and_place():
    mask = np.zeros((300, 300), dtype=bool)
    mask[disk((50, 60), 30)] = mask[disk((170, 170), 70)] = True
    caption = describe_mask(mask, "breast lesion")
    assert caption.findings == ({"size": "medium", "place": "center"}, {"size": "small", "place": "top left"})
    assert parse_caption(render_caption(caption)) == caption


def test_a_lesion_is_large_from_three_tenths_of_the_image():
    for rows, size in ((100, "large"), (80, "medium"), (20, "small")):
        mask = np.zeros((300, 300), dtype=bool)
        mask[:rows] = True
        assert [finding["size"] for finding in describe_mask(mask, "breast lesion").findings] == [size]


def test_columns_are_thirds_of_the_height():
    mask = np.zeros((200, 400), dtype=bool)
    mask[disk((100, 150), 20)] = True
    assert describe_mask(mask, "breast lesion").findings == ({"size": "small", "place": "right"},)


@pytest.mark.parametrize(("middle", "place"), [((260, 150), "bottom"), ((150, 260), "right"), ((40, 40), "top left")])
def test_the_middle_of_a_lesion_is_its_place(middle, place):
    mask = np.zeros((300, 300), dtype=bool)
    mask[disk(middle, 30)] = True
    [finding] = describe_mask(mask, "breast lesion").findings
    assert finding == {"size": "small", "place": place}


def test_a_healthy_breast_has_the_caption_of_its_data():
    caption = describe_mask(np.zeros((50, 50), dtype=bool), "breast lesion")
    assert caption == Caption("breast lesion", (), absent=({},)) and caption.is_absent
    assert render_caption(caption) == "No tumor in the breast ultrasound image."


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        ([(5, 25, 70, 98)], "unilateral pulmonary infection, one infected area, upper left lung."),
        ([(40, 90, 102, 130)], "unilateral pulmonary infection, one infected area, lower right lung."),
        ([(20, 90, 110, 150)], "unilateral pulmonary infection, one infected area, upper middle lower right lung."),
        # 80 of 20,000 pixels are no area, so nothing of the second one lies in the upper zone.
        (
            [(5, 25, 70, 98), (30, 90, 120, 160)],
            "bilateral pulmonary infection, two infected areas, upper left lung and middle lower right lung.",
        ),
    ],
)
def test_infections_are_described_by_the_image_s_sides_and_the_zones_of_its_lungs(boxes, text):
    mask = np.zeros((100, 200), dtype=bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    caption = describe_mask(mask, "lung infection")
    stated, found = parse_caption(text).findings[0], caption.findings[0]
    assert {name: found[name] for name in ("left lung", "right lung")} == {
        name: stated[name] for name in ("left lung", "right lung")
    }
    assert len(caption.findings) == 1 and parse_caption(render_caption(caption)) == caption


def test_lungs_without_an_infection_state_nothing():
    assert describe_mask(np.zeros((100, 200), dtype=bool), "lung infection").findings == ()


@pytest.mark.parametrize(
    ("shape", "finding"),
    [
        (disk((20, 20), 12), {"size": "small", "shape": "circular", "place": "top left"}),
        (disk((50, 50), 22), {"size": "medium", "shape": "circular", "place": "center"}),
        (disk((50, 60), 30), {"size": "large", "shape": "circular", "place": "center"}),
        (disk((70, 50), 12), {"size": "small", "shape": "circular", "place": "bottom middle"}),
        (ellipse(30, 68, 13, 26), {"size": "small", "shape": "elliptical", "place": "top right"}),
        (ellipse(50, 50, 20, 16), {"size": "small", "shape": "circular", "place": "center"}),
    ],
)
def test_polyps_are_described_by_size_shape_and_place(shape, finding):
    mask = np.zeros((100, 100), dtype=bool)
    mask[shape] = True
    assert describe_mask(mask, "polyp").findings == (finding,)


def test_polyps_are_named_from_the_largest_and_crumbs_are_none():
    mask = np.zeros((100, 100), dtype=bool)
    mask[10:15, 10:20] = True  # 50 of 10,000 pixels are one, 49 are none
    mask[80:87, 10:17] = True
    mask[disk((60, 70), 15)] = mask[disk((75, 85), 12)] = True  # touching, so one, and not convex
    sizes = [(finding["size"], finding["shape"]) for finding in describe_mask(mask, "polyp").findings]
    assert sizes == [("small", "irregular"), ("small", "elliptical")]


@pytest.mark.parametrize(("step", "distribution"), [(2, "evenly"), (5, "sparsely")])
def test_nuclei_all_over_the_image_are_described_by_their_density(step, distribution):
    mask = np.zeros((90, 120), dtype=bool)
    mask[::step, :: 1 if step == 2 else step] = True
    assert describe_mask(mask, "nuclei").findings == ({"distribution": distribution},)


@pytest.mark.parametrize(
    ("rows", "columns", "place"), [((0, 30), (80, 120), "upper right"), ((60, 90), (0, 40), "lower left")]
)
def test_nuclei_in_one_part_of_the_image_are_described_by_their_place(rows, columns, place):
    mask = np.zeros((90, 120), dtype=bool)
    mask[::10, ::10] = True
    mask[slice(*rows), slice(*columns)] = True
    assert describe_mask(mask, "nuclei").findings == ({"place": place},)
    assert describe_mask(np.zeros((90, 120), dtype=bool), "nuclei").findings == ()


def test_nuclei_that_are_somewhat_denser_in_one_part_are_not_even():
    mask = np.zeros((90, 120), dtype=bool)
    mask[::3] = True
    mask[:30, :40:2] = True
    [finding] = describe_mask(mask, "nuclei").findings
    assert finding == {"place": "upper left"}
