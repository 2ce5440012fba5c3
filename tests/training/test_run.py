"""Training runs from the command line, on a tiny model and images made here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from squares import make_rows
from tiny_lvit import SIZE, load_weights, tiny_model, tiny_processor
from tiny_volumes import PATCH
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTForImageSegmentation
from lvit_hf.model.saving import save_half_precision
from lvit_hf.training.config import ModelConfig, SourceConfig, read_config
from lvit_hf.training.run import (
    build_model,
    last_checkpoint,
    load_source,
    load_validation,
    make_arguments,
    make_trainer,
    run_stages,
)
from lvit_hf.training.trainer import AVERAGE_FILE


STEPS, SAVE_STEPS = 24, 8
FIRST_STEPS, FIRST_SAVE_STEPS = 6, 2


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A folder with a checkpoint to start from, data, and a configuration."""
    folder = tmp_path_factory.mktemp("start")
    tiny_model(hidden_dropout_prob=0.1).save_pretrained(folder / "checkpoint")
    tiny_processor().save_pretrained(folder / "checkpoint")
    (folder / "data").mkdir()
    for split, count in (("train", 40), ("valid", 6)):
        make_rows(count, seed=count).to_parquet(folder / "data" / f"{split}-0.parquet")
    config = {
        "model": {"checkpoint": str(folder / "checkpoint")},
        "sources": [{"name": "squares", "path": str(folder / "data"), "augmentation": {"flip_horizontal": 0.5}}],
        "average_decay": 0.9,
        "training": {
            "output_dir": str(folder / "once"),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "eval_strategy": "steps",
            "eval_steps": SAVE_STEPS,
            "save_steps": SAVE_STEPS,
            "logging_steps": 1,
            "disable_tqdm": True,
            "report_to": "none",
        },
        "stages": [
            {
                "model": {"input_size": 16},
                "training": {
                    "max_steps": FIRST_STEPS,
                    **dict.fromkeys(("eval_steps", "save_steps"), FIRST_SAVE_STEPS),
                },
            },
            {"model": {"input_size": 32}, "training": {"seed": 1}},
        ],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


LVIT = [sys.executable, "-m", "lvit_cli.main"]
# "multi_gpu" is what accelerate calls several processes on one machine, of whatever device.
TWO_PROCESSES = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]


def train(start: Path, output: str, *arguments: str, launcher: list[str] = LVIT) -> subprocess.Popen:
    command = [*launcher, "train", start / "config.yaml", f"training.output_dir={start / output}", *arguments]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)


