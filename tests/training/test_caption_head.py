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
from captioning import captioning_model
from PIL import Image
from tiny_lvit import load_weights, tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTForImageSegmentation
from lvit_hf.captions import parse_caption, render_caption
from lvit_hf.evaluation.captions import CaptionLabels, measure_captions, measure_consistency, pair_captions
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.model.captions_lvit import FAMILIES, TOP_MIDDLE_BOTTOM, candidate_captions, rewrite_caption
from lvit_hf.model.modeling_lvit import LViTCaptionHead, caption_features
from lvit_hf.training.caption_head import FeatureExtractor, train_captions
from lvit_hf.training.caption_labels import add_caption_head, set_shares, used_families
from lvit_hf.training.config import ModelConfig, SourceConfig
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


def test_how_frequent_captions_are_is_stored_with_the_head(trained):
    shares = LViTForImageSegmentation.from_pretrained(trained).caption_head.shares
    assert shares.sum().item() == pytest.approx(1, abs=1e-3)
    # 180 images have one of 9 captions, and each of 324 counts once.
    seen = shares > 1.5 / (180 + 324)
    assert seen.sum() == 9 and shares[seen].sum().item() == pytest.approx((180 + 9) / (180 + 324), abs=1e-3)


def test_features_are_computed_once_of_each_image_as_it_is_and_moved(start, tmp_path):
    source = SourceConfig(name="squares", path=str(start / "data"), augmentation={"flip_horizontal": 1.0})
    extractor = FeatureExtractor(start / "checkpoint", tmp_path)
    features, texts = extractor.extract(source, "valid", views=2, limit=None)
    rows = make_rows(30, seed=30)
    pixel_values = extractor.processor(images=[image.convert("RGB") for image in rows["image"]], return_tensors="pt")
    with torch.no_grad():
        outputs = extractor.model.lvit(**pixel_values, output_hidden_states=True)
    expected = caption_features(outputs, extractor.model.config).half()
    torch.testing.assert_close(features[:30], expected, rtol=0.01, atol=0.01)
    assert not torch.allclose(features[30:], expected, rtol=0.01, atol=0.01)
    assert texts == [*rows["text"], *(rewrite_caption(text, flip_horizontal=True) for text in rows["text"])]

    extractor.model = None  # what is known is not computed again
    again, texts_again = extractor.extract(source, "valid", views=2, limit=None)
    assert torch.equal(again, features) and texts_again == texts
    with pytest.raises(AttributeError):
        extractor.extract(source, "valid", views=1, limit=None)

    model = LViTForImageSegmentation.from_pretrained(start / "checkpoint")
    model.lvit.conv_encoder.stem.convolution.weight.data.neg_()
    other = shutil.copytree(start / "checkpoint", tmp_path / "other")
    model.save_pretrained(other)
    others, _ = FeatureExtractor(other, tmp_path).extract(source, "valid", views=2, limit=None)
    assert not torch.allclose(others, features)


def test_captions_and_the_masks_that_they_make_are_measured(start, trained):
    printed = run("evaluate-captions", trained, start / "data", "--limit", 8, "--out", start / "out.json")
    figures = json.loads((start / "out.json").read_text())
    assert figures["images"] == 8 and figures["consistency_auroc"]["score"] > 0.9
    assert set(figures["overlap"]) == {"correct", "none", "written"}
    # Its captions being right, it does with them what it does with the true ones.
    assert figures["exact"] == 1
    assert figures["overlap"]["written"]["dice"] == pytest.approx(figures["overlap"]["correct"]["dice"], abs=1e-6)
    for way, row in figures["overlap"].items():
        assert f"| {way} | {100 * row['dice']:.2f} | {100 * row['pooled_dice']:.2f} |" in printed
    run("evaluate-captions", trained, start / "data", "--limit", 8, "--size", 12, "--out", start / "small.json")
    small = json.loads((start / "small.json").read_text())
    assert small["images"] == 8 and small["overlap"]["correct"] != figures["overlap"]["correct"]


