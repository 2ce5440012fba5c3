import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from captioning import captioning_model
from huggingface_hub import ModelCard, constants
from loopback_hub import LoopbackHub
from PIL import Image
from publishable import RESULTS, save_checkpoint, save_examples
from tiny_lvit import tiny_model
from torch.nn.modules.module import register_module_forward_hook
from typer.testing import CliRunner, Result

from lvit_cli.main import app
from lvit_hf import LViTForImageSegmentation
from lvit_hf.evaluation.evaluate import record_results
from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.inference.segmenter import Segmenter, count_tiles
from lvit_hf.io.examples import read_examples
from lvit_hf.publishing.model_card import METRICS, describe_protocol


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "checkpoint"
    save_checkpoint(folder)
    save_examples(folder.parent / "examples")
    return folder


@pytest.fixture
def checkpoint(measured, tmp_path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "checkpoint"))


def write_card(checkpoint: Path, examples: Path, *options) -> Result:
    return CliRunner().invoke(app, ["card", str(checkpoint), "--examples", str(examples), *map(str, options)])


@pytest.fixture
def card(checkpoint, measured) -> ModelCard:
    result = write_card(checkpoint, measured.parent / "examples")
    assert result.exit_code == 0, result.output
    return ModelCard.load(checkpoint / "README.md")


def test_front_matter_passes_the_hubs_validation(card, monkeypatch):
    hub = LoopbackHub({})
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    card.validate()
    card.data.tags = "medical"
    with pytest.raises(ValueError, match="tags"):
        card.validate()
    hub.stop()


def test_front_matter_says_what_the_hub_shows(card):
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-segmentation", "transformers")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert card.data.datasets and {"dice", "iou"} == set(card.data.metrics)


def test_model_index_holds_both_averages_with_and_without_captions(card):
    figures = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert len(figures) == 12  # three results, four figures each; wrong captions are left to the text
    size = "at each image's size"
    assert figures["QaTa, 224", f"Dice, mean over images; caption: its own; {size}"] == 71.23
    assert figures["QaTa, 224", f"Dice, over all pixels; caption: its own; {size}"] == 81.23
    assert figures["QaTa, 224", f"Dice, mean over images; caption: none; {size}"] == 65.43
    [protocol] = {name.split("; ")[2] for data, name in figures if data == "MoNuSeg"}
    assert protocol == "at 224 x 224 pixels, the reference's rule for masks, tiles of 175, threshold 0.4"
    assert {r.metric_type for r in card.data.eval_results} == {"dice", "iou"}


def test_every_figure_in_the_text_is_a_measured_one(card):
    tables = [line for line in card.text.splitlines() if line.startswith("|")]
    expected = {
        f"{100 * result[figure]:.1f}"
        for result in RESULTS
        for figure in METRICS
        if result["text"] == "correct" or "dice" in figure
    }
    shown = {number for line in tables for number in re.findall(r"\b\d\d\.\d\b", line)}
    assert shown == expected
    assert "| QaTa, 224 | valid | at each image's size | another image's | 50.0 | 60.0 |" in tables
    assert "| QaTa, 224 | valid | at each image's size | 0.0123 | 0.0568 |" in tables


def test_without_calibration_the_card_says_so(checkpoint, measured):
    results = [{key: value for key, value in result.items() if key not in ("ece", "brier")} for result in RESULTS]
    (checkpoint / "evaluation.json").write_text(json.dumps(results))
    assert write_card(checkpoint, measured.parent / "examples").exit_code == 0
    text = (checkpoint / "README.md").read_text()
    assert "not measured" in text and "ECE" not in text


def test_the_card_says_how_scores_are_calibrated(card, checkpoint, measured):
    assert "divides logits" not in card.text
    path = checkpoint / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"] |= {"temperature": 2.5, "logit_bias": -0.5}
    path.write_text(json.dumps(settings))
    record_results(checkpoint, RESULTS)
    assert write_card(checkpoint, measured.parent / "examples").exit_code == 0
    assert "divides logits by 2.500 and adds -0.500 before" in (checkpoint / "README.md").read_text()


def test_picture_and_examples_lie_beside_the_card(card, checkpoint):
    assert "](result.jpg)" in card.text
    assert "/examples/noise.png" in card.text and '"two infected areas, upper left lung"' in card.text
    left, right = np.split(np.asarray(Image.open(checkpoint / "result.jpg").convert("RGB"), dtype=int)[:, :910], 2, 1)
    assert np.abs(left - right).mean() > 1
    assert (checkpoint / "examples" / "noise.png").exists()


def test_the_card_is_written_again_from_its_own_examples(card, checkpoint):
    before = (checkpoint / "README.md").read_text()
    assert CliRunner().invoke(app, ["card", str(checkpoint)]).exit_code == 0
    assert (checkpoint / "README.md").read_text() == before


def test_with_examples_comes_what_is_said_of_them_and_nothing_else(checkpoint, measured, tmp_path):
    examples = Path(shutil.copytree(measured.parent / "examples", tmp_path / "examples"))
    for name in ("README.md", "LICENSE.txt", "client.py", "notes.docx"):
        (examples / name).touch()
    assert write_card(checkpoint, examples).exit_code == 0
    copied = {path.name for path in (checkpoint / "examples").iterdir()}
    assert copied == {"examples.csv", "noise.png", "README.md", "LICENSE.txt"}


def test_what_is_segmented_in_tiles_is_shown_in_tiles(checkpoint, measured, tmp_path):
    examples = Path(shutil.copytree(measured.parent / "examples", tmp_path / "examples"))
    table = examples / "examples.csv"
    table.write_text(table.read_text().replace(",0\n", ",32\n"))
    assert write_card(checkpoint, examples).exit_code == 0
    text = (checkpoint / "README.md").read_text()
    assert "tile_size=32)" in text and "--tile-size 32 " in text and "pipeline(" not in text


