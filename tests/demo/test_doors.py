"""Whoever asks, in whatever way, gets the same mask, the same words and the same numbers."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from app_page import serve
from captioning import captioning_model
from gradio_client import Client, handle_file
from PIL import Image
from pydicom.data import get_testdata_file
from tiny_lvit import tiny_processor
from transformers import pipeline
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.evaluation.evaluate import EvaluationSettings, evaluate
from lvit_hf.inference.measurements import measure_mask
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import EXAMPLES_FOLDER
from lvit_hf.io.readers import read_scan
from lvit_hf.model.configuration_lvit import TASK


CAPTION = "unilateral pulmonary infection, one infected area, upper left lung."
NAMES = ("chest-xray.jpg", "slide-he.jpg", "ct.dcm")
CASES = [(name, text) for name in NAMES for text in (CAPTION, None, "a photo of a dog")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    for name in NAMES[:2]:
        shutil.copy(EXAMPLES_FOLDER / name, folder / name)
    shutil.copy(get_testdata_file("CT_small.dcm"), folder / "ct.dcm")
    captioning_model("lung infection", "polyp").save_pretrained(folder / "checkpoint")
    tiny_processor().save_pretrained(folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def segmenter(folder) -> Segmenter:
    return Segmenter.from_pretrained(folder / "checkpoint")


@pytest.fixture(scope="module")
def expected(folder, segmenter) -> dict:
    """What the core says: probabilities, whether the caption was used, the written caption and the measurements."""
    answers = {}
    for name, text in CASES:
        scan = read_scan(folder / name)
        [result] = segmenter.segment([scan.image()], [text])
        measures = measure_mask(result.mask(), result.probabilities, scan.spacing)
        answers[name, text] = (result.probabilities, result.text_used, result.written_caption, measures)
    return answers


def assert_same_mask(found: np.ndarray, probabilities: np.ndarray):
    """But for pixels that are at the threshold to within the rounding in which batches differ."""
    differs = found != (probabilities > 0.5)
    assert np.abs(probabilities[differs] - 0.5).max(initial=0) < 1e-5


def assert_same_numbers(found: dict, expected: dict):
    for name, value in expected.items():
        assert found[name] == (value if isinstance(value, str | None) else pytest.approx(value, rel=1e-4)), name


def test_the_pipeline_answers_as_the_core(folder, expected):
    pipe = pipeline(TASK, model=folder / "checkpoint", device="cpu")
    for (name, text), (mask, text_used, written, measures) in expected.items():
        [segment] = pipe(read_scan(folder / name).image(), text=text)
        assert_same_mask(np.asarray(segment["mask"]) > 0, mask)
        assert segment["text_used"] == text_used and segment["predicted"]["captions"][0]["text"] == written
        assert segment["score"] == pytest.approx(measures["mean_probability"], rel=1e-4)


def test_the_command_line_answers_as_the_core(folder, expected, tmp_path):
    table = folder / "table.csv"
    table.write_text("image,text\n" + "".join(f'{name},"{text or ""}"\n' for name, text in CASES))
    arguments = ["predict", table, "--out", tmp_path, "--model", folder / "checkpoint"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    entries = json.loads((tmp_path / "predictions.json").read_text())["images"]
    for entry, (case, (mask, text_used, written, measures)) in zip(entries, expected.items(), strict=True):
        png = next(name for name in entry["masks"] if name.endswith(".png"))
        assert_same_mask(np.asarray(Image.open(tmp_path / png)) > 0, mask)
        assert (Path(entry["image"]).name, entry["text"]) == case and entry["text_used"] == text_used
        assert entry["written_captions"][0]["text"] == written
        assert_same_numbers(entry, measures)


def test_the_service_answers_as_the_core(folder, expected, segmenter):
    with serve(segmenter) as url:
        client = Client(url, verbose=False)
        for (name, text), (mask, text_used, written, measures) in expected.items():
            file, _, answer = client.predict(
                image=handle_file(str(folder / name)), text=text or "", api_name="/segment"
            )
            assert_same_mask(np.asarray(Image.open(file)) > 0, mask)
            assert answer["text_used"] == text_used and answer["written_captions"][0]["text"] == written
            assert_same_numbers(answer, measures)


def test_the_evaluation_finds_the_masks_of_the_core_without_a_flaw(folder, expected, segmenter):
    for asked, mode in ((CAPTION, "correct"), (None, "none")):
        rows: dict[str, list] = {"image": [], "mask": [], "text": [CAPTION] * len(NAMES), "id": list(NAMES)}
        for name in NAMES:
            rows["image"].append(read_scan(folder / name).image())
            rows["mask"].append(Image.fromarray((expected[name, asked][0] > 0.5).astype(np.uint8) * 255))
        measured = evaluate(segmenter, datasets.Dataset.from_dict(rows), [mode], EvaluationSettings())
        assert measured[mode].measures["dice"].tolist() == pytest.approx([1] * len(NAMES), abs=1e-5)
