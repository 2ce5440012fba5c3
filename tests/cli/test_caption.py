import csv

import numpy as np
import pytest
from PIL import Image
from skimage.draw import disk
from squares import make_rows
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.captions.from_masks import describe_mask
from lvit_hf.model.captions_lvit import parse_caption, render_caption


def lvit(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def draw_disks(*disks, size=(200, 200)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for row, column, radius in disks:
        mask[disk((row, column), radius, shape=size)] = True
    return mask


def test_polyps_are_described_by_size_shape_and_place():
    large, small = (100, 100, 60), (30, 170, 20)
    caption = describe_mask(draw_disks(large, small), "polyp")
    assert caption.findings == (
        {"size": "large", "shape": "circular", "place": "center"},
        {"size": "small", "shape": "circular", "place": "top right"},
    )
    assert parse_caption(render_caption(caption)) == caption
    bar = np.zeros((200, 200), dtype=bool)
    bar[150:190, 20:30] = bar[180:190, 20:90] = True  # an L
    assert describe_mask(bar, "polyp").findings[0]["shape"] == "irregular"


def test_infected_zones_are_named_on_the_image_s_left_and_right():
    mask = draw_disks((20, 40, 20), (150, 150, 30))
    assert render_caption(describe_mask(mask, "lung infection")) == (
        "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung."
    )


def test_the_densest_place_of_nuclei_is_named():
    centers = range(10, 200, 20)
    even = draw_disks(*((row, column, 8) for row in centers for column in centers))
    assert render_caption(describe_mask(even, "nuclei")) == "The nuclei are evenly distributed."
    even[:100, 100:] = True
    assert render_caption(describe_mask(even, "nuclei")) == "The nuclei density in the upper right is high."


@pytest.mark.parametrize("family", ["polyp", "lung infection", "nuclei"])
def test_an_empty_mask_has_nothing_to_say(family):
    assert render_caption(describe_mask(np.zeros((50, 50), dtype=bool), family)) == ""


def test_captions_of_a_folder_of_masks_come_with_a_warning(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(draw_disks((100, 100, 60))).save(masks / "a.png")
    Image.fromarray(np.zeros((50, 50), dtype=np.uint8)).save(masks / "b.PNG")
    (masks / "notes.txt").write_text("no mask")
    output = tmp_path / "captions.csv"
    result = lvit("caption", masks, "--from-mask", "--family", "polyp", "--out", output)
    assert result.exit_code == 0
    assert "carry the label" in result.stderr
    assert result.stdout == f"2 captions, 1 of them empty: {output}\n"
    with output.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"image": "a.png", "text": "One large,circular colonic polyp on the center.", "source": "mask"},
            {"image": "b.PNG", "text": "", "source": "mask"},
        ]


def test_captions_of_a_data_set_are_those_of_its_masks(tmp_path):
    rows, output = make_rows(6, seed=0), tmp_path / "captions.csv"
    rows.to_parquet(tmp_path / "valid-0.parquet")
    options = ("--from-mask", "--family", "lung infection", "--split", "valid", "--out", output)
    assert lvit("caption", tmp_path, *options).exit_code == 0
    masks = [np.asarray(mask) > 0 for mask in rows["mask"]]
    texts = [render_caption(describe_mask(mask, "lung infection")) for mask in masks]
    assert len(set(texts)) == 2
    with output.open(encoding="utf-8", newline="") as file:
        assert [(row["image"], row["text"]) for row in csv.DictReader(file)] == list(zip(rows["id"], texts))


def test_what_is_missing_is_said(tmp_path, checkpoint):
    output = tmp_path / "captions.csv"
    for arguments, message in (
        (["--family", "polyp"], "--from-mask"),
        (["--from-mask"], "--family"),
        (["--from-mask", "--family", "moles"], "moles"),
        (["--from-mask", "--from-image"], "--from-mask or --from-image"),
        (["--from-image", "--model", checkpoint], "has no caption head; lvit train-captions adds one."),
    ):
        result = lvit("caption", tmp_path, "--out", output, *arguments)
        assert result.exit_code == 1 and message in result.stderr
        assert not output.exists()


def caption(data, output):
    return lvit("caption", data, "--from-mask", "--family", "polyp", "--out", output)


def test_a_file_that_is_no_table_of_captions_is_not_replaced(tmp_path):
    Image.fromarray(draw_disks((100, 100, 60))).save(tmp_path / "a.png")
    table = tmp_path / "train.csv"
    table.write_text("image,mask,text\na.png,a.png,one\n")
    result = caption(tmp_path, table)
    assert result.exit_code == 1 and "this command did not write it" in result.stderr
    assert table.read_text() == "image,mask,text\na.png,a.png,one\n"
    result = lvit("evaluate-captions", "no-model", tmp_path, "--out", table)
    assert result.exit_code == 1 and "this command did not write it" in result.stderr
    table.unlink()
    for _ in range(2):
        assert caption(tmp_path, tmp_path / "captions.csv").exit_code == 0


@pytest.mark.parametrize("table", ["train.csv", "Training.csv"])
def test_a_flat_folder_with_a_table_is_the_data_set_that_it_describes(tmp_path, table):
    for name in ("a", "a_mask", "b", "b_mask"):
        Image.fromarray(draw_disks((100, 100, 60 if name == "a_mask" else 20))).save(tmp_path / f"{name}.png")
    (tmp_path / table).write_text("image,mask,text\na.png,a_mask.png,\nb.png,b_mask.png,\n")
    (tmp_path / "b_mask.png").write_bytes(b"no mask")
    output = tmp_path / "captions.csv"
    result = caption(tmp_path, output)
    assert result.exit_code == 1 and "b_mask.png" in result.stderr
    with output.open(encoding="utf-8", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a"]


def test_files_that_are_no_masks_are_left_out_or_named(tmp_path):
    masks = tmp_path / "masks"
    (masks / "c.png").mkdir(parents=True)
    Image.fromarray(draw_disks((100, 100, 60))).save(masks / "d.png")
    (masks / "._d.png").write_bytes(b"of macOS")
    (masks / "b.png").touch()
    result = caption(masks, tmp_path / "captions.csv")
    assert result.exit_code == 1
    assert [line for line in result.stderr.splitlines() if "Error" in line and "b.png" in line]
    assert "1 captions, 0 of them empty" in result.stdout
