"""What `lvit predict` does with each file, wherever that runs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.hub import hash_weights
from ..io.readers import group_files, list_files
from ..io.scan import Scan
from ..io.tables import is_table_name, read_captions
from .files import Item, Outputs, describe_result, save_results, segment_items, time_results
from .report import describe_run
from .segmenter import Progress, Segmenter
from .volume import VolumeSegmentation


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Args:
        model, backend: As in [`Segmenter.from_pretrained`].
        outputs: What to write of each file.
        batch_size: Largest number of images, tiles or windows that are segmented together.
        settings: Others of [`Segmenter.segment`].
    """

    model: str
    backend: str
    outputs: Outputs
    batch_size: int
    settings: dict[str, Any]


class Predictor:
    """A loaded checkpoint that segments files and writes what was asked for of each.

    Args:
        job: What is asked for.

    Raises:
        ValueError: As [`Segmenter.from_pretrained`], or if a setting is not for the checkpoint.
    """

    def __init__(self, job: Job):
        self._job = job
        self._segmenter = Segmenter.from_pretrained(job.model, job.backend)
        if self._segmenter.is_volumetric and (job.settings["tile_size"] or job.settings["views"]):
            raise ValueError("--tile-size and --views are for images, and the checkpoint segments volumes as a whole.")
        # What is true of all images of its report.
        self.run = describe_run(
            model=job.model,
            backend=self._segmenter.backend,
            device=str(self._segmenter.model.device),
            weights_sha256=hash_weights(job.model),
            threshold=job.outputs.threshold,
            **job.settings,
        )
        labels = self._segmenter.model.config.id2label.values()
        self._suffixes = [*job.outputs.suffixes, *(f"_{label}_mask.png" for label in labels)]

    def predict(
        self, items: Sequence[Item], folder: Path, taken: set[str], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """Segments files.

        Args:
            items: The files.
            folder: Where to write to.
            taken: Files that are not to be written, as `path_key` writes them; those that are written are added.
            progress: Called with the numbers of finished and of all tiles of an image or windows of a volume.

        Returns:
            The report's entry of each file, in their order, as soon as its files are there.
        """

        job = self._job

        def segment(images: Sequence[Any], texts: Sequence[str | None]) -> list:
            return self._segmenter.segment(images, texts, progress=progress, batch_size=job.batch_size, **job.settings)

        def segment_whole(scan: Scan, caption: str | None) -> VolumeSegmentation:
            from .volumes3d import segment_scan  # only who has volumes has its libraries

            reading = {name: job.settings[name] for name in ("side", "on_unknown")}
            return segment_scan(
                self._segmenter, scan, caption, batch_size=job.batch_size, progress=progress, **reading
            )

        whole = segment_whole if self._segmenter.is_volumetric else None
        for row, seconds in time_results(segment_items(segment, items, job.batch_size, whole)):
            entry = describe_result(row, job.outputs.threshold) | {"seconds": round(seconds, 3)}
            if row.error is None:
                name = free_name(_stem(row.item), self._suffixes, folder, taken)
                entry |= save_results(row, job.outputs, folder, name)
            yield entry


def list_items(inputs: Sequence[Path], text: str | None) -> list[Item]:
    """Files and captions that inputs name: tables and folders are opened, anything else is an image.

    Args:
        inputs: Images, folders of them, and tables with the columns `image` (relative to the table) and `text`.
        text: The caption of images that no table captions.

    Raises:
        ValueError: If a table cannot be used, or there is no image at all.
    """
    items: list[Item] = []
    for path in inputs:
        if path.is_dir():
            for files in group_files(list_files(path)):
                name, series = (str(files[0]), ()) if len(files) == 1 else (f"{files[0].parent}", files)
                items.append(Item(name, text, files[0], series=series))
        elif is_table_name(path):
            rows = [(path.parent / name, caption or text) for name, caption in read_captions(path)]
            items += [Item(str(file), caption, file) for file, caption in rows]
        else:
            items.append(Item(str(path), text, path))
    if not items:
        raise ValueError(f"There is no image in {', '.join(map(str, inputs))}.")
    return items


def free_name(stem: str, suffixes: Sequence[str], folder: Path, taken: set[str]) -> str:
    """A name under which no file that is read or written in this run lies yet; it and its files become taken."""
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        files = {path_key(folder / f"{name}{suffix}") for suffix in suffixes}
        if taken.isdisjoint(files):
            break
    taken |= files
    return name


def path_key(path: Path) -> str:
    """The same for every way to write a file's path, also where case does not matter."""
    return str(path.resolve()).casefold()


def _stem(item: Item) -> str:
    name = Path(item.name).name
    return name.removesuffix(".gz").rpartition(".")[0] or name
