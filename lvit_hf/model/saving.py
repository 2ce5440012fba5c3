"""Checkpoints in half precision."""

from pathlib import Path

import torch

from .modeling_lvit import LViTPreTrainedModel
from .processing_lvit import LViTProcessor


def save_half_precision(model: LViTPreTrainedModel, processor: LViTProcessor, folder: Path):
    """Saves a model with its weights in half precision, which it keeps, and the processor.

    The statistics of batch norms stay in float32: a variance may exceed 65,504, the largest number of half precision.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
