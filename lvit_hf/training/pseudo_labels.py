"""Soft masks of unlabelled images, kept on disk while a run refreshes them."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset


PSEUDO_LABEL_FILE = "pseudo_labels.npy"


class PseudoLabels:
    """Soft masks of all unlabelled images, in one file that several processes and a resumed run share.

    Args:
        path: The file, a float32 array `(num_images, height, width)` of probabilities in [0, 1].
        shape: The array's shape.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]):
        self.path = path
        self.shape = shape

    def __getitem__(self, index: int) -> np.ndarray:
        # Opened anew each time, since the file is replaced as a whole while workers read it.
        return np.array(np.load(self.path, mmap_mode="r")[index])

    @property
    def _next(self) -> Path:
        return self.path.with_suffix(".next.npy")

    def prepare(self):
        """Makes the file that `refresh` writes to; one process does it for all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(self._next, mode="w+", dtype=np.float32, shape=self.shape)

    def refresh(self, indices: Sequence[int], predictions: np.ndarray, momentum: float):
        """Writes `momentum * P + (1 - momentum) * predictions` for some images; `commit` makes it count.

        Args:
            indices: The images.
            predictions: Their new probabilities, `(len(indices), height, width)`.
            momentum: Share of the old pseudo-label that stays, 0 where there is none yet.
        """
        updated = np.load(self._next, mmap_mode="r+")
        for index, prediction in zip(indices, predictions):
            updated[index] = momentum * self[index] + (1 - momentum) * prediction if momentum else prediction

    def commit(self):
        """Puts the refreshed labels in the place of the old ones, all at once."""
        os.replace(self._next, self.path)

    def save(self, folder: Path):
        """Keeps the labels of this moment; a link is enough, since `commit` leaves the file itself as it is."""
        copy = folder / PSEUDO_LABEL_FILE
        copy.unlink(missing_ok=True)
        try:
            os.link(self.path, copy)
        except OSError:
            shutil.copyfile(self.path, copy)

    def restore(self, folder: Path):
        """Goes back to the labels kept with a checkpoint."""
        self.path.unlink(missing_ok=True)
        shutil.copyfile(folder / PSEUDO_LABEL_FILE, self.path)


class UnlabelledRows(Dataset):
    """Rows of a data set whose masks are not looked at: pseudo-labels take their place.

    Args:
        rows: Rows as `load_data` returns them.
        labels: Pseudo-labels of all unlabelled images.
        offset: Number of images that come before these rows in `labels`.
    """

    def __init__(self, rows: datasets.Dataset, labels: PseudoLabels, offset: int):
        self.rows = rows.remove_columns("mask")
        self.labels = labels
        self.offset = offset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        mask = Image.fromarray((255 * self.labels[self.offset + index]).round().astype(np.uint8))
        return {**self.rows[index], "mask": mask}