def losses(folder: Path, steps: int = STEPS) -> list[float]:
    state = json.loads((folder / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def uninterrupted(start) -> Path:
    process = train(start, "once")
    output, _ = process.communicate()
    assert process.returncode == 0
    stages = [json.loads(line) for line in output.splitlines() if line.startswith('{"best"')]
    assert [stage["steps"] for stage in stages] == [FIRST_STEPS, STEPS]
    assert stages[-1]["saved"] == str(start / "once" / "best")
    return start / "once"


def test_a_run_learns_and_saves_a_model_that_loads(uninterrupted):
    curve = losses(uninterrupted)
    assert len(curve) == STEPS and np.mean(curve[-5:]) < np.mean(curve[:5])
    LViTForImageSegmentation.from_pretrained(uninterrupted / "best")


def test_a_checkpoint_goes_on_at_the_image_size_of_its_processor(start, tmp_path):
    model, processor = build_model(ModelConfig(str(start / "checkpoint"), input_size=16))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert build_model(ModelConfig(str(tmp_path)))[1].image_processor.size == {"height": 16, "width": 16}


def test_a_checkpoint_s_calibration_is_not_that_of_what_it_is_trained_to(tmp_path):
    for part in (tiny_model(), tiny_processor(temperature=2.0, logit_bias=0.5)):
        part.save_pretrained(tmp_path)
    settings = build_model(ModelConfig(str(tmp_path)))[1].image_processor
    assert (settings.temperature, settings.logit_bias) == (1.0, 0.0)


@pytest.fixture(scope="module")
def text_tower(tmp_path_factory) -> Path:
    """The folder of a text tower, in half precision as many on the Hub are, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tower")
    for part in (tiny_model().lvit.text_model.half(), tiny_processor().tokenizer):
        part.save_pretrained(folder)
    return folder


OF_IMAGES = {"image_size": SIZE, "hidden_sizes": [8, 16], "patch_sizes": [4, 2], "num_attention_heads": 2}
OF_VOLUMES = {**OF_IMAGES, "image_size": PATCH, "spatial_dims": 3, "num_channels": 1}


@pytest.mark.parametrize("fields", [OF_IMAGES, OF_VOLUMES], ids=["images", "volumes"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_new_model_has_the_weights_and_the_words_of_its_text_tower(text_tower, fields, frozen):
    config = ModelConfig(text_model=str(text_tower), config={**fields, "freeze_text_model": frozen})
    model, processor = build_model(config)
    tower = model.lvit.text_model
    torch.testing.assert_close(tower.state_dict(), tiny_model().lvit.text_model.half().float().state_dict())
    assert {parameter.requires_grad for parameter in tower.parameters()} == {not frozen}
    assert all(parameter.requires_grad for parameter in model.classifier.parameters())
    assert processor.tokenizer.get_vocab() == tiny_processor().tokenizer.get_vocab()
    assert model.config.text_config.name_or_path == str(text_tower)
    settings = processor.image_processor
    if fields is OF_IMAGES:
        assert settings.size == {"height": SIZE, "width": SIZE} and settings.size_divisor == model.config.size_divisor
    else:
        assert list(settings.spacing) == [1, 1, 1] and list(settings.patch_size) == PATCH  # mm and voxels
        assert list(settings.size_divisors) == list(model.config.size_divisors)
        config.spacing = (3.0, 1.5, 1.0)
        assert list(build_model(config)[1].image_processor.spacing) == [3, 1.5, 1]


def test_a_seed_decides_the_weights_of_a_new_model(start, text_tower, tmp_path):
    overrides = [f"model={{text_model: {text_tower}, config: {OF_IMAGES}}}", f"training.output_dir={tmp_path}"]
    drawn = []
    for seed in (1, 1, 2):
        config = read_config(start / "config.yaml", [*overrides, "stages=[]", f"training.seed={seed}"])
        drawn.append(make_trainer(config).model.classifier.weight)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_text_tower_is_not_loaded_from_a_pickle(tmp_path):
    tower = tiny_model().lvit.text_model
    tower.config.save_pretrained(tmp_path)
    torch.save(tower.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        build_model(ModelConfig(text_model=str(tmp_path)))


def test_a_run_that_would_save_nothing_is_refused(start):
    config = read_config(start / "config.yaml", ["training.save_strategy='no'", "training.eval_strategy='no'"])
    with pytest.raises(ValueError, match="training.save_strategy is 'no'"):
        make_arguments(config)


def test_an_image_may_have_several_captions_each_with_its_mask(tmp_path):
    Image.new("L", (32, 32)).save(tmp_path / "scan.png")
    masks = {"left": [0], "right": [1], "both": [0, 1]}
    for name, halves in masks.items():
        pixels = np.zeros((32, 2, 16), bool)
        pixels[:, halves] = True
        Image.fromarray(pixels.reshape(32, 32)).save(tmp_path / f"{name}.png")
    lines = [f"scan.png,{name}.png,the {name} half" for name in masks]
    (tmp_path / "train.csv").write_text("\n".join(["image,mask,text", *lines]))
    labelled, unlabelled = load_source(SourceConfig("halves", str(tmp_path)))
    assert [(row["text"], (np.asarray(row["mask"]) > 0).mean() > 0.6) for row in labelled] == [
        ("the left half", False),
        ("the right half", False),
        ("the both half", True),
    ]
    assert len(unlabelled) == 0
    (tmp_path / "ids.txt").write_text("scan")
    assert len(load_source(SourceConfig("halves", str(tmp_path), labelled_ids=str(tmp_path / "ids.txt")))[0]) == 3


def test_images_for_validation_are_others_than_those_for_training(tmp_path):
    """Of a table: in folders, each split may count its images anew."""
    for split in ("train", "valid"):
        make_rows(2, seed=0).to_parquet(tmp_path / f"{split}-0.parquet")
    assert len(load_validation(SourceConfig("folder", str(tmp_path)))) == 2
    table = tmp_path / "all.csv"
    for name in ("a.png", "b.png"):
        Image.new("L", (32, 32)).save(tmp_path / name)
    table.write_text("image,mask,text,split\na.png,a.png,,train\nb.png,b.png,,valid\n")
    assert load_validation(SourceConfig("table", str(table)))["id"] == ["b"]
    table.write_text("image,mask,text\na.png,a.png,\nb.png,b.png,\n")
    with pytest.raises(ValueError, match="has the same images for training and validation"):
        load_validation(SourceConfig("table", str(table)))


def test_an_epoch_may_be_longer_than_the_data(start):
    overrides = ["images_per_epoch=100", f"training.output_dir={start / 'long'}"]
    loader = make_trainer(read_config(start / "config.yaml", overrides).stages[0]).get_train_dataloader()
    assert [len(batch["labels"]) for batch in loader] == [4] * 25


def test_a_run_goes_on_from_the_newest_checkpoint_that_was_written_to_its_end(tmp_path):
    assert last_checkpoint(tmp_path / "nothing") is None and last_checkpoint(tmp_path) is None
    states = {"checkpoint-9": "{}", "checkpoint-10": "{}", "checkpoint-11": '{"epoch": ', "checkpoint-12": None}
    for name, state in states.items():
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def kill_in(process: subprocess.Popen, folder: Path):
    """Kills a run as soon as there is a checkpoint in a stage's folder."""
    while last_checkpoint(folder) is None:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_run_that_is_killed_in_each_stage_resumes_as_if_nothing_had_happened(start, uninterrupted):
    folder = start / "killed"
    kill_in(train(start, "killed"), folder / "stage-1")
    kill_in(train(start, "killed", "--resume"), folder)
    first = (folder / "stage-1" / "summary.json").stat()
    run_stages(read_config(start / "config.yaml", [f"training.output_dir={folder}"]), resume=True)
    assert (folder / "stage-1" / "summary.json").stat() == first  # is not trained again
    for stage, steps in (("stage-1", FIRST_STEPS), ("", STEPS)):
        assert losses(folder / stage, steps) == losses(uninterrupted / stage, steps)
        for name in ("model.safetensors", AVERAGE_FILE):
            paths = (run / stage / f"checkpoint-{steps}" / name for run in (uninterrupted, folder))
            one, other = map(load_file, paths)
            assert all(np.array_equal(one[key], other[key]) for key in one)
    one, other = (load_weights(run / "best") for run in (uninterrupted, folder))
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_folder_that_holds_a_run_is_not_written_over(start, uninterrupted):
    before = (uninterrupted / "summary.json").read_bytes()
    with pytest.raises(ValueError, match="--resume goes on with it"):
        run_stages(read_config(start / "config.yaml"))
    assert (uninterrupted / "summary.json").read_bytes() == before


def test_there_must_be_a_run_to_go_on_with(start):
    command = ["train", str(start / "config.yaml"), f"training.output_dir={start / 'nothing'}", "--resume"]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"no checkpoint to resume in {start / 'nothing'}." in result.stderr


# Each process draws its own dropout noise, so it is left out here; large steps would make much of rounding.
WHOLE = ["model.config.hidden_dropout_prob=0", "training.learning_rate=1.0e-4"]


@pytest.fixture(scope="module")
def two_processes(start) -> Path:
    half = [*WHOLE, "training.per_device_train_batch_size=2"]
    assert train(start, "two", *half, launcher=[*TWO_PROCESSES, "lvit_cli.main"]).wait() == 0
    return start / "two"


def test_two_processes_train_as_one_with_the_same_global_batch(start, two_processes):
    run_stages(read_config(start / "config.yaml", [f"training.output_dir={start / 'one'}", *WHOLE]))
    np.testing.assert_allclose(losses(two_processes), losses(start / "one"), rtol=1e-3)


def test_a_run_of_two_processes_goes_on_with_one(start, two_processes):
    folder = shutil.copytree(two_processes, start / "fewer", ignore=shutil.ignore_patterns("checkpoint-16", "*-24"))
    overrides = [f"training.output_dir={folder}", *WHOLE]
    assert last_checkpoint(folder) == folder / f"checkpoint-{SAVE_STEPS}"
    run_stages(read_config(start / "config.yaml", overrides), resume=True)
    np.testing.assert_allclose(losses(folder), losses(two_processes), rtol=1e-3)


def test_the_text_tower_has_a_file_of_its_own_which_stays_the_same(start, uninterrupted, tmp_path):
    """So that a new version of a checkpoint does not cost the whole of it."""
    model, processor = build_model(ModelConfig(str(start / "checkpoint")))
    save_half_precision(model, processor, tmp_path)
    first, second = (folder / "model-00001-of-00002.safetensors" for folder in (tmp_path, uninterrupted / "best"))
    assert first.read_bytes() == second.read_bytes()
    assert all(name.startswith("lvit.text_model.") for name in load_file(first))
    assert not any(name.startswith("lvit.text_model.") for name in load_file(str(second).replace("00001-", "00002-")))
