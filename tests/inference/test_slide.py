"""Slides read block by block, on tiled TIFFs made here."""

import json
import os
import shutil
from itertools import product

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image
from skimage.draw import disk
from tiny_lvit import tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.inference.instances import label_instances
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.inference.slide import (
    BLOCK_SIZE,
    CELL,
    FOREGROUND,
    LEVELS,
    find_instances,
    find_tissue,
    fingerprint,
    list_blocks,
    name_slide_finding,
    read_blocks,
    read_pixel_size,
    segment_slide,
)


HEIGHT, WIDTH, TILE_SIZE = 700, BLOCK_SIZE + 300, 256


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Squares of many brightnesses, larger than a tile's pixels after shrinking, none as bright as glass."""
    squares = np.random.default_rng(0).integers(0, 180, (HEIGHT // 50 + 1, WIDTH // 50 + 1, 3), dtype=np.uint8)
    return squares.repeat(50, 0).repeat(50, 1)[:HEIGHT, :WIDTH]


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="zlib")
    return path


def test_blocks_give_the_mask_of_the_whole_slide(slide, pixels, segmenter, tmp_path):
    measured = segment_slide(segmenter, slide, tmp_path / "mask.tif", TILE_SIZE, text="one infected area")
    mask = tifffile.imread(tmp_path / "mask.tif") > 0
    whole = segmenter.segment([pixels], ["one infected area"], tile_size=TILE_SIZE)[0].mask()
    assert mask.shape == (HEIGHT, WIDTH) and 0.05 < whole.mean() < 0.95
    # The grids of tiles differ, so that a few pixels near the threshold may too.
    assert (mask == whole).mean() > 0.9
    assert measured["tissue_percent"] == 100
    assert measured["area_pixels"] == mask.sum() and measured["text_used"]
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]


def test_parts_of_a_mask_belong_to_one_network_processor_and_setting():
    def sign(change=lambda model, processor: None, settings=(1, None)):
        model, processor = tiny_model(), tiny_processor()
        change(model, processor)
        return fingerprint(Segmenter(model, processor), list(settings))

    signs = [
        sign(),
        sign(lambda model, _: model.classifier.bias.data.add_(1)),
        sign(lambda _, processor: setattr(processor.image_processor, "temperature", 2.0)),
        sign(settings=(2, None)),
    ]
    assert len(set(signs)) == len(signs) and sign() == signs[0]


def test_each_block_is_that_of_a_direct_crop(slide, pixels, segmenter, tmp_path):
    """Pixel by pixel: neither reading, nor segmenting, nor writing moves a block."""
    segment_slide(segmenter, slide, tmp_path / "mask.tif", TILE_SIZE)
    mask = tifffile.imread(tmp_path / "mask.tif") > 0
    margin = TILE_SIZE // 2
    for left, right in ((0, BLOCK_SIZE), (BLOCK_SIZE, WIDTH)):
        first = max(left - margin, 0)
        [crop] = segmenter.segment([pixels[:, first : right + margin]], tile_size=TILE_SIZE)
        expected = crop.mask()[:, left - first : right - first]
        assert 0.05 < expected.mean() < 0.95
        np.testing.assert_array_equal(mask[:, left:right], expected)


def test_blocks_meet_without_a_seam(slide, pixels, segmenter, tmp_path):
    """A crop across the seam, whose tiles lie as those of the blocks do, has the same mask on both of its sides."""
    segment_slide(segmenter, slide, tmp_path / "mask.tif", TILE_SIZE)
    mask = tifffile.imread(tmp_path / "mask.tif") > 0
    first = BLOCK_SIZE - TILE_SIZE // 2 - 3 * TILE_SIZE // 4
    [crop] = segmenter.segment([pixels[:, first:]], tile_size=TILE_SIZE)
    for side in (slice(BLOCK_SIZE - 16, BLOCK_SIZE), slice(BLOCK_SIZE, BLOCK_SIZE + 16)):
        expected = crop.mask()[:, side.start - first : side.stop - first]
        assert 0.05 < expected.mean() < 0.95
        assert (mask[:, side] != expected).mean() < 0.03


