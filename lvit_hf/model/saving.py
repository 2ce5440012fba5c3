"""Checkpoints in half precision, with the text tower in a file of its own."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .modeling_lvit import LViTPreTrainedModel
from .processing_lvit import LViTProcessor


TOWER = "lvit.text_model."
TOWER_FILE, REST_FILE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def save_half_precision(model: LViTPreTrainedModel, processor: LViTProcessor, folder: Path):
    """Saves a model with its weights in half precision, which it keeps, and the processor.

    The statistics of batch norms stay in float32: a variance may exceed 65,504, the largest number of half precision.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if model.config.freeze_text_model and (folder / SAFE_WEIGHTS_NAME).exists():
        separate_tower(folder)


def separate_tower(folder: Path):
    """Cuts the weights of a checkpoint in two: a text tower that stays as it is has the same file in every version."""
    tensors = load_file(folder / SAFE_WEIGHTS_NAME)
    files = {name: TOWER_FILE if name.startswith(TOWER) else REST_FILE for name in sorted(tensors)}
    for file in (TOWER_FILE, REST_FILE):
        part = {name: tensors[name] for name in files if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / SAFE_WEIGHTS_NAME).unlink()
