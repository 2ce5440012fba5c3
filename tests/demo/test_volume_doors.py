"""Whoever asks for a volume, in whatever way, gets the mask and the numbers of the network of three dimensions."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from app_page import Network, serve
from gradio_client import Client, handle_file
from tiny_volumes import tiny_volume_model, tiny_volume_processor
from transformers import pipeline
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.demo.engine import Engine, Request, Settings
from lvit_hf.evaluation.volumes import RESULTS_FILE
from lvit_hf.inference.files import Item
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.inference.volumes import segment_scan
from lvit_hf.io.readers import read_scan
from lvit_hf.model.configuration_lvit import TASK


CAPTIONS = ("one infected area, upper left lung", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, and a data set of a volume larger than a window, whose axes are no axes of the network."""
    folder = tmp_path_factory.mktemp("volume-doors")
    tiny_volume_model(text_fusion="cross_attention").save_pretrained(folder / "checkpoint")
    tiny_volume_processor().save_pretrained(folder / "checkpoint")
    affine = np.array([[0, -1.0, 0, 5], [1.5, 0, 0, 3], [0, 0, 1, -2], [0, 0, 0, 1]])
    values = np.random.default_rng(0).normal(100, 20, (17, 9, 20)).astype(np.float32)
    (folder / "valid" / "images").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "valid" / "images" / "scan.nii.gz")
    return folder


@pytest.fixture(scope="module")
def volume(folder) -> Path:
    return folder / "valid" / "images" / "scan.nii.gz"


@pytest.fixture(scope="module")
def segmenter(folder) -> Segmenter:
    return Segmenter.from_pretrained(folder / "checkpoint")


@pytest.fixture(scope="module")
def expected(volume, segmenter, tmp_path_factory) -> dict:
    """What the core says: the mask as it lies in the file, and the measurements."""
    scan, path, answers = read_scan(volume, keep_values=True), tmp_path_factory.mktemp("core") / "mask.nii.gz", {}
    for text in CAPTIONS:
        result = segment_scan(segmenter, scan, text)
        scan.mask_writer.save(result.mask(), path, "infection")
        answers[text] = read_mask(path), result.measure(0.5, scan)
    assert (answers[CAPTIONS[0]][0] != answers[None][0]).any()
    return answers


def read_mask(path: str | Path) -> np.ndarray:
    return nibabel.load(path).get_fdata() > 0


def test_the_pipeline_answers_as_the_core(folder, volume, expected):
    pipe = pipeline(TASK, model=folder / "checkpoint", device="cpu")
    for text, (mask, measures) in expected.items():
        [segment] = pipe(nibabel.load(volume), text=text)
        assert np.array_equal(segment["mask"], mask)
        assert segment["score"] == pytest.approx(measures["mean_probability"], abs=0.005)
        assert segment["mask"].sum() * abs(np.linalg.det(segment["affine"])) == pytest.approx(
            1000 * measures["volume_ml"]
        )


def test_the_command_line_answers_as_the_core(folder, volume, expected, tmp_path):
    for text, (mask, measures) in expected.items():
        arguments = ["predict", volume, "--out", tmp_path, "--model", folder / "checkpoint", "--text", text or ""]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        [entry] = json.loads((tmp_path / "predictions.json").read_text())["images"]
        assert np.array_equal(read_mask(tmp_path / "scan_mask.nii.gz"), mask)
        assert {name: entry[name] for name in measures} == measures
        assert (entry["text"], entry["text_used"]) == (text, text is not None)


def test_the_service_answers_as_the_core(volume, expected, segmenter):
    with serve(segmenter, name="volumes") as url:
        client = Client(url, verbose=False)
        for text, (mask, measures) in expected.items():
            file, answer = client.predict(handle_file(volume), text or "", api_name="/segment_volume")
            assert np.array_equal(read_mask(file), mask)
            assert {name: answer[name] for name in measures} == measures
        _, report = client.predict([handle_file(volume)], CAPTIONS[0], api_name="/segment_many")
        assert {name: report["images"][0][name] for name in measures} == expected[CAPTIONS[0]][1]
        with pytest.raises(Exception, match="segments volumes as a whole"):
            client.predict(handle_file(volume), "", api_name="/segment")


def test_the_page_takes_left_and_right_as_its_visitor_says(volume):
    model = tiny_volume_model(text_fusion="cross_attention", caption_families=["lung infection"])
    segmenter = Segmenter(model, tiny_volume_processor())
    engine, scan, found = Engine(segmenter, "volumes"), read_scan(volume, keep_values=True), []
    for side in ("image", "patient"):
        *_, row = engine.segment_volume(Request(Item(volume.name, CAPTIONS[0], volume), Settings(side=side), None))
        found.append(row.result)
        expected = segment_scan(segmenter, scan, CAPTIONS[0], side=side)
        np.testing.assert_array_equal(found[-1].mask(0.5), expected.mask(0.5))
    assert (found[0].mask(0.5) != found[1].mask(0.5)).any()


def test_the_work_on_a_volume_ends_when_its_visitor_leaves(volume, segmenter):
    engine, network = Engine(segmenter, "volumes"), Network(segmenter)
    network.delay = 0.1
    steps = engine.segment_volume(Request(Item(volume.name, CAPTIONS[0], volume), slice_index=None))
    finished, total = next(steps)
    assert finished < total / 2
    steps.close()
    list(engine.segment_volume(Request(Item(volume.name, None, volume), slice_index=None)))  # which waits for its turn
    assert sum(network.sizes) <= total + 3 * finished


def test_the_evaluation_finds_the_masks_of_the_core_without_a_flaw(folder, volume, expected, tmp_path):
    labels = folder / "valid" / "labels" / volume.name
    labels.parent.mkdir()
    masks = [mask for mask, _ in expected.values()]
    both = (masks[0] + 2 * masks[1]).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(both, nibabel.load(volume).affine), labels)
    structures = [
        {"name": "with", "labels": [1, 3], "captions": [CAPTIONS[0]]},
        {"name": "without", "labels": [2, 3], "captions": [""]},
    ]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"sources": [{"name": "noise", "path": str(folder), "structures": structures}]}))
    arguments = ["evaluate", folder / "checkpoint", folder, "--structures", config, "--out", tmp_path]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert report["with"]["dice"] == report["without"]["dice"] == 1
    assert report["with, captioned without"]["dice"] < 1 and "| with | 100.00 |" in result.output


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "Volumes need --structures"),
        (["--structures", "{folder}/checkpoint/config.json"], "must be a configuration of lvit train"),
        (["--tile-size", "64"], "--tile-size is for images"),
    ],
)
def test_the_evaluation_of_volumes_says_what_it_needs(folder, options, message):
    arguments = ["evaluate", folder / "checkpoint", folder, *(option.format(folder=folder) for option in options)]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1 and message in result.output
