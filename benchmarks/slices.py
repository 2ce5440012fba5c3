"""What the third dimension brings: a network of slices, on the volumes and captions of configs/hippocampus.yaml.

    python benchmarks/slices.py make HIPPOCAMPUS SLICES
    lvit train SLICES/slices.yaml
    python benchmarks/slices.py evaluate HIPPOCAMPUS SLICES/run/best

The slices are sagittal: both parts of the hippocampus are in most of them. Their greys are windowed volume by volume.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from PIL import Image

from lvit_hf.data.volumes import Structure, find_volumes, read_pair
from lvit_hf.evaluation.metrics import boundary_scores, overlap_scores
from lvit_hf.inference.segmenter import Segmenter


CONFIG = Path(__file__).parents[1] / "configs" / "hippocampus.yaml"
NAMES = ("anterior", "posterior", "whole")
# The network's widths, patches and captions as in three dimensions; slices have some 50 x 35 pixels.
TRAINING: dict[str, Any] = {
    "model": {
        "text_model": "minilm",
        "input_size": 64,
        "config": {
            "image_size": 64,
            "hidden_sizes": [16, 32, 64],
            "patch_sizes": [8, 4, 2],
            "hidden_dropout_prob": 0.0,
            "num_text_vectors": 16,
            "text_fusion": "sentence_map",
        },
    },
    "augmentation": {"rotate": 15, "scale": 0.15, "translate": 0.08, "text_dropout": 0.0},
    "average_decay": 0.998,
    "training": {
        "seed": 1,
        "max_steps": 4000,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1.0e-3,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "warmup_steps": 200,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": 500,
        "save_strategy": "steps",
        "save_steps": 500,
        "save_total_limit": 2,
        "report_to": "none",
    },
}


def load_structures() -> dict[str, Structure]:
    source = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["sources"][0]
    return {row["name"]: Structure(**row) for row in source["structures"] if row["name"] in NAMES}


def read_slices(image: nibabel.Nifti1Image) -> tuple[np.ndarray, nibabel.Nifti1Image]:
    """Greys of 8 bits of sagittal slices, `(slices, height, width)` with the head upright, and what they are of."""
    turned = nibabel.as_closest_canonical(image)
    values = turned.get_fdata(dtype=np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    greys = (np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).round().astype(np.uint8)
    return np.rot90(greys, axes=(1, 2)), turned


def read_labels(image: nibabel.Nifti1Image) -> torch.Tensor:
    """Labels of shape `(slices, height, width)`, as `read_slices` orders them."""
    labels = np.asarray(nibabel.as_closest_canonical(image).dataobj).astype(np.int64)
    return torch.from_numpy(np.rot90(labels, axes=(1, 2)).copy())


def make(data: Path, out: Path):
    structures = load_structures()
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        rows = []
        for name in ("images", "masks"):
            (out / split / name).mkdir(parents=True)
        for files in find_volumes(data, split):
            image, label_map = read_pair(files)
            (slices, _), labels = read_slices(image), read_labels(label_map)
            for index, (pixels, label_map) in enumerate(zip(slices, labels)):
                picture = f"{split}/images/{files.id}_{index:02}.png"
                Image.fromarray(np.ascontiguousarray(pixels)).save(out / picture)
                for name, structure in structures.items():
                    path = f"{split}/masks/{files.id}_{index:02}_{name}.png"
                    Image.fromarray(structure.mask(label_map).numpy() > 0).save(out / path)
                    captions = structure.captions if split == "train" else structure.captions[:1]
                    rows.append((picture, path, captions[rng.integers(len(captions))]))
        with (out / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "mask", "text"), *rows])
    source = {"name": "slices", "path": str(out), "max_validation": 300}
    training = {**TRAINING["training"], "output_dir": str(out / "run")}
    (out / "slices.yaml").write_text(yaml.safe_dump({**TRAINING, "sources": [source], "training": training}))


def evaluate(data: Path, checkpoint: str):
    segmenter = Segmenter.from_pretrained(checkpoint, backend="torch")
    for name, structure in load_structures().items():
        scores = []
        for files in find_volumes(data, "valid"):
            image, label_map = read_pair(files)
            (slices, turned), target = read_slices(image), structure.mask(read_labels(label_map)).bool()
            images = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in slices]
            texts = structure.captions[:1] * len(images)
            results = segmenter.segment(images, texts, describe=False, on_unknown="use", batch_size=64)
            mask = torch.from_numpy(np.stack([result.mask() for result in results]))
            x, y, z = np.linalg.norm(turned.affine[:3, :3], axis=0).tolist()
            dice = overlap_scores((mask & target).sum().double(), (mask.sum() + target.sum()).double())[0]
            scores.append((dice.item(), *boundary_scores(mask, target, 1.0, [x, z, y])))
        dice, hd95, nsd = np.mean(scores, axis=0)
        print(
            f"{name}: Dice {100 * dice:.1f}, HD95 {hd95:.2f} mm, surface Dice {100 * nsd:.1f} of {len(scores)} volumes"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, second in (("make", "out"), ("evaluate", "checkpoint")):
        own = commands.add_parser(command)
        own.add_argument("data", type=Path)
        own.add_argument(second, type=Path)
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.data, arguments.out)
    else:
        evaluate(arguments.data, arguments.checkpoint)


if __name__ == "__main__":
    main()
