"""Volumes through `pipeline`."""

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_volumes import tiny_volume_model, tiny_volume_processor
from transformers import pipeline

from lvit_hf import LViTPipeline
from lvit_hf.model.configuration_lvit import TASK


CAPTION = "one infected area, upper left lung"


@pytest.fixture(scope="module")
def segmenter() -> LViTPipeline:
    model = tiny_volume_model(text_fusion="cross_attention")
    return pipeline(TASK, model=model, processor=tiny_volume_processor(), device="cpu")


def make_volume(shape: tuple[int, ...]) -> nibabel.Nifti1Image:
    values = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    return nibabel.Nifti1Image(values, np.diag([-1.0, 1, 1, 1]))


def test_a_volume_has_the_mask_of_the_core_on_its_own_grid(segmenter):
    volume = make_volume((9, 17, 20))
    [segment] = segmenter(volume, text=CAPTION, threshold=0.4)
    scores = segmenter.segmenter.segment_volume(volume, CAPTION).probabilities
    assert segment["mask"].dtype == np.uint8 and np.array_equal(segment["mask"], scores > 0.4)
    assert segment["score"] == pytest.approx(scores[scores > 0.4].mean())
    assert np.array_equal(segment["affine"], volume.affine)
    assert segment["text"] == CAPTION and segment["text_used"]
    assert not np.array_equal(segment["mask"], segmenter(volume, threshold=0.4)[0]["mask"])


def test_arrays_tensors_and_lists_are_volumes_too(segmenter):
    arrays = [make_volume(shape).get_fdata(dtype=np.float32) for shape in ((9, 17, 8), (8, 16, 9))]
    expected = [segmenter(array, text=text)[0] for array, text in zip(arrays, (CAPTION, None))]
    for volumes in (arrays, [torch.from_numpy(array).requires_grad_() for array in arrays]):
        for batch_size in (1, 2):
            found = segmenter(volumes, text=[CAPTION, None], batch_size=batch_size)
            for [segment], other in zip(found, expected, strict=True):
                assert np.array_equal(segment["mask"], other["mask"]) and segment["text"] == other["text"]
    assert expected[0]["mask"].shape == arrays[0].shape
    assert segmenter({"image": arrays[0], "text": CAPTION})[0]["score"] == expected[0]["score"]


def test_channels_of_a_volume_are_no_volumes():
    model = tiny_volume_model(num_channels=2)
    segmenter = pipeline(TASK, model=model, processor=tiny_volume_processor(), device="cpu")
    volume = make_volume((9, 17, 8, 2))
    [segment] = segmenter(volume)
    assert segment["mask"].shape == (9, 17, 8) and segment["mask"].any()
    [[first], [second]] = segmenter([volume, volume], batch_size=2)
    assert np.array_equal(first["mask"], segment["mask"]) and np.array_equal(second["mask"], segment["mask"])


@pytest.mark.parametrize("wrong", ["scan.nii.gz", Image.new("RGB", (8, 8)), np.zeros((8, 8))])
def test_what_is_no_volume_gets_a_sentence(segmenter, wrong):
    with pytest.raises(ValueError, match="A volume must"):
        segmenter(wrong)
