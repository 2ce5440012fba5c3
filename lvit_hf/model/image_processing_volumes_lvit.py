# Copyright 2026 The lvit_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image processor of LViT for volumes: orientation, spacing, intensities, and the way back to the scanner's grid."""

import os
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import TensorType

from .image_processing_lvit import LViTImageProcessor, check_threshold


def axes_to_sar(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How the axes of an array become depth, height and width that grow to superior, anterior and right.

    This is "RAS" as radiology writes it, with the last axis first. An oblique grid takes the nearest axes.

    Args:
        affine: From the indices of the array to mm in RAS+ space, of shape `(4, 4)`.

    Returns:
        The axes of the array in the order depth, height, width, and which of these three are then flipped.
    """
    # The rotation that is nearest to the affine, as nibabel takes it, so that shears and spacings do not decide.
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    rotation = (left @ right)[::-1]  # its rows are superior, anterior and right
    axes = max(permutations(range(3)), key=lambda axes: sum(abs(rotation[row, axis]) for row, axis in enumerate(axes)))
    return axes, tuple(row for row, axis in enumerate(axes) if rotation[row, axis] < 0)


def sar_spacing(affine: np.ndarray) -> np.ndarray:
    """Distances in mm between voxels along depth, height and width."""
    return np.linalg.norm(affine[:3, :3], axis=0)[list(axes_to_sar(affine)[0])]


def resample(volume: torch.Tensor, shape: Sequence[int], mode: str = "trilinear") -> torch.Tensor:
    """Resamples `(channels, depth, height, width)` to a shape that has the same edges.

    An axis that shrinks is averaged and one that grows is interpolated; labels take `mode="nearest-exact"`.
    """
    if tuple(volume.shape[1:]) == tuple(shape):
        return volume
    if mode == "trilinear":
        smaller = tuple(map(min, volume.shape[1:], shape))
        volume = nn.functional.interpolate(volume[None], smaller, mode="area")[0]
    return nn.functional.interpolate(volume[None], tuple(shape), mode=mode)[0]


class LViTVolumeProcessor(BaseImageProcessor):
    r"""
    Turns volumes into what an LViT of `spatial_dims=3` takes, and its outputs into masks on the volumes' own grids.

    A volume is a nibabel image, as a `Nifti` column of `datasets` holds them too: its array of shape `(x, y, z)`, or
    `(x, y, z, channels)`, and its affine say where each voxel lies. An array or a tensor of shape
    `(depth, height, width)`, which has no affine, is taken to grow to superior, anterior and right at `spacing`.

    Args:
        spacing (`Sequence[float]`, *optional*, defaults to `(1.0, 1.0, 1.0)`):
            Distance in mm between voxels (depth, height, width) to which volumes are resampled.
        patch_size (`Sequence[int]`, *optional*, defaults to `(64, 64, 64)`):
            Size in voxels (depth, height, width) of what the network sees at once. Smaller volumes are padded to it.
        size_divisors (`Sequence[int]`, *optional*, defaults to `(16, 16, 16)`):
            Numbers of which the sides of a padded volume are multiples.
        window_percentiles (`Sequence[float]`, *optional*, defaults to `(0.5, 99.5)`):
            Percentiles of a volume's values at which they are cut off, before mean and deviation are set to 0 and 1.
        temperature (`float`, *optional*, defaults to 1.0): Divisor of the logits, fitted on validation.
        logit_bias (`float`, *optional*, defaults to 0.0): Added to the divided logits of one label.

    Example:

    ```python
    >>> inputs = processor(images=nibabel.load("scan.nii.gz"), text="the anterior hippocampus", return_tensors="pt")
    >>> outputs = model(**inputs)
    >>> mask = processor.post_process_semantic_segmentation(outputs, inputs)[0]  # on the grid of scan.nii.gz
    ```
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        patch_size: Sequence[int] = (64, 64, 64),
        size_divisors: Sequence[int] = (16, 16, 16),
        window_percentiles: Sequence[float] = (0.5, 99.5),
        temperature: float = 1.0,
        logit_bias: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(spacing) != 3 or not all(distance > 0 for distance in spacing):
            raise ValueError(f"spacing must be three positive distances in mm, got {spacing}.")
        self.spacing = list(spacing)
        self.patch_size, self.size_divisors = list(patch_size), list(size_divisors)
        self.window_percentiles = list(window_percentiles)
        self.temperature, self.logit_bias = temperature, logit_bias

    def __call__(self, images: Any, segmentation_maps: Any = None, return_tensors: str | TensorType | None = None):
        """Prepares volumes, and maps of labels with them.

        Args:
            images: One volume or a list of them.
            segmentation_maps: As many maps on the same grids, whose voxels other than 0 are foreground.
            return_tensors: `"pt"` for tensors; volumes of different sizes are then padded to the largest.

        Returns:
            `pixel_values` of shape `(batch_size, channels, depth, height, width)`, float32; `affines` of shape
            `(batch_size, 4, 4)` and `original_sizes` of shape `(batch_size, 3)`, from which
            `post_process_semantic_segmentation` finds the way back; and with maps `labels` of shape
            `(batch_size, depth, height, width)`, int64.

        Raises:
            ValueError: If a volume has no three axes, no voxels or values that are no numbers, if its affine says not
                where it is, or if a map has another grid than its volume.
        """
        volumes = list(images) if isinstance(images, (list, tuple)) else [images]
        grids = [self.read(volume) for volume in volumes]
        prepared = [self.prepare_array(*grid) for grid in grids]
        shape = [max(sides) for sides in zip(*(self.padded_shape(volume.shape[1:]) for volume in prepared))]
        data = {
            "pixel_values": [pad_centered(volume, shape).numpy() for volume in prepared],
            "affines": [affine for _, affine in grids],
            "original_sizes": [np.array(array.shape[1:]) for array, _ in grids],
        }
        if segmentation_maps is not None:
            maps = segmentation_maps if isinstance(segmentation_maps, (list, tuple)) else [segmentation_maps]
            if len(maps) != len(volumes):
                raise ValueError(
                    f"There must be one segmentation map for each volume, got {len(maps)}/{len(volumes)}."
                )
            labels = [self.prepare_map(*pair) for pair in zip(maps, volumes)]
            data["labels"] = [pad_centered(label[None] != 0, shape)[0].long().numpy() for label in labels]
        return BatchFeature(data, tensor_type=return_tensors)

    def prepare(self, volume: Any) -> torch.Tensor:
        """A volume in the network's orientation, spacing and intensities, `(channels, depth, height, width)`."""
        return self.prepare_array(*self.read(volume))

    def prepare_array(self, array: np.ndarray, affine: np.ndarray) -> torch.Tensor:
        """As `prepare`, of what `read` returned."""
        oriented = self._orient(array.astype(np.float32), affine)
        return self._normalize(resample(oriented, self._target_shape(oriented.shape[1:], affine)))

    def prepare_map(self, segmentation_map: Any, volume: Any) -> torch.Tensor:
        """A volume's map of labels in the network's orientation and spacing, float32 `(depth, height, width)`."""
        (array, own_affine), (values, affine) = self.read(segmentation_map), self.read(volume)
        if array.shape[1:] != values.shape[1:] or not np.allclose(own_affine, affine, atol=1e-2):
            raise ValueError(
                f"A segmentation map must have its volume's grid, got the shapes {array.shape[1:]} and "
                f"{values.shape[1:]} and the affines {own_affine.tolist()} and {affine.tolist()}."
            )
        oriented = self._orient(array.astype(np.float32), affine)
        return resample(oriented, self._target_shape(oriented.shape[1:], affine), "nearest-exact")[0]

    def read(self, volume: Any) -> tuple[np.ndarray, np.ndarray]:
        """A volume's array, `(channels, x, y, z)` in its own order of axes, and its affine.

        Raises:
            ValueError: As `__call__`.
        """
        if hasattr(volume, "dataobj"):
            array, affine = np.asanyarray(volume.dataobj), np.asarray(volume.affine, dtype=np.float64)
            array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
        elif isinstance(volume, (str, os.PathLike, Image.Image)):
            raise ValueError(
                "A volume must be an image of nibabel, as nibabel.load(path) returns it, or an array or a tensor of "
                f"shape (depth, height, width), got {volume!r}."
            )
        else:
            array = np.asarray(volume)[None]
            affine = np.eye(4)
            affine[:3, :3] = np.diag(self.spacing)[::-1]
        if array.ndim != 4 or not array.size or array.dtype.kind not in "buif":
            raise ValueError(
                f"A volume must have three axes and numbers in them, got the shape {array.shape[1:]} of {array.dtype}."
            )
        is_placed = affine.shape == (4, 4) and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0
        if not is_placed:
            raise ValueError(f"An affine must be an invertible matrix of shape (4, 4), got {affine.tolist()}.")
        return array, affine

    @staticmethod
    def _orient(array: np.ndarray, affine: np.ndarray) -> torch.Tensor:
        axes, flips = axes_to_sar(affine)
        oriented = array.transpose(0, *(1 + axis for axis in axes))
        return torch.from_numpy(np.ascontiguousarray(np.flip(oriented, tuple(1 + axis for axis in flips))))

    def _target_shape(self, shape: Sequence[int], affine: np.ndarray) -> list[int]:
        sides = np.array(shape) * sar_spacing(affine) / self.spacing
        return np.rint(sides).astype(int).clip(min=1).tolist()

    def padded_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape to which a volume of the network's spacing is padded."""
        multiples = (-(-side // divisor) * divisor for side, divisor in zip(shape, self.size_divisors))
        return list(map(max, multiples, self.patch_size))

    def _normalize(self, volume: torch.Tensor) -> torch.Tensor:
        values = volume.numpy()
        if not np.isfinite(values).all():
            finite = values[np.isfinite(values)]
            if not finite.size:
                raise ValueError("A volume has no value that is a number.")
            values = np.where(np.isfinite(values), values, finite.min())
        axes = (1, 2, 3)
        low, high = np.percentile(values, self.window_percentiles, axis=axes, keepdims=True).astype(np.float32)
        values = values.clip(low, high)
        deviation = np.maximum(values.std(axes, keepdims=True), 1e-6)
        return torch.from_numpy((values - values.mean(axes, keepdims=True)) / deviation)

    def post_process_semantic_segmentation(
        self, outputs: Any, inputs: Any, threshold: float = 0.5, return_segmentation_scores: bool = False
    ) -> list:
        """Masks on the grids of the volumes, in their own order of axes. Probabilities are resampled, never masks.

        Args:
            outputs ([`LViTImageSegmentationOutput`]): Outputs of the model.
            inputs: What the processor returned for the volumes.
            threshold: Probability above which a voxel is foreground; read where there is one label.
            return_segmentation_scores: Whether to return probabilities too.

        Returns:
            For each volume a mask of shape `original_sizes`: 1 where foreground and 0 elsewhere with one label, class
            indices with several. With scores, pairs of it and probabilities of shape `(num_labels, *original_sizes)`.

        Raises:
            ValueError: If `threshold` is no probability, or if `inputs` are of another number of volumes.
        """
        threshold = check_threshold(threshold)
        affines, sizes = np.asarray(inputs["affines"]), np.asarray(inputs["original_sizes"])
        if len(affines) != len(outputs.logits):
            raise ValueError(f"There must be one output for each volume, got {len(outputs.logits)}/{len(affines)}.")
        results = []
        for logits, affine, size in zip(outputs.logits, affines, sizes):
            scores = self.restore(self.calibrate(logits[None])[0], affine, size)
            mask = (scores[0] > threshold).long() if len(scores) == 1 else scores.argmax(0)
            results.append((mask, scores) if return_segmentation_scores else mask)
        return results

    calibrate = LViTImageProcessor.calibrate

    def restore(self, scores: torch.Tensor, affine: np.ndarray, original_size: Sequence[int]) -> torch.Tensor:
        """Undoes padding, spacing and orientation of `scores`, `(channels, depth, height, width)`."""
        axes, flips = axes_to_sar(affine)
        oriented_size = [int(original_size[axis]) for axis in axes]
        inner = self._target_shape(oriented_size, affine)
        starts = [(padded - side) // 2 for padded, side in zip(scores.shape[1:], inner)]
        depth, height, width = (slice(start, start + side) for start, side in zip(starts, inner))
        scores = resample(scores[:, depth, height, width].float(), oriented_size)
        return scores.flip([1 + axis for axis in flips]).permute(0, *(1 + axes.index(axis) for axis in range(3)))


def pad_centered(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Pads `(channels, depth, height, width)` with zeros, which are the mean, on both ends of each axis."""
    ends: list[int] = []
    for side, padded in zip(volume.shape[:0:-1], reversed(shape)):
        ends += [(padded - side) // 2, padded - side - (padded - side) // 2]
    return nn.functional.pad(volume, ends)


__all__ = ["LViTVolumeProcessor"]
