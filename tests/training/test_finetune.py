"""`lvit finetune`, on a tiny model and images made here."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from squares import make_rows
from tiny_lvit import SIZE, load_weights, tiny_model, tiny_processor
from tiny_volumes import PATCH, tiny_volume_model
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTForImageSegmentation
from lvit_hf.training.finetune import finetune_config
from lvit_hf.training.parts import limit_training, merge_adapters
from lvit_hf.training.run import make_trainer
from lvit_hf.training.sheet import CELL


QUICK = ["training.report_to=none", "training.disable_tqdm=true", "training.learning_rate=0.01"]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny_model(hidden_dropout_prob=0.0).save_pretrained(folder / "checkpoint")
    tiny_processor().save_pretrained(folder / "checkpoint")
    (folder / "data").mkdir()
    for split, count in (("train", 10), ("valid", 4)):
        make_rows(count, seed=count).to_parquet(folder / "data" / f"{split}-0.parquet")
    return folder


def run(start: Path, output: Path, *options: str):
    command = ["finetune", str(start / "data"), "--out", str(output), "--model", str(start / "checkpoint")]
    return CliRunner().invoke(app, [*command, *QUICK, *options])


def test_ten_images_make_a_checkpoint_better(start, tmp_path):
    result = run(start, tmp_path / "run", "--steps", "30")
    assert result.exit_code == 0, result.output
    said = [line for line in result.stdout.splitlines() if line.startswith("Dice per image")]
    assert len(said) == 1 and said[0].endswith(": better.")
    log = json.loads((tmp_path / "run" / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    scores = {entry["step"]: entry["eval_mean_dice"] for entry in log if "eval_mean_dice" in entry}
    best = max(scores, key=lambda step: scores[step])
    expected = [100 * scores[0], 100 * scores[best], best, 100 * (scores[best] - scores[0])]
    assert [float(number) for number in re.findall(r"[+\d]\d*\.?\d*", said[0])] == pytest.approx(expected, abs=0.06)
    assert f"lvit evaluate {tmp_path / 'run' / 'best'} {start / 'data'}" in result.stdout
    LViTForImageSegmentation.from_pretrained(tmp_path / "run" / "best")
    with Image.open(tmp_path / "run" / "augmentation.png") as sheet:  # of four images, each with five draws
        assert sheet.width > 6 * CELL and 4 * CELL < sheet.height < 6 * CELL
    again = run(start, tmp_path / "run", "--steps", "30")
    assert again.exit_code == 1 and "--resume" in again.stderr


def test_a_run_goes_on_where_it_was(start, tmp_path):
    assert run(start, tmp_path / "run", "--steps", "2").exit_code == 0
    result = run(start, tmp_path / "run", "--steps", "3", "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


def test_a_table_must_tell_training_and_validation_apart(start, tmp_path):
    table = tmp_path / "all.csv"
    table.write_text("image,mask,text\na.png,a.png,\nb.png,b.png,\n", encoding="utf-8")
    for name in ("a.png", "b.png"):
        Image.new("L", (32, 32), 255).save(tmp_path / name)
    arguments = ["finetune", str(table), "--out", str(tmp_path / "run"), "--model", str(start / "checkpoint")]
    result = CliRunner().invoke(app, [*arguments, *QUICK])
    assert result.exit_code == 1 and f"{table} has the same images for training and validation" in result.stderr


def test_it_is_said_when_nothing_was_gained(start, tmp_path):
    parts = ["conv_encoder", "vision_transformer", "reconstruction", "conv_decoder"]
    frozen = [word for part in parts for word in ("--freeze", part)]
    result = run(start, tmp_path / "run", "--steps", "2", "training.learning_rate=0", *frozen)
    assert result.exit_code == 0, result.output
    assert "(+0.0): not better" in result.stdout
    assert "lvit evaluate" not in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze", "encoder"], "no part encoder; it has text_model, "),
        (["training.lerning_rate=1"], "training.lerning_rate is not known; did you mean learning_rate?"),
        (["--model", "nowhere/at-all/x"], "nowhere"),
    ],
)
def test_what_is_wrong_is_a_sentence(start, tmp_path, options, message):
    result = run(start, tmp_path / "run", *options)
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output


def test_a_frozen_part_stays_as_it_is_and_the_others_learn(start, tmp_path):
    arguments = (str(start / "data"), str(start / "checkpoint"), tmp_path, 2, ["conv_encoder"], None, QUICK)
    trainer = make_trainer(finetune_config(*arguments))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in differing if "conv_encoder" in name]
    for part in ("vision_transformer", "conv_decoder", "reconstruction", "classifier"):
        assert [name for name in differing if part in name]


@pytest.mark.parametrize(("steps", "interval"), [(200, 20), (39, 3), (9, 1)])
def test_a_run_is_evaluated_ten_times_and_saved_as_often(steps, interval):
    training = finetune_config("data", "checkpoint", Path("run"), steps).training
    assert (training["max_steps"], training["eval_steps"], training["save_steps"]) == (steps, interval, interval)


def test_what_is_changed_for_one_run_is_not_changed_for_the_next():
    arguments = ("data", "checkpoint", Path("run"), 10)
    before = finetune_config(*arguments)
    overrides = ["augmentation.rotate=45", "training.weight_decay=0", "sources.0.weight=2", "average_decay=0"]
    changed = finetune_config(*arguments, overrides=overrides)
    assert changed.augmentation["rotate"] == 45 and changed.training["weight_decay"] == 0
    assert finetune_config(*arguments) == before


def test_adapters_are_all_that_learns_and_end_in_the_weights(start, tmp_path):
    result = run(start, tmp_path / "run", "--steps", "4", "--lora", "2")
    assert result.exit_code == 0, result.output
    before = load_file(start / "checkpoint" / "model.safetensors")
    after = load_weights(tmp_path / "run" / "best")
    assert before.keys() == after.keys()
    differing = {name for name in before if not torch.allclose(before[name].half(), after[name].half(), 1e-3, 1e-4)}
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "classifier")
    touched = {next((part for part in parts if part in name), name) for name in differing}
    assert set(parts[:-1]) <= touched <= set(parts)
    LViTForImageSegmentation.from_pretrained(tmp_path / "run" / "best")


@torch.no_grad()
def test_merged_adapters_compute_what_they_did_beside_the_weights():
    model = tiny_model()
    limit_training(model, [], lora_rank=2)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or name.startswith("classifier.") for name in learning)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(std=0.1)
    pixel_values = torch.rand(1, 3, SIZE, SIZE, generator=torch.manual_seed(0))
    expected = model.eval()(pixel_values).logits
    merge_adapters(model)
    assert not [name for name in model.state_dict() if "lora_" in name]
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=1e-3, atol=1e-3)


def test_adapters_of_every_rank_count_as_much_as_others():
    """Their products are scaled, so that the learning rate need not change with the rank."""
    scales = set()
    for rank in (1, 2, 4):
        model = tiny_model()
        limit_training(model, [], lora_rank=rank)
        adapters = [module for module in model.modules() if hasattr(module, "get_base_layer")]
        scales.update(scale for adapter in adapters for scale in adapter.scaling.values())
    assert scales == {2.0}


def test_where_norms_are_kept_dropout_goes_on():
    model = tiny_model(hidden_dropout_prob=0.5)
    limit_training(model, [], freeze_norms=True)
    pixel_values = torch.rand(1, 3, SIZE, SIZE, generator=torch.manual_seed(0))
    first, second = (model.train()(pixel_values).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("settings", [{"lora_rank": 2}, {"freeze_norms": True}], ids=str)
@pytest.mark.parametrize(("make", "shape"), [(tiny_model, [3, SIZE, SIZE]), (tiny_volume_model, [1, *PATCH])])
def test_norms_that_are_kept_do_not_follow_the_data(make, shape, settings):
    model = make()
    limit_training(model, [], **settings)
    before = {name: tensor.clone() for name, tensor in model.named_buffers() if "running_" in name}
    model.train()(torch.rand(2, *shape, generator=torch.manual_seed(0)))
    assert before and all(torch.equal(tensor, model.get_buffer(name)) for name, tensor in before.items())
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("normalization" in name for name in learning) == ("freeze_norms" in settings)
