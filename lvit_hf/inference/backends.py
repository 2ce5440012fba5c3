"""Checkpoints that something else than PyTorch's eager mode runs, called as the model itself."""

import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers.utils import cached_file

from ..io.hub import split_revision
from ..model.configuration_lvit import LViTConfig
from ..model.modeling_lvit import (
    LViTCaptionPredictionOutput,
    LViTForImageSegmentation,
    LViTImageSegmentationOutput,
)


logger = logging.getLogger(__name__)

# The packages that run each format; `lvit export` writes it to a folder of that name in the checkpoint.
RUNTIMES = {"openvino": ("openvino",), "openvino-int8": ("openvino",), "onnx": ("onnxruntime", "onnxscript")}
BACKENDS = ("auto", "torch", "compile", "openvino", "openvino-bf16", "openvino-int8", "onnx")
NETWORK, TEXT_MODEL = "model", "text_model"  # names of an export's graphs
MANIFEST = "export.json"  # in the folder of every export
EXPORTED_FILES = (
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/text_model.onnx",
    "onnx/text_model.onnx.data",
    "openvino/openvino_model.bin",
    "openvino/openvino_model.xml",
    "openvino/openvino_text_model.bin",
    "openvino/openvino_text_model.xml",
    "openvino-int8/openvino_model.bin",
    "openvino-int8/openvino_model.xml",
    "openvino-int8/openvino_text_model.bin",
    "openvino-int8/openvino_text_model.xml",
)

# How far logits of the same weights are apart at most; those of others differ by whole numbers.
TOLERANCES = {"openvino": 1e-3, "openvino-bf16": 0.3, "openvino-int8": 1.0, "onnx": 1e-3}

# What a compiled network takes at once. Images of a batch are filled up to so many or cut into parts of as many, and
# captions are filled up to a multiple of so many tokens, so that one shape serves all.
COMPILED_IMAGES = 8
COMPILED_TOKENS = 64


class VectorNetwork(nn.Module):
    """The network with the inputs and outputs that an exported file has, for word vectors.

    Args:
        model: The model.
    """

    def __init__(self, model: LViTForImageSegmentation):
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: torch.Tensor, text_embeds: torch.Tensor, text_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        has_captions = self.model.caption_head is not None
        outputs = self.model(
            pixel_values=pixel_values, text_embeds=text_embeds, text_mask=text_mask, output_captions=has_captions
        )
        results = {"logits": outputs.logits}
        if has_captions:
            results["caption_logits"] = outputs.captions.logits
            results["caption_value_probabilities"] = outputs.captions.value_probabilities
        if outputs.scope is not None:
            results["scope"] = outputs.scope
        return results


class TokenNetwork(VectorNetwork):
    """The same for the tokens of captions, with the text tower inside."""

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        word_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        # The tower by itself: inside the model it would switch off the recording of what the caption head reads, for
        # while torch.export traces, transformers keeps the recorder in one global variable.
        vectors = self.model.lvit.get_text_embeds(input_ids, attention_mask, word_ids=word_ids)
        return super().forward(pixel_values, *vectors)


class ExportedNetwork:
    """An exported network, with the call of [`LViTForImageSegmentation`] for images and captions as token ids.

    Args:
        runners: What runs each graph that `lvit export` wrote: `model`, with the text tower inside, or `model` and
            `text_model`.
        config: The model's configuration.
        backend: Its name.
    """

    def __init__(self, runners: dict[str, Callable[..., Any]], config: LViTConfig, backend: str):
        self.backend = backend
        self._runners = runners
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
        outputs = self._runners[NETWORK](pixel_values=pixel_values, **self._encode(text, pixel_values))
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

    def _encode(self, text: dict[str, Any] | None, pixel_values: torch.Tensor) -> dict[str, Any]:
        """What the network takes of captions, or of none."""
        tower = self._runners.get(TEXT_MODEL)
        if tower is not None and text is not None:
            return dict(tower(**text))
        if tower is not None:
            nothing = torch.zeros(len(pixel_values), *self._vectors)
            return {"text_embeds": nothing, "text_mask": torch.zeros(nothing.shape[:2], dtype=torch.bool)}
        if text is not None:
            return text
        # The shortest that it takes.
        tokens = torch.zeros(len(pixel_values), 2, dtype=torch.long, device=pixel_values.device)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "word_ids": tokens}  # of no words


