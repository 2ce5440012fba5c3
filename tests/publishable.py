"""A tiny checkpoint with everything that publishing asks for, except the card."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf.evaluation.evaluate import record_results


def make_result(data: str, text: str, dice: float, **kwargs) -> dict:
    """A result in the form of `lvit evaluate`."""
    return {
        "model": "somewhere",
        "data": data,
        "split": "valid",
        "text": text,
        "images": 7,
        "dice": dice,
        "iou": dice / (2 - dice) + 0.01,
        "pooled_dice": dice + 0.1,
        "pooled_iou": (dice + 0.1) / (2 - dice - 0.1),
        **kwargs,
    }


# Of each data set not one after another, as they come when they are measured.
RESULTS = [
    make_result("QaTa, 224", "correct", 0.7123, ece=0.01234, brier=0.05678),
    make_result("MoNuSeg", "correct", 0.77, tile_size=175, size=224, official_masks=True, threshold=0.4),
    make_result("QaTa, 224", "none", 0.65432),
    make_result("QaTa, 224", "shuffled", 0.5),
]


def save_checkpoint(folder: Path):
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    record_results(folder, RESULTS)


def save_examples(folder: Path):
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "examples.csv").write_text('image,text,tile_size\nnoise.png,"two infected areas, upper left lung",0\n')
