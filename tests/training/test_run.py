"""Training runs from the command line, on a tiny model and images made here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from squares import make_rows
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf import LViTForImageSegmentation
from lvit_hf.training.config import read_config
from lvit_hf.training.run import last_checkpoint, make_trainer
from lvit_hf.training.trainer import AVERAGE_FILE


STEPS, SAVE_STEPS = 24, 8


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
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


LVIT = [sys.executable, "-m", "lvit_cli.main"]
# "multi_gpu" is what accelerate calls several processes on one machine, of whatever device.
TWO_PROCESSES = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]


def train(start: Path, output: str, *arguments: str, launcher: list[str] = LVIT) -> subprocess.Popen:
    command = [*launcher, "train", start / "config.yaml", f"training.output_dir={start / output}", *arguments]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def uninterrupted(start) -> Path:
    process = train(start, "once")
    output, _ = process.communicate()
    assert process.returncode == 0
    summary = json.loads(output.splitlines()[-1])
    assert summary["steps"] == STEPS and summary["saved"] == str(start / "once" / "best")
    return start / "once"


def test_a_run_learns_and_saves_a_model_that_loads(uninterrupted):
    curve = losses(uninterrupted)
    assert len(curve) == STEPS and np.mean(curve[-5:]) < np.mean(curve[:5])
    LViTForImageSegmentation.from_pretrained(uninterrupted / "best")


def test_an_epoch_may_be_longer_than_the_data(start):
    overrides = ["images_per_epoch=100", f"training.output_dir={start / 'long'}"]
    loader = make_trainer(read_config(start / "config.yaml", overrides)).get_train_dataloader()
    assert [len(batch["labels"]) for batch in loader] == [4] * 25


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has written a checkpoint to its end."""
    try:
        return last_checkpoint(folder).exists()
    except FileNotFoundError:
        return False


def test_a_killed_run_resumes_as_if_nothing_had_happened(start, uninterrupted):
    process = train(start, "killed")
    while not has_checkpoint(start / "killed"):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert train(start, "killed", "--resume").wait() == 0
    assert losses(start / "killed") == losses(uninterrupted)
    for name in ("model.safetensors", AVERAGE_FILE):
        one, other = (load_file(folder / f"checkpoint-{STEPS}" / name) for folder in (uninterrupted, start / "killed"))
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_two_processes_train_as_one_with_the_same_global_batch(start):
    # Each process draws its own dropout noise, so it is left out here; large steps would make much of rounding.
    whole = ["model.config.hidden_dropout_prob=0", "training.learning_rate=1.0e-4"]
    half = [*whole, "training.per_device_train_batch_size=2"]
    pair = train(start, "two", *half, launcher=[*TWO_PROCESSES, "lvit_cli.main"])
    single = train(start, "one", *whole)
    assert [process.wait() for process in (pair, single)] == [0, 0]
    np.testing.assert_allclose(losses(start / "two"), losses(start / "one"), rtol=1e-3)
