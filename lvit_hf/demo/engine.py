"""Behind the page: checkpoints that stay loaded, files and results that are not read or computed twice."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr
import numpy as np
import spaces
import torch
from cachetools import LRUCache, TTLCache
from PIL import Image

from ..inference.captioning import CaptioningSegmenter
from ..inference.segmenter import Segmentation
from ..inference.volume import VolumeSegmentation, count_thresholds
from ..io.checkpoints import DEFAULT_CHECKPOINT
from ..io.readers import read_scan
from ..io.scan import Scan
from ..model.captions_lvit import parse_caption
from ..model.pipeline_lvit import CaptionCheck, check_caption


KEEP_SECONDS = 3600
CACHED_BYTES = 1024**3
CACHED_VALUES = 256
LOADED_MODELS = 3
LONGEST_NAME = 300
BATCH_SIZE = 8
BATCH_PIXELS = 16_000_000


@dataclass(frozen=True)
class Request:
    """What to segment, and how. The same request has the same result.

    Args:
        model: Name of the checkpoint.
        path: The uploaded file. Its folder is named after its content.
        slice_index: Number of the slice, from 0.
        text: The caption, or blank.
        tile_size: Side of the tiles in pixels; 0 for none.
    """

    model: str
    path: str
    slice_index: int = 0
    text: str = ""
    tile_size: int = 0

    def without_text(self) -> "Request":
        return replace(self, text="")


class Cache:
    """Values by key: so many of them, in so many bytes, for so long.

    Args:
        size_of: Number of bytes of a value.
    """

    def __init__(self, size_of: Callable[[Any], int]):
        # Small values count as more than they are, which bounds their number.
        self._size_of = lambda value: max(size_of(value), CACHED_BYTES // CACHED_VALUES)
        self._values: TTLCache = TTLCache(CACHED_BYTES, KEEP_SECONDS, timer=time.monotonic, getsizeof=self._size_of)
        self._lock = threading.Lock()
        self._making: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()

    def get(self, key: Hashable) -> Any:
        """The value, or `None` where it is not kept."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: Any):
        with self._lock:
            if self._size_of(value) <= CACHED_BYTES:
                self._values[key] = value

    def get_or_make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # who comes meanwhile waits for the value
            value = self.get(key)
            if value is None:
                value = make()
                self.put(key, value)
        return value


class Worker:
    """One thread for all forward passes.

    In the threads of the requests each would keep memory and threads of its own for the next pass.
    """

    def __init__(self):
        self._executor = ThreadPoolExecutor(1, "network")

    def submit(self, function: Callable, *args: Any) -> Future:
        """Runs a function as if it ran in the caller's thread, so that it knows the visitor and the progress bar."""
        return self._executor.submit(copy_context().run, function, *args)


class Batcher:
    """Runs a function on what concurrent callers give it, together.

    Callers wait for each other anyway, since the function runs once at a time: who comes next takes along all that
    have been waiting.

    Args:
        function: From a list of items to the list of their results.
        worker: Runs it.
        size: Largest number of items in a list.
    """

    def __init__(self, function: Callable[[list], Sequence], worker: "Worker", size: int = BATCH_SIZE):
        self._function = function
        self._worker = worker
        self._size = size
        self._waiting: SimpleQueue[tuple[Any, Future]] = SimpleQueue()

    def __call__(self, items: Sequence) -> list:
        futures: list[Future] = [Future() for _ in items]
        for item, future in zip(items, futures):
            self._waiting.put((item, future))
        for _ in range(0, len(items), self._size):  # as often as it takes without other callers
            self._worker.submit(self._run)
        return [future.result() for future in futures]

    def _run(self):
        batch: list[tuple[Any, Future]] = []
        try:
            while len(batch) < self._size:
                batch.append(self._waiting.get_nowait())
        except Empty:
            if not batch:
                return
        items, futures = zip(*batch)
        try:
            results = self._function(list(items))
        except Exception as error:  # every caller gets it
            for future in futures:
                future.set_exception(error)
        else:
            for future, result in zip(futures, results):
                future.set_result(result)


