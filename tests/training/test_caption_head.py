"""The caption head trained from the command line, on a tiny model and on images that say where their polyp is."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_lvit import tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTConfig, LViTForImageSegmentation
from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.model.captions_lvit import NUCLEI, POLYP, TOP_MIDDLE_BOTTOM
from lvit_hf.training.caption_head import measure_captions
from lvit_hf.training.caption_labels import CaptionLabels, caption_fields
from lvit_hf.training.config import ModelConfig
from lvit_hf.training.run import build_model


def make_rows(count: int, seed: int) -> datasets.Dataset:
    """White squares on grey, each with a caption of its true place and of a size, shape and surface by chance."""
    draw = np.random.default_rng(seed)
    rows: dict[str, list] = {"image": [], "mask": [], "text": [], "id": []}
    for index in range(count):
        cell = int(draw.integers(9))
        row, column = divmod(cell, 3)
        mask = np.zeros((36, 36), dtype=np.uint8)
        mask[12 * row + 2 : 12 * row + 10, 12 * column + 2 : 12 * column + 10] = 255
        rows["image"].append(Image.fromarray(np.maximum(mask, 60)))
        rows["mask"].append(Image.fromarray(mask))
        rows["text"].append(f"One small,circular,smooth colonic polyp on the {TOP_MIDDLE_BOTTOM.names[cell]}.")
        rows["id"].append(str(index))
    images = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.Image(), "text": datasets.Value("string")}
        | {"id": datasets.Value("string")}
    )
    return datasets.Dataset.from_dict(rows, features=images)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny_model().save_pretrained(folder / "checkpoint")
    tiny_processor().save_pretrained(folder / "checkpoint")
    (folder / "data").mkdir()
    for split, count in (("train", 90), ("valid", 30)):
        make_rows(count, seed=count).to_parquet(folder / "data" / f"{split}-0.parquet")
    config = {
        "model": {"checkpoint": str(folder / "checkpoint")},
        "sources": [{"name": "squares", "path": str(folder / "data"), "augmentation": {"flip_horizontal": 1.0}}],
        "training": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 12,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-2,
            "disable_tqdm": True,
            "report_to": "none",
            "use_cpu": True,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def trained(start) -> Path:
    """The checkpoint with a caption head."""
    assert "30 images. Exact caption" in run("train-captions", start / "config.yaml")
    return start / "run" / "best"


def run(*arguments) -> str:
    """What a command prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_a_checkpoint_learns_to_write_captions(start, trained):
    figures = json.loads((trained / "captions.json").read_text())["squares"]
    assert figures["images"] == 30
    assert figures["exact"] > 0.8 > 0.4 > figures["exact_majority"]
    assert figures["values"]["polyp: place top left"]["auroc"] > 0.9

    before = LViTForImageSegmentation.from_pretrained(start / "checkpoint")
    after = LViTForImageSegmentation.from_pretrained(trained).eval()
    image = make_rows(1, seed=7)[0]
    pixel_values = tiny_processor()(images=image["image"].convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        [said] = after.caption_head.decode(after(pixel_values, output_captions=True).captions)
        # Masks stay what they were, but for the half precision in which weights are stored.
        torch.testing.assert_close(
            after(pixel_values).logits, before.eval()(pixel_values).logits, atol=0.05, rtol=0.05
        )
    assert said["captions"][0]["text"] == image["text"]


def test_captions_and_the_masks_that_they_make_are_measured(start, trained):
    printed = run("evaluate-captions", trained, start / "data", "--limit", 8, "--out", start / "out.json")
    figures = json.loads((start / "out.json").read_text())
    assert figures["images"] == 8 and figures["consistency_auroc"]["score"] > 0.9
    assert set(figures["overlap"]) == {"correct", "null", "predicted", "marginal"}
    # Its captions being right, it does with them what it does with the true ones.
    assert figures["exact"] == 1
    assert figures["overlap"]["predicted"]["dice"] == pytest.approx(figures["overlap"]["correct"]["dice"], abs=1e-6)
    assert "| marginal |" in printed


def test_captions_are_written_for_a_data_set(start, trained):
    output = start / "captions.csv"
    run("caption", start / "data", "--from-image", "--model", trained, "--split", "valid", "--out", output)
    with output.open(encoding="utf-8", newline="") as file:
        written = [row["text"] for row in csv.DictReader(file)]
    assert np.mean([a == b for a, b in zip(written, make_rows(30, seed=30)["text"])]) > 0.8


def test_the_evidence_for_a_caption_is_weighed_by_what_tells_true_ones(start, trained, tmp_path):
    checkpoint = shutil.copytree(trained, tmp_path / "checkpoint")
    before = json.loads((checkpoint / "config.json").read_text())
    assert "| polyp | " in run("calibrate-captions", checkpoint, start / "data")
    after = json.loads((checkpoint / "config.json").read_text())
    weights = after["consistency_weights"].pop("polyp")
    assert after == before and weights["caption"] > 0

    segmenter = CaptioningSegmenter.from_pretrained(checkpoint)
    [row] = make_rows(1, seed=7)
    [check] = segmenter.check([row["image"].convert("RGB")], [row["text"]])
    logit = weights["bias"] + sum(weights[name] * value for name, value in check.evidence.items())
    assert check.score == pytest.approx(1 / (1 + np.exp(-logit)))


def test_weights_need_captions_that_are_understood(start, trained, tmp_path):
    rows = make_rows(4, seed=1).remove_columns("text").add_column("text", [f"a dog {number}" for number in range(4)])
    rows.to_parquet(tmp_path / "valid-0.parquet")
    result = CliRunner().invoke(app, ["calibrate-captions", str(trained), str(tmp_path)])
    assert result.exit_code == 1 and "No caption is understood" in result.output


def test_a_network_that_is_trained_further_loses_its_head(tmp_path):
    tiny_model(**caption_fields(["polyp"])).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    model, _ = build_model(ModelConfig(checkpoint=str(tmp_path)))
    assert model.caption_head is None and model.config.captions == []


def test_what_is_missing_is_said(start):
    for override, message in (("model.checkpoint=null", "model.checkpoint"), ("sources=[]", "No caption belongs")):
        result = CliRunner().invoke(app, ["train-captions", str(start / "config.yaml"), override])
        assert result.exit_code == 1 and message in result.stderr


@pytest.fixture
def config() -> LViTConfig:
    return LViTConfig(**caption_fields([POLYP.name, NUCLEI.name]))


def test_the_schema_fits_into_a_configuration(config, tmp_path):
    config.save_pretrained(tmp_path)
    config = LViTConfig.from_pretrained(tmp_path)
    assert len(config.captions) == 324 + 13
    names = [(attribute["name"], value) for attribute in config.caption_attributes for value in attribute["values"]]
    stated = {names[value] for value in config.captions[0]["values"]}
    assert config.captions[0]["text"] == "One small,circular,smooth colonic polyp on the top left."
    assert stated == {("size", "small"), ("shape", "circular"), ("surface", "smooth"), ("place", "top left")}


def test_the_captions_that_a_caption_leaves_open_are_all_true(config):
    labels = CaptionLabels(config)
    assert labels("One small,circular,smooth colonic polyp on the center.").sum() == 1
    assert labels("One small,,smooth colonic polyp on the center.").sum() == 4
    two = (
        "Two colonic polyps.One small,circular,smooth colonic polyp on the center."
        "One large,circular,smooth colonic polyp on the top left."
    )
    assert labels(two).sum() == 2
    assert labels("a photo of a dog").sum() == labels("bilateral pulmonary infection").sum() == 0


def test_figures_of_a_perfect_and_of_an_ignorant_head(config):
    texts = [config.captions[index]["text"] for index in (0, 0, 0, 40, 200)]
    perfect = torch.stack([CaptionLabels(config)(text) for text in texts]).float() * 100
    states = torch.zeros(len(config.captions), config.num_caption_values)
    for row, caption in zip(states, config.captions):
        row[caption["values"]] = 1
    figures = measure_captions(perfect, perfect.softmax(-1) @ states, texts, config)
    assert figures["exact"] == 1 and figures["exact_majority"] == pytest.approx(3 / 5)
    assert all(value["auroc"] == value["f1"] == 1 for value in figures["values"].values())
    constant = perfect[:1].expand(5, -1)
    figures = measure_captions(constant, constant.softmax(-1) @ states, texts, config)
    assert figures["exact"] == figures["exact_majority"]
    assert all(value["auroc"] == 0.5 for value in figures["values"].values())
