"""Chooses how touching nuclei are separated, on clumps that are put together from single nuclei of training labels.

MoNuSeg's labels as LViT takes them are masks: they do not say which nucleus a pixel belongs to. So the truth is made:
parts of the labels that are nearly convex are taken for single nuclei, and up to four of one slide are pushed together
until they touch. Objects of the clumps are then found again.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.measure import label, regionprops
from skimage.segmentation import clear_border

from lvit_hf.inference.instances import separate_nuclei


SIDE = 500  # of a picture of clumps, in pixels
SOLIDITY = 0.93  # least share of its convex hull that a single nucleus fills
SMALLEST = 0.25  # of the median part; what is smaller may be a cut nucleus
OVERLAP = 0.08  # largest share of a nucleus that may vanish behind the others
CLUMP_SIZES = (1, 1, 1, 2, 2, 3, 4)

NECKS = (None, 0.98, 0.97, 0.95, 0.93, 0.9, 0.8)
SMOOTHINGS = (1.0, 1.5, 2.0)


def find_single_nuclei(mask: np.ndarray) -> list[np.ndarray]:
    """Masks of parts that look like one nucleus."""
    regions = regionprops(clear_border(label(mask, connectivity=1)))
    smallest = SMALLEST * np.median([region.area for region in regions])
    return [region.image for region in regions if region.solidity >= SOLIDITY and region.area >= smallest]


def make_clump(nuclei: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Numbers of nuclei that were moved towards the first one, from any side, until they touch what is there."""
    side = 4 * max(max(nucleus.shape) for nucleus in nuclei) * len(nuclei)
    clump = np.zeros((side, side), np.int32)
    overlap = rng.uniform(0, OVERLAP)
    for number, nucleus in enumerate(nuclei, 1):
        angle = rng.uniform(0, 2 * np.pi)
        height, width = nucleus.shape
        for distance in range(0 if number == 1 else side // 2 - max(nucleus.shape), -1, -1):
            y = int(side / 2 + distance * np.sin(angle)) - height // 2
            x = int(side / 2 + distance * np.cos(angle)) - width // 2
            place = clump[y : y + height, x : x + width]
            if np.count_nonzero(place[nucleus]) > overlap * nucleus.sum():
                break
        place[nucleus & (place == 0)] = number
    rows, columns = np.nonzero(clump.any(1))[0], np.nonzero(clump.any(0))[0]
    return clump[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def make_picture(nuclei: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Numbers of the nuclei of clumps that lie side by side."""
    picture, count = np.zeros((SIDE, SIDE), np.int32), 0
    x = y = row_height = 0
    while True:
        chosen = rng.integers(0, len(nuclei), rng.choice(CLUMP_SIZES))
        clump = make_clump([nuclei[index] for index in chosen], rng)
        height, width = clump.shape
        if x + width > SIDE:
            x, y, row_height = 0, y + row_height + 2, 0
        if y + height > SIDE:
            return picture
        picture[y : y + height, x : x + width] = np.where(clump, clump + count, 0)
        count += clump.max()
        x, row_height = x + width + 2, max(row_height, height)


def score(true: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """F1 of objects at an IoU above 0.5, AJI, and the number of objects found for each that is there."""
    shared = np.zeros((true.max() + 1, found.max() + 1), np.int64)
    np.add.at(shared, (true, found), 1)
    true_areas, found_areas, shared = shared.sum(1)[1:, None], shared.sum(0)[None, 1:], shared[1:, 1:]
    shared, true_areas = shared[true_areas[:, 0] > 0], true_areas[true_areas[:, 0] > 0]
    ious = shared / (true_areas + found_areas - shared)
    f1 = 2 * np.count_nonzero(ious > 0.5) / sum(ious.shape)
    best = ious.argmax(1)
    rows = np.arange(len(best))
    unused = np.setdiff1d(np.arange(found_areas.size), best)
    unions = true_areas[:, 0] + found_areas[0, best] - shared[rows, best]
    aji = shared[rows, best].sum() / (unions.sum() + found_areas[0, unused].sum())
    return f1, float(aji), ious.shape[1] / ious.shape[0]


def read_pictures(folder: Path) -> Iterator[np.ndarray]:
    """A picture of clumps of each label's own nuclei."""
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*.png")):
        yield make_picture(find_single_nuclei(np.asarray(Image.open(path)) > 0), rng)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="MoNuSeg's Train_Folder/labelcol")
    pictures = list(read_pictures(parser.parse_args().labels))
    print(f"{sum(len(np.unique(picture)) - 1 for picture in pictures)} nuclei in {len(pictures)} pictures\n")
    print("| neck | smoothing, pixels | object F1 | AJI | found for each |\n|---|---|---|---|---|")
    for neck in NECKS:
        for smoothing in SMOOTHINGS if neck else SMOOTHINGS[:1]:
            rows = []
            for picture in pictures:
                mask = picture > 0
                parts = label(mask, connectivity=2)
                rows.append(score(picture, separate_nuclei(mask, parts, neck, smoothing) if neck else parts))
            f1, aji, share = np.mean(rows, axis=0)
            shown = (str(neck), str(smoothing)) if neck else ("not separated", "")
            print(f"| {' | '.join(shown)} | {100 * f1:.1f} | {100 * aji:.1f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main()
