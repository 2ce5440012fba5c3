"""Fine-tuning on few images: the settings for it, and whether it made a checkpoint better."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from .config import TrainConfig, apply_override, make_config
from .run import last_checkpoint, run_stages


NAME = "own"
SETTINGS: dict[str, Any] = {
    "average_decay": 0.9,
    "early_stopping": 6,
    "augmentation": {
        "flip_horizontal": 0.5,
        "rotate": 10,
        "scale": 0.15,
        "translate": 0.06,
        "intensity": 0.2,
        "text_dropout": 0.3,
        "soft_edges": True,
    },
    "training": {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 5e-4,
        "weight_decay": 0.05,
        "warmup_steps": 10,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_steps": 10,
        "report_to": "tensorboard",
    },
}
EVALUATIONS = 10  # of a run that is not stopped early


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning brought.

    Args:
        folder: Folder of the saved model.
        before, after: Dice per image in [0, 1] on the validation images, of the checkpoint as it was and as it is.
        steps: Step of the saved weights.
    """

    folder: Path
    before: float
    after: float
    steps: int


def finetune_config(
    data: str,
    checkpoint: str,
    output: Path,
    steps: int,
    freeze: Sequence[str] = (),
    lora_rank: int | None = None,
    overrides: Sequence[str] = (),
) -> TrainConfig:
    """The configuration of a fine-tuning run.

    Args:
        data: What `load_data` reads, with the splits `train` and `valid`.
        checkpoint: Folder or Hub id to begin with.
        output: Folder for the run.
        steps: Number of training steps at most.
        freeze, lora_rank: As in `ModelConfig`.
        overrides: `section.key=value` strings.

    Raises:
        ValueError: If an override is wrong.
    """
    interval = max(1, steps // EVALUATIONS)
    run = {"output_dir": str(output), "max_steps": steps, "eval_steps": interval, "save_steps": interval}
    content = {
        **SETTINGS,
        "model": {"checkpoint": checkpoint, "freeze": list(freeze), "lora_rank": lora_rank},
        "sources": [{"name": NAME, "path": data, "in_memory": True}],
        "augmentation": dict(SETTINGS["augmentation"]),
        "training": {**SETTINGS["training"], **run},
    }
    for override in overrides:
        apply_override(content, override)
    return make_config(content, "lvit finetune")


def finetune(config: TrainConfig, resume: bool = False) -> FineTuned:
    """Fine-tunes as `finetune_config` says.

    Raises:
        FileNotFoundError: If data are missing, or there is nothing to resume.
        ValueError: If the output folder holds a run that is not to be resumed.
    """
    best = run_stages(config, resume)
    checkpoint = last_checkpoint(best.parent)
    assert checkpoint is not None
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    scores = {entry["step"]: entry["eval_mean_dice"] for entry in state.log_history if "eval_mean_dice" in entry}
    return FineTuned(best, scores[0], scores[state.best_global_step], state.best_global_step)
