"""Behind the page: checkpoints that stay loaded, one thread for all passes, and nothing read or computed twice."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

import spaces
from cachetools import LRUCache, TTLCache
from PIL import Image

from ..inference.files import FileResult, Item, segment_items
from ..inference.segmenter import Progress, Segmenter
from ..inference.slices import VolumeSegmentation, segment_slices
from ..io.checkpoints import list_shipped
from ..io.readers import read_scan
from ..io.scan import Scan
from ..model.segmenter_lvit import Segmentation
from .uploads import check_slices, check_upload


KEEP_SECONDS = 3600
CACHED_BYTES = 1024**3
CACHED_VALUES = 256
LOADED_MODELS = 3
LONGEST_NAME = 300
BATCH_SIZE = 8


@dataclass(frozen=True)
class Settings:
    """How images are segmented.

    Args:
        model: Name of the checkpoint; blank for the first.
        side: Whose left and right a caption names: `"image"` or `"patient"`.
        on_unknown: What is done with a caption that is not understood: `"ignore"`, `"use"` or `"error"`.
        tile_size: Side of the tiles in pixels; 0 for none.
    """

    model: str = ""
    side: str = "image"
    on_unknown: str = "ignore"
    tile_size: int = 0


@dataclass(frozen=True)
class Request:
    """What to segment, and how. The same request has the same result.

    Args:
        item: The file, with its caption. The folder of an uploaded file is named after its content.
        settings: How to segment it.
        slice_index: Number of the slice, from 0; `None` for all slices.
    """

    item: Item
    settings: Settings = Settings()
    slice_index: int | None = 0

    @property
    def file(self) -> tuple[str, str]:
        """The file's path, and its own inside a zip."""
        return str(self.item.path), self.item.member.filename if self.item.member else ""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Args:
        segmenter: What segments with it.
        digest: Tells its weights from those of another, also of one that lay at the same place before.
    """

    segmenter: Segmenter
    digest: str

    @classmethod
    def of(cls, segmenter: Segmenter) -> "Checkpoint":
        digest = hashlib.blake2b(digest_size=16)
        for parameter in segmenter.model.parameters():
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return cls(segmenter, digest.hexdigest())


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
        """Runs a function as if it ran in the caller's thread, so that it knows the visitor."""
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

    def __init__(self, function: Callable[[list], Sequence], worker: Worker, size: int = BATCH_SIZE):
        self._function = function
        self._worker = worker
        self._size = size
        self._waiting: SimpleQueue[tuple[Any, Future]] = SimpleQueue()

    def __call__(self, items: Sequence) -> list:
        futures: list[Future] = [Future() for _ in items]
        for item, future in zip(items, futures):
            self._waiting.put((item, future))
        for _ in range(0, len(items), self._size):  # as often as it takes without other callers
            self._worker.submit(self.run)
        return [future.result() for future in futures]

    def run(self):
        """Runs the function once, in the worker's thread, on what is waiting."""
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
    """Segments files for many visitors.

    Args:
        segmenter: The checkpoint that is there from the beginning.
        name: Its name.
        any_model: Whether visitors may name any folder and any model on the Hub, which is then loaded with the
            rights of whoever runs the page.
    """

    def __init__(self, segmenter: Segmenter, name: str, any_model: bool = False):
        self.default_model = name
        self.any_model = any_model
        self._default = Checkpoint.of(segmenter)
        self._others: LRUCache = LRUCache(LOADED_MODELS)
        self._loading = threading.Lock()
        self._scans = Cache(lambda scan: scan.slices.nbytes)
        self._results = Cache(_size_of)
        self._worker = Worker()
        # On ZeroGPU it runs in a process that has a GPU for a while.
        self._forward = spaces.GPU(duration=30)(self._run_network)
        self._forward_whole = spaces.GPU(duration=120)(self._run_volumetric_network)
        self._batchers: dict[tuple[str, Settings], Batcher] = {}

    @property
    def models(self) -> list[str]:
        """Names of the checkpoints that any visitor may use."""
        return list(dict.fromkeys([self.default_model, *list_shipped()]))

    def checkpoint(self, model: str) -> Checkpoint:
        """The checkpoint of that name, loaded at most once while it is in use.

        Raises:
            ValueError: If it cannot be loaded, or may not be.
        """
        if model in ("", self.default_model):
            return self._default
        if not (self.any_model or model in self.models):
            raise ValueError(f"This page serves only {', '.join(self.models)}.")
        if len(model) > LONGEST_NAME:
            raise ValueError(f"The name of the checkpoint has {len(model):,} characters; none is that long.")
        with self._loading:
            if model not in self._others:
                self._others[model] = Checkpoint.of(Segmenter.from_pretrained(model))
            return self._others[model]

    def describe_device(self, model: str) -> str:
        """The checkpoint's device, type of number and size."""
        network = self.checkpoint(model).segmenter.model
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        return f"{network.device}, {str(network.dtype).removeprefix('torch.')}, {millions:.1f} M"

    def is_volumetric(self, model: str) -> bool:
        """Whether the checkpoint segments volumes as a whole."""
        return self.checkpoint(model).segmenter.is_volumetric

    def read(self, item: Item, keep_values: bool = False) -> Scan:
        """A file, as `read_scan` reads it. With its values, which take much memory, it is not kept.

        Raises:
            OSError, ValueError: If it cannot be used; the message says why.
        """

        def read() -> Scan:
            with item.open() as path:
                return read_scan(check_upload(path), keep_values)

        return read() if keep_values else self._scans.get_or_make(Request(item).file, read)

    def segment(self, request: Request, progress: Progress | None = None) -> FileResult:
        """Segments one slice.

        Args:
            request: Which one, and how.
            progress: Called with the numbers of finished and of all tiles. What it raises stops the work.

        Raises:
            OSError, ValueError: If the file or the checkpoint cannot be used; the message says why.
        """
        if self.is_volumetric(request.settings.model):
            raise ValueError("The checkpoint segments volumes as a whole: give it a NIfTI file or a DICOM series.")
        scan = self.read(request.item)

        def segment() -> Segmentation:
            image = scan.image(request.slice_index or 0)
            return self.segment_images(request.settings, [image], [request.item.text], progress)[0]

        return FileResult(request.item, None, scan, self._results.get_or_make(self._key(request), segment))

    def segment_volume(self, request: Request) -> Generator[tuple[int, int] | FileResult, None, None]:
        """Segments all slices of a file, or the volume as a whole.

        Returns:
            The numbers of finished and of all slices, or windows, after every few of them, and at last the
            `FileResult`. Whoever takes no more and closes the generator stops it.

        Raises:
            OSError, ValueError: As in `segment`.
        """
        request = replace(request, slice_index=None)
        scan, result = self.read(request.item), self._results.get(self._key(request))
        if result is None:
            steps = (
                self._segment_whole(request)
                if self.is_volumetric(request.settings.model)
                else segment_slices(self.segment_with(request.settings), scan, request.item.text)
            )
            result = yield from steps
            self._results.put(self._key(request), result)
        yield FileResult(request.item, None, scan, result)

    def segment_many(self, items: Sequence[Item], settings: Settings, progress: Progress) -> Iterator[FileResult]:
        """Segments files one after another; see `segment_items`. Whoever takes no more of them stops it.

        Args:
            items: The files.
            settings: How to segment them.
            progress: Called after every few slices or windows of a volume and tiles of an image. What it raises stops
                the work.
        """

        def segment_whole(scan: Scan, text: str | None) -> VolumeSegmentation:
            return self._submit_whole(settings, scan, text, progress).result()

        whole = segment_whole if self.is_volumetric(settings.model) else None
        for rows in segment_items(
            self.segment_with(settings, progress),
            items,
            segment_whole=whole,
            check=check_upload,
            check_slices=check_slices,
        ):
            progress(0, 0)
            yield from rows

    def segment_with(self, settings: Settings, progress: Progress | None = None) -> Callable[..., list[Segmentation]]:
        """A function from images and captions to results."""
        return lambda images, texts: self.segment_images(settings, images, texts, progress)

    def segment_images(
        self,
        settings: Settings,
        images: Sequence[Image.Image],
        texts: Sequence[str | None],
        progress: Progress | None = None,
    ) -> list[Segmentation]:
        """Segments images that are not kept, each with its caption, along with those of other visitors.

        Raises:
            ValueError: If a caption is not understood and the settings forbid that, or the checkpoint cannot be used.
        """
        checkpoint = self.checkpoint(settings.model)
        for text in texts:  # one visitor's caption must not fail those of others
            checkpoint.segmenter.read_text(text, settings.side, settings.on_unknown)
        pairs = list(zip(images, texts))
        if settings.tile_size:
            return self._worker.submit(self._forward, settings, pairs, self._between_steps(progress)).result()
        key = checkpoint.digest, settings
        batcher = self._batchers.setdefault(
            key, Batcher(lambda items: self._forward(settings, items, None), self._worker)
        )
        return batcher(pairs)

    def _key(self, request: Request) -> Hashable:
        digest = self.checkpoint(request.settings.model).digest
        return digest, replace(request.settings, model=""), request.file, request.item.text or "", request.slice_index

    def _segment_whole(self, request: Request) -> Generator[tuple[int, int], None, VolumeSegmentation]:
        scan = self.read(request.item, keep_values=True)
        steps: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        abandoned = threading.Event()

        def count(finished: int, total: int):
            if abandoned.is_set():
                raise CancelledError
            steps.put((finished, total))

        future = self._submit_whole(request.settings, scan, request.item.text, count)
        future.add_done_callback(lambda _: steps.put(None))
        try:
            while (step := steps.get()) is not None:
                yield step
        finally:
            abandoned.set()
        return future.result()

    def _submit_whole(self, settings: Settings, scan: Scan, text: str | None, progress: Progress) -> Future:
        return self._worker.submit(self._forward_whole, settings, scan, text, self._between_steps(progress))

    def _between_steps(self, progress: Progress | None) -> Progress | None:
        """What long work calls after every step: it tells `progress`, and lets single images of others in between."""

        def count(finished: int, total: int):
            if progress is not None:
                progress(finished, total)
            for batcher in list(self._batchers.values()):
                batcher.run()

        # What is called from another process would have to be copied there.
        return None if "SPACES_ZERO_GPU" in os.environ else count

    def _run_volumetric_network(
        self, settings: Settings, scan: Scan, text: str | None, progress: Progress | None
    ) -> VolumeSegmentation:
        from ..inference.volumes import segment_scan  # only who has volumes needs nibabel

        segmenter = self.checkpoint(settings.model).segmenter
        return segment_scan(
            segmenter, scan, text, side=settings.side, on_unknown=settings.on_unknown, progress=progress
        )

    def _run_network(
        self, settings: Settings, pairs: list[tuple[Image.Image, str | None]], progress: Progress | None
    ) -> list[Segmentation]:
        images, texts = zip(*pairs)
        return self.checkpoint(settings.model).segmenter.segment(
            images,
            texts,
            tile_size=settings.tile_size or None,
            progress=progress,
            side=settings.side,
            on_unknown=settings.on_unknown,
            batch_size=BATCH_SIZE,
        )


def _size_of(result: Segmentation | VolumeSegmentation) -> int:
    if isinstance(result, VolumeSegmentation):
        return result.counts.nbytes + _size_of(result.middle)
    maps = result.scores.nbytes * (1 if result.null_scores is None else 2)
    return maps + 3 * result.image.width * result.image.height


def stem_of(name: str) -> str:
    """A file's name without its endings, for the names of results."""
    return Path(name).name.split(".")[0] or "image"
