"""From the name of a checkpoint and a user's images of any size to what the model says of them."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformers.image_utils import ImageInput

from ..io.checkpoints import find_checkpoint
from ..io.hub import HTTPError, explain_error, split_revision
from ..model.captions_lvit import names_a_place
from ..model.configuration_lvit import LViTConfig
from ..model.modeling_lvit import LViTForImageSegmentation, LViTImageSegmentationOutput
from ..model.processing_lvit import LViTProcessor
from ..model.segmenter_lvit import VIEWS, LViTSegmenter, Scope, Segmentation
from .backends import CompiledNetwork, ExportedNetwork, load_network


PLACE_IN_TILES = "It names a place, which tiles do not know, so it was not used."

TILE_OVERLAP = 0.25
SMALLEST_TILE = 16

Progress = Callable[[int, int], None]


class Segmenter(LViTSegmenter):
    """A checkpoint on the device there is, ready to segment images of any size, whole or in tiles.

    Args:
        model: A model. Its batch norms are folded, in place.
        processor: The processor saved with the model.
        network: See [`LViTSegmenter`]. All but a [`CompiledNetwork`] run on the CPU.
    """

    def __init__(
        self,
        model: LViTForImageSegmentation,
        processor: LViTProcessor,
        network: Callable[..., LViTImageSegmentationOutput] | None = None,
    ):
        takes_gpu = network is None or isinstance(network, CompiledNetwork)
        device = "cuda" if torch.cuda.is_available() and takes_gpu else "cpu"
        memory_format = torch.channels_last if model.config.spatial_dims == 2 else torch.channels_last_3d
        super().__init__(model.fold_batch_norms().to(device, memory_format=memory_format), processor, network)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, backend: str = "auto") -> Self:
        """Loads a checkpoint.

        Args:
            name: A folder, the name of a shipped checkpoint, or a model on the Hub, `USER/NAME` or
                `USER/NAME@REVISION`.
            backend: What runs the network: `"torch"`; `"compile"`, which is slow to load; `"openvino"`,
                `"openvino-bf16"`, `"openvino-int8"` or `"onnx"`, which need what `lvit export` wrote to the
                checkpoint; or `"auto"`, the fastest that is there and gives the same masks.

        Raises:
            ValueError: If there is no complete LViT checkpoint of that name, or the backend cannot run it; the message
                says what is wrong.
        """
        path = find_checkpoint(name)
        with _checkpoint_errors(name):
            model, processor = _load_checkpoint(*split_revision(path))
        segmenter = cls(model, processor, load_network(path, backend, model))
        if isinstance(segmenter.network, CompiledNetwork):
            segmenter._compile()
        return segmenter

    @property
    def backend(self) -> str:
        """What runs the network: one of `BACKENDS` but `"auto"`."""
        return self.network.backend if isinstance(self.network, ExportedNetwork) else "torch"

    def _compile(self):
        """Compiles the network by its first pass."""
        try:
            self.segment([Image.new("RGB", (SMALLEST_TILE, SMALLEST_TILE))])
        except RuntimeError as error:  # there is no compiler, say
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"The network cannot be compiled here; the backend torch runs it. {reason}")

    def segment(  # type: ignore[override]
        self,
        images: Sequence[ImageInput],
        texts: Sequence[str | None] | None = None,
        *,
        tile_size: int | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[Segmentation]:
        """Segments images, each with its caption, as [`LViTSegmenter.segment`] does.

        Args:
            images, texts: As there.
            tile_size: `None` segments every image as a whole, shrunk or enlarged to the network's size. Otherwise the
                side, in pixels of the image, of overlapping square tiles that are segmented one by one and blended:
                for slides, whose objects would vanish in a shrunk image. Images no larger than a tile stay whole.
                Tiles get no caption that names a place, and what is in them is not described.
            progress: Called with the numbers of finished and of all tiles of an image.
            **settings: As there.

        Raises:
            ValueError: As there, or if `tile_size` is too small.
        """
        if tile_size is None:
            return super().segment(images, texts, **settings)
        if tile_size < SMALLEST_TILE:
            raise ValueError(f"A tile must be at least {SMALLEST_TILE} pixels wide, got {tile_size}.")
        results: list[Segmentation] = []
        for image, text in self.pair(images, texts):
            ready = self.to_image(image)
            if max(ready.size) <= tile_size:
                results += super().segment([ready], [text], **settings)
            else:
                results.append(self._segment_tiles(ready, text, tile_size, progress, **settings))
        return results

    def _segment_tiles(
        self,
        image: Image.Image,
        text: str | None,
        tile_size: int,
        progress: Progress | None,
        batch_size: int = 8,
        views: str | None = None,
        side: str = "image",
        on_unknown: str = "ignore",
        **_: Any,
    ) -> Segmentation:
        reading = self.read_text(text, side, on_unknown)
        if reading is not None and reading.text is not None and names_a_place(reading.text):
            reading = replace(reading, text=None, message=f"{reading.message} {PLACE_IN_TILES}".strip())
        chosen = VIEWS[views]
        total = count_tiles(image.size, tile_size) * (1 + len(chosen))
        scopes: list[Scope | None] = []  # of each tile that is finished

        def predict(images: list[Image.Image], texts: list[str | None]) -> list[np.ndarray]:
            return [self._blend_tiles(*pair, tile_size, batch_size, take) for pair in zip(images, texts)]

        def take(judged: Sequence[Scope | None]):
            scopes.extend(judged)
            if progress is not None:
                progress(len(scopes), total)

        texts = [None if reading is None else reading.text]
        [scores] = self.average_views(predict, [image], texts, chosen)
        result = self.add_scope(self.make_result(image, scores, reading), join_scopes(scopes))
        return replace(result, text=text or None)

    def _blend_tiles(
        self,
        image: Image.Image,
        text: str | None,
        tile_size: int,
        batch_size: int,
        take: Callable[[Sequence[Scope | None]], None],
    ) -> np.ndarray:
        """Scores of shape `(num_labels, height, width)`."""
        from monai.inferers import sliding_window_inference  # takes a second, and few images are cut into tiles

        def predict(tiles: torch.Tensor) -> torch.Tensor:
            crops = [Image.fromarray(tile.squeeze()) for tile in tiles.byte().movedim(1, -1).numpy()]
            outputs = self.run_network(self.encode(crops), [text] * len(crops))
            take(self.judge(outputs))
            return torch.from_numpy(np.stack(self.restore(outputs, crops)))

        pixels = np.atleast_3d(np.array(image))
        blended = sliding_window_inference(
            torch.from_numpy(pixels).movedim(-1, 0).unsqueeze(0).float(),
            roi_size=(tile_size, tile_size),
            sw_batch_size=batch_size,
            predictor=predict,
            overlap=TILE_OVERLAP,
            mode="gaussian",
            padding_mode="replicate",
        )
        return torch.as_tensor(blended)[0].numpy()


def join_scopes(scopes: Sequence[Scope | None]) -> Scope | None:
    """The scope of an image in the middle of those of its tiles by their score."""
    known = sorted(filter(None, scopes), key=lambda scope: scope.score)
    return known[len(known) // 2] if known else None


def count_tiles(size: tuple[int, int], tile_size: int) -> int:
    """Number of overlapping tiles that cover an image of that size."""
    step = max(int(tile_size * (1 - TILE_OVERLAP)), 1)
    return math.prod(math.ceil(max(side - tile_size, 0) / step) + 1 for side in size)


def tile_boxes(size: tuple[int, int], side: int) -> list[tuple[int, int, int, int]]:
    """Squares of `side` pixels, side by side, that fit into an image of `(width, height)`."""
    width, height = size
    corners = [(x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    return [(x, y, x + side, y + side) for x, y in corners]


def load_processor(name: str | os.PathLike) -> tuple[LViTConfig, LViTProcessor]:
    """A checkpoint without its weights.

    Args:
        name: As in `Segmenter.from_pretrained`.

    Raises:
        ValueError: As there.
    """
    path, revision = split_revision(find_checkpoint(name))
    with _checkpoint_errors(name):
        _check_config(path, revision)
        return LViTConfig.from_pretrained(path, revision=revision), LViTProcessor.from_pretrained(
            path, revision=revision
        )


@contextmanager
def _checkpoint_errors(name: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, HTTPError, SafetensorError, StrictDataclassError) as error:
        if sentence := explain_error(error, split_revision(name)[0]):
            raise ValueError(f"{name} cannot be loaded: {sentence}")
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} is not an LViT checkpoint (a folder, or USER/NAME on the Hub): {reason}")


def _load_checkpoint(path: str, revision: str) -> tuple[LViTForImageSegmentation, LViTProcessor]:
    _check_config(path, revision)
    model, report = LViTForImageSegmentation.from_pretrained(
        path, revision=revision, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"{len(report['missing_keys'])} tensors of the network are missing from its weights.")
    return model, LViTProcessor.from_pretrained(path, revision=revision)


def _check_config(path: str, revision: str):
    config, _ = LViTConfig.get_config_dict(path, revision=revision)
    if config.get("model_type") != LViTConfig.model_type:
        raise ValueError(f"it has no config.json with the model type {LViTConfig.model_type!r}.")