def test_blocks_cover_a_slide_once():
    for width, height in product((1, BLOCK_SIZE, 2 * BLOCK_SIZE + 1), repeat=2):
        covered = np.zeros((height, width), np.uint8)
        for left, upper, right, lower in list_blocks(width, height):
            covered[upper:lower, left:right] += 1
        assert (covered == 1).all()


def test_a_box_is_read_from_blocks_as_from_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("lvit_hf.inference.slide.BLOCK_SIZE", 16)
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (45, 70), np.uint8)
    for number, (left, upper, right, lower) in enumerate(list_blocks(70, 45)):
        Image.fromarray(whole[upper:lower, left:right]).save(tmp_path / f"{number}.png")
    for _ in range(60):
        left, upper = (int(rng.integers(0, side)) for side in (70, 45))
        right, lower = int(rng.integers(left, 70)) + 1, int(rng.integers(upper, 45)) + 1
        box = (left, upper, right, lower)
        np.testing.assert_array_equal(read_blocks(tmp_path, (70, 45), box), whole[upper:lower, left:right])
        box = (left // 16 * 16, upper // 16 * 16, right, lower)
        for step in (4, 16):
            expected = whole[box[1] : lower : step, box[0] : right : step]
            np.testing.assert_array_equal(read_blocks(tmp_path, (70, 45), box, step), expected)


def test_a_caption_that_names_a_place_is_not_read(slide, segmenter, tmp_path):
    text = "one infected area, upper left lung"
    assert not segment_slide(segmenter, slide, tmp_path / "mask.tif", TILE_SIZE, text=text)["text_used"]


def test_the_command_prints_what_it_measured(slide, segmenter, tmp_path):
    segmenter.model.save_pretrained(tmp_path / "checkpoint")
    segmenter.processor.save_pretrained(tmp_path / "checkpoint")
    command = ["slide", str(slide), "--out", str(tmp_path / "mask.tif"), "--model", str(tmp_path / "checkpoint")]
    result = CliRunner().invoke(app, [*command, "--tile-size", str(TILE_SIZE)])
    printed = json.loads(result.stdout)
    assert (printed["image"], printed["width"], printed["tile_size"]) == (str(slide), WIDTH, TILE_SIZE)
    assert printed["masks"] == [str(tmp_path / "mask.tif")] and list(printed["weights_sha256"]) == [
        "model.safetensors"
    ]


def test_the_command_segments_as_it_is_told(partly, segmenter, tmp_path):
    text = "one infected area"
    segmenter.model.save_pretrained(tmp_path / "checkpoint")
    segmenter.processor.save_pretrained(tmp_path / "checkpoint")
    command = ["slide", partly, "--out", tmp_path / "mask.tif", "--model", tmp_path / "checkpoint", "--text", text]
    command += ["--tile-size", 64, "--threshold", 0.3, "--geojson", tmp_path / "objects.geojson"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    expected = segment_slide(segmenter, partly, tmp_path / "expected.tif", 64, text, 0.3)
    printed = json.loads(result.stdout)
    assert {name: printed[name] for name in expected} == json.loads(json.dumps(expected))
    masks = [tifffile.imread(tmp_path / name) for name in ("mask.tif", "expected.tif")]
    np.testing.assert_array_equal(*masks)
    assert len(json.loads((tmp_path / "objects.geojson").read_text())["features"]) == expected["instances"] > 0


def test_a_mask_and_its_objects_are_two_files(slide, checkpoint, tmp_path):
    command = ["slide", slide, "--model", checkpoint, "--out", tmp_path / "m.tif"]
    result = CliRunner().invoke(app, [str(part) for part in [*command, "--geojson", tmp_path / "x" / ".." / "m.tif"]])
    assert result.exit_code == 1 and "give --geojson another name" in result.stderr
    assert not (tmp_path / "m.tif").exists()
    result = CliRunner().invoke(app, [str(part) for part in [*command, "--backend", "openvino"]])
    assert result.exit_code == 1 and "has no network for openvino" in result.stderr


def test_what_is_no_slide_is_said(checkpoint, tmp_path):
    for name, content in {"missing.tif": None, "text.tif": "not a slide"}.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        command = ["slide", str(tmp_path / name), "--out", str(tmp_path / "mask.tif"), "--model", str(checkpoint)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1 and name in result.stderr


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """A slide of four tiles: tissue, bright glass, tinted glass, and one that was not scanned."""
    rng = np.random.default_rng(0)
    tissue = np.clip(np.array((180, 110, 170)) + rng.normal(0, 25, (256, 256, 3)), 0, 255).astype(np.uint8)
    glass, tinted = (
        np.clip(np.array(color) + rng.normal(0, 3, (256, 256, 3)), 0, 255).astype(np.uint8)
        for color in ((240, 235, 242), (215, 212, 203))
    )
    path = tmp_path_factory.mktemp("partly") / "slide.tif"
    tiles = iter((tissue, glass, tinted, None))
    tifffile.imwrite(path, tiles, shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb")
    return path


def test_outside_the_tissue_nothing_is_foreground(partly, segmenter, tmp_path):
    measured = segment_slide(segmenter, partly, tmp_path / "mask.tif", 64, threshold=0.0)  # all that can be
    mask = tifffile.imread(tmp_path / "mask.tif") > 0
    assert mask[:256, :256].mean() > 0.99
    assert mask.sum() == mask[:256, :256].sum()
    assert measured["tissue_percent"] == 25


@pytest.mark.parametrize("color", [(250, 250, 250), (240, 240, 240), (225, 220, 228), (0, 0, 0), (255, 255, 255)])
def test_a_slide_without_tissue_has_an_empty_mask(color, segmenter, tmp_path):
    options = {"tile": (256, 256), "photometric": "rgb", "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "s.tif", np.full((300, 300, 3), color, np.uint8), **options)
    measured = segment_slide(segmenter, tmp_path / "s.tif", tmp_path / "mask.tif", 64, " ", threshold=0.0)
    assert measured["area_pixels"] == measured["tissue_percent"] == measured["area_mm2"] == measured["instances"] == 0
    assert measured["pixel_size_um"] == (0.5, 0.5) and measured["instances_per_mm2"] is None
    assert not measured["text_used"]  # a blank caption is none
    assert not tifffile.imread(tmp_path / "mask.tif").any()


@pytest.mark.parametrize("color", [(120, 120, 120), (60, 60, 60), (235, 205, 225), (150, 150, 190)])
def test_grey_slides_and_pale_stains_are_tissue(color):
    assert find_tissue(Image.new("RGBA", (100, 70), color)).all()


def test_what_was_left_out_within_tissue_is_none():
    region = Image.new("RGBA", (100, 70), (180, 110, 170))
    region.paste((0, 0, 0, 0), (37, 0, 45, 70))
    tissue = find_tissue(region)
    assert not tissue[:, 37:45].any() and tissue[:, :37].all() and tissue[:, 45:].all()


def test_tissue_does_not_depend_on_where_a_block_begins(partly):
    slide = openslide.OpenSlide(partly)
    whole = find_tissue(slide.read_region((0, 0), 0, (512, 512)))
    for x, y in product((0, CELL, 5 * CELL), repeat=2):
        part = find_tissue(slide.read_region((x, y), 0, (300, 310)))
        np.testing.assert_array_equal(part[:256, :256], whole[y : y + 256, x : x + 256])


def test_tissue_goes_on_from_block_to_block(partly, segmenter, tmp_path, monkeypatch):
    """With a margin that is no multiple of a cell."""
    monkeypatch.setattr("lvit_hf.inference.slide.BLOCK_SIZE", 64)
    segment_slide(segmenter, partly, tmp_path / "mask.tif", 40, threshold=0.0)
    whole = find_tissue(openslide.OpenSlide(partly).read_region((0, 0), 0, (512, 512)))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "mask.tif") > 0, whole)


def test_only_an_earlier_mask_is_replaced(slide, segmenter, tmp_path):
    shutil.copy(slide, tmp_path / "slide.tif")
    own = {"notes.part": b"mine", "mask.part": b"mine", "picture.tif": slide.read_bytes(), "note.tif": b"mine"}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    os.link(tmp_path / "slide.tif", tmp_path / "hard.tif")
    (tmp_path / "soft.tif").symlink_to("slide.tif")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    slides, others = ("slide.tif", "hard.tif", "soft.tif"), ("picture.tif", "note.tif", "mask.part")
    for names, reason in ((slides, "is the slide itself"), (others, "exists and is no mask of lvit slide")):
        for name in names:
            with pytest.raises(FileExistsError, match=f"{name} {reason}"):
                segment_slide(segmenter, tmp_path / "slide.tif", tmp_path / name, TILE_SIZE)
    for text in (None, "one infected area"):
        segment_slide(segmenter, tmp_path / "slide.tif", tmp_path / "mask.tif", TILE_SIZE, text=text)
    after = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.pop(tmp_path / "mask.tif") and after == before


@pytest.fixture
def finished(tmp_path, monkeypatch) -> tuple:
    """The mask of a slide of small blocks with round nuclei, some of which touch, and the folder of the blocks."""
    monkeypatch.setattr("lvit_hf.inference.slide.BLOCK_SIZE", 256)
    width, height, rng = 600, 540, np.random.default_rng(0)
    mask = np.zeros((height, width), bool)
    for row, column in product(range(8, height, 28), range(8, width, 36)):
        centre = row + rng.integers(-3, 4), column + rng.integers(-3, 4)
        mask[disk(centre, 7, shape=mask.shape)] = True
        if rng.random() < 0.5:
            mask[disk((centre[0], centre[1] + 12), 7, shape=mask.shape)] = True
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, (left, upper, right, lower) in enumerate(list_blocks(width, height)):
        levels = np.where(mask[upper:lower, left:right], FOREGROUND + round(0.8 * LEVELS), 1)
        Image.fromarray(levels.astype(np.uint8)).save(parts / f"{number}.png")
    return mask, parts


@pytest.mark.parametrize("finding", ["nuclei", "infection"])
def test_an_object_on_a_seam_is_one_object(finding, finished, tmp_path):
    mask, parts = finished
    whole = label_instances(mask, finding)
    count = find_instances(parts, mask.shape[::-1], finding, (0.5, 0.125), tmp_path / "a.geojson")
    assert count == whole.max() > 300
    features = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    areas = sorted(
        feature["properties"]["measurements"]["Area µm^2" if finding == "nuclei" else "Area mm^2"]
        for feature in features
    )
    pixel = 0.25**2 if finding == "nuclei" else 0.00025**2
    tolerance = 10 * pixel if finding == "nuclei" else 0  # the line between two nuclei is on the one or the other
    np.testing.assert_allclose(areas, np.sort(np.bincount(whole.ravel())[1:]) * pixel, rtol=1e-5, atol=tolerance)
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        column, row = (int(coordinate) for coordinate in shape.representative_point().coords[0])
        area = np.count_nonzero(whole == whole[row, column])
        assert shape.is_valid and whole[row, column] and abs(shape.area - area) < 0.1 * area
        assert feature["properties"]["measurements"]["Mean probability"] == pytest.approx(0.8, abs=0.002)


def test_the_mask_is_a_pyramid_that_keeps_the_size_of_pixels(pixels, segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("lvit_hf.inference.slide.BLOCK_SIZE", 128)
    options = {"tile": (256, 256), "photometric": "rgb", "resolution": (1e4 / 0.5, 1e4 / 0.25)}
    tifffile.imwrite(tmp_path / "slide.tif", pixels[:300, :600], **options, resolutionunit="CENTIMETER")
    measured = segment_slide(segmenter, tmp_path / "slide.tif", tmp_path / "mask.ome.tif", TILE_SIZE)
    assert measured["pixel_size_um"] == pytest.approx((0.5, 0.25))
    assert measured["area_mm2"] == pytest.approx(measured["area_pixels"] * 0.5 * 0.25 / 1e6)
    assert measured["instances_per_mm2"] == pytest.approx(measured["instances"] / measured["tissue_mm2"])
    assert (measured["width"], measured["height"]) == (600, 300) and measured["instances"] > 0
    assert measured["tissue_mm2"] == pytest.approx(300 * 600 * measured["tissue_percent"] / 100 * 0.5 * 0.25 / 1e6)
    assert measured["area_percent"] == pytest.approx(100 * measured["area_pixels"] / (300 * 600))
    with tifffile.TiffFile(tmp_path / "mask.ome.tif") as file:
        assert (
            file.is_ome and 'PhysicalSizeX="0.5"' in file.ome_metadata and 'PhysicalSizeY="0.25"' in file.ome_metadata
        )
        full, small, least = (level.asarray() for level in file.series[0].levels)
        tags = [level.keyframe.tags for level in file.series[0].levels]
        assert len(file.pages[0].subifds) == 2
    assert full.shape == (300, 600) and np.count_nonzero(full) == measured["area_pixels"]
    for level, scale in zip(tags, (1, 4, 16)):
        x, y = (np.divide(*level[f"{axis}Resolution"].value) for axis in "XY")
        assert (x, y) == pytest.approx((1e4 / 0.5 / scale, 1e4 / 0.25 / scale))
        assert level["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
    np.testing.assert_array_equal(small, full[::4, ::4])
    np.testing.assert_array_equal(least, full[::16, ::16])


@pytest.mark.parametrize(("x", "y", "size"), [(2e4, 4e4, (0.5, 0.25)), (0, 4e4, None), (2e4, 0, None), (0, 0, None)])
def test_pixels_have_a_size_where_both_sides_of_it_are_known(tmp_path, x, y, size):
    options = {"tile": (256, 256), "photometric": "rgb", "resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((300, 300, 3), np.uint8), **options)
    with tifffile.TiffFile(tmp_path / "s.tif", mode="r+b") as file:
        for tag, value in (("XResolution", x), ("YResolution", y)):
            file.pages[0].tags[tag].overwrite((int(value), 1))
    with openslide.OpenSlide(tmp_path / "s.tif") as slide:
        assert read_pixel_size(slide) == (size and pytest.approx(size))


def test_what_is_found_without_a_caption_are_nuclei_where_the_checkpoint_knows_them():
    for families, found in ((["lung infection", "nuclei"], "nuclei"), (["lung infection", "polyp"], "foreground")):
        model = tiny_model(caption_families=families, id2label={0: "foreground"})
        assert name_slide_finding(Segmenter(model, tiny_processor()), None) == found


def test_a_slide_that_does_not_say_its_size_has_no_density(slide, segmenter, tmp_path):
    measured = segment_slide(segmenter, slide, tmp_path / "mask.tif", TILE_SIZE, geojson_path=tmp_path / "a.geojson")
    assert measured["instances"] > 0 and measured["pixel_size_um"] is measured["instances_per_mm2"] is None
    features = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) == measured["instances"] and "Area px^2" in features[0]["properties"]["measurements"]


def test_only_earlier_geojson_is_replaced(partly, segmenter, tmp_path):
    for name, content in {"other.geojson": '{"type": "FeatureCollection", "features": []}', "a.txt": "mine"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(FileExistsError, match="is no GeoJSON of lvit"):
            segment_slide(segmenter, partly, tmp_path / "mask.tif", 64, geojson_path=tmp_path / name)
        assert (tmp_path / name).read_text() == content
    for _ in range(2):
        segment_slide(segmenter, partly, tmp_path / "mask.tif", 64, geojson_path=tmp_path / "a.geojson")


class InterruptError(Exception):
    """Stands for whatever ends a run."""


def test_a_stopped_run_goes_on_where_it_was(slide, segmenter, tmp_path):
    calls, stop_after = 0, None

    def count(*_):
        nonlocal calls
        if calls == stop_after:
            raise InterruptError
        calls += 1

    def segment(name: str, threshold: float = 0.5) -> tuple[dict, int]:
        nonlocal calls
        calls = 0
        return segment_slide(segmenter, slide, tmp_path / name, TILE_SIZE, threshold=threshold, batch_size=12), calls

    handle = segmenter.model.register_forward_pre_hook(count)
    try:
        expected, calls_of_all = segment("expected.tif")
        stop_after = calls_of_all - 1
        with pytest.raises(InterruptError):
            segment("mask.tif")
        stop_after = None
        [parts] = tmp_path.glob(".mask.tif.*.part")
        assert not (tmp_path / "mask.tif").exists()
        other, calls_of_other = segment("mask.tif", threshold=0.9)  # begins anew
        assert calls_of_other == calls_of_all and other["area_pixels"] < expected["area_pixels"]
        assert parts.exists()
        finished, calls_of_rest = segment("mask.tif")
        assert finished == expected and calls_of_rest < calls_of_all
    finally:
        handle.remove()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "mask.tif"), tifffile.imread(tmp_path / "expected.tif"))
    assert {path.name for path in tmp_path.iterdir()} == {"mask.tif", "expected.tif"}
