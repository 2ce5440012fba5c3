"""The shipped checkpoint of volumes, and what it finds in real validation volumes, where they are at hand."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lvit_hf.data.volumes import Structure
from lvit_hf.evaluation.volumes import evaluate_volumes
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import SHIPPED_FOLDER, VOLUME_EXAMPLES_FOLDER
from lvit_hf.publishing.publish import find_problems, list_names


CHECKPOINT = SHIPPED_FOLDER / "lvit-small-hippocampus"
DATA = Path(os.environ.get("LVIT_DATA", Path(__file__).parents[3] / "shared" / "data")) / "hippocampus"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained(CHECKPOINT)


def test_it_is_small():
    assert sum(file.stat().st_size for file in CHECKPOINT.glob("*.safetensors")) < 60e6


def test_it_can_be_published_with_its_example():
    assert find_problems(CHECKPOINT) == []
    assert {"examples/examples.csv", "examples/hippocampus.nii.gz"} <= set(list_names(CHECKPOINT))


def test_the_captions_name_other_parts_of_the_example(segmenter):
    scan = nibabel.load(VOLUME_EXAMPLES_FOLDER / "hippocampus.nii.gz")
    parts = ("the anterior hippocampus", "the posterior hippocampus", "the hippocampus", "a polyp")
    anterior, posterior, whole, absent = (segmenter.segment_volume(scan, text).probabilities > 0.5 for text in parts)
    assert not absent.any() and not (anterior & posterior).sum() > 0.05 * whole.sum()
    assert ((anterior | posterior) & whole).sum() > 0.95 * whole.sum()


def test_it_finds_nothing_in_noise_that_is_no_brain(segmenter):
    noise = np.random.default_rng(0).normal(size=(32, 48, 32)).astype(np.float32)
    assert (segmenter.segment_volume(noise, "the left lung").probabilities > 0.5).mean() < 0.01


@pytest.mark.skipif(
    not DATA.is_dir(), reason="needs the hippocampus volumes; LVIT_DATA names the folder that has them"
)
def test_the_caption_chooses_the_part_of_the_hippocampus(segmenter):
    structures = [
        Structure("anterior", [1], ["the anterior hippocampus"]),
        Structure("posterior", [2], ["the posterior hippocampus"]),
    ]
    report = evaluate_volumes(segmenter, str(DATA), structures, limit=2)
    for name, other in (("anterior", "posterior"), ("posterior", "anterior")):
        assert report[name]["dice"] > 0.7
        assert report[f"{name}, captioned {other}"]["dice"] < 0.2