class CompiledNetwork(ExportedNetwork):
    """A model that `torch.compile` compiles when it is first called, on a GPU to a CUDA graph.

    It computes as the caller would: in bfloat16 under autocast, else in the type of the weights.

    Args:
        model: The model, in evaluation mode, of two dimensions.
        images: How many images a pass takes. Batches are filled up to a multiple.
    """

    # A CUDA graph belongs to the thread that recorded it, and up to PyTorch 2.11 one thread alone can record any.
    _thread = ThreadPoolExecutor(max_workers=1)

    def __init__(self, model: LViTForImageSegmentation, images: int = COMPILED_IMAGES):
        super().__init__({NETWORK: self._run_in_thread}, model.config, "compile")
        network = TokenNetwork(model)
        with torch.inference_mode():
            # A model's first pass puts hooks into it, over which the compiler would stumble.
            ExportedNetwork({NETWORK: network}, model.config, "torch")(
                probe_image(model.config).to(model.device, model.dtype)
            )
        self._compiled = torch.compile(network, mode="reduce-overhead", dynamic=False)
        self._images = images
        self._longest = model.config.get_text_config().max_position_embeddings

    def _run_in_thread(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        device = inputs["pixel_values"].device.type
        return self._thread.submit(self._run, device, torch.is_autocast_enabled(device), inputs).result()

    @torch.inference_mode()
    def _run(self, device: str, autocast: bool, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        count = len(inputs["pixel_values"])
        parts = {name: tensor.split(self._images) for name, tensor in self._fill_up(**inputs).items()}
        results = []
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            for part in zip(*parts.values()):
                outputs = self._compiled(**dict(zip(parts, part)))
                # Copied, as the next pass writes to the same place.
                results.append({name: tensor.clone() for name, tensor in outputs.items()})
        return {name: torch.cat([result[name] for result in results])[:count] for name in results[0]}

    def _fill_up(self, pixel_values: torch.Tensor, **tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """To whole passes, with the last row again and again, and to one length of captions, with padding."""
        count, length = len(pixel_values), tokens["input_ids"].shape[1]
        rows = torch.arange(round_up(count, self._images), device=pixel_values.device).clamp(max=count - 1)
        missing = min(round_up(length, COMPILED_TOKENS), self._longest) - length
        return {
            "pixel_values": pixel_values[rows].contiguous(memory_format=torch.channels_last),
            **{name: nn.functional.pad(tensor, (0, missing))[rows] for name, tensor in tokens.items()},
        }


def round_up(number: int, step: int) -> int:
    """To the next multiple of `step`."""
    return math.ceil(number / step) * step


def load_network(name: str, backend: str, model: LViTForImageSegmentation) -> Callable[..., Any] | None:
    """What runs a checkpoint in place of its model.

    Args:
        name: Folder of the checkpoint, or its name on the Hub.
        backend: `"torch"` for the model itself, `"compile"` for what `torch.compile` makes of it, `"openvino"`,
            `"openvino-int8"` or `"onnx"` for what was exported to the checkpoint's folder of that name,
            `"openvino-bf16"` for the first of them in bfloat16, or `"auto"`: without a GPU `"openvino"` if it is
            there and gives the same masks, else `"torch"`.
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
        return _choose_network(name, model)
    if backend == "torch":
        return None
    if model.config.spatial_dims == 3:
        raise ValueError(
            "Networks of three dimensions are neither compiled nor exported; the backend torch runs them."
        )
    if backend != "compile":
        return _load_exported(name, backend, model)
    if "SPACES_ZERO_GPU" in os.environ:
        raise ValueError("ZeroGPU compiles nothing; networks run there on the backend torch.")
    return CompiledNetwork(model)


def _choose_network(name: str, model: LViTForImageSegmentation) -> Callable[..., Any] | None:
    if torch.cuda.is_available() or model.config.spatial_dims == 3 or not _is_installed("openvino"):
        return None
    try:
        return _load_exported(name, "openvino", model)
    except (ImportError, ValueError) as error:  # not exported, from other weights, or transformers is too old
        logger.info("%s runs on PyTorch: %s", name, error)
        return None


def _is_installed(runtime: str) -> bool:
    return all(find_spec(package) for package in RUNTIMES[runtime])


def _load_exported(name: str, backend: str, model: LViTForImageSegmentation) -> ExportedNetwork:
    runtime = backend.removesuffix("-bf16")
    if not _is_installed(runtime):
        raise ValueError(f"The backend {backend} is not installed; this needs pip install 'lvit_hf[export]'.")
    path, revision = split_revision(name)
    remedy = f"lvit export {path} {'--int8 --data DATA' if runtime == 'openvino-int8' else f'--to {runtime}'}"
    try:
        cached_file(path, MANIFEST, subfolder=runtime, revision=revision)  # before the runtime, slow to import
        from transformers.exporters.base import ExportedModel

        settings = _onnx_settings() if runtime == "onnx" else _openvino_settings(backend)
        exported = ExportedModel.from_pretrained(path, revision=revision, subfolder=runtime, device="cpu", **settings)
    except (OSError, RuntimeError) as error:  # RuntimeError is OpenVINO's, of a damaged file
        raise ValueError(f"{path} has no network for {runtime}; {remedy} makes it.") from error
    network = ExportedNetwork(exported.runners, model.config, backend)
    if not _agree(network, model, TOLERANCES[backend]):
        raise ValueError(f"The folder {runtime} of {path} is of other weights; {remedy} makes it anew.")
    return network


def _openvino_settings(backend: str) -> dict[str, Any]:
    """As many threads as PyTorch has, and the precision, which OpenVINO would choose by the processor."""
    import openvino

    precision = "bf16" if backend == "openvino-bf16" else "f32"
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("This processor does not compute in bfloat16; the backend openvino computes in float32.")
    return {"config": {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}}


def _onnx_settings() -> dict[str, Any]:
    """As many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return {"session_options": options}


@torch.inference_mode()
def _agree(network: ExportedNetwork, model: LViTForImageSegmentation, tolerance: float) -> bool:
    """Whether two networks say the same of one small image of noise."""
    pixel_values = probe_image(model.config)
    difference = network(pixel_values).logits - model(pixel_values=pixel_values).logits
    return difference.abs().max().item() < tolerance


def probe_image(config: LViTConfig, batch_size: int = 1) -> torch.Tensor:
    """Noise in [-1, 1] of shape `(batch_size, num_channels, height, width)`, of a size that is not square."""
    height, width = config.size_divisors
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, config.num_channels, 3 * height, 4 * width, generator=generator) * 2 - 1
