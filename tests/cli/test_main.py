import csv
import gc
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
import torch
import typer
from captioning import captioning_model
from dicom_files import make_dicom, save_dicom
from PIL import Image
from publishable import save_checkpoint, save_examples
from pydicom.data import get_testdata_file
from tiny_lvit import tiny_processor
from torch.nn.modules.module import register_module_forward_hook
from typer.testing import CliRunner, Result

from lvit_cli.common import import_libraries
from lvit_cli.main import app
from lvit_cli.publish import print_files
from lvit_hf import LViTForImageSegmentation
from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT


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


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    """A checkpoint that writes and judges captions of chests."""
    folder = tmp_path_factory.mktemp("writer")
    for part in (captioning_model("lung infection"), tiny_processor()):
        part.save_pretrained(folder)
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


def list_results(folder: Path) -> list[str]:
    """Names of the files that a user sees."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def errors_of(result: Result) -> list[str]:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]


def test_segments_a_file(lvit, images, tmp_path, checkpoint):
    out = tmp_path / "new" / "out"
    result = lvit("predict", images / "a.png", "--text", "one infected area", "--threshold", 0.4, "--out", out)
    assert result.exit_code == 0, result.output
    assert list_results(out) == ["a_mask.png", "a_overlay.png", "predictions.json"]
    expected = Segmenter.from_pretrained(checkpoint).segment([images / "a.png"], ["one infected area"])[0]
    mask = np.asarray(Image.open(out / "a_mask.png"))
    np.testing.assert_array_equal(mask, np.where(expected.mask(0.4), 255, 0))
    overlay = draw_overlay(Image.open(images / "a.png"), expected.mask(0.4))
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a_overlay.png")), np.asarray(overlay))
    report = read_report(out)
    assert report["threshold"] == 0.4 and report["failures"] == []
    entry = report["images"][0]
    assert entry["area_pixels"] == np.count_nonzero(mask)
    assert (entry["width"], entry["height"], entry["masks"]) == (60, 40, ["a_mask.png"])
    assert (entry["text"], entry["text_used"]) == ("one infected area", True)
    shown = f"{', '.join(entry['labels'])} {100 * np.mean(mask > 0):.1f} %, a_mask.png."
    assert result.stdout.splitlines()[0] == f"{images / 'a.png'}: {shown}"


SETTINGS = [{"side": "patient"}, {"views": "mirror"}, {"on_unknown": "use"}, {"tile_size": 16}, {}]


@pytest.mark.parametrize("text", ["one infected area, upper left lung", "a photo of an infected dog"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_reach_the_network(lvit, images, tmp_path, writer, text, settings):
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    arguments = ["--text", text, "--model", writer, "--out", tmp_path, *options]
    assert lvit("predict", images / "a.png", *arguments).exit_code == 0
    [expected] = Segmenter.from_pretrained(writer).segment([images / "a.png"], [text], **settings)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_mask.png")) > 0, expected.mask())
    [entry] = read_report(tmp_path)["images"]
    assert (entry["text_used"], entry["reading"]["text"]) == (expected.text_used, expected.reading.text)


def test_an_image_without_a_caption_gets_one_written_beside_its_mask(lvit, images, tmp_path):
    checkpoint, out = tmp_path / "captioning", tmp_path / "out"
    captioning_model("polyp").save_pretrained(checkpoint)
    tiny_processor().save_pretrained(checkpoint)
    assert lvit("predict", images / "a.png", "--model", checkpoint, "--out", out).exit_code == 0
    [expected] = Segmenter.from_pretrained(checkpoint).segment([images / "a.png"])
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a_mask.png")) > 0, expected.mask())
    [entry] = read_report(out)["images"]
    assert entry["written_captions"][0]["text"] == expected.written_caption
    assert (entry["text"], entry["text_used"], entry["labels"]) == (None, False, ["polyp"])


def test_every_image_and_the_place_of_the_results_has_a_line(lvit, images, tmp_path):
    result = lvit("predict", images, "--out", tmp_path / "out", "--text", "a photo of a dog")
    lines = result.stdout.splitlines()
    assert [Path(line.partition(":")[0]).name for line in lines[:2]] == ["a.png", "b.jpg"]
    assert all("a_mask.png" in lines[0] or "b_mask.png" in line for line in lines[:2])
    assert lines[-1].endswith(str(tmp_path / "out" / "predictions.json"))


def test_a_line_says_what_its_reader_must_know_of_the_mask(lvit, tmp_path, writer):
    out = tmp_path / "out"
    scan = get_testdata_file("CT_small.dcm")
    result = lvit("predict", scan, "--model", writer, "--out", out, "--text", "a photo of a dog")
    [entry], [line, _] = read_report(out)["images"], result.stdout.splitlines()
    assert entry["out_of_scope"] and line.startswith(entry["out_of_scope"])
    assert entry["reading"]["message"] and entry["reading"]["message"] in line


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
    assert [entry["masks"] for entry in entries] == [["a_mask.png"], ["A-2_mask.png"], ["a-3_mask.png"]]
    assert all((tmp_path / "out" / entry["overlay"]).exists() for entry in entries)


def test_inputs_are_never_overwritten(lvit, images):
    (images / "broken.png").unlink()
    shutil.copy(images / "a.png", images / "b_mask.png")
    before = {file.name: file.read_bytes() for file in images.iterdir()}
    result = lvit("predict", images, "--out", images)
    assert result.exit_code == 0, result.output
    assert {name: (images / name).read_bytes() for name in before} == before
    assert (images / "b-2_mask.png").exists()


def test_no_file_of_a_series_is_overwritten(lvit, tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (3, 24, 20)).astype(np.uint16)
    folder = tmp_path / "series"
    for number, name in enumerate(("a.dcm", "b.dcm", "series_mask.dcm")):
        save_dicom(make_dicom(noise[number], position=(3, 7, 5 * number)), folder / name)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    result = lvit("predict", folder, "--out", folder)
    assert result.exit_code == 0, result.output
    assert {file: file.read_bytes() for file in before} == before
    assert read_report(folder)["images"][0]["masks"] == ["series-2_mask.dcm"]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(("options", "passes"), [((), 2), (("--tile-size", 30), 2 * 3 + 2)])
def test_no_more_images_than_asked_for_go_through_the_network_together(
    lvit, images, tmp_path, batch_size, options, passes
):
    sizes = []

    def count(module, _, outputs):
        if isinstance(module, LViTForImageSegmentation):
            sizes.append(len(outputs.logits))

    hook = register_module_forward_hook(count)
    lvit("predict", images, "--out", tmp_path / "out", "--batch-size", batch_size, *options)
    hook.remove()
    assert sum(sizes) == passes and max(sizes) == batch_size


def test_only_results_of_earlier_runs_are_replaced(lvit, images, tmp_path):
    (images / "broken.png").unlink()
    Image.new("RGB", (20, 20)).save(images / "c.png")
    out = tmp_path / "out"
    (out / "b_overlay.png").mkdir(parents=True)
    (out / "a_mask.png").hardlink_to(images / "a.png")
    (out / "predictions.json").write_text('{"mine": 1}')
    mine = [*images.iterdir(), out / "a_mask.png", out / "predictions.json"]
    before = [file.read_bytes() for file in mine]
    names = {"b.jpg": "b-2", "a.png": "a-2", "c.png": "c"}
    for inputs in ([images], [images / "b.jpg"], [images], [out / "c_mask.png"]):
        assert lvit("predict", *inputs, "--out", out).exit_code == 0
        assert [file.read_bytes() for file in mine] == before
        for entry in json.loads((out / "predictions-2.json").read_text())["images"]:
            name = names.get(Path(entry["image"]).name, "c_mask")
            assert entry["masks"] == [f"{name}_mask.png"] and entry["overlay"] == f"{name}_overlay.png"
    assert len(list_results(out)) == 4 + 2 * 4
    Image.new("1", (20, 20)).save(out / "c_mask.png")  # corrected by its user
    corrected = (out / "c_mask.png").read_bytes()
    assert lvit("predict", images / "c.png", "--out", out).exit_code == 0
    assert (out / "c_mask.png").read_bytes() == corrected and (out / "c-2_mask.png").exists()


def test_a_run_does_not_segment_the_results_of_the_last_one(lvit, images):
    (images / "broken.png").unlink()
    for out in (images, images / "results", images / "more"):
        for _ in range(2):
            assert lvit("predict", images, "--out", out, "--report", out / "r.csv", "--labels").exit_code == 0
            rows = list(csv.DictReader((out / "r.csv").open(encoding="utf-8-sig")))
            assert [Path(row["image"]).name for row in rows] == ["a.png", "b.jpg"]
    result = lvit("predict", images / "results", "--out", images / "results")
    assert result.exit_code == 2 and "There is no image in" in result.stderr


@pytest.mark.parametrize("name", [b"n" * 249 + b".png", b"\xff\xfe.png", "肺".encode() * 83 + b".png"])
def test_any_name_of_a_file_gets_results(lvit, images, tmp_path, name):
    os.rename(images / "b.jpg", os.path.join(os.fsencode(images), name))
    result = lvit("predict", images, "--out", tmp_path / "out")
    assert len(errors_of(result)) == 1  # of the broken file
    report = read_report(tmp_path / "out")
    assert len(report["images"]) == 2
    for entry in report["images"]:
        assert (tmp_path / "out" / entry["masks"][0]).exists() and (tmp_path / "out" / entry["overlay"]).exists()


def test_what_cannot_be_opened_or_written_is_told_of_and_the_rest_go_on(lvit, images, tmp_path):
    os.symlink(images / "away" / "c.dcm", images / "c.dcm")
    os.mkfifo(images / "d.png")  # which nobody writes to
    tifffile.imwrite(images / "wide.tif", np.zeros((2, 2, 2**15), np.uint8))  # more than an axis of NIfTI has
    result = lvit("predict", images, "--out", tmp_path / "out")
    report = read_report(tmp_path / "out")
    assert [Path(entry["image"]).name for entry in report["images"]] == ["a.png", "b.jpg"]
    assert [Path(entry["image"]).name for entry in report["failures"]] == ["broken.png", "c.dcm", "wide.tif"]
    for name, error in zip(("broken.png", "c.dcm", "wide.tif"), errors_of(result), strict=True):
        assert name in error
    assert not [name for name in list_results(tmp_path / "out") if "wide" in name]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_what_it_has_done(lvit, images, tmp_path, monkeypatch, signal_number):
    def write_line(entry: dict) -> str:
        if entry["image"].endswith("b.jpg"):
            os.kill(os.getpid(), signal_number)
        return ""

    monkeypatch.setattr("lvit_cli.predict.write_line", write_line)
    result = lvit("predict", images, "--out", tmp_path / "out", "--batch-size", 1)
    assert result.exit_code != 0 and "Traceback" not in result.output
    assert [Path(entry["image"]).name for entry in read_report(tmp_path / "out")["images"]] == ["a.png", "b.jpg"]


def test_a_row_without_an_image_is_told_by_its_line(lvit, images, tmp_path):
    (images / "t.csv").write_text("image,text\na.png,one area\n,left lung\n.,left lung\n")
    result = lvit("predict", images / "t.csv", "--out", tmp_path / "out")
    assert errors_of(result) == [f"Error: {images / 't.csv'}, line {line}, names no image." for line in (3, 4)]
    assert [entry["masks"] for entry in read_report(tmp_path / "out")["images"]] == [["a_mask.png"]]


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
        ("predict", "--out", out),
        ("predict", image, "--out", image),
        ("predict", image, "--out", out, "--threshold", 2),
        ("predict", image, "--out", out, "--tile-size", 3),
        ("predict", image, "--out", out, "--model", tmp_path / "no-model"),
        ("predict", tmp_path / "empty", "--out", out),
        ("predict", tmp_path / "missing.csv", "--out", out),
        ("predict", tmp_path / "missing.png", "--out", out),
        ("predict", tmp_path / "missing.png", tmp_path / "none", "--out", out),
        ("predict", image, "--out", out, "--address", "auto"),
        ("predict", image, "--out", out, "--actors", 2),
    ]
    for arguments in wrong:
        result = lvit(*arguments)
        assert result.exit_code == 2, arguments
        assert len(errors_of(result)) == 1, arguments
    assert not out.exists()


def find_commands(command, words=()):
    """The words that call each command, and what parses its arguments."""
    if not hasattr(command, "commands"):
        return {" ".join(words): command}
    found = (find_commands(child, (*words, name)) for name, child in command.commands.items())
    return {name: child for commands in found for name, child in commands.items()}


COMMANDS = find_commands(typer.main.get_command(app))


def parse(command: str, *arguments):
    COMMANDS[command].make_context(command, [str(argument) for argument in arguments])


def test_every_option_says_what_it_is_and_does_nothing_unless_it_is_given():
    for name, command in COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)
            if parameter.nargs == -1:  # one or more
                assert parameter.metavar.endswith("..."), (name, parameter.name)
            is_switch = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
            assert not (is_switch and parameter.default), (name, parameter.name)


@pytest.mark.parametrize(
    ("command", "arguments", "smallest"),
    [
        ("predict", "a.png", {"--tile-size": 16, "--batch-size": 1, "--actors": 1, "--threshold": 0}),
        ("slide", "a.svs --out b.tiff", {"--tile-size": 16, "--batch-size": 1, "--threshold": 0}),
        ("finetune", "data --out run", {"--steps": 1, "--lora": 1}),
        (
            "evaluate",
            "model data",
            {"--tile-size": 16, "--size": 1, "--tolerance": 0, "--limit": 1, "--batch-size": 1, "--threshold": 0},
        ),
        ("calibrate", ". data", {"--limit": 2, "--batch-size": 1}),
        ("train-captions", "run.yaml", {"--views": 1, "--limit": 1}),
        ("evaluate-captions", "model data", {"--size": 1, "--limit": 1, "--batch-size": 1}),
    ],
)
def test_numbers_are_as_small_as_they_may_be_and_no_smaller(command, arguments, smallest):
    for option, number in smallest.items():
        parse(command, *arguments.split(), option, number)
        with pytest.raises(typer.BadParameter):
            parse(command, *arguments.split(), option, number - 1)
        if option == "--threshold":  # a probability
            parse(command, *arguments.split(), option, 1)
            with pytest.raises(typer.BadParameter):
                parse(command, *arguments.split(), option, 1.01)


@pytest.mark.parametrize(
    ("command", "arguments", "kind"),
    [
        ("predict", "a.png --out {}", "folder"),
        ("slide", "a.svs --out {}", "file"),
        ("slide", "a.svs --out b.tiff --geojson {}", "file"),
        ("demo", "--keep {}", "folder"),
        ("finetune", "data --out {}", "folder"),
        ("evaluate", "model data --out {}", "folder"),
        ("calibrate", "{} data", "folder that is there"),
        ("caption", "data --out {}", "file"),
        ("evaluate-captions", "model data --out {}", "file"),
        ("data check", "data --out {}", "folder"),
        ("export", "model {}", "folder"),
        ("card", "{}", "folder that is there"),
        ("push", "{} --repo-id a/b", "folder that is there"),
        ("push-space", "--out {}", "folder"),
    ],
)
def test_a_file_is_no_folder_and_a_folder_no_file(command, arguments, kind, tmp_path):
    (tmp_path / "file").touch()
    wrong = tmp_path / "file" if kind.startswith("folder") else tmp_path
    right, new = tmp_path if wrong.is_file() else tmp_path / "file", tmp_path / "new"
    parse(command, *arguments.format(right).split())
    for place in [wrong, *[new] * kind.endswith("there")]:
        with pytest.raises(typer.BadParameter, match=str(place)):
            parse(command, *arguments.format(place).split())
    if not kind.endswith("there"):
        parse(command, *arguments.format(new).split())


def test_the_version_is_that_of_the_package(lvit):
    assert lvit("--version").stdout == f"lvit_hf {importlib.metadata.version('lvit_hf')}\n"


def read_sizes(printed: str) -> dict[str, int]:
    """Names and sizes of files as `print_files` prints them, with the sum under its own words."""
    lines = [line.split(" bytes  ") for line in printed.splitlines()]
    return {name: int(size.replace(",", "")) for size, name in lines}


def test_files_are_listed_with_their_sizes_and_the_sum(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(bytes(1200))
    print_files(tmp_path)
    assert read_sizes(capsys.readouterr().out) == {"a.txt": 1200, "1 file": 1200}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_bytes(bytes(34))
    print_files(tmp_path)
    assert read_sizes(capsys.readouterr().out) == {"a.txt": 1200, "b/c.txt": 34, "2 files": 1234}


def test_the_files_of_a_space_are_written_to_a_new_folder_or_listed(lvit, tmp_path):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "new" / "space"
    save_checkpoint(checkpoint)
    save_examples(tmp_path / "pictures")
    assert lvit("card", checkpoint, "--examples", tmp_path / "pictures").exit_code == 0
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert "two infected areas, upper left lung" in card  # of the pictures
    model = lvit("push", checkpoint, "--repo-id", "someone/lvit", "--dry-run")
    assert model.exit_code == 0 and read_sizes(model.stdout)["README.md"] == pytest.approx(len(card), abs=200)
    listed = lvit("push-space", "--model", checkpoint, "--out", out, "--dry-run")
    assert listed.exit_code == 0 and not out.exists(), listed.output
    written = lvit("push-space", "--model", checkpoint, "--out", out)
    assert (written.exit_code, written.stdout) == (0, listed.stdout)
    sizes = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    assert read_sizes(written.stdout) == {**sizes, f"{len(sizes)} files": sum(sizes.values())}
    assert (out / "app.py").is_file() and [name for name in sizes if name.endswith("model.safetensors")]
    [error] = errors_of(lvit("push-space", "--model", checkpoint, "--out", out))
    assert error == f"Error: {out} is not empty: name a new folder with --out."
    for options in ((), ("--out", out, "--repo-id", "someone/space")):
        [error] = errors_of(lvit("push-space", "--model", checkpoint, *options))
        assert "--repo-id, or a folder for its files with --out" in error


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", ""])
def test_a_port_that_is_none_is_named(lvit, monkeypatch, port):
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    assert errors_of(lvit("demo")) == [f"Error: GRADIO_SERVER_PORT is the number of a port, 1 to 65535, got {port!r}."]


def test_who_reads_no_more_of_the_output_is_told_nothing():
    script = "import typer\nfrom lvit_cli.common import errors_as_sentences\n"
    script += "def write():\n with errors_as_sentences():\n  typer.echo('a line')\n"
    script += "app = typer.Typer()\napp.command()(write)\napp()"
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


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


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("train run.yaml", "training.run", "train"),
        ("fit-scope run.yaml", "training.scope", "train"),
        ("fit-presence run.yaml", "training.presence", "train"),
        ("train-captions run.yaml", "training.caption_head", "train"),
        ("finetune data --out run", "training.finetune", "train"),
        ("evaluate . data", "data.load", "evaluate"),
        ("evaluate-captions . data", "data.load", "evaluate"),
        ("calibrate . data", "data.load", "evaluate"),
        ("data check data", "data.check", "evaluate"),
        ("push-dataset-card data --repo-id a/b --license mit --source x", "publishing.dataset_card", "evaluate"),
        ("export .", "publishing.export", "export"),
        ("predict . --out run --geojson", "inference.geojson", "results"),
        ("slide a.svs --out run", "inference.slide", "slides"),
        ("demo", "demo", "app"),
    ],
)
def test_what_is_not_installed_is_named_with_what_installs_it(lvit, monkeypatch, command, module, extra):
    monkeypatch.setitem(sys.modules, f"lvit_hf.{module}", None)  # as where it imports a library that is not there
    result = lvit(*command.split())
    [error] = errors_of(result)
    assert error == f"Error: lvit_hf.{module} is not installed; this needs pip install 'lvit_hf[{extra}]'."


@pytest.mark.parametrize("is_asked", [False, True])
def test_the_whole_error_of_a_file_is_in_the_log_that_is_shown_when_asked_for(lvit, images, tmp_path, is_asked):
    root = logging.root
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's own, beside which the command would add none
    try:
        options = ["--verbose"] if is_asked else []
        result = lvit(*options, "predict", images / "broken.png", "--out", tmp_path / "out")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert ("Traceback" in result.stderr) == is_asked


def test_a_report_says_how_each_mask_came_about(lvit, images, tmp_path, checkpoint):
    out, path = tmp_path / "out", tmp_path / "reports" / "report.jsonl"
    for _ in range(2):  # the second time it is replaced
        assert lvit("predict", images, "--out", out, "--report", path, "--side", "patient").exit_code == 1
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.jpg", "broken.png"]
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    for row in rows:
        assert row["weights_sha256"] == {"model.safetensors": weights} and row["versions"]["transformers"]
        assert (row["model"], row["threshold"], row["side"]) == (str(checkpoint), 0.5, "patient")
        assert (row["backend"], row["device"]) == ("torch", "cuda:0" if torch.cuda.is_available() else "cpu")
        assert row["seconds"] >= 0
    assert rows[0]["instances"] == rows[0]["components"] and "broken.png" in rows[2]["error"]
    assert not (out / "predictions.json").exists()


def test_a_report_replaces_no_other_file(lvit, images, tmp_path):
    table = images / "table.csv"
    table.write_text("image,text\na.png,one\n")
    for report in (table, images / "a.png", tmp_path / "report.txt"):
        before = report.exists() and report.read_bytes()
        result = lvit("predict", table, "--out", tmp_path / "out", "--report", report)
        assert result.exit_code == 2 and len(errors_of(result)) == 1
        assert (report.exists() and report.read_bytes()) == before


def test_a_report_and_a_table_of_objects_have_each_its_own_file(lvit, images, tmp_path):
    report = tmp_path / "out" / "a_instances.csv"
    assert lvit("predict", images / "a.png", "--out", report.parent, "--labels", "--report", report).exit_code == 0
    with report.open(encoding="utf-8-sig", newline="") as file:
        [row] = csv.DictReader(file)
    assert row["instance_table"] == "a-2_instances.csv" and (report.parent / row["instance_table"]).exists()


def test_objects_and_probabilities_of_pictures(lvit, images, tmp_path, checkpoint):
    out = tmp_path / "out"
    options = ("--labels", "--geojson", "--probabilities", 16, "--threshold", 0.4)
    assert lvit("predict", images / "a.png", "--out", out, *options).exit_code == 0
    [entry] = read_report(out)["images"]
    [expected] = Segmenter.from_pretrained(checkpoint).segment([images / "a.png"])
    labels = tifffile.imread(out / entry["label_map"])
    assert labels.dtype == np.uint16 and labels.max() == entry["instances"] == entry["components"] > 1
    np.testing.assert_array_equal(labels > 0, expected.mask(0.4))
    rows = list(csv.DictReader((out / entry["instance_table"]).open(encoding="utf-8-sig")))
    assert [int(row["pixels"]) for row in rows] == np.bincount(labels.ravel())[1:].tolist()
    assert {row["unit"] for row in rows} == {"px"}
    features = json.loads((out / entry["geojson"]).read_text(encoding="utf-8"))["features"]
    assert [feature["properties"]["measurements"]["Area px^2"] for feature in features] == [
        float(row["size"]) for row in rows
    ]
    probabilities = np.asarray(Image.open(out / entry["probabilities"]))
    np.testing.assert_allclose(probabilities / 65535, expected.probabilities, atol=1e-5)
    assert len(list_results(out)) == 7  # and the mask, the overlay and the report


def test_objects_and_probabilities_of_volumes_lie_on_their_grid(lvit, tmp_path):
    affine = np.array([[0, -0.5, 0, 3], [0.7, 0, 0, 5], [0, 0, 2, 7], [0, 0, 0, 1]])
    volume = np.random.default_rng(0).integers(0, 255, (24, 20, 6)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "scan.nii.gz")
    out = tmp_path / "out"
    options = ("--labels", "--geojson", "--probabilities", 8, "--threshold", 0.4)
    assert lvit("predict", tmp_path / "scan.nii.gz", "--out", out, *options).exit_code == 0
    [entry] = read_report(out)["images"]
    mask, labels, probabilities = (
        nibabel.load(out / name) for name in (*entry["masks"], entry["label_map"], entry["probabilities"])
    )
    for image in (mask, labels, probabilities):
        assert image.shape == volume.shape
        np.testing.assert_allclose(image.affine, affine)
    assert labels.get_data_dtype() == np.uint16 and probabilities.get_data_dtype() == np.uint8
    numbers, values = np.asarray(labels.dataobj), probabilities.get_fdata()
    np.testing.assert_array_equal(numbers > 0, np.asarray(mask.dataobj) > 0)
    assert values[numbers > 0].min() > 0.4 - 0.01 and values[numbers == 0].max() < 0.4 + 0.01
    rows = list(csv.DictReader((out / entry["instance_table"]).open(encoding="utf-8-sig")))
    assert len(rows) == entry["instances"] == numbers.max()
    for row in rows:
        assert row["unit"] == "mm" and float(row["size"]) == pytest.approx(int(row["pixels"]) * 0.5 * 0.7 * 2)
    assert "geojson" not in entry


def test_objects_of_a_dicom_series_lie_in_the_place_of_its_slices(lvit, tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (4, 24, 20)).astype(np.uint16)
    for number, pixels in enumerate(noise):
        save_dicom(make_dicom(pixels, position=(3, 7, 5 * number)), tmp_path / "series" / f"{number}.dcm")
    out = tmp_path / "out"
    options = ("--labels", "--probabilities", 16, "--threshold", 0.4)
    result = lvit("predict", tmp_path / "series", "--out", out, *options)
    assert result.exit_code == 0, result.output
    [entry] = read_report(out)["images"]
    assert entry["masks"][0].endswith(".dcm") and entry["instances"] > 0
    for name in (entry["label_map"], entry["probabilities"]):
        image = nibabel.load(out / name)
        assert image.shape == noise.shape
        # Slice 1, row 2, column 3; the axes of DICOM grow to the left and to the back.
        np.testing.assert_allclose(image.affine @ (1, 2, 3, 1), (-(3 + 3 * 0.25), -(7 + 2 * 0.5), 5, 1))


@pytest.mark.parametrize("missing, is_there", [({}, True), ({"StudyInstanceUID": None}, False)])
def test_a_dicom_file_without_a_segmentation_says_so(lvit, tmp_path, missing, is_there):
    save_dicom(make_dicom(np.arange(480, dtype=np.uint16).reshape(24, 20), **missing), tmp_path / "a.dcm")
    result = lvit("predict", tmp_path / "a.dcm", "--out", tmp_path / "out")
    [entry] = read_report(tmp_path / "out")["images"]
    assert entry["masks"] == (["a_mask.dcm"] if is_there else []) + ["a_mask.png"]
    for said in (result.stdout, " ".join(entry["notes"])):
        assert ("There is no DICOM Segmentation" in said) is not is_there


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


@pytest.mark.parametrize("is_first", [True, False])
def test_garbage_is_looked_for_in_all_that_came_after_the_libraries(monkeypatch, is_first):
    if is_first:
        monkeypatch.delitem(sys.modules, "torch")
    try:
        import_libraries()
        assert gc.isenabled()
        assert bool(gc.get_freeze_count()) == is_first
    finally:
        gc.unfreeze()


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


def test_scans_and_volumes_are_segmented_like_any_image_and_measured_in_mm(lvit, images, tmp_path):
    (images / "broken.png").unlink()
    shutil.copy(get_testdata_file("CT_small.dcm"), images / "ct.dcm")
    affine = np.diag([-0.5, -0.5, 2, 1])
    volume = np.random.default_rng(0).integers(0, 255, (24, 20, 6)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(volume, affine), images / "scan.nii.gz")
    out = tmp_path / "out"
    result = lvit("predict", images, "--out", out, "--threshold", 0.3)
    assert result.exit_code == 0, result.output
    entries = {Path(entry["image"]).name: entry for entry in read_report(out)["images"]}
    assert list(entries) == ["a.png", "b.jpg", "ct.dcm", "scan.nii.gz"]
    assert entries["ct.dcm"]["diameter_unit"] == "mm" and entries["ct.dcm"]["area_mm2"] > 0
    segmentation = pydicom.dcmread(out / entries["ct.dcm"]["masks"][0])
    assert segmentation.Modality == "SEG"
    assert segmentation.FrameOfReferenceUID == pydicom.dcmread(images / "ct.dcm").FrameOfReferenceUID
    mask = nibabel.load(out / entries["scan.nii.gz"]["masks"][0])
    np.testing.assert_allclose(mask.affine, affine)
    assert mask.shape == volume.shape
    voxels = int(np.asarray(mask.dataobj).sum())
    assert entries["scan.nii.gz"]["voxels"] == voxels > 0
    [line] = [line for line in result.stdout.splitlines() if line.startswith(f"{images / 'scan.nii.gz'}: ")]
    assert f" {100 * np.asarray(mask.dataobj).mean():.1f} %, " in line
    assert entries["scan.nii.gz"]["volume_ml"] == pytest.approx(voxels * 0.5 * 0.5 * 2 / 1000)
    assert entries["scan.nii.gz"]["slices"] == 6
