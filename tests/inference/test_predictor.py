"""Names of results: no file is lost, whatever is there already and however long a name is."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import make_dicom, save_dicom, save_zip
from PIL import Image
from tiny_lvit import tiny_model, tiny_processor
from tiny_volumes import tiny_volume_model, tiny_volume_processor

from lvit_hf.inference.files import Item, Outputs, read_item
from lvit_hf.inference.predictor import (
    LEDGER,
    LONGEST_NAME,
    Predictor,
    PredictorConfig,
    ResultNames,
    choose_report,
    list_items,
    path_key,
    read_ledger,
)
from lvit_hf.inference.report import write_report
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.inference.volumes import segment_scan
from lvit_hf.io.readers import read_scan


SUFFIXES = ("_mask.png", "_overlay.png")
SETTINGS = {"tile_size": None, "views": None, "side": "image", "on_unknown": "ignore"}


def publish(names: ResultNames, *files: str):
    part = names.folder / ".part"
    part.mkdir()
    for file in files:
        (part / file).write_text(f"result {file}")
    names.publish(part)
    part.rmdir()


def test_a_name_is_given_once_and_those_that_others_have_are_passed_over(tmp_path):
    (tmp_path / "b-2_overlay.png").write_text("mine")
    taken = {path_key(tmp_path / "b_mask.png")}  # which this run reads
    names = ResultNames(tmp_path, taken)
    assert [names.choose(stem, SUFFIXES) for stem in ("a", "A", "a", "b", "a-2")] == [
        "a",
        "A-2",
        "a-3",
        "b-3",
        "a-2-2",
    ]
    assert {path_key(tmp_path / f"A-2{suffix}") for suffix in SUFFIXES} < taken
    assert ResultNames(tmp_path, set()).choose("a", SUFFIXES) == "a"


def test_what_an_earlier_run_wrote_is_replaced_unless_it_was_changed(tmp_path):
    publish(ResultNames(tmp_path, set()), "a_mask.png", "a_overlay.png", "b_mask.png")
    assert {name: int(written) for name, written in read_ledger(tmp_path).items()} == {
        name: (tmp_path / name).stat().st_mtime_ns for name in ("a_mask.png", "a_overlay.png", "b_mask.png")
    }
    assert [ResultNames(tmp_path, set()).choose(stem, SUFFIXES) for stem in ("a", "B", "c")] == ["a", "B", "c"]
    os.utime(tmp_path / "a_overlay.png", ns=(0, 5))
    assert ResultNames(tmp_path, set()).choose("a", SUFFIXES) == "a-2"
    publish(ResultNames(tmp_path, set()), "a_overlay.png")  # the last line of a file counts
    assert ResultNames(tmp_path, set()).choose("a", SUFFIXES) == "a"
    assert (tmp_path / "a_overlay.png").read_text() == "result a_overlay.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEDGER, "a_mask.png", "a_overlay.png", "b_mask.png"]
    assert read_ledger(tmp_path / "elsewhere") == {}
    with (tmp_path / LEDGER).open("ab") as ledger:
        ledger.write("1 肺".encode()[:-1])  # of a run that was killed
    assert ResultNames(tmp_path, set()).choose("a", SUFFIXES) == "a"


@pytest.mark.parametrize("letter", ["n", "肺", "\udcff"])
def test_names_are_as_long_as_they_can_be(tmp_path, letter):
    names = ResultNames(tmp_path, set())
    chosen = [names.choose(letter * 300, SUFFIXES) for _ in range(11)]
    assert len(set(chosen)) == 11 and chosen[1].endswith("-2") and chosen[10].endswith("-11")
    lengths = [len(f"{name}_overlay.png".encode()) for name in chosen]
    assert max(lengths) <= LONGEST_NAME and min(lengths) > LONGEST_NAME - len(letter.encode(errors="replace"))
    whole = "n" * (LONGEST_NAME - len("_overlay.png"))
    assert ResultNames(tmp_path, set()).choose(whole, SUFFIXES) == whole


def test_a_report_takes_the_first_name_that_is_free(tmp_path):
    assert choose_report(tmp_path, set()) == tmp_path / "predictions.json"
    write_report(tmp_path / "predictions.json", {"weights_sha256": {}}, [])  # of an earlier run
    (tmp_path / "predictions-3.json").write_text("{}")
    taken: set[str] = set()
    found = [choose_report(tmp_path, taken).name for _ in range(3)]
    assert found == ["predictions.json", "predictions-2.json", "predictions-4.json"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.b.png", "a.b"),
        ("a.JPG", "a"),
        ("a.nii.gz", "a"),
        ("a.NII.GZ", "a"),
        ("a.nii", "a"),
        ("a.dcm", "a"),
        ("a.IMA", "a"),
        ("a.zip", "a"),
        ("1.2.840", "1.2.840"),
        ("x/series (series 1.5)", "series (series 1.5)"),
        ("in.zip/a.b.tif", "a.b"),
        ("a.notes", "a.notes"),
    ],
)
def test_results_are_named_like_their_files(checkpoint, tmp_path, name, stem):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / "image.png")
    predictor = Predictor(PredictorConfig(str(checkpoint), "torch", Outputs(), 2, SETTINGS))
    taken: set[str] = set()
    [entry] = predictor.predict([Item(name, None, tmp_path / "image.png")], tmp_path, taken)
    assert entry["masks"] == [f"{stem}_mask.png"] and path_key(tmp_path / f"{stem}_mask.png") in taken
    assert (tmp_path / entry["masks"][0]).is_file() and (tmp_path / entry["overlay"]).is_file()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()] and entry["seconds"] > 0


def test_every_label_has_room_for_its_mask(tmp_path):
    """Names are chosen so that no file of any label is lost."""
    tiny_model(id2label={0: "background", 1: "left", 2: "right"}).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    Image.new("RGB", (20, 20), "gray").save(tmp_path / "a.png")
    (tmp_path / "a_right_mask.png").write_text("mine")
    predictor = Predictor(PredictorConfig(str(tmp_path / "model"), "torch", Outputs(), 2, SETTINGS))
    [entry] = predictor.predict([Item("a.png", None, tmp_path / "a.png")], tmp_path, set())
    assert entry["masks"] == [f"a-2_{label}_mask.png" for label in ("background", "left", "right")]
    assert (tmp_path / "a_right_mask.png").read_text() == "mine"


@pytest.mark.parametrize("setting", [{"tile_size": 32}, {"views": "mirror"}, {"side": "patient"}, {}])
def test_a_volume_goes_through_its_network_at_once_as_it_is_told(tmp_path, setting):
    tiny_volume_model(text_fusion="cross_attention", caption_families=["lung infection"]).save_pretrained(tmp_path)
    tiny_volume_processor().save_pretrained(tmp_path)
    values = np.random.default_rng(0).normal(100, 20, (20, 30, 9)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, 1, 2, 1])), tmp_path / "a.nii.gz")
    config = PredictorConfig(str(tmp_path), "torch", Outputs(0.45), 1, SETTINGS | setting)
    if setting.keys() & {"tile_size", "views"}:
        with pytest.raises(ValueError, match="--tile-size and --views are for images"):
            Predictor(config)
        return
    text, steps = "one infected area, upper left lung", []
    predictor = Predictor(config)
    items = [Item("a.nii.gz", text, tmp_path / "a.nii.gz")]
    [entry] = predictor.predict(items, tmp_path, set(), lambda *step: steps.append(step))
    scan, segmenter = read_scan(tmp_path / "a.nii.gz", keep_values=True), Segmenter.from_pretrained(tmp_path)
    expected = segment_scan(segmenter, scan, text, side=setting.get("side", "image"))
    assert entry["reading"]["text"] == expected.middle.reading.text and entry["text_used"]
    assert entry["voxels"] == expected.mask(0.45).sum() > 0 and entry["threshold"] == predictor.run["threshold"]
    mask = np.asarray(nibabel.load(tmp_path / entry["masks"][0]).dataobj)
    assert np.count_nonzero(mask) == entry["voxels"]
    assert steps[0][0] == 1 and steps[-1][0] == steps[-1][1] > 1  # a window at a time
    assert predictor.run["side"] == setting.get("side", "image") and predictor.run["backend"] == "torch"


def test_inputs_are_listed_with_their_captions(tmp_path):
    """A table's rows, a folder's images and series, and what is in a zip, in their order."""
    (tmp_path / "x").mkdir()
    (tmp_path / "z").mkdir()
    for name in ("a.png", "x/b.png"):
        Image.new("L", (9, 8)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("image,text\na.png,one\nx/b.png,\n,two\ngone.png,three\n")
    slices = {f"{n}.dcm": make_dicom(np.zeros((8, 9), np.uint16), (0, 0, n)) for n in (1, 2)}
    for name, dataset in slices.items():
        save_dicom(dataset, tmp_path / "y" / name)
    series = save_zip(slices, tmp_path / "z" / "series.zip")
    mixed = save_zip({"c.png": (tmp_path / "a.png").read_bytes(), **slices}, tmp_path / "z" / "mixed.zip")
    inputs = [tmp_path / "t.csv", tmp_path / "x", tmp_path / "y", series, mixed, tmp_path / "gone.png"]
    items = list_items(inputs, "all")
    assert [
        (item.name.removeprefix(f"{tmp_path}/"), item.text, item.path.relative_to(tmp_path)) for item in items
    ] == [
        ("a.png", "one", Path("a.png")),
        ("x/b.png", "all", Path("x/b.png")),
        (str(tmp_path), "two", Path()),
        ("gone.png", "three", Path("gone.png")),
        ("x/b.png", "all", Path("x/b.png")),
        ("y", "all", Path("y/1.dcm")),
        ("z/series.zip", "all", Path("z/series.zip")),
        ("z/mixed.zip", "all", Path("z/mixed.zip")),
        ("z/mixed.zip/c.png", "all", Path("z/mixed.zip")),
        ("gone.png", "all", Path("gone.png")),
    ]
    assert [item.problem for item in items if item.problem] == [f"{tmp_path / 't.csv'}, line 4, names no image."]
    assert (
        items[2].problem
        and items[4].series == ()
        and items[5].series == tuple(tmp_path / "y" / name for name in slices)
    )
    assert (items[6].members, items[6].member) == ((), None) and items[8].member.filename == "c.png"
    assert sorted(map(str, items[7].members)) == list(slices)
    assert [len(read_item(item).scan) for item in items[5:9]] == [2, 2, 2, 1]
    for missing, verb in (([tmp_path / "no"], "does"), ([tmp_path / "no", tmp_path / "none"], "do")):
        with pytest.raises(ValueError, match=f"{', '.join(map(str, missing))} {verb} not exist"):
            list_items(missing, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no image in .*empty"):
        list_items([tmp_path / "empty"], None)
