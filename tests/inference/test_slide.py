"""Slides read block by block, on a tiled TIFF made here."""

import json

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.inference.slide import BLOCK_SIZE, segment_slide


HEIGHT, WIDTH, TILE_SIZE = 700, BLOCK_SIZE + 300, 256


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Squares of many brightnesses, larger than a tile's pixels after shrinking."""
    squares = np.random.default_rng(0).integers(0, 256, (HEIGHT // 50 + 1, WIDTH // 50 + 1, 3), dtype=np.uint8)
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
    assert measured["area_pixels"] == mask.sum() and measured["text_used"]
    assert [path.name for path in tmp_path.iterdir()] == ["mask.tif"]


def test_a_caption_that_names_a_place_is_not_read(slide, segmenter, tmp_path):
    text = "one infected area, upper left lung"
    assert not segment_slide(segmenter, slide, tmp_path / "mask.tif", TILE_SIZE, text=text)["text_used"]


def test_the_command_prints_what_it_measured(slide, segmenter, tmp_path):
    segmenter.model.save_pretrained(tmp_path / "checkpoint")
    segmenter.processor.save_pretrained(tmp_path / "checkpoint")
    command = ["slide", str(slide), "--out", str(tmp_path / "mask.tif"), "--model", str(tmp_path / "checkpoint")]
    result = CliRunner().invoke(app, [*command, "--tile-size", str(TILE_SIZE)])
    assert json.loads(result.stdout)["width"] == WIDTH


def test_what_is_no_slide_is_said(tmp_path):
    for name, content in {"missing.tif": None, "text.tif": "not a slide"}.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        result = CliRunner().invoke(app, ["slide", str(tmp_path / name), "--out", str(tmp_path / "mask.tif")])
        assert result.exit_code == 1 and name in result.stderr
