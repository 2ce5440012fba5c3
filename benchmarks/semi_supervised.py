"""What pseudo-labels, their iteration (EPI) and the LV loss add on QaTa-COV19, see docs/semi-supervised.md.

Every run begins with the same first stage, `configs/qata-*-labelled.yaml`, and goes on for as many steps. Runs that are
finished are skipped, so a command that was stopped goes on when it is given again.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback
from transformers.utils import logging

from lvit_hf.contrastive import load_mask
from lvit_hf.data import load_data
from lvit_hf.evaluation import resize_mask, resize_probabilities
from lvit_hf.inference import Segmenter
from lvit_hf.metrics import interval, overlap_scores, resampling_weights
from lvit_hf.semi_supervised import SemiSupervisedTrainer
from lvit_hf.training import make_trainer, save_best
from lvit_hf.training_config import SemiSupervisedConfig, TrainConfig, read_config


SIZE = 224
BATCH_SIZE = 64
EXAMPLE = Path("examples/chest-xray.jpg")
EXAMPLE_TEXT = (
    "bilateral pulmonary infection, four infected areas, middle lower left lung and middle lower right lung."
)
# The variants of the second stage, and what each changes of the `semi_supervised` section; `None` is no such section.
VARIANTS: dict[str, dict | None] = {
    "labelled": None,
    "fixed": {"refresh_steps": 10**9, "lv_weight": 0.0},
    "epi": {"lv_weight": 0.0},
    "epi+lv": {},
    "all": None,
}
NAMES = {
    "labelled": "labelled images only",
    "fixed": "+ pseudo-labels, fixed",
    "epi": "+ EPI",
    "epi+lv": "+ EPI + LV loss",
    "all": "all masks",
}
RUNS = [
    *[(25, 0, variant) for variant in ("labelled", "epi+lv", "all", "epi", "fixed")],
    *[(25, seed, variant) for seed in (1, 2) for variant in ("labelled", "epi+lv", "epi", "fixed")],
    *[(50, 0, variant) for variant in ("labelled", "epi+lv", "epi", "fixed")],
    *[(25, seed, "all") for seed in (1, 2)],
]


class Watch(TrainerCallback):
    """Follows the pseudo-labels of a run: their agreement with the masks that it does not see, and one map."""

    def __init__(self, trainer: SemiSupervisedTrainer, masks: np.ndarray):
        self.trainer = trainer
        self.masks = masks > 0.5
        self.curve: list[dict[str, float]] = []
        self.maps: list[np.ndarray] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.look(0, momentum=0.0)

    def on_step_end(self, args, state, control, **kwargs):
        settings = self.trainer.settings
        if state.global_step % settings.refresh_steps == 0 and state.global_step < state.max_steps:
            self.look(state.global_step, settings.beta**settings.refresh_steps)

    def look(self, step: int, momentum: float):
        labels = torch.from_numpy(np.load(self.trainer.pseudo_labels.path))
        predicted = labels > 0.5
        overlap = (predicted & torch.from_numpy(self.masks)).sum((1, 2))
        dice = 2 * overlap / (predicted.sum((1, 2)) + self.masks.sum((1, 2))).clamp(min=1)
        entropy = torch.special.entr(labels) + torch.special.entr(1 - labels)
        self.curve.append({"step": step, "dice": dice.mean().item(), "entropy": entropy.mean().item()})
        with self.trainer.evaluated_model() as model:
            rows = [{"image": Image.open(EXAMPLE), "text": EXAMPLE_TEXT}]
            prediction = self.trainer._predict(model, rows)[0]
        self.maps.append(momentum * self.maps[-1] + (1 - momentum) * prediction if self.maps else prediction)


def read_stage(percent: int, stage: str, seed: int, data: str, output: Path) -> TrainConfig:
    config = read_config(f"configs/qata-{percent}-{stage}.yaml")
    config.sources[0].path = data
    config.training |= {"seed": seed, "output_dir": str(output), "report_to": "none", "disable_tqdm": True}
    return config


def first_stage(percent: int, seed: int, data: str, runs: Path) -> Path:
    output = runs / f"{percent}-first-{seed}"
    if not (output / "best" / "config.json").exists():
        finish(make_trainer(read_stage(percent, "labelled", seed, data, output)), output)
    return output / "best"


def second_stage(percent: int, seed: int, variant: str, data: str, runs: Path) -> tuple[Path, list[dict]]:
    output = runs / f"{percent}-{variant}-{seed}"
    config = read_stage(percent, "semi", seed, data, output)
    config.model.checkpoint = str(first_stage(percent, seed, data, runs))
    changes = VARIANTS[variant]
    assert config.semi_supervised is not None
    config.semi_supervised = None if changes is None else replace(config.semi_supervised, **changes)
    if variant == "all":
        config.sources[0].labelled_ids = None
    trainer = make_trainer(config)
    watch = None
    if isinstance(trainer, SemiSupervisedTrainer):
        size = trainer.processing_class.image_processor.size["height"]
        masks = load_hidden_masks(data, config.sources[0].labelled_ids, size)
        trainer.add_callback(watch := Watch(trainer, masks))
    finish(trainer, output)
    if watch is not None:
        np.save(output / "example.npy", np.stack(watch.maps))
    return output / "best", [] if watch is None else watch.curve


def load_hidden_masks(data: str, labelled_ids: str, size: int) -> np.ndarray:
    """Masks of the unlabelled images, in the order of the pseudo-labels, `(images, size, size)`."""
    labelled = set(Path(labelled_ids).read_text("utf-8").split())
    rows = load_data(data, "train").select_columns(["id", "mask"])
    return np.stack([load_mask(row["mask"], size) for row in rows if row["id"] not in labelled])


def finish(trainer, output: Path):
    trainer.train()
    save_best(trainer)
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def measure(checkpoint: Path, data: str) -> dict:
    """Dice per image of the validation split at 224 pixels, in percent, with captions and without."""
    segmenter = Segmenter.from_pretrained(checkpoint)
    rows = load_data(data, "valid")
    texts: dict[str, list] = {"correct": rows["text"][:], "none": [None] * len(rows)}
    dice: dict[str, list[float]] = {mode: [] for mode in texts}
    for start in range(0, len(rows), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        images, masks = rows[batch]["image"], rows[batch]["mask"]
        labels = [resize_mask(mask, SIZE, official=False) for mask in masks]
        for mode, captions in texts.items():
            for result, label in zip(segmenter.segment(images, captions[batch], batch_size=BATCH_SIZE), labels):
                prediction = resize_probabilities(result.probabilities, SIZE) > 0.5
                total = prediction.sum() + label.sum()
                dice[mode].append(100 * overlap_scores((prediction & label).sum().double(), total.double())[0].item())
    weights = resampling_weights(len(rows)) / len(rows)
    return {
        mode: {"dice": float(np.mean(values)), "dice_interval": interval(weights @ torch.tensor(values).double())}
        for mode, values in dice.items()
    }


def render(results: list[dict]) -> str:
    lines = [
        "| masks of | training | seeds | Dice | Dice without text | gain over labelled only |",
        "|---|---|---|---|---|---|",
    ]
    for percent in sorted({result["percent"] for result in results}):
        figures = {
            (r["variant"], r["seed"]): (r["correct"]["dice"], r["none"]["dice"])
            for r in results
            if r["percent"] == percent
        }
        for variant, name in NAMES.items():
            seeds = sorted(seed for other, seed in figures if other == variant)
            if not seeds:
                continue
            values = np.array([figures[variant, seed] for seed in seeds])
            gains = np.array([values[i] - figures["labelled", seed] for i, seed in enumerate(seeds)])
            gain = "" if variant == "labelled" else f"{with_spread(gains[:, 0])} (without text {with_spread(gains[:, 1])})"
            cells = [with_spread(values[:, 0]), with_spread(values[:, 1])]
            lines.append(f"| {percent} % | {name} | {len(seeds)} | {cells[0]} | {cells[1]} | {gain} |")
    return "\n".join(lines)


def with_spread(values: np.ndarray) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="QaTa-COV19, as `lvit train` reads it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/semi-supervised"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/semi_supervised.json"))
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    results = json.loads(arguments.results.read_text("utf-8")) if arguments.results.exists() else []
    finished = {(result["percent"], result["seed"], result["variant"]) for result in results}
    for percent, seed, variant in RUNS:
        if seed not in arguments.seeds or (percent, seed, variant) in finished:
            continue
        start = time.perf_counter()
        checkpoint, curve = second_stage(percent, seed, variant, arguments.data, arguments.runs)
        seconds = time.perf_counter() - start
        figures = measure(checkpoint, arguments.data)
        run = {"percent": percent, "seed": seed, "variant": variant, "seconds": round(seconds)}
        results.append({**run, **figures, "pseudo_labels": curve})
        arguments.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        print(json.dumps({**run, "dice": [round(figures[text]["dice"], 2) for text in figures]}), flush=True)
    print(render(results))


if __name__ == "__main__":
    main()
