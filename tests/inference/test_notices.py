"""What speaks against a file, by what a checkpoint knows of its kinds of images."""

import re

import numpy as np
import pytest
from PIL import Image

from lvit_hf.captions import read_caption
from lvit_hf.inference.notices import KINDS, find_caption_problem, find_scope_problem
from lvit_hf.io.scan import Scan
from lvit_hf.model.segmenter_lvit import Scope, Segmentation


RADIOGRAPHS, BOTH = {"lung infection": 0.9}, {"lung infection": 0.1, "polyp": 0.9}
ALL = dict.fromkeys(KINDS, 0.6)
FAMILIES = {"families": {"polyp": 0.8, "nuclei": 0.1}}
CASES = {
    # modality, slices, scores by kind, whether it looks known, what the caption head says, and the problem
    "a radiograph": ("DX", 1, RADIOGRAPHS, True, None, None),
    "a photograph": (None, 1, RADIOGRAPHS, True, None, None),
    "a secondary capture": ("SC", 1, RADIOGRAPHS, True, None, None),
    "a CT": ("CT", 1, RADIOGRAPHS, True, None, "The file is of modality CT, but .* on chest radiographs."),
    "a CT series": ("CT", 3, RADIOGRAPHS, True, None, "The file is of modality CT, but .* on chest radiographs."),
    "radiographs of a study": ("CR", 3, RADIOGRAPHS, True, None, None),
    "an ultrasound": ("US", 1, BOTH, True, None, "modality US, .* on chest radiographs, colonoscopy frames."),
    "an endoscopy": ("ES", 1, BOTH, True, None, None),
    "a NIfTI volume": (
        None,
        3,
        BOTH,
        True,
        None,
        "The file is a volume, but .* chest radiographs, colonoscopy frames.",
    ),
    "something else": (
        None,
        1,
        BOTH,
        False,
        None,
        "The image looks like none .*: chest radiographs, colonoscopy frames.",
    ),
    "a CT, and a kind of one's own": ("CT", 3, {"polyp": 0.9, "stripes": 0.1}, True, None, None),
    "none of one's own kinds": ("CT", 3, {"stripes": 0.1}, False, None, "The image looks like none .*: stripes."),
    "a CT, by the captions": ("CT", 1, None, None, FAMILIES, "modality CT, .* on colonoscopy frames, H&E slides."),
    "a slide, by the captions": ("SM", 1, None, None, FAMILIES, None),
    "scores before captions": ("DX", 1, RADIOGRAPHS, True, FAMILIES, None),
    "a CT, and all kinds": ("CT", 1, ALL, True, None, "modality CT, .* frames, H&E slides, breast ultrasound."),
    "nothing is known": ("CT", 3, None, None, None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_speaks_against_a_file(name):
    modality, slices, scores, in_scope, described, problem = CASES[name]
    scope = None if scores is None else Scope(in_scope, 0.7, next(iter(scores)), scores)
    blank = np.zeros((1, 8, 8), np.float32)
    result = Segmentation(Image.new("RGB", (8, 8)), blank, ("object",), described=described, scope=scope)
    found = find_scope_problem(Scan(np.zeros((slices, 8, 8), np.uint8), modality=modality), result)
    if problem is None:
        assert found is None
    else:
        assert re.search(f"{problem}$", found)


@pytest.mark.parametrize("text_used", [False, True])
@pytest.mark.parametrize("text", ["", "One small colonic polyp on the left.", "The nuclei are evenly distributed."])
@pytest.mark.parametrize("scores", [None, {"nuclei": 0.9, "polyp": 0.1}, {"nuclei": 0.9, "polyp": 0.6}])
def test_a_caption_of_another_kind_of_image_is_told_of(scores, text, text_used):
    scope = scores and Scope(True, 0.9, "nuclei", scores)
    blank, reading = np.zeros((1, 8, 8), np.float32), read_caption(text)
    said = {"reading": reading, "text_used": text_used, "scope": scope}
    problem = find_caption_problem(Segmentation(Image.new("RGB", (8, 8)), blank, ("object",), **said))
    if scores and scores["polyp"] < 0.5 and "polyp" in text and text_used:
        assert problem == (
            "The caption is one for colonoscopy frames, but the image is one of H&E slides: the mask is empty."
        )
    else:
        assert problem is None
