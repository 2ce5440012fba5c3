"""Writes a checkpoint's network for other runtimes: ONNX Runtime and OpenVINO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.exporters.utils import register_patch

from ..inference.backends import ExportableNetwork, probe_image
from ..model.modeling_lvit import LViTForImageSegmentation


TEXT_INPUTS = ("input_ids", "attention_mask", "word_ids")
LARGEST = 4096  # images of a batch, and patches along a side


def export_network(model: LViTForImageSegmentation, folder: Path, target: str) -> Path:
    """Writes a network to a folder, for any number of images, of any size that the model takes.

    Args:
        model: The model, whose batch norms are folded, in place.
        folder: Where the folder `onnx` or `openvino` is made, or what is in it replaced.
        target: `"onnx"` or `"openvino"`.

    Returns:
        The folder `onnx` or `openvino`: `model.onnx` and `model.onnx.data`, or `openvino_model.xml` and `.bin`.

    Raises:
        ValueError: If the network has three dimensions.
    """
    if model.config.spatial_dims == 3:
        raise ValueError("Networks of three dimensions cannot be exported; they run on PyTorch.")
    exporter, config_class = _load_exporter(target)
    network = ExportableNetwork(model.fold_batch_norms().cpu().to(memory_format=torch.contiguous_format))
    inputs = {"pixel_values": probe_image(model.config, 3), **_probe_text(3)}
    exported = exporter.export(network, inputs, config_class(dynamic_shapes=_dynamic_shapes(model)))
    exported.save_pretrained(folder / target)
    return folder / target


def _load_exporter(target: str) -> tuple[Any, Any]:
    if target == "onnx":
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        return OnnxExporter(), OnnxConfig
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

    return OpenVINOExporter(), OpenVINOConfig


def _probe_text(batch_size: int) -> dict[str, torch.Tensor]:
    """Captions of five words."""
    words = torch.tensor([[0, 1, 2, 3, 4, 5, 0]]).repeat(batch_size, 1)
    return {"input_ids": torch.ones_like(words), "attention_mask": torch.ones_like(words), "word_ids": words}


def _dynamic_shapes(model: LViTForImageSegmentation) -> dict[str, dict[int, Any]]:
    longest = model.config.get_text_config().max_position_embeddings
    batch, length = torch.export.Dim("batch", max=LARGEST), torch.export.Dim("length", min=2, max=longest)
    height, width = (
        divisor * torch.export.Dim(name, min=2, max=LARGEST)
        for name, divisor in zip(("rows", "columns"), model.config.size_divisors)
    )
    return {"pixel_values": {0: batch, 2: height, 3: width}, **{name: {0: batch, 1: length} for name in TEXT_INPUTS}}


# ONNX has no adaptive pooling. These two, for maps of any size, take its place while a network is exported.


def _cells(length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first index of each of `size` cells of an axis, and the one after its last."""
    cells = torch.arange(size)
    return cells * length // size, ((cells + 1) * length + size - 1) // size


@register_patch("onnx", "torch.nn.functional.adaptive_avg_pool2d")
def _patch_average(_: Callable) -> Callable:
    def pool(feature_map: torch.Tensor, size: int) -> torch.Tensor:
        weights = []
        for length in feature_map.shape[2:]:
            (starts, ends), positions = _cells(length, size), torch.arange(length)
            inside = (positions >= starts[:, None]) & (positions < ends[:, None])
            weights.append(inside.to(feature_map.dtype) / (ends - starts)[:, None])
        return weights[0] @ feature_map @ weights[1].T

    return pool


@register_patch("onnx", "torch.nn.functional.adaptive_max_pool2d")
def _patch_maximum(_: Callable) -> Callable:
    def pool(feature_map: torch.Tensor, size: int, return_indices: bool = False) -> torch.Tensor:
        for axis in (2, 3):
            length = feature_map.shape[axis]
            starts, ends = _cells(length, size)
            longest = length // size + 2
            indices = torch.minimum(starts[:, None] + torch.arange(longest), ends[:, None] - 1)
            rows = feature_map.index_select(axis, indices.flatten())
            feature_map = rows.unflatten(axis, (size, -1)).amax(axis + 1)
        return feature_map

    return pool