class Engine:
    """Segments uploaded files.

    Args:
        segmenter: The checkpoint that is there from the beginning.
        name: Its name in the selector.
        allows_others: Whether visitors may have other checkpoints loaded than those that come with the repository.
    """

    def __init__(self, segmenter: CaptioningSegmenter, name: str = "default", allows_others: bool = True):
        self.default_model = name
        self.allows_others = allows_others
        self._default = segmenter
        self._shipped = find_shipped_checkpoints()
        self._others: LRUCache = LRUCache(LOADED_MODELS)
        self._loading = threading.Lock()
        self._scans = Cache(lambda scan: scan.slices.nbytes)
        self._volumes = Cache(lambda result: result.counts.nbytes)
        self._results = Cache(lambda result: result.probabilities.nbytes + 3 * result.probabilities.size)
        self._worker = Worker()
        # On ZeroGPU it runs in a process that has a GPU for a while.
        self._forward = spaces.GPU(duration=30)(self._run_network)
        self._batchers: dict[str, Batcher] = {}

    @property
    def models(self) -> list[str]:
        """Names of the checkpoints that the selector lists."""
        return list(dict.fromkeys([self.default_model, *self._shipped]))

    def segmenter(self, model: str) -> CaptioningSegmenter:
        """The checkpoint of that name, loaded at most once while it is in use.

        Raises:
            ValueError: If it cannot be loaded, or may not be.
        """
        if model in ("", self.default_model):
            return self._default
        if not (self.allows_others or model in self._shipped):
            raise ValueError(f"This page serves only {', '.join(self.models)}.")
        if len(model) > LONGEST_NAME:
            raise ValueError(f"The name of the checkpoint has {len(model):,} characters; none is that long.")
        with self._loading:
            if model not in self._others:
                self._others[model] = CaptioningSegmenter.from_pretrained(self._shipped.get(model, model))
            return self._others[model]

    def can_caption(self, model: str) -> bool:
        """Whether the checkpoint writes captions and judges them."""
        return self.segmenter(model).model.caption_head is not None

    def describe(self, model: str) -> str:
        """The checkpoint's device, type of number and size."""
        network = self.segmenter(model).model
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        return f"{network.device}, {str(network.dtype).removeprefix('torch.')}, {millions:.1f} M parameters"

    def read(self, path: str) -> Scan:
        """The uploaded file; see `read_scan`."""
        return self._scans.get_or_make(path, lambda: read_scan(path))

    def segment(self, request: Request, progress: gr.Progress | None = None) -> Segmentation:
        """Segments one slice.

        Raises:
            OSError, ValueError: If the file or the checkpoint cannot be used; the message says why.
        """
        return self._results.get_or_make(request, lambda: self._segment(request, progress))

    def describe_image(self, request: Request) -> dict[str, Any]:
        """What the caption head sees in the slice of a request, as [`LViTCaptionHead.decode`] returns it.

        Raises:
            OSError, ValueError: If the file cannot be used, or the checkpoint has no caption head.
        """
        described = self.segment(replace(request, text="", tile_size=0)).described
        if described is None:
            raise ValueError(f"{request.model or self.default_model} has no caption head, so it writes no captions.")
        return described

    def check(self, request: Request) -> CaptionCheck | None:
        """Whether caption and image agree, and how much the caption moved the mask.

        Returns:
            `None` where there is no caption, or the checkpoint has no caption head.
        """
        result = self.segment(request)
        if result.text is None or not self.can_caption(request.model):
            return None
        config = self.segmenter(request.model).model.config
        masks = None
        if result.text_used:
            without = self.segment(request.without_text())
            masks = torch.from_numpy(result.probabilities), torch.from_numpy(without.probabilities)
        return check_caption(parse_caption(result.text), self.describe_image(request), config, masks)

    def _segment(self, request: Request, progress: gr.Progress | None) -> Segmentation:
        image = self.read(request.path).image(request.slice_index)
        return self.segment_images(request.model, [image], [request.text], request.tile_size, progress)[0]

    def segment_images(
        self,
        model: str,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        tile_size: int = 0,
        progress: gr.Progress | None = None,
    ) -> list[Segmentation]:
        """Segments images that are not kept, each with its caption, along with those of other visitors."""
        rgb_images = [self.segmenter(model).to_rgb(image) for image in images]
        if tile_size:
            return self._worker.submit(
                self._forward, model, list(zip(rgb_images, texts)), tile_size, progress
            ).result()
        return self._batcher(model)(list(zip(rgb_images, texts)))

    def segment_volume(self, request: Request) -> Iterator[tuple[int, int]]:
        """Segments all slices of a file, whichever the request names; then `volume` has the result.

        Returns:
            The numbers of finished and of all slices after every few slices. Whoever takes no more of them stops it.

        Raises:
            OSError, ValueError: If the file or the checkpoint cannot be used; the message says why.
        """
        if self._volumes.get(request):
            return
        scan = self.read(request.path)
        counts = np.empty(scan.slices.shape[:3], np.uint8)
        text_used = False
        step = max(1, min(BATCH_SIZE, BATCH_PIXELS // counts[0].size))
        for start in range(0, len(scan), step):
            yield start, len(scan)
            images = [scan.image(index) for index in range(start, min(start + step, len(scan)))]
            texts = [request.text] * len(images)
            for index, result in enumerate(
                self.segment_images(request.model, images, texts, request.tile_size), start
            ):
                counts[index] = count_thresholds(result.probabilities)
                text_used = result.text_used
        self._volumes.put(request, VolumeSegmentation(counts, request.text or None, text_used))

    def volume(self, request: Request) -> VolumeSegmentation:
        """What `segment_volume` has found.

        Raises:
            ValueError: If it is not kept any more.
        """
        result = self._volumes.get(request)
        if result is None:
            raise ValueError("The result is not kept any more. Segment the volume again.")
        return result

    def _batcher(self, model: str) -> Batcher:
        return self._batchers.setdefault(model, Batcher(lambda items: self._forward(model, items), self._worker))

    def _run_network(
        self,
        model: str,
        items: list[tuple[Image.Image, str]],
        tile_size: int = 0,
        progress: gr.Progress | None = None,
    ) -> list[Segmentation]:
        def show(finished: int, total: int):
            if progress is not None:
                progress((finished, total), unit="tiles")

        images, texts = zip(*items)
        segmenter = self.segmenter(model)
        return segmenter.segment(images, texts, tile_size or None, batch_size=BATCH_SIZE, progress=show)


def find_shipped_checkpoints() -> dict[str, Path]:
    """Folders of the checkpoints that come with the repository, by their names; none where there is no repository."""
    return {file.parent.name: file.parent for file in sorted(DEFAULT_CHECKPOINT.parent.glob("*/config.json"))}


def stem_of(path: str) -> str:
    """The uploaded file's name without its endings, for the names of results."""
    return Path(path).name.split(".")[0] or "image"