@pytest.mark.parametrize("tile_size", [0, 32])
def test_the_picture_in_the_card_is_what_the_example_gives(checkpoint, measured, tmp_path, tile_size):
    """Its mask is that of the caption and the tiles, from one pass of the network for each picture or tile."""
    captioning_model("lung infection").save_pretrained(checkpoint)  # which would take another pass to be described
    record_results(checkpoint, RESULTS)
    examples = Path(shutil.copytree(measured.parent / "examples", tmp_path / "examples"))
    table = examples / "examples.csv"
    table.write_text(table.read_text().replace(",0\n", f",{tile_size}\n"))
    passes = []

    def count(module, inputs, outputs):
        if isinstance(module, LViTForImageSegmentation):
            passes.append(len(outputs.logits))

    hook = register_module_forward_hook(count)
    assert write_card(checkpoint, examples).exit_code == 0
    hook.remove()
    assert sum(passes) == (count_tiles((60, 40), tile_size) if tile_size else 1)
    [example], segmenter = read_examples(examples), Segmenter.from_pretrained(checkpoint)
    shown = np.asarray(Image.open(checkpoint / "result.jpg"), float)
    errors = {}
    for size in (0, 32):
        [result] = segmenter.segment([example.path], [example.text], tile_size=size or None)
        overlay = draw_overlay(result.image, result.mask()).resize((450, 300), Image.Resampling.BICUBIC)
        errors[size] = np.abs(shown[:, 460:] - np.asarray(overlay)).mean()
    assert errors[tile_size] < 0.9 * errors[32 - tile_size], errors


@pytest.mark.parametrize("tile_size", [0, 32])
def test_the_snippet_in_the_card_runs(checkpoint, measured, tmp_path, monkeypatch, tile_size):
    examples = Path(shutil.copytree(measured.parent / "examples", tmp_path / "examples"))
    table = examples / "examples.csv"
    table.write_text(table.read_text().replace(",0\n", f",{tile_size}\n"))
    assert write_card(checkpoint, examples).exit_code == 0
    [code] = re.findall(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), re.DOTALL)
    code = code.replace("https://huggingface.co/USER/NAME/resolve/main", str(checkpoint))
    monkeypatch.chdir(tmp_path)
    exec(code.replace("USER/NAME", str(checkpoint)).replace("image.png", str(examples / "noise.png")), {})
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.size == (60, 40)


def test_a_template_of_the_users_own(checkpoint, measured, tmp_path):
    template = tmp_path / "mine.md"
    template.write_text(
        "---\nlicense: mit\n---\n# Mine\n{% for r in results %}{{ r.data }}: {{ r.dice }}\n{% endfor %}"
    )
    assert write_card(checkpoint, measured.parent / "examples", "--template", template).exit_code == 0
    card = ModelCard.load(checkpoint / "README.md")
    assert card.data.license == "mit" and len(card.data.eval_results) == 12
    assert "# Mine" in card.text and "MoNuSeg: 0.77" in card.text


def test_what_a_figure_was_measured_with_is_told():
    measured = {"size": 224, "official_masks": True, "tile_size": 176, "views": "mirror", "threshold": 0.4}
    told = describe_protocol(measured)
    for part in ("224 x 224", "reference's rule", "tiles of 176", "flips (mirror)", "threshold 0.4"):
        assert part in told
    assert describe_protocol({"size": None, "threshold": 0.5}) == "at each image's size"


def test_one_figure_of_other_weights_is_enough_to_refuse(checkpoint, measured):
    path = checkpoint / "evaluation.json"
    first, *others = json.loads(path.read_text())
    path.write_text(json.dumps([{**first, "checkpoint_digest": "of others"}, *others]))
    result = write_card(checkpoint, measured.parent / "examples")
    assert result.exit_code == 1 and "measure again" in result.stderr


def test_figures_of_other_weights_are_refused(checkpoint, measured):
    tiny_model(layer_norm_eps=1e-3).save_pretrained(checkpoint)
    result = write_card(checkpoint, measured.parent / "examples")
    assert result.exit_code == 1
    assert "is of other weights or settings: measure again" in result.stderr


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("evaluation.json", None, "lvit evaluate --record writes it"),
        ("evaluation.json", "[]", "is no list of results"),
        ("evaluation.json", '[{"data": "QaTa"}]', "is no list of results"),
        ("evaluation.json", '{"dice": 1}', "is no list of results"),
        ("evaluation.json", "{", "is no list of results"),
        ("mine.md", "{{ results | unheard_of }}", "is no template"),
        ("mine.md", "{{ unheard_of }}", "is no template"),
        ("mine.md", "---\n][\n---\n", "cannot be read"),
        ("own/examples.csv", "image,text\nnoise.png,x\n", "needs the columns"),
        ("own/examples.csv", "image,text,tile_size\nnone.png,x,0\n", "does not exist"),
        ("own/examples.csv", "image,text,tile_size\n../config.json,x,0\n", "is outside the folder"),
        ("own/examples.csv", "image,text,tile_size\n/config.json,x,0\n", "is outside the folder"),
        ("own/examples.csv", None, "does not exist"),
    ],
)
def test_what_cannot_be_used_is_named_in_a_sentence(checkpoint, measured, name, content, message):
    path = checkpoint / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(content)
    examples = path.parent if name.startswith("own/") else measured.parent / "examples"
    options = ("--template", path) if name.endswith(".md") else ()
    result = write_card(checkpoint, examples, *options)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith("Error: ") and message in result.stderr
    assert not (checkpoint / "README.md").exists()
