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
"""A window that slides over volumes which are larger than what a network sees at once."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch


WINDOW_OVERLAP = 0.25

# Deviation of the bell by which outputs are weighed, as a share of the window's side, and the least weight.
BELL_WIDTH = 0.125
LEAST_WEIGHT = 1e-3


def list_windows(
    shape: Sequence[int], window: Sequence[int], overlap: float = WINDOW_OVERLAP
) -> list[tuple[slice, ...]]:
    """Boxes of the window's size that cover a volume, the last ones along each axis moved in to end with it.

    Args:
        shape: Sides of the volume in voxels, none smaller than the window's.
        window: Sides of the window.
        overlap: Share of a window that the next one covers again, in [0, 1).
    """
    starts = []
    for side, length in zip(shape, window):
        step = max(int(length * (1 - overlap)), 1)
        count = math.ceil((side - length) / step) + 1
        starts.append([min(number * step, side - length) for number in range(count)])
    return [
        tuple(slice(start, start + length) for start, length in zip(corner, window)) for corner in product(*starts)
    ]


def slide_window(
    volume: torch.Tensor,
    window: Sequence[int],
    predict: Callable[[torch.Tensor], torch.Tensor],
    overlap: float = WINDOW_OVERLAP,
    batch_size: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Runs a network on overlapping windows and blends what it says, each weighed by its distance from the middle.

    It is `sliding_window_inference` of MONAI with `mode="gaussian"`, for checkpoints that are loaded without it.

    Args:
        volume: Of shape `(channels, depth, height, width)`, no side smaller than the window's.
        window: Sides of the window in voxels.
        predict: From windows `(batch_size, channels, *window)` to outputs `(batch_size, num_labels, *window)`.
        overlap: As in `list_windows`.
        batch_size: Largest number of windows that are predicted together.
        progress: Called with the numbers of finished and of all windows; what it raises ends the work.

    Returns:
        Outputs of shape `(num_labels, depth, height, width)`, float32 on the volume's device.
    """
    shape = volume.shape[1:]
    boxes = list_windows(shape, window, overlap)
    weights = _bell(window, volume.device)
    total = torch.zeros(shape, device=volume.device)
    blended: torch.Tensor | None = None
    for start in range(0, len(boxes), batch_size):
        batch = boxes[start : start + batch_size]
        outputs = predict(torch.stack([volume[:, *box] for box in batch])).to(total)
        if blended is None:
            blended = total.new_zeros(outputs.shape[1], *shape)
        for box, output in zip(batch, outputs):
            blended[:, *box] += output * weights
            total[box] += weights
        if progress is not None:
            progress(start + len(batch), len(boxes))
    assert blended is not None  # there is always a window
    return blended.div_(total)


def _bell(window: Sequence[int], device: torch.device) -> torch.Tensor:
    weights = torch.ones((), device=device)
    for side in window:
        places = torch.arange(side, device=device) - (side - 1) / 2
        weights = weights[..., None] * torch.exp(-places.square() / (2 * (BELL_WIDTH * side) ** 2))
    return weights.clamp(min=LEAST_WEIGHT)


__all__ = ["WINDOW_OVERLAP", "list_windows", "slide_window"]
