"""Checkpoints that were exported for a runtime other than PyTorch, called as the model itself."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from ..io.hub import split_revision
from ..model.configuration_lvit import LViTConfig
from ..model.modeling_lvit import (
    LViTCaptionPredictionOutput,
    LViTForImageSegmentation,
    LViTImageSegmentationOutput,
)


logger = logging.getLogger(__name__)

# The packages that run each format; `lvit export` writes it to a folder of that name in the checkpoint.
RUNTIMES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnxscript")}
BACKENDS = ("auto", "torch", *RUNTIMES)
# Beside an export.json each.
EXPORTED_FILES = (
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/text_model.onnx",
    "onnx/text_model.onnx.data",
    "openvino/openvino_model.bin",
    "openvino/openvino_model.xml",
    "openvino/openvino_text_model.bin",
    "openvino/openvino_text_model.xml",
)

# How far logits of the same weights are apart at most; those of others differ by whole numbers.
TOLERANCE = 1e-3


class ExportedNetwork:
    """An exported network, with the call of [`LViTForImageSegmentation`] for images and captions as token ids.

    Args:
        exported: The `ExportedModel` of transformers that `lvit export` wrote, with the text tower inside the network
            or beside it.
        config: The model's configuration.
    """

    def __init__(self, exported: Any, config: LViTConfig):
        self._runners = exported.runners
        self._vectors = (config.num_text_vectors, config.get_text_config().hidden_size)

    def __call__(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,
        output_captions: bool = False,
        original_sizes: torch.Tensor | None = None,
        reshaped_input_sizes: torch.Tensor | None = None,
        **_: Any,
    ) -> LViTImageSegmentationOutput:
        """See [`LViTForImageSegmentation.forward`]. Other inputs of the processor are the same for every caption."""
        has_text = input_ids is not None and attention_mask is not None and word_ids is not None
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "word_ids": word_ids} if has_text else None
        outputs = self._runners["model"](pixel_values=pixel_values, **self._encode(text, len(pixel_values)))
        captions = None
        if output_captions:
            captions = LViTCaptionPredictionOutput(
                logits=outputs["caption_logits"], value_probabilities=outputs["caption_value_probabilities"]
            )
        return LViTImageSegmentationOutput(
            logits=outputs["logits"],
            captions=captions,
            scope=outputs.get("scope"),
            original_sizes=original_sizes,
            reshaped_input_sizes=reshaped_input_sizes,
        )

    def _encode(self, text: dict[str, Any] | None, batch_size: int) -> dict[str, Any]:
        """What the network takes of captions, or of none."""
        tower = self._runners.get("text_model")
        if tower is not None and text is not None:
            return dict(tower(**text))
        if tower is not None:
            nothing = torch.zeros(batch_size, *self._vectors)
            return {"text_embeds": nothing, "text_mask": torch.zeros(nothing.shape[:2], dtype=torch.bool)}
        if text is not None:
            return text
        tokens = torch.zeros(batch_size, 2, dtype=torch.long)  # the shortest that it takes
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "word_ids": tokens}  # of no words


def load_network(name: str, backend: str, model: LViTForImageSegmentation) -> Callable[..., Any] | None:
    """What runs a checkpoint in place of its model.

    Args:
        name: Folder of the checkpoint, or its name on the Hub.
        backend: `"torch"` for the model itself, `"openvino"` or `"onnx"` for what was exported to the checkpoint's
            folder of that name, or `"auto"`: the first of OpenVINO and PyTorch that is there and, without a GPU,
            gives the same masks.
        model: The checkpoint's model.

    Returns:
        What is called with the model's own arguments, or `None` for the model itself.

    Raises:
        ValueError: If there is no such backend, or the one that was asked for is not there; the message says what
            to do.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "auto":
        if torch.cuda.is_available() or not _is_installed("openvino") or model.config.spatial_dims == 3:
            return None
        try:
            return _load_exported(name, "openvino", model)
        except (ImportError, ValueError) as error:  # not exported, from other weights, or transformers is too old
            logger.info("%s runs on PyTorch: %s", name, error)
            return None
    return None if backend == "torch" else _load_exported(name, backend, model)


def _is_installed(backend: str) -> bool:
    return all(find_spec(package) for package in RUNTIMES[backend])


def _load_exported(name: str, backend: str, model: LViTForImageSegmentation) -> ExportedNetwork:
    if not _is_installed(backend):
        raise ValueError(f"The backend {backend} is not installed; this needs pip install 'lvit_hf[export]'.")
    from transformers.exporters.base import ExportedModel

    path, revision = split_revision(name)
    remedy = f"lvit export {path} --to {backend}"
    try:
        exported = ExportedModel.from_pretrained(
            path, revision=revision, subfolder=backend, device="cpu", **_runner_settings(backend)
        )
    except (OSError, RuntimeError) as error:  # RuntimeError is OpenVINO's, of a damaged file
        raise ValueError(f"{path} has no network for {backend}; {remedy} makes it.") from error
    network = ExportedNetwork(exported, model.config)
    if not _agree(network, model):
        raise ValueError(f"The folder {backend} of {path} is of other weights; {remedy} makes it anew.")
    return network


def _runner_settings(backend: str) -> dict[str, Any]:
    """As many threads as PyTorch has, and float32, where OpenVINO would take bfloat16 if the processor has it."""
    threads = torch.get_num_threads()
    if backend == "openvino":
        return {"config": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return {"session_options": options}


@torch.inference_mode()
def _agree(network: ExportedNetwork, model: LViTForImageSegmentation) -> bool:
    """Whether two networks say the same of one small image of noise."""
    pixel_values = probe_image(model.config)
    difference = network(pixel_values).logits - model(pixel_values=pixel_values).logits
    return difference.abs().max().item() < TOLERANCE


def probe_image(config: LViTConfig, batch_size: int = 1) -> torch.Tensor:
    """Noise in [-1, 1] of shape `(batch_size, num_channels, height, width)`, of a size that is not square."""
    height, width = config.size_divisors
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, config.num_channels, 3 * height, 4 * width, generator=generator) * 2 - 1
