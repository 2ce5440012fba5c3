"""Writes a checkpoint's network for other runtimes: ONNX Runtime and OpenVINO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.exporters.utils import register_patch

from ..inference.backends import NETWORK, TEXT_MODEL, TokenNetwork, VectorNetwork, probe_image
from ..model.configuration_lvit import LViTConfig
from ..model.modeling_lvit import LViTForImageSegmentation


TOKEN_INPUTS = ("input_ids", "attention_mask", "word_ids")
VECTOR_INPUTS = ("text_embeds", "text_mask")
LARGEST = 4096  # images of a batch, and patches along a side


class TextTower(nn.Module):
    """The text tower alone: from the tokens of captions to the word vectors that `VectorNetwork` takes."""

    def __init__(self, model: LViTForImageSegmentation):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, word_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        vectors = self.model.lvit.get_text_embeds(input_ids, attention_mask, word_ids=word_ids)
        return dict(zip(VECTOR_INPUTS, vectors))


def export_network(model: LViTForImageSegmentation, folder: Path, target: str, text: str = "ids") -> Path:
    """Writes a network to a folder, for any number of images, of any size that the model takes.

    Args:
        model: The model, whose batch norms are folded, in place.
        folder: Where the folder `onnx` or `openvino` is made, or what is in it replaced.
        target: `"onnx"` or `"openvino"`.
        text: What the network takes of a caption: `"ids"` of its tokens, or `"vectors"` of its words, which a second
            file makes of the ids.

    Returns:
        The folder `onnx` or `openvino`: `model.onnx` and `model.onnx.data`, or `openvino_model.xml` and `.bin`; for
        `"vectors"` `text_model.onnx` and so on too.

    Raises:
        ValueError: If the network has three dimensions.
    """
    if model.config.spatial_dims == 3:
        raise ValueError("Networks of three dimensions cannot be exported; they run on PyTorch.")
    prepare_model(model)
    shapes, images = _dynamic_shapes(model), {"pixel_values": probe_image(model.config, 3)}
    if text == "ids":
        exported = export_graph(TokenNetwork(model), images | probe_tokens(3), target, shapes)
    else:
        exported = export_graph(VectorNetwork(model), images | probe_vectors(model.config, 3), target, shapes)
        tower = export_graph(TextTower(model), probe_tokens(3), target, shapes)
        exported.components[TEXT_MODEL] = tower.components[NETWORK]
    for path in (folder / target).glob(f"*{TEXT_MODEL}.*"):  # of an export before
        path.unlink()
    exported.save_pretrained(folder / target)
    return folder / target


def prepare_model(model: LViTForImageSegmentation):
    """Brings a model to the form in which it is exported, in place."""
    model.fold_batch_norms().cpu().to(memory_format=torch.contiguous_format)


def export_graph(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    target: str,
    shapes: dict[str, dict[int, Any]] | None = None,
) -> Any:
    """Exports one graph.

    Args:
        module: What is called with `inputs` and returns a dictionary.
        inputs: Inputs by their names.
        target: `"onnx"` or `"openvino"`.
        shapes: The axes of inputs that are free, as `torch.export` has them, for these inputs or more. By default
            none is.

    Returns:
        The `ExportedModel` of transformers.
    """
    exporter, config_class = _load_exporter(target)
    free = None if shapes is None else {name: shapes[name] for name in inputs}
    return exporter.export(module, inputs, config_class(dynamic_shapes=free))


def _load_exporter(target: str) -> tuple[Any, Any]:
    if target == "onnx":
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        return OnnxExporter(), OnnxConfig
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

    return OpenVINOExporter(), OpenVINOConfig


def probe_tokens(batch_size: int = 1) -> dict[str, torch.Tensor]:
    """Captions of five words, as `TextTower` takes them."""
    words = torch.tensor([[0, 1, 2, 3, 4, 5, 0]]).repeat(batch_size, 1)
    return dict(zip(TOKEN_INPUTS, (torch.ones_like(words), torch.ones_like(words), words)))


def probe_vectors(config: LViTConfig, batch_size: int = 1) -> dict[str, torch.Tensor]:
    """Captions of as many words as there may be, as `VectorNetwork` takes them."""
    shape = (batch_size, config.num_text_vectors, config.get_text_config().hidden_size)
    return dict(zip(VECTOR_INPUTS, (torch.ones(shape), torch.ones(shape[:2], dtype=torch.bool))))


def free_length(config: LViTConfig) -> dict[str, dict[int, Any]]:
    """The free axis of tokens, for captions of any length."""
    longest = config.get_text_config().max_position_embeddings
    return dict.fromkeys(TOKEN_INPUTS, {1: torch.export.Dim("length", min=2, max=longest)})


def _dynamic_shapes(model: LViTForImageSegmentation) -> dict[str, dict[int, Any]]:
    """Free axes of every input that a graph may have."""
    batch = torch.export.Dim("batch", max=LARGEST)
    height, width = (
        divisor * torch.export.Dim(name, min=2, max=LARGEST)
        for name, divisor in zip(("rows", "columns"), model.config.size_divisors)
    )
    return {
        "pixel_values": {0: batch, 2: height, 3: width},
        **{name: {0: batch, **axes} for name, axes in free_length(model.config).items()},
        **{name: {0: batch} for name in VECTOR_INPUTS},
    }


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
