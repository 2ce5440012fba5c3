import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from tiny_lvit import tiny_model, tiny_processor
from typer.testing import CliRunner, Result

from lvit_cli.main import app
from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.training.caption_labels import caption_fields


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with two images, one broken file and a text."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 60, 3)), ("b.jpg", (50, 30, 3))):
        Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def lvit(checkpoint, monkeypatch):
    """Runs the command, with the tiny checkpoint as its model."""
    monkeypatch.setenv("LVIT_MODEL", str(checkpoint))

    def run(*arguments) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def read_report(folder: Path) -> dict:
    return json.loads((folder / "predictions.json").read_text(encoding="utf-8"))


def errors_of(result: Result) -> list[str]:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]


def test_segments_a_file(lvit, images, tmp_path, checkpoint):
    out = tmp_path / "new" / "out"
    result = lvit("predict", images / "a.png", "--text", "one infected area", "--threshold", 0.4, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == ["a_mask.png", "a_overlay.png", "predictions.json"]
    expected = Segmenter.from_pretrained(checkpoint).segment([images / "a.png"], ["one infected area"])[0]
    mask = np.asarray(Image.open(out / "a_mask.png"))
    np.testing.assert_array_equal(mask, np.where(expected.mask(0.4), 255, 0))
    assert Image.open(out / "a_overlay.png").size == (60, 40)
    report = read_report(out)
    assert report["threshold"] == 0.4 and report["failures"] == []
    entry = report["images"][0]
    assert entry["area_pixels"] == np.count_nonzero(mask)
    assert (entry["width"], entry["height"], entry["mask"]) == (60, 40, "a_mask.png")
    assert (entry["text"], entry["text_used"]) == ("one infected area", True)


def test_an_image_without_a_caption_is_segmented_with_those_that_the_model_writes(lvit, images, tmp_path):
    checkpoint = tmp_path / "captioning"
    tiny_model(**caption_fields(["polyp"])).save_pretrained(checkpoint)
    tiny_processor().save_pretrained(checkpoint)
    segmenter = CaptioningSegmenter.from_pretrained(checkpoint)
    for count in (5, 0):
        out = tmp_path / str(count)
        options = ["--model", checkpoint, "--num-captions", count, "--out", out]
        assert lvit("predict", images / "a.png", *options).exit_code == 0
        segmenter.num_captions = count
        [expected] = segmenter.segment([images / "a.png"])
        np.testing.assert_array_equal(np.asarray(Image.open(out / "a_mask.png")) > 0, expected.mask())
        [entry] = read_report(out)["images"]
        captions = [caption["text"] for caption in entry["predicted_captions"]]
        assert captions == [caption["text"] for caption in segmenter.describe([expected.image], 5)[0]["captions"]]
        assert (entry["text"], entry["text_used"]) == ((captions[0], True) if count else (None, False))


def test_a_broken_file_is_reported_and_the_rest_go_on(lvit, images, tmp_path):
    result = lvit("predict", images, tmp_path / "missing.png", "--out", tmp_path / "out", "--batch-size", 2)
    assert result.exit_code == 1
    broken, missing = errors_of(result)
    assert "broken.png" in broken
    assert missing == f"Error: {tmp_path / 'missing.png'} does not exist."
    report = read_report(tmp_path / "out")
    assert [Path(entry["image"]).name for entry in report["images"]] == ["a.png", "b.jpg"]
    assert [Path(entry["image"]).name for entry in report["failures"]] == ["broken.png", "missing.png"]


def test_a_csv_captions_its_images(lvit, images, tmp_path):
    table = images / "table.csv"
    table.write_text('image,text,note\na.png,"two areas, left lung",x\nb.jpg,,y\n', encoding="utf-8-sig")
    result = lvit("predict", table, "--text", "one area", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [entry["text"] for entry in read_report(tmp_path / "out")["images"]] == ["two areas, left lung", "one area"]


def test_inputs_of_one_name_get_outputs_of_their_own(lvit, images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (20, 20)).save(other / "A.png")
    result = lvit("predict", images / "a.png", other / "A.png", images / "a.png", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    entries = read_report(tmp_path / "out")["images"]
    assert [entry["mask"] for entry in entries] == ["a_mask.png", "A-2_mask.png", "a-3_mask.png"]
    assert all((tmp_path / "out" / entry["overlay"]).exists() for entry in entries)


def test_inputs_are_never_overwritten(lvit, images):
    (images / "broken.png").unlink()
    shutil.copy(images / "a.png", images / "b_mask.png")
    before = {file.name: file.read_bytes() for file in images.iterdir()}
    result = lvit("predict", images, "--out", images)
    assert result.exit_code == 0, result.output
    assert {name: (images / name).read_bytes() for name in before} == before
    assert (images / "b-2_mask.png").exists()


def test_tiles_and_the_captions_they_do_not_get(lvit, images, tmp_path):
    result = lvit("predict", images / "a.png", "--text", "upper left", "--tile-size", 24, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "out")
    assert report["tile_size"] == 24
    assert report["images"][0]["text_used"] is False


@pytest.mark.parametrize(
    "content, message",
    [("file,caption\na.png,x\n", "needs the columns image and text"), (b"\xff\xfe\x00", "not a CSV file in UTF-8")],
)
def test_a_csv_that_cannot_be_used_is_a_wrong_usage(lvit, tmp_path, content, message):
    table = tmp_path / "table.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = lvit("predict", table, "--out", tmp_path / "out")
    assert result.exit_code == 2
    [error] = errors_of(result)
    assert message in error


def test_wrong_usage_ends_with_status_2_and_one_error(lvit, images, tmp_path):
    (tmp_path / "empty").mkdir()
    image, out = images / "a.png", tmp_path / "out"
    wrong = [
        ("predict", image),
        ("predict", "--out", out),
        ("predict", image, "--out", image),
        ("predict", image, "--out", out, "--threshold", 2),
        ("predict", image, "--out", out, "--tile-size", 3),
        ("predict", image, "--out", out, "--model", tmp_path / "no-model"),
        ("predict", tmp_path / "empty", "--out", out),
        ("predict", tmp_path / "missing.csv", "--out", out),
    ]
    for arguments in wrong:
        result = lvit(*arguments)
        assert result.exit_code == 2, arguments
        assert len(errors_of(result)) == 1, arguments
    assert not out.exists()


def test_convert_and_train_report_what_is_wrong_in_a_sentence(lvit, images, tmp_path):
    for arguments in (
        ("convert", images / "a.png", tmp_path / "out"),
        ("convert", tmp_path / "missing.pth.tar", tmp_path / "out"),
        ("train", tmp_path / "missing.yaml"),
        ("train", images / "a.png"),
    ):
        result = lvit(*arguments)
        assert result.exit_code == 1, arguments
        assert len(errors_of(result)) == 1, arguments


def test_the_shipped_checkpoint_segments_the_examples(monkeypatch, tmp_path):
    monkeypatch.delenv("LVIT_MODEL", raising=False)
    examples = DEFAULT_CHECKPOINT.parent.parent / "examples" / "examples.csv"
    result = CliRunner().invoke(app, ["predict", str(examples), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    entries = read_report(tmp_path)["images"]
    assert len(entries) == len(examples.read_text(encoding="utf-8").splitlines()) - 1
    for entry in entries:
        assert 1 < entry["area_percent"] < 60, entry
        assert entry["text_used"]


def test_runs_in_a_shell_with_a_pinned_revision_from_the_hub(checkpoint, images, tmp_path):
    """A real process, offline, with a Hub cache that holds one revision of a model."""
    cached = tmp_path / "hub" / "models--someone--lvit"
    shutil.copytree(checkpoint, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text("0" * 40)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lvit_cli.main", "predict", str(images), "--out", str(tmp_path / "out")]
    result = subprocess.run([*command, "--model", "someone/lvit@v1"], env=environment, capture_output=True, text=True)
    assert result.returncode == 1  # one of the files is broken
    assert len(read_report(tmp_path / "out")["images"]) == 2
    assert "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("Error: ") and "broken.png" in line]


def test_dicom_is_segmented_like_any_image(lvit, images, tmp_path):
    (images / "broken.png").unlink()
    shutil.copy(get_testdata_file("CT_small.dcm"), images / "ct.dcm")
    shutil.copy(get_testdata_file("rtdose.dcm"), images / "volume.dcm")
    result = lvit("predict", images, "--out", tmp_path / "out")
    (error,) = errors_of(result)
    assert "volume.dcm has 15 slices" in error
    report = read_report(tmp_path / "out")
    assert [entry["mask"] for entry in report["images"]] == ["a_mask.png", "b_mask.png", "ct_mask.png"]
    assert Image.open(tmp_path / "out" / "ct_mask.png").size == (128, 128)