def test_a_head_is_trained_on_as_many_images_as_it_is_told(start, tmp_path):
    options = ("training.num_train_epochs=1", "--limit", 6)
    for name in ("once", "again"):
        torch.rand(len(name))  # the seed of the run decides, not what was drawn before
        printed = run("train-captions", start / "config.yaml", f"training.output_dir={tmp_path / name}", *options)
        assert "6 images. Exact caption" in printed
    once, again = (load_weights(tmp_path / name / "best") for name in ("once", "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())


def test_the_head_of_the_lowest_loss_is_kept(trained):
    [*_, last] = sorted(trained.parent.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert len(losses) == 12 and state["best_metric"] == min(losses)


def test_captions_are_written_for_a_data_set(start, trained):
    output = start / "captions.csv"
    run("caption", start / "data", "--from-image", "--model", trained, "--split", "valid", "--out", output)
    with output.open(encoding="utf-8", newline="") as file:
        written = [row["text"] for row in csv.DictReader(file)]
    assert np.mean([a == b for a, b in zip(written, make_rows(30, seed=30)["text"])]) > 0.8


def test_a_run_is_kept_where_no_caption_of_a_split_is_understood(start, tmp_path):
    data = shutil.copytree(start / "data", tmp_path / "data")
    rows = make_rows(4, seed=1).remove_columns("text").add_column("text", [f"a dog {number}" for number in range(4)])
    rows.to_parquet(data / "valid-0.parquet")
    overrides = [f"sources.0.path={data}", f"training.output_dir={tmp_path / 'run'}", "training.num_train_epochs=1"]
    assert "None of the captions is understood" in run("train-captions", start / "config.yaml", *overrides)
    assert LViTForImageSegmentation.from_pretrained(tmp_path / "run" / "best").config.num_captions == 324


def test_a_network_that_is_trained_further_loses_its_head(tmp_path):
    captioning_model("polyp").save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    model, _ = build_model(ModelConfig(checkpoint=str(tmp_path)))
    assert model.caption_head is None and model.config.num_captions == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [("model.checkpoint=null", "model.checkpoint"), ("sources=[]", "sources"), ("stages=[{}]", "one stage")],
)
def test_what_is_missing_is_said(start, override, message):
    result = CliRunner().invoke(app, ["train-captions", str(start / "config.yaml"), override])
    assert result.exit_code == 1 and message in result.stderr


def with_captions(rows: datasets.Dataset, text: str) -> datasets.Dataset:
    return rows.remove_columns("text").add_column("text", [text] * len(rows))


def test_captions_that_are_not_understood_are_refused_before_anything_is_computed(start, tmp_path):
    shutil.copytree(start / "data", tmp_path / "data")
    with_captions(make_rows(4, seed=1), "a dog").to_parquet(tmp_path / "data" / "train-0.parquet")
    overrides = [f"sources.0.path={tmp_path / 'data'}", f"training.output_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match="No caption belongs"):
        train_captions(start / "config.yaml", overrides)
    assert not (tmp_path / "run").exists()


def test_a_source_that_cannot_be_measured_costs_no_other_its_figures(start, tmp_path):
    for split in ("train", "valid"):
        with_captions(make_rows(4, seed=1), "a dog").to_parquet(tmp_path / f"{split}-0.parquet")
    content = yaml.safe_load((start / "config.yaml").read_text())
    content["sources"].append({"name": "dogs", "path": str(tmp_path)})
    content["training"] |= {"output_dir": str(tmp_path / "run"), "num_train_epochs": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    best = train_captions(tmp_path / "config.yaml", limit=8)
    figures = json.loads((best / "captions.json").read_text())
    assert figures["squares"]["images"] == 8 and figures["dogs"]["images"] == 0
    assert LViTForImageSegmentation.from_pretrained(best).caption_head is not None


@pytest.fixture(scope="module")
def head() -> LViTCaptionHead:
    return captioning_model("polyp", "nuclei").caption_head


def test_a_head_has_every_caption_of_its_families(head):
    assert len(head.captions) == 324 + 13
    assert head.captions[0] == parse_caption("One small,circular,smooth colonic polyp on the top left.")
    candidates = candidate_captions(FAMILIES[name] for name in ("polyp", "nuclei"))
    assert list(map(render_caption, head.captions)) == [render_caption(caption) for caption, _ in candidates]


def test_a_new_head_is_for_the_families_of_the_captions(caplog):
    polyp, nuclei = "One small,circular,smooth colonic polyp on the center.", "The nuclei are evenly distributed."
    families = used_families([nuclei, "a dog", polyp, "", nuclei])
    assert families == [name for name in FAMILIES if name in ("polyp", "nuclei")]
    assert "1 distinct captions are not understood and teach nothing, such as 'a dog'." in caplog.text
    caplog.clear()
    assert used_families([polyp, ""]) == ["polyp"] and not caplog.text
    model = tiny_model(caption_families=["skin lesion", "polyp"])
    add_caption_head(model, families)
    assert sorted(model.config.caption_families) == sorted({"skin lesion", *families})
    assert model.config.caption_families[:2] == ["skin lesion", "polyp"]
    assert model.config.num_captions == len(model.caption_head.captions) == 324 + 13


def test_shares_are_those_of_the_captions_and_none_is_impossible(head):
    labels = CaptionLabels(head)
    texts = ["One small,circular,smooth colonic polyp on the center."] * 3 + ["The nuclei are evenly distributed."]
    set_shares(head, torch.stack([labels(text) for text in texts]))
    total = len(texts) + len(head.captions)
    assert sorted({round(share * total, 3) for share in head.shares.tolist()}) == [1, 2, 4]
    assert head.shares.sum().item() == pytest.approx(1)


def test_the_captions_that_a_caption_leaves_open_are_all_true(head):
    labels = CaptionLabels(head)
    assert labels("One small,circular,smooth colonic polyp on the center.").sum() == 1
    assert labels("One small,,smooth colonic polyp on the center.").sum() == 4
    two = (
        "Two colonic polyps.One small,circular,smooth colonic polyp on the center."
        "One large,circular,smooth colonic polyp on the top left."
    )
    assert labels(two).sum() == 2
    assert labels("a photo of a dog").sum() == labels("bilateral pulmonary infection").sum() == 0


def test_figures_of_a_perfect_and_of_an_ignorant_head(head):
    texts = [render_caption(head.captions[index]) for index in (0, 0, 0, 40, 200)]
    perfect = torch.stack([CaptionLabels(head)(text) for text in texts]).float() * 100
    states = head.states.float()
    figures = measure_captions(perfect, perfect.softmax(-1) @ states, texts, head)
    assert figures["exact"] == 1 and figures["exact_majority"] == pytest.approx(3 / 5)
    assert all(value["auroc"] == value["f1"] == 1 for value in figures["values"].values())
    constant = perfect[:1].expand(5, -1)
    figures = measure_captions(constant, constant.softmax(-1) @ states, texts, head)
    assert figures["exact"] == figures["exact_majority"]
    assert all(value["auroc"] == 0.5 for value in figures["values"].values())


def test_true_captions_are_told_from_others_as_their_images_one_by_one_say():
    segmenter = Segmenter(captioning_model("polyp"), tiny_processor())
    rows = make_rows(7, seed=3)
    texts = [*rows["text"][:5], "a photo of a dog", "no polyp"]
    rows = rows.remove_columns("text").add_column("text", texts)
    pairs = pair_captions(texts)
    assert {pair.is_true for pair in pairs} == {True, False} and "a photo of a dog" in [pair.text for pair in pairs]
    checks = [segmenter.segment([rows[pair.row]["image"]], [pair.text])[0].check for pair in pairs]
    assert None in checks
    measured = {
        "score": [check.score if check else 0 for check in checks],
        "masks": [check.mask_agreement or 0 if check else 0 for check in checks],
    }
    figures = measure_consistency(segmenter, rows, batch_size=4)
    assert figures.keys() == measured.keys()
    for name, values in measured.items():
        true, false = ([value for pair, value in zip(pairs, values) if pair.is_true is kind] for kind in (True, False))
        wins = [(a > b) + (a == b) / 2 for a in true for b in false]
        assert figures[name] == pytest.approx(sum(wins) / len(wins), abs=1e-6)
