"""Writes a checkpoint's network for other runtimes: ONNX Runtime and OpenVINO."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.exporters import AutoExportConfig, AutoHfExporter
from transformers.exporters.utils import register_patch

from ..inference.backends import NETWORK, TEXT_MODEL, ExportedNetwork, TokenNetwork, VectorNetwork, probe_image
from ..inference.segmenter import Segmenter
from ..model.configuration_lvit import LViTConfig
from ..model.modeling_lvit import LViTForImageSegmentation


TOKEN_INPUTS = ("input_ids", "attention_mask", "word_ids")
VECTOR_INPUTS = ("text_embeds", "text_mask")
CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")
CALIBRATION_IMAGES = 60
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


def export_network(
    model: LViTForImageSegmentation,
    folder: Path,
    target: str,
    text: str = "ids",
    samples: Sequence[dict[str, np.ndarray]] = (),
) -> Path:
    """Writes a network to a folder, for any number of images, of any size that the model takes.

    Args:
        model: The model, whose batch norms are folded, in place.
        folder: Where the folder `onnx`, `openvino` or `openvino-int8` is made, or what is in it replaced.
        target: `"onnx"` or `"openvino"`.
        text: What the network takes of a caption: `"ids"` of its tokens, or `"vectors"` of its words, which a second
            file makes of the ids.
        samples: Inputs of the network, as [`record_samples`] returns them. With them most of what OpenVINO computes
            of images has 8 bits.

    Returns:
        The folder: `model.onnx` and `model.onnx.data`, or `openvino_model.xml` and `.bin`; for
        `"vectors"` `text_model.onnx` and so on too.

    Raises:
        ValueError: If the network has three dimensions.
    """
    _refuse_volumes(model.config)
    prepare_model(model)
    shapes, images = _dynamic_shapes(model), {"pixel_values": probe_image(model.config, 3)}
    if text == "ids":
        exported = export_graph(TokenNetwork(model), images | probe_tokens(3), target, shapes)
    else:
        exported = export_graph(VectorNetwork(model), images | probe_vectors(model.config, 3), target, shapes)
        tower = export_graph(TextTower(model), probe_tokens(3), target, shapes)
        exported.components[TEXT_MODEL] = tower.components[NETWORK]
    if samples:
        exported.components[NETWORK].program = quantize_program(exported.components[NETWORK].program, samples)
    folder /= f"{target}-int8" if samples else target
    for path in folder.glob(f"*{TEXT_MODEL}.*"):  # of an export before
        path.unlink()
    exported.save_pretrained(folder)
    return folder


def record_samples(segmenter: Segmenter, sources: Sequence[str], text: str = "ids") -> list[dict[str, np.ndarray]]:
    """What an exported network is given for training images, with their captions and without.

    Args:
        segmenter: A checkpoint, on PyTorch.
        sources: Data sets, as [`load_data`] takes them; each gives as many images.
        text: As in [`export_network`].

    Raises:
        ValueError: As there, or if there are no training images in a data set.
    """
    _refuse_volumes(segmenter.model.config)
    import nncf  # noqa: F401 (says at once what is not installed)

    from ..data.load import load_data, take_evenly

    model, samples = segmenter.model, []
    network = TokenNetwork(model) if text == "ids" else VectorNetwork(model)

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        samples.append({name: tensor.numpy() for name, tensor in inputs.items()})
        return network(**inputs)

    runners: dict[str, Callable] = {NETWORK: run} if text == "ids" else {NETWORK: run, TEXT_MODEL: TextTower(model)}
    recorder = Segmenter(model, segmenter.processor, ExportedNetwork(runners, model.config, "torch"))
    for source in sources:
        rows = take_evenly(load_data(source, "train"), max(CALIBRATION_IMAGES // len(sources), 1))
        for row in rows:
            for caption in (row["text"], None):
                recorder.segment([row["image"]], [caption], describe=False)
    return samples


def quantize_program(program: Any, samples: Sequence[dict[str, np.ndarray]]) -> Any:
    """A program of OpenVINO with weights and activations of 8 bits where that costs masks next to nothing."""
    import nncf

    nncf.set_log_level(logging.ERROR)  # it says much of what it leaves out, which is what it was told
    robust = find_robust_layers(program)
    others = [name for node in program.get_ops() if (name := node.get_friendly_name()) not in robust]
    return nncf.quantize(
        program,
        nncf.Dataset(samples),
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.MIXED,  # activations are mostly those of ReLU, of one sign
        ignored_scope=nncf.IgnoredScope(names=others, validate=False),
    )


def find_robust_layers(program: Any) -> set[str]:
    """Names of the layers of a program that bear 8 bits: products with weights and convolutions, with exceptions.

    What is computed of captions alone does not bear it, as captions of one kind differ little. Nor do convolutions of
    the image itself and those whose result the transformer takes, nor after it those of single pixels, which join it
    with the CNN, weigh pixels and draw the mask. Those of sequences would be slower. The heads stay as they are too.
    """
    nodes = {node.get_friendly_name(): node for node in program.get_ordered_ops()}
    sources = {
        name: {value.get_node().get_friendly_name() for value in node.input_values()} for name, node in nodes.items()
    }
    users: dict[str, set[str]] = {name: set() for name in reversed(nodes)}
    for name, names in sources.items():
        for source in names:
            users[source].add(name)

    def of_kind(*kinds: str) -> set[str]:
        return {name for name, node in nodes.items() if node.get_type_name() in kinds}

    convolutions, products, sizes = of_kind(*CONVOLUTIONS), of_kind("MatMul"), of_kind("ShapeOf")
    of_image = _reach({name: names for name, names in sources.items() if name not in sizes}, {"pixel_values"})
    of_mask = _reach(users, {program.output("logits").get_node().get_friendly_name()})
    transformed = _reach(sources, of_image & of_kind("ScaledDotProductAttention"))
    taken = _reach({name: names - convolutions - sizes for name, names in users.items()}, products & of_mask)
    kernels = {name: nodes[name].input(1).get_shape()[2:] for name in convolutions}
    late = {name for name in convolutions & transformed if len(kernels[name]) == 1 or max(kernels[name]) == 1}
    return of_image & of_mask & (products | convolutions - taken - late - users["pixel_values"])


def _reach(links: dict[str, set[str]], start: set[str]) -> set[str]:
    """What is in `start` or linked to something that is reached; `links` are in an order in which one pass does."""
    reached = set(start)
    for name, others in links.items():
        if others & reached:
            reached.add(name)
    return reached


def _refuse_volumes(config: LViTConfig):
    if config.spatial_dims == 3:
        raise ValueError("Networks of three dimensions cannot be exported; they run on PyTorch.")


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
    free = None if shapes is None else {name: shapes[name] for name in inputs}
    config = AutoExportConfig.from_dict({"export_format": target, "dynamic_shapes": free})
    return AutoHfExporter.from_config(config).export(module, inputs, config)


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
