"""What `lvit predict` does with each file, wherever that runs."""

import itertools
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ..io.hub import hash_weights
from ..io.readers import (
    AnyPath,
    OpenFile,
    group_images,
    is_picture_name,
    is_scan_name,
    list_files,
    name_members,
    open_zip,
    tell_series_apart,
)
from ..io.scan import Scan, show_name
from ..io.tables import FileNames, is_table_name, read_table
from .files import (
    FileResult,
    Item,
    Outputs,
    describe_result,
    explain,
    find_mask_problem,
    read_suffix,
    save_results,
    segment_items,
    time_results,
)
from .report import check_report, describe_run
from .segmenter import Progress, Segmenter
from .slices import VolumeSegmentation


# In a folder of results, a line for each file that was written there: when, in ns, and its name.
LEDGER = ".lvit-results"
# Of a file's name, on the file systems that are in use.
LONGEST_NAME = 255
# Endings of names of DICOM files, and of zips of them, beside those by which files are read.
DICOM_SUFFIXES = (".ima", ".dicom", ".dic")
MORE_SUFFIXES = (".zip", *DICOM_SUFFIXES)


@dataclass(frozen=True)
class PredictorConfig:
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
        config: What is asked for.

    Raises:
        ValueError: As [`Segmenter.from_pretrained`], or if a setting is not for the checkpoint.
    """

    def __init__(self, config: PredictorConfig):
        self._config = config
        self._segmenter = Segmenter.from_pretrained(config.model, config.backend)
        if self._segmenter.is_volumetric and (config.settings["tile_size"] or config.settings["views"]):
            raise ValueError("--tile-size and --views are for images, and the checkpoint segments volumes as a whole.")
        # What is true of all images of its report.
        self.run = describe_run(
            model=config.model,
            backend=self._segmenter.backend,
            device=str(self._segmenter.model.device),
            weights_sha256=hash_weights(config.model),
            threshold=config.outputs.threshold,
            **config.settings,
        )
        labels = self._segmenter.model.config.id2label.values()
        self._suffixes = [*config.outputs.suffixes, *(f"_{label}_mask.png" for label in labels)]

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

        config = self._config

        def segment(images: Sequence[Any], texts: Sequence[str | None]) -> list:
            return self._segmenter.segment(
                images, texts, progress=progress, batch_size=config.batch_size, **config.settings
            )

        def segment_whole(scan: Scan, caption: str | None) -> VolumeSegmentation:
            from .volumes import segment_scan  # only who has volumes has its libraries

            reading = {name: config.settings[name] for name in ("side", "on_unknown")}
            return segment_scan(
                self._segmenter, scan, caption, batch_size=config.batch_size, progress=progress, **reading
            )

        whole = segment_whole if self._segmenter.is_volumetric else None
        names = ResultNames(folder, taken)
        for row, seconds in time_results(segment_items(segment, items, config.batch_size, whole)):
            yield self._save(row, names) | {"seconds": round(seconds, 3)}

    def _save(self, row: FileResult, names: "ResultNames") -> dict[str, Any]:
        """Writes what was asked for of a file; returns its entry."""
        try:
            entry = describe_result(row, self._config.outputs.threshold)
            if row.error is None:
                name = names.choose(_stem(row.item), self._suffixes)
                # Files appear when all of them are whole, and are never written into what is linked under their names.
                with tempfile.TemporaryDirectory(prefix=".", dir=names.folder) as part:
                    entry |= save_results(row, self._config.outputs, Path(part), name)
                    entry["notes"] += filter(None, [find_mask_problem(row, entry["masks"])])
                    names.publish(Path(part))
            return entry
        except Exception as error:  # such as a volume that is too large for its format
            return describe_result(FileResult(row.item, explain(error, row.item)), self._config.outputs.threshold)


def list_items(inputs: Sequence[Path], text: str | None) -> list[Item]:
    """Files and captions that inputs name: tables and folders are opened, anything else is an image.

    Args:
        inputs: Images, folders of them, and tables with the columns `image` (relative to the table) and `text`. What
            an earlier run wrote to a folder is left out of it.
        text: The caption of images that no table captions.

    Raises:
        ValueError: If a table cannot be used, or there is no image or none of the inputs at all.
    """
    if not any(path.exists() for path in inputs):
        raise ValueError(f"{', '.join(map(show_name, inputs))} {'does' if len(inputs) == 1 else 'do'} not exist.")
    items: list[Item] = []
    for path in inputs:
        if path.is_dir():
            items += _list_folder(path, text)
        elif is_table_name(path):
            items += _list_table(path, text)
        else:
            items += _list_file(path, text)
    if not items:
        raise ValueError(f"There is no image in {', '.join(map(show_name, inputs))}.")
    return items


def _list_folder(folder: Path, text: str | None) -> list[Item]:
    """The images in a folder, and the series, which are named by their folders."""
    results: dict[Path, dict[str, str]] = {}
    files = []
    for file in list_files(folder):
        if file.parent not in results:
            results[file.parent] = read_ledger(file.parent)
        if file.name not in results[file.parent]:
            files.append(file)
    items = []
    for name, group in _name_groups({path: partial(path.open, "rb") for path in files}):
        if len(group) > 1:
            items.append(Item(name, text, group[0], series=group))
        else:
            items += _list_file(group[0], text)
    return items


def _list_file(path: Path, text: str | None) -> list[Item]:
    """A file; of a zip the images and series in it, unless it is one series, with other DICOM files at most."""
    groups: list[tuple[str, tuple[PurePosixPath, ...]]] = []
    if zipfile.is_zipfile(path):
        with suppress(OSError, ValueError), open_zip(path) as archive:  # who reads it says what is wrong with it
            members = name_members(archive)
            groups = _name_groups({name: partial(archive.open, member) for name, member in members.items()}, path)
    are_dicom = all(read_suffix(name.name) in ("", ".dcm") for _, group in groups for name in group)
    if not groups or are_dicom and sum(len(group) > 1 for _, group in groups) == 1:
        return [Item(show_name(path), text, path)]
    return [
        Item(name, text, path, members=group) if len(group) > 1 else Item(name, text, path, members[group[0]])
        for name, group in groups
    ]


def _name_groups(files: Mapping[AnyPath, OpenFile], root: Path = Path()) -> list[tuple[str, tuple[AnyPath, ...]]]:
    """Images and series with their names: a series has that of its folder, and of its own where this has several."""
    named = {group: os.fspath(root / group[0]) for group in group_images(files)}
    folders: dict[str, list[tuple[AnyPath, ...]]] = {}
    for group in named:
        if len(group) > 1:
            folders.setdefault(os.path.commonpath([path.parent for path in group]), []).append(group)
    for folder, series in folders.items():
        own = tell_series_apart([files[group[0]] for group in series]) if len(series) > 1 else []
        endings = [f" (series {name})" for name in own] or [""]
        named |= {group: f"{root / folder}{ending}" for group, ending in zip(series, endings)}
    return [(show_name(name), group) for group, name in named.items()]


def _list_table(path: Path, text: str | None) -> list[Item]:
    """The images that a table names."""
    table, names = read_table(path, ("image", "text")), FileNames(path.parent)
    items = []
    for line, row in zip(table.lines, table.rows):
        file, caption = path.parent / names.find(row["image"]), row["text"] or text
        is_named = file != path.parent  # which would be all of its folder
        problem = None if is_named else f"{show_name(path)}, line {line}, names no image."
        items.append(Item(show_name(file), caption, file, problem=problem))
    return items


class ResultNames:
    """Names for the files of a folder of results: what earlier runs wrote is replaced, and no other or changed file.

    Args:
        folder: The folder.
        taken: Files that this run reads or has written, as `path_key` writes them.
    """

    def __init__(self, folder: Path, taken: set[str]):
        self.folder = folder
        self._taken = taken
        self._earlier = {name.casefold(): written for name, written in read_ledger(folder).items()}

    def choose(self, stem: str, suffixes: Sequence[str]) -> str:
        """The stem, with a number if need be, under which no file is lost; shorter if names would be too long."""
        room = LONGEST_NAME - max(len(suffix.encode()) for suffix in suffixes)
        for number in itertools.count(1):
            ending = "" if number == 1 else f"-{number}"
            name = stem.encode(errors="replace")[: room - len(ending)].decode(errors="ignore") + ending
            if all(self._is_free(f"{name}{suffix}") for suffix in suffixes):
                self._taken |= {path_key(self.folder / f"{name}{suffix}") for suffix in suffixes}
                return name
        raise AssertionError  # there is always one more number

    def _is_free(self, name: str) -> bool:
        path = self.folder / name
        if path_key(path) in self._taken:
            return False
        try:
            return str(path.lstat().st_mtime_ns) == self._earlier.get(name.casefold())
        except FileNotFoundError:
            return True

    def publish(self, part: Path):
        """Moves files to the folder, from one inside it."""
        files = sorted(part.iterdir())
        with (self.folder / LEDGER).open("a", encoding="utf-8") as ledger:
            ledger.writelines(f"{file.stat().st_mtime_ns} {file.name}\n" for file in files)
        for file in files:
            file.replace(self.folder / file.name)


def read_ledger(folder: Path) -> dict[str, str]:
    """The names of the files that `lvit predict` wrote to a folder, and when, as the ledger has it."""
    path = folder / LEDGER
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {name: written for written, _, name in (line.partition(" ") for line in lines)}


def choose_report(folder: Path, taken: set[str]) -> Path:
    """Where the report of a folder goes: `predictions.json`, or with a number if that is another file."""
    for number in itertools.count(1):
        path = folder / f"predictions{'' if number == 1 else f'-{number}'}.json"
        try:
            check_report(path)
        except FileExistsError:
            continue
        if path_key(path) not in taken:
            taken.add(path_key(path))
            return path
    raise AssertionError  # there is always one more number


def path_key(path: Path) -> str:
    """The same for every way to write a file's path, also where case does not matter."""
    return os.path.realpath(path).casefold()


def _stem(item: Item) -> str:
    """A file's name without what its format adds. (Other names have dots too, such as those that are UIDs.)"""
    path = Path(item.name)
    path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    is_known = is_picture_name(path) or is_scan_name(path) or path.suffix.lower() in MORE_SUFFIXES
    return path.stem if is_known else path.name
