"""The time of `lvit predict` and `lvit evaluate` beside that of the network's passes alone, on the same batches.

    python benchmarks/overhead.py DATA --count 500

Files are read, results written and masks measured as by the commands. Loading the checkpoint is left out. The slices
of the volume are validation images too.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lvit_hf.data.load import load_data, take_evenly
from lvit_hf.evaluation.evaluate import EvaluationSettings, evaluate
from lvit_hf.inference.files import Item, Outputs
from lvit_hf.inference.predictor import Predictor, PredictorConfig
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT


BATCH, SLICES = 8, 300
# Whether each pass over a batch has captions.
PREDICTION = (False, True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--model", default=str(DEFAULT_CHECKPOINT))
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    rows = take_evenly(load_data(arguments.data, "valid"), arguments.count)
    images, texts = [image.convert("RGB") for image in rows["image"]], list(rows["text"])
    settings = {"tile_size": None, "views": None, "side": "image", "on_unknown": "ignore"}
    predictor = Predictor(
        PredictorConfig(arguments.model, arguments.backend, Outputs(0.5, False, None, False), BATCH, settings)
    )
    segmenter = Segmenter.from_pretrained(arguments.model, arguments.backend)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "results").mkdir()
        items = list(save_images(images, texts, folder))
        volume = save_volume(images, texts[0], folder)
        slices = [images[number % len(images)].convert("L").convert("RGB") for number in range(SLICES)]
        for name, work, shown in ((f"{len(images)} files", items, images), (f"{SLICES} slices", [volume], slices)):
            seconds = time_of(lambda: list(predictor.predict(work, folder / "results", set())))
            show(f"predict, {name}", seconds, time_passes(segmenter, shown, texts, PREDICTION))
    for mode in ("correct", "none"):
        seconds = time_of(lambda: evaluate(segmenter, rows, [mode], EvaluationSettings(batch_size=BATCH)))
        show(f"evaluate, captions: {mode}", seconds, time_passes(segmenter, images, texts, [mode == "correct"]))


def save_images(images: list[Image.Image], texts: list[str], folder: Path) -> Iterator[Item]:
    for number, (image, text) in enumerate(zip(images, texts)):
        path = folder / f"{number}.png"
        image.save(path)
        yield Item(path.name, text, path)


def save_volume(images: list[Image.Image], text: str, folder: Path) -> Item:
    planes = [np.asarray(images[number % len(images)].convert("L").resize((256, 256))) for number in range(SLICES)]
    path = folder / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack(planes, axis=-1).astype(np.int16), np.eye(4)), path)
    return Item(path.name, text, path)


@torch.inference_mode()
def time_passes(
    segmenter: Segmenter, images: Sequence[Image.Image], texts: Sequence[str], captioned: Sequence[bool]
) -> float:
    """Seconds of the network alone: what it is given is made before."""
    seconds = 0.0
    for start in tqdm(range(0, len(images), BATCH), desc="the bare network", disable=None):
        batch = slice(start, start + BATCH)
        inputs = dict(segmenter.processor(images=images[batch], return_tensors="pt"))
        words = segmenter.processor(text=texts[: len(inputs["pixel_values"])], return_tensors="pt")
        seconds += time_of(lambda: run_passes(segmenter, inputs, words, captioned))
    return seconds


def run_passes(segmenter: Segmenter, inputs: dict[str, Any], words: Mapping[str, Any], captioned: Sequence[bool]):
    if segmenter.network is segmenter.model:
        inputs = inputs | {"feature_maps": segmenter.model.lvit.get_feature_maps(inputs["pixel_values"])}
    for has_text in captioned:
        segmenter.network(**inputs, **(words if has_text else {}))


def time_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(name: str, seconds: float, bare: float):
    print(f"{name}: {seconds:.1f} s, the network's passes alone {bare:.1f} s, {seconds / bare:.2f} times")


if __name__ == "__main__":
    main()
