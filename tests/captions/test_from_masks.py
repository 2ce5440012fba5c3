import numpy as np
from skimage.draw import disk

from lvit_hf.captions import Caption, parse_caption, render_caption
from lvit_hf.captions.from_masks import describe_mask


def test_breast_lesions_are_described_by_size_and_place():
    mask = np.zeros((300, 300), dtype=bool)
    mask[disk((50, 60), 30)] = mask[disk((170, 170), 70)] = True
    caption = describe_mask(mask, "breast lesion")
    assert caption.findings == ({"size": "medium", "place": "center"}, {"size": "small", "place": "top left"})
    assert parse_caption(render_caption(caption)) == caption


def test_columns_are_thirds_of_the_height():
    mask = np.zeros((200, 400), dtype=bool)
    mask[disk((100, 150), 20)] = True
    assert describe_mask(mask, "breast lesion").findings == ({"size": "small", "place": "right"},)


def test_a_healthy_breast_has_the_caption_of_its_data():
    caption = describe_mask(np.zeros((50, 50), dtype=bool), "breast lesion")
    assert caption == Caption("breast lesion", (), absent=({},)) and caption.is_absent
    assert render_caption(caption) == "No tumor in the breast ultrasound image."
