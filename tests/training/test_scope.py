"""The scope head, on a tiny network and two kinds of images that are made here."""

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from squares import make_rows
from tiny_lvit import tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTForImageSegmentation
from lvit_hf.inference.notices import find_caption_problem
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.model.modeling_lvit import mean_colors
from lvit_hf.training.batches import ValidationDataset
from lvit_hf.training.config import SourceConfig
from lvit_hf.training.scope import draw_images, fit_scope, name_kind


KINDS = ["lung infection", "stripes"]


def make_stripes(count: int, seed: int):
    """Bright images, with captions that no family understands."""
    rows = make_rows(count, seed)
    rng = np.random.default_rng(seed)
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[::2] = 255
    images = [
        Image.fromarray(stripes - rng.integers(0, 20, stripes.shape, np.uint8) * (stripes > 0)) for _ in range(count)
    ]
    columns = {"image": images, "mask": list(rows["mask"]), "text": ["zzz"] * count, "id": rows["id"]}
    return datasets.Dataset.from_dict(columns, features=rows.features)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scope")
    tiny_model(caption_families=["lung infection"]).save_pretrained(folder / "start")
    tiny_processor().save_pretrained(folder / "start")
    for name, make in (("squares", make_rows), ("stripes", make_stripes)):
        (folder / name).mkdir()
        for split, count in (("train", 40), ("valid", 20)):
            make(count, seed=count).to_parquet(folder / name / f"{split}-0.parquet")
    config = {
        "model": {"checkpoint": str(folder / "start")},
        "sources": [{"name": name, "path": str(folder / name)} for name in ("squares", "stripes")],
        "training": {"output_dir": str(folder / "out")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["fit-scope", str(folder / "config.yaml")])
    assert result.exit_code == 0, result.output
    assert str(folder / "out" / "best") in result.stdout
    return folder / "out" / "best"


def test_images_of_the_kinds_that_were_seen_are_in_scope(checkpoint):
    segmenter = Segmenter.from_pretrained(checkpoint)
    for kind, rows in zip(KINDS, (make_rows(20, seed=1), make_stripes(20, seed=1))):
        scopes = [result.scope for result in segmenter.segment(rows["image"], rows["text"])]
        assert {scope.kind for scope in scopes} == {kind}
        assert np.mean([scope.in_scope for scope in scopes]) > 0.7
        assert all(scope.in_scope == (scope.score >= 0.5) and list(scope.scores) == KINDS for scope in scopes)


def test_an_image_may_be_a_fifth_farther_than_nineteen_of_twenty_validation_images(checkpoint):
    segmenter = Segmenter.from_pretrained(checkpoint)
    for kind, make in zip(KINDS, (make_rows, make_stripes)):
        scores = [result.scope.scores[kind] for result in segmenter.segment(make(20, seed=20)["image"])]
        distances = np.sqrt(1 / np.array(scores) - 1)
        assert np.quantile(distances, 0.95) == pytest.approx(1 / 1.2, rel=0.02)


def test_of_a_kind_that_is_cut_into_tiles_the_tiles_count(checkpoint, tmp_path):
    """And as many of them as are looked at during training."""
    path = checkpoint.parents[1] / "squares"
    source = f"{{name: squares, path: {path}, validation_tile: 16, max_validation: 6}}"
    overrides = [f"sources=[{source}]", f"training.output_dir={tmp_path}"]
    segmenter = Segmenter.from_pretrained(fit_scope(checkpoint.parents[1] / "config.yaml", overrides, images=40))
    tiles = ValidationDataset(make_rows(20, seed=20), tile=16, limit=6)
    scores = [result.scope.scores["lung infection"] for result in segmenter.segment([row["image"] for row in tiles])]
    distances = np.sqrt(1 / np.array(scores) - 1)
    assert np.quantile(distances, 0.95) == pytest.approx(1 / 1.2, rel=0.02)


def test_colours_may_be_half_as_far_again_as_those_of_nineteen_of_twenty_validation_images(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("valid", 20)):
        rows = make_rows(count, seed=count)
        tinted = [Image.fromarray(np.uint8(image * rng.uniform(0.2, 1, 3))) for image in rows["image"]]
        columns = {"image": tinted, "mask": list(rows["mask"]), "text": list(rows["text"]), "id": rows["id"]}
        rows = datasets.Dataset.from_dict(columns, features=rows.features)
        rows.to_parquet(tmp_path / f"{split}-0.parquet")
    overrides = [f"sources=[{{name: tinted, path: {tmp_path}}}]", f"training.output_dir={tmp_path / 'out'}"]
    best = fit_scope(checkpoint.parents[1] / "config.yaml", overrides, images=40)
    head = LViTForImageSegmentation.from_pretrained(best).scope_head.float()
    colors = mean_colors(tiny_processor()(images=list(rows["image"]), return_tensors="pt")["pixel_values"])
    shares = head._color_distances(colors)[:, 0] / head.color_limits[0]
    assert shares.quantile(0.95).item() == pytest.approx(1 / 1.5, rel=0.02)


def test_other_images_are_not(checkpoint):
    segmenter = Segmenter.from_pretrained(checkpoint)
    checks = np.indices((32, 32)).sum(0) // 8 % 2
    colours = np.stack([checks * 255, checks * 0, 255 - checks * 255], -1).astype(np.uint8)
    plain, tiled = segmenter.segment([colours]) + segmenter.segment([np.tile(colours, (2, 2, 1))], tile_size=32)
    assert not plain.scope.in_scope and not tiled.scope.in_scope


def test_what_has_the_texture_of_a_kind_and_other_colours_is_not_of_it():
    model = tiny_model(scope_kinds=["nuclei"])
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(60, model.scope_head.mean.shape[1], generator=generator)
    colors = 0.6 + 0.05 * torch.randn(60, 2, generator=generator)
    model.scope_head.fit(0, embeds[:40], embeds[40:], 0.95, 1.2)
    model.scope_head.fit_colors(0, colors[:40], colors[40:], 0.95, 1.5)
    typical = embeds.mean(0, keepdim=True)
    shares = [model.scope_head(typical, torch.full((1, 2), color)).item() for color in (0.6, 0.55, 0.3, 0.0)]
    assert shares == sorted(shares) and shares[1] < 1 < shares[2]
    grey, pink = torch.rand(1, 1, 32, 32).expand(-1, 3, -1, -1), torch.tensor([0.8, 0.2, 0.6]).view(1, 3, 1, 1)
    assert mean_colors(grey).tolist() == [[0, 0]]
    assert mean_colors(pink.expand(-1, -1, 8, 8))[0].tolist() == pytest.approx([0.6, 0.4])


def test_the_caption_and_the_batch_do_not_matter(checkpoint):
    segmenter = Segmenter.from_pretrained(checkpoint)
    images, texts = list(make_rows(3, seed=2)["image"]), ["one infected area, upper left lung"] * 3
    alone = [segmenter.segment([image])[0].scope.score for image in images]
    assert alone == pytest.approx([result.scope.score for result in segmenter.segment(images, texts)], rel=1e-4)


def test_what_a_kind_of_image_does_not_show_is_not_found(checkpoint):
    segmenter = Segmenter.from_pretrained(checkpoint)
    image, text = make_rows(1, seed=3)["image"][0], "one infected area, upper left lung"
    stripes = make_stripes(1, seed=3)["image"][0]
    own, other = segmenter.segment([image, stripes], [text, text])
    assert own.scope.in_scope and other.scope.in_scope  # each of its kind
    assert own.scores.any() and "nothing of the kind" not in own.reading.message
    assert other.text_used and not other.scores.any()
    assert "nothing of the kind (infection) in this image, which is one of stripes" in other.reading.message
    problem = "The caption is one for chest radiographs, but the image is one of stripes: the mask is empty."
    assert (find_caption_problem(own), find_caption_problem(other)) == (None, problem)
    assert segmenter.segment([stripes])[0].scores.any()


def test_further_training_starts_without_it(checkpoint):
    model = LViTForImageSegmentation.from_pretrained(checkpoint, scope_kinds=[])
    assert model.scope_head is None
    outputs = model.eval()(pixel_values=torch.zeros(1, 3, 32, 32))
    assert outputs.scope is None


def test_a_kind_is_named_after_the_family_of_most_captions(tmp_path):
    rows = make_rows(7, seed=4)
    texts = ["one small polyp", "two small polyps", "three small polyps", *list(rows["text"])[3:]]
    rows.remove_columns("text").add_column("text", texts).to_parquet(tmp_path / "train-0.parquet")
    assert name_kind(SourceConfig(name="own", path=str(tmp_path))) == "lung infection"


def test_half_of_the_images_are_moved_and_all_keep_their_colours(tmp_path):
    rows = make_rows(40, seed=5)
    plain = [Image.new("RGB", (32, 32), (40, 90, 160))] * 40
    columns = {"image": plain, "mask": list(rows["mask"]), "text": list(rows["text"]), "id": rows["id"]}
    datasets.Dataset.from_dict(columns, features=rows.features).to_parquet(tmp_path / "train-0.parquet")
    augmentation = {
        "flip_horizontal": 0.5,
        "gamma": [0.5, 2.0],
        "intensity": 0.5,
        "blur": 1.0,
        "noise": 1.0,
        "holes": 1,
    }
    drawn = draw_images(SourceConfig(name="own", path=str(tmp_path), augmentation=augmentation), 20, 32)
    moved = [row["image"] for row in drawn if isinstance(row["image"], np.ndarray)]
    assert (len(drawn), len(moved)) == (20, 10)
    for image in moved:
        np.testing.assert_allclose(image, np.broadcast_to([[[40]], [[90]], [[160]]], image.shape) / 255, atol=1e-5)


def test_two_sources_of_one_kind_are_refused(checkpoint):
    config = checkpoint.parents[1] / "config.yaml"
    path = checkpoint.parents[1] / "squares"
    result = CliRunner().invoke(app, ["fit-scope", str(config), f"sources.1.path={path}"])
    assert result.exit_code == 1 and "another kind of images" in result.output
