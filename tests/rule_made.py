"""Weights made by a rule, as the reference implementation had them when its answers were recorded."""

import math
import zlib
from pathlib import Path

import torch


FIXTURES = Path(__file__).parent / "fixtures"


def rule_made(name: str, shape: list[int]) -> torch.Tensor:
    """The tensor that the fixture's authors gave this name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    if name.endswith(("running_mean", "bias")):
        return torch.randn(shape, generator=generator) * 0.05
    if len(shape) == 1:
        return torch.rand(shape, generator=generator) + 0.5
    if name.endswith("position_embeddings"):
        return torch.randn(shape, generator=generator) * 0.02
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
