"""The presence head, on a tiny network and images of which some show nothing."""

import shutil

import datasets
import numpy as np
import pytest
import torch
import yaml
from captioning import captioning_model
from PIL import Image
from squares import make_rows
from tiny_lvit import tiny_config, tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTForImageSegmentation
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.model.modeling_lvit import LViTPresenceHead
from lvit_hf.training.config import ModelConfig
from lvit_hf.training.presence import PENALTY, fit_head, shows_something
from lvit_hf.training.run import build_model


def make_mixed_rows(count: int, seed: int) -> datasets.Dataset:
    """Squares on noise, and noise alone in every other row."""
    rows = make_rows(count, seed)
    rng = np.random.default_rng(seed)

    def clear(row: dict, number: int) -> dict:
        if number % 2:
            return row
        noise = Image.fromarray(rng.integers(0, 128, (32, 32, 3), dtype=np.uint8))
        return {**row, "image": noise, "mask": Image.new("L", (32, 32)), "text": "no infection"}

    return rows.map(clear, with_indices=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presence")
    captioning_model("lung infection", caption_families=["lung infection"]).save_pretrained(folder / "start")
    tiny_processor().save_pretrained(folder / "start")
    (folder / "mixed").mkdir()
    make_mixed_rows(60, seed=0).to_parquet(folder / "mixed" / "train-0.parquet")
    config = {
        "model": {"checkpoint": str(folder / "start")},
        "sources": [{"name": "mixed", "path": str(folder / "mixed")}],
        "training": {"output_dir": str(folder / "out")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["fit-presence", str(folder / "config.yaml")])
    assert result.exit_code == 0, result.output
    assert str(folder / "out" / "best") in result.stdout
    return folder / "out" / "best"


@pytest.fixture(scope="module")
def with_and_without(checkpoint):
    """Results for rows that show nothing and that show a square, with the head and without it."""
    rows = make_mixed_rows(40, seed=1)
    models = [LViTForImageSegmentation.from_pretrained(checkpoint, presence_head=flag) for flag in (True, False)]
    segmenters = [Segmenter(model, tiny_processor()) for model in models]
    return [[segmenter.segment(rows["image"][half::2]) for half in range(2)] for segmenter in segmenters]


def test_an_image_that_shows_nothing_gets_an_empty_mask(with_and_without):
    (empty, _), (empty_before, _) = with_and_without
    assert np.mean([result.mask().any() for result in empty_before]) > 0.9
    assert np.mean([result.mask().any() for result in empty]) < 0.1


def test_an_image_that_shows_something_keeps_its_mask(with_and_without):
    (_, shown), (_, shown_before) = with_and_without
    is_same = [np.array_equal(after.mask(), before.mask()) for after, before in zip(shown, shown_before)]
    assert np.mean(is_same) > 0.9


def test_no_pixel_is_likelier_to_be_something_than_there_is_to_be_something(with_and_without):
    for after, before in zip(*[empty + shown for empty, shown in with_and_without]):
        bound = after.scores.max()
        np.testing.assert_allclose(after.scores, np.minimum(before.scores, bound), atol=1e-4)


def test_the_caption_that_is_written_says_that_there_is_nothing(with_and_without):
    (empty, shown), _ = with_and_without
    for result in empty + shown:
        assert (result.written_caption == "No pulmonary infection.") == (not result.mask().any())


def test_a_fitted_head_is_at_the_maximum_of_the_penalized_likelihood():
    config, generator = tiny_config(), torch.Generator().manual_seed(0)
    head = LViTPresenceHead(config)
    features = 3 + torch.randn(200, len(head.weight), generator=generator) * torch.logspace(-2, 2, len(head.weight))
    present = torch.rand(200, generator=generator) < 0.7
    features[present] += 0.3 * features.std(0)
    assert fit_head(head, features, present) is head
    standardized = (features - features.mean(0)) / features.std(0)
    logits = standardized @ head.weight + head.bias
    torch.testing.assert_close(head(features), logits, rtol=1e-3, atol=1e-3)
    errors = logits.sigmoid() - present.float()
    torch.testing.assert_close(standardized.T @ errors, -2 * PENALTY * head.weight, rtol=0, atol=0.05)
    assert errors.sum().item() == pytest.approx(0, abs=0.05)


def test_a_head_that_is_not_fitted_changes_nothing():
    model, with_head = tiny_model(), LViTForImageSegmentation(tiny_config(presence_head=True)).eval()
    with_head.load_state_dict(model.state_dict(), strict=False)
    pixel_values = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(with_head(pixel_values).logits, model(pixel_values).logits)


def test_a_mask_shows_something_where_foreground_is_likelier_than_not():
    drawn = Image.new("L", (8, 8))
    assert not shows_something(drawn) and not shows_something(np.full((8, 8), 0.4))
    drawn.putpixel((3, 3), 255)
    moved = np.zeros((8, 8))
    moved[3, 3] = 0.6
    assert shows_something(drawn) and shows_something(moved)


def test_further_training_starts_without_it(checkpoint):
    assert LViTForImageSegmentation.from_pretrained(checkpoint).presence_head is not None
    model, _ = build_model(ModelConfig(checkpoint=str(checkpoint)))
    assert model.presence_head is None


def test_it_is_fitted_anew_and_not_on_what_it_says_itself(checkpoint, tmp_path):
    config = checkpoint.parents[1] / "config.yaml"
    overrides = [f"model.checkpoint={checkpoint}", f"training.output_dir={tmp_path}"]
    result = CliRunner().invoke(app, ["fit-presence", str(config), *overrides])
    assert result.exit_code == 0, result.output
    first, second = (
        LViTForImageSegmentation.from_pretrained(folder).presence_head.state_dict()
        for folder in (checkpoint, tmp_path / "best")
    )
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=1e-3, atol=1e-3)


def test_its_probabilities_are_right_after_the_checkpoint_s_calibration(checkpoint, tmp_path):
    start = shutil.copytree(checkpoint.parents[1] / "start", tmp_path / "start")
    tiny_processor(temperature=2.0, logit_bias=0.5).save_pretrained(start)
    config = checkpoint.parents[1] / "config.yaml"
    overrides = [f"model.checkpoint={start}", f"training.output_dir={tmp_path}"]
    result = CliRunner().invoke(app, ["fit-presence", str(config), *overrides])
    assert result.exit_code == 0, result.output
    head, scaled = (
        LViTForImageSegmentation.from_pretrained(folder).presence_head for folder in (checkpoint, tmp_path / "best")
    )
    features = head.mean + head.scale * torch.randn(20, len(head.mean), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled(features) / 2 + 0.5, head(features), rtol=1e-3, atol=1e-2)


def test_images_that_all_show_something_teach_nothing(checkpoint, tmp_path):
    make_rows(20, seed=2).to_parquet(tmp_path / "train-0.parquet")
    config = checkpoint.parents[1] / "config.yaml"
    result = CliRunner().invoke(app, ["fit-presence", str(config), f"sources.0.path={tmp_path}"])
    assert result.exit_code == 1 and "Every training image shows something" in result.output
    assert "Traceback" not in result.output
