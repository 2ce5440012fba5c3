"""Time and peak memory of `lvit slide` while the slide grows, as a table and a figure."""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tifffile

from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.inference.slide import segment_slide
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT


SIDES = (2048, 4096, 8192, 16384)
TILE = 256


def make_slide(path: Path, side: int):
    """Writes a slide of noise tile by tile, so that this process stays small too."""

    def tiles() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range((side // TILE) ** 2):
            yield rng.integers(0, 256, (TILE, TILE, 3), dtype=np.uint8)

    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb")


def measure(side: int, tile_size: int, folder: Path) -> tuple[float, float]:
    """Seconds, without loading the model, and peak MiB of this process."""
    make_slide(folder / "slide.tif", side)
    segmenter = Segmenter.from_pretrained(DEFAULT_CHECKPOINT)
    start = time.perf_counter()
    segment_slide(segmenter, folder / "slide.tif", folder / "mask.tif", tile_size)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plot(sides: list[int], seconds: list[float], mebibytes: list[float], path: Path):
    megapixels = [side**2 / 1e6 for side in sides]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, values, label in zip(axes, (seconds, mebibytes), ("seconds", "peak memory, MiB")):
        axis.plot(megapixels, values, marker="o")
        axis.set(xlabel="megapixels", ylabel=label, xlim=0, ylim=(0, 1.1 * max(values)))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tile-size", type=int, default=512, help="side of a tile in pixels of the slide")
    parser.add_argument("--figure", type=Path, default=Path("docs/large-images.png"))
    arguments = parser.parse_args()
    seconds, mebibytes = [], []
    print("| side, pixels | seconds | seconds per megapixel | peak memory, MiB |\n|---|---|---|---|")
    for side in SIDES:
        with (
            tempfile.TemporaryDirectory() as folder,
            # A process of its own, whose peak holds nothing of the slide before.
            ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool,
        ):
            used = pool.submit(measure, side, arguments.tile_size, Path(folder)).result()
        seconds.append(used[0])
        mebibytes.append(used[1])
        print(f"| {side} | {used[0]:.1f} | {used[0] / side**2 * 1e6:.3f} | {used[1]:.0f} |", flush=True)
    plot(list(SIDES), seconds, mebibytes, arguments.figure)


if __name__ == "__main__":
    main()
