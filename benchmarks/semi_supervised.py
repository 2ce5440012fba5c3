"""What pseudo-labels, their iteration (EPI) and the LV loss add on QaTa-COV19, see docs/semi-supervised.md.

Every run begins with the same first stage of `configs/qata-semi.yaml` and goes on for as many steps with as many
labelled images in each. Runs that are finished are skipped, so a command that was stopped goes on when it is given
again.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback
from transformers.utils import logging

from lvit_hf.data.load import load_data
from lvit_hf.evaluation.evaluate import resize_mask, resize_probabilities
from lvit_hf.evaluation.metrics import interval, overlap_scores, resampling_weights
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.training.config import TrainConfig, read_config
from lvit_hf.training.contrastive import load_mask
from lvit_hf.training.run import make_trainer, save_best
from lvit_hf.training.semi_supervised import SemiSupervisedTrainer


EXAMPLE_FILE = "example.npy"
SIZE = 224
BATCH_SIZE = 64
EXAMPLE = Path("examples/chest-xray.jpg")
EXAMPLE_TEXT = (
    "bilateral pulmonary infection, four infected areas, middle lower left lung and middle lower right lung."
)
# What each way to train changes of the `semi_supervised` section; `None` is no such section.
VARIANTS: dict[str, dict | None] = {
    "labelled": None,
    "fixed": {"refresh_steps": 10**9, "lv_weight": 0.0},
    "epi": {"lv_weight": 0.0},
    "epi+lv": {},
}
NAMES = {
    "labelled": "labelled images only",
    "fixed": "+ pseudo-labels, fixed",
    "epi": "+ EPI",
    "epi+lv": "+ EPI + LV loss",
}
ORDER = ("labelled", "epi+lv", "epi", "fixed")  # what matters most comes first
# 100 percent is training with all masks.
RUNS = [
    *[(25, 0, variant) for variant in ORDER],
    (100, 0, "labelled"),
    *[(25, seed, variant) for seed in (1, 2) for variant in ORDER],
    *[(50, 0, variant) for variant in ORDER],
    *[(100, seed, "labelled") for seed in (1, 2)],
]


class Watch(TrainerCallback):
    """Follows the pseudo-labels of a run: their agreement with the masks that it does not see, and one map."""

    def __init__(self, trainer: SemiSupervisedTrainer, masks: np.ndarray):
        self.trainer = trainer
        self.masks = masks
        self.curve: list[dict[str, float]] = []
        self.maps: list[np.ndarray] = []
        self.labelled_dice = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.labelled_dice = self.measure_labelled()
        self.look(0, momentum=0.0)

    def on_step_end(self, args, state, control, **kwargs):
        settings = self.trainer.settings
        assert settings.refresh_steps is not None  # the trainer has chosen it
        if state.global_step % settings.refresh_steps == 0 and state.global_step < state.max_steps:
            self.look(state.global_step, settings.beta**settings.refresh_steps)

    def look(self, step: int, momentum: float):
        labels = np.load(self.trainer.pseudo_labels.path)
        tensor = torch.from_numpy(labels)
        entropy = (torch.special.entr(tensor) + torch.special.entr(1 - tensor)).mean().item()
        self.curve.append({"step": step, "dice": mean_dice(labels, self.masks), "entropy": entropy})
        with self.trainer.evaluated_model() as model:
            rows = [{"image": Image.open(EXAMPLE), "text": EXAMPLE_TEXT}]
            prediction = self.trainer.predict_rows(model, rows)[0]
        self.maps.append(momentum * self.maps[-1] + (1 - momentum) * prediction if self.maps else prediction)

    def measure_labelled(self) -> float:
        """Dice on the images that the first stage has learned from, beside that of the first pseudo-labels."""
        rows, predictions, masks = self.trainer.labelled, [], []
        with self.trainer.evaluated_model() as model:
            for start in range(0, len(rows), BATCH_SIZE):
                batch = [rows[index] for index in range(start, min(start + BATCH_SIZE, len(rows)))]
                predictions.append(self.trainer.predict_rows(model, batch))
                masks += [load_mask(row["mask"], predictions[0].shape[-1]) for row in batch]
        return mean_dice(np.concatenate(predictions), np.stack(masks))


def mean_dice(probabilities: np.ndarray, masks: np.ndarray) -> float:
    """Dice per image in percent of maps `(images, height, width)`."""
    predictions, labels = torch.from_numpy(probabilities) > 0.5, torch.from_numpy(masks) > 0.5
    overlap, total = (predictions & labels).sum((1, 2)), predictions.sum((1, 2)) + labels.sum((1, 2))
    return 100 * overlap_scores(overlap.double(), total.double())[0].mean().item()


FIRST, SECOND = 0, 1


class Ablation:
    """The runs and where they lie.

    Args:
        data: What `load_data` reads.
        runs: Folder of the runs.
        first, second: Overrides of the two stages' configurations.
    """

    def __init__(self, data: str, runs: Path, first: list[str], second: list[str]):
        self.data = data
        self.runs = runs
        # Both stages have one model.
        self.overrides = [
            override if override.startswith("model.") else f"stages.{stage}.{override}"
            for stage, overrides in enumerate((first, second))
            for override in overrides
        ]

    def read(self, percent: int, stage: int, seed: int, output: Path) -> TrainConfig:
        labelled = f"sources.0.labelled_ids=configs/splits/qata-{percent}-percent.txt"
        config = read_config("configs/qata-semi.yaml", [labelled, *self.overrides]).stages[stage]
        config.sources[0].path = self.data
        config.training |= {"seed": seed, "output_dir": str(output), "report_to": "none", "disable_tqdm": True}
        return config

    def run(self, percent: int, seed: int, variant: str) -> dict:
        """Trains one variant and measures it."""
        output = self.runs / f"{percent}-{variant}-{seed}"
        start = time.perf_counter()
        found = self.train_on_all(seed, output) if percent == 100 else self.train(percent, seed, variant, output)
        seconds = round(time.perf_counter() - start)
        run = {"percent": percent, "seed": seed, "variant": variant, "seconds": seconds}
        return {**run, **measure(output / "best", self.data), **found}

    def train(self, percent: int, seed: int, variant: str, output: Path) -> dict:
        """The second stage, after the first one if that is still to be done."""
        first = self.runs / f"{percent}-first-{seed}"
        if not (first / "best" / "config.json").exists():
            finish(make_trainer(self.read(percent, FIRST, seed, first)), first)
        config = self.read(percent, SECOND, seed, output)
        config.model.checkpoint = str(first / "best")
        settings, changes = config.semi_supervised, VARIANTS[variant]
        assert settings is not None
        if changes is None:
            # As many labelled images in a batch as the others have beside their unlabelled ones.
            config.semi_supervised = None
            batch_size = config.training["per_device_train_batch_size"]
            config.training["per_device_train_batch_size"] = round(batch_size * settings.labelled_share)
        else:
            config.semi_supervised = replace(settings, **changes)
        trainer = make_trainer(config)
        if not isinstance(trainer, SemiSupervisedTrainer):
            finish(trainer, output)
            return {}
        size = trainer.processing_class.image_processor.size["height"]
        watch = Watch(trainer, load_hidden_masks(self.data, config.sources[0].labelled_ids, size))
        trainer.add_callback(watch)
        finish(trainer, output)
        np.save(output / EXAMPLE_FILE, np.stack(watch.maps))
        return {"labelled_dice": watch.labelled_dice, "pseudo_labels": watch.curve}

    def train_on_all(self, seed: int, output: Path) -> dict:
        """All masks from the beginning, for as many steps as both stages have."""
        config = self.read(25, FIRST, seed, output)
        second = self.read(25, SECOND, seed, output)
        config.sources[0].labelled_ids = None
        config.training["max_steps"] += second.training["max_steps"]
        config.training |= dict.fromkeys(("eval_steps", "save_steps"), config.training["max_steps"])
        finish(make_trainer(config), output)
        return {}


def load_hidden_masks(data: str, labelled_ids: str | None, size: int) -> np.ndarray:
    """Masks of the unlabelled images, in the order of the pseudo-labels, `(images, size, size)`."""
    assert labelled_ids is not None
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
        "| masks of | training | seeds | Dice | Dice without text | gain | gain without text |",
        "|---|---|---|---|---|---|---|",
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
            gains = values - np.array([figures["labelled", seed] for seed in seeds])
            cells = [with_spread(column) for column in values.T]
            cells += ["", ""] if variant == "labelled" else [with_spread(column) for column in gains.T]
            lines.append(f"| {percent} % | {name} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_spread(values: np.ndarray) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def draw(results: list[dict], runs: Path, path: Path):
    """The pseudo-label of the example image after each refresh, and curves of all pseudo-labels."""
    maps = np.load(runs / "25-epi+lv-0" / EXAMPLE_FILE)
    curves = [(r["seed"], r["pseudo_labels"]) for r in results if (r["percent"], r["variant"]) == (25, "epi+lv")]
    steps = [point["step"] for point in curves[0][1]]
    shown = np.unique(np.linspace(0, len(maps) - 1, 4).round().astype(int))
    figure, axes = plt.subplots(1, len(shown) + 2, figsize=(2 * len(shown) + 5, 2.3), layout="constrained")
    image = Image.open(EXAMPLE).convert("L")
    for axis, number in zip(axes, shown):
        axis.imshow(image, cmap="gray")
        probabilities = np.asarray(Image.fromarray(maps[number]).resize(image.size, Image.Resampling.BILINEAR))
        axis.imshow(probabilities, cmap="spring", vmin=0, vmax=1, alpha=0.7 * probabilities)
        axis.contour(probabilities, levels=[0.5], colors="white", linewidths=0.8)
        axis.set_title(f"step {steps[number]}", fontsize=9)
        axis.axis("off")
    for axis, name, label in zip(axes[-2:], ("dice", "entropy"), ("Dice with hidden masks", "mean entropy, nats")):
        for seed, curve in curves:
            axis.plot([p["step"] for p in curve], [p[name] for p in curve], marker="o", label=f"seed {seed}")
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="QaTa-COV19, as `lvit train` reads it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/semi-supervised"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/semi_supervised.json"))
    parser.add_argument("--first", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the first stage")
    parser.add_argument("--second", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the second stage")
    parser.add_argument("--figure", type=Path, help="draw the finished runs' pseudo-labels here, and train nothing")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    results = json.loads(arguments.results.read_text("utf-8")) if arguments.results.exists() else []
    if arguments.figure is not None:
        return draw(results, arguments.runs, arguments.figure)
    finished = {(result["percent"], result["seed"], result["variant"]) for result in results}
    ablation = Ablation(arguments.data, arguments.runs, arguments.first, arguments.second)
    for run in RUNS:
        if run[1] not in arguments.seeds or run in finished:
            continue
        results.append(ablation.run(*run))
        arguments.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        print(run, *(f"{results[-1][text]['dice']:.2f}" for text in ("correct", "none")), flush=True)
    print(render(results))


if __name__ == "__main__":
    main()
