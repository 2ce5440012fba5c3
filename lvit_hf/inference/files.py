"""Files in; masks, overlays and one report out. `lvit predict` and the page's many files are this."""

import logging
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..io.errors import as_sentence
from ..io.readers import PICTURE_SUFFIXES, SCAN_SUFFIXES, read_scan
from ..io.scan import Scan, show_name
from ..model.segmenter_lvit import BACKGROUND, Segmentation
from .drawing import draw_overlay
from .instances import choose_unit, label_instances, measure_instances
from .measurements import measure_mask
from .notices import find_caption_problem, find_scope_problem
from .report import name_columns, write_table
from .slices import BATCH_PIXELS, BATCH_SIZE, SegmentImages, VolumeSegmentation, segment_slices


logger = logging.getLogger(__name__)

SegmentScan = Callable[[Scan, str | None], VolumeSegmentation]

READ_SUFFIXES = (*SCAN_SUFFIXES, *PICTURE_SUFFIXES)
NIFTI_SUFFIX = ".nii.gz"
LONGEST_NIFTI_SIDE = 32_767


@dataclass(frozen=True)
class Item:
    """A file to segment.

    Args:
        name: Its name, or its path inside a zip, to be shown and not to be opened.
        text: Its caption, or blank.
        path: The file that it is, or is inside; of a series the first.
        member: Where it is inside the zip.
        problem: Why it cannot be used, if that is known before it is read.
        series: All files of a DICOM series, if it is one.
        members: Those of a series inside a zip, as `name_members` names them, if the zip holds more than them.
    """

    name: str
    text: str | None = None
    path: Path = Path()
    member: zipfile.ZipInfo | None = None
    problem: str | None = None
    series: tuple[Path, ...] = ()
    members: tuple[PurePosixPath, ...] = ()

    @contextmanager
    def open(self) -> Iterator[Path]:
        """The path of the file as long as it is open."""
        if self.member is None:
            yield self.path
            return
        with tempfile.NamedTemporaryFile(suffix=read_suffix(self.name)) as file, zipfile.ZipFile(self.path) as archive:
            file.write(archive.read(self.member))
            file.flush()
            yield Path(file.name)


def read_suffix(name: str) -> str:
    """The ending of a file's name by which it is read; blank if it has none of these."""
    return next((suffix for suffix in READ_SUFFIXES if name.lower().endswith(suffix)), "")


@dataclass(frozen=True)
class FileResult:
    """What became of a file.

    Args:
        item: The file.
        error: A sentence that says why there is no result; `None` where there is one.
        scan: The file as it was read.
        result: What the model says: of one slice a `Segmentation`, of several a `VolumeSegmentation`.
    """

    item: Item
    error: str | None = None
    scan: Scan | None = None
    result: Segmentation | VolumeSegmentation | None = None


@dataclass(frozen=True)
class Outputs:
    """What is written of each file.

    Args:
        threshold: Probability above which a pixel belongs to the mask.
        labels: Whether to write the numbers of the objects, and a table of them.
        probabilities: Bits of the probability map, 8 or 16; `None` for no map.
        geojson: Whether to write the objects of pictures as GeoJSON.
    """

    threshold: float = 0.5
    labels: bool = False
    probabilities: int | None = None
    geojson: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of files may end with, but for those of several labels."""
        masks = tuple(f"_mask{suffix}" for suffix in (".png", NIFTI_SUFFIX, ".dcm"))
        labels = ("_labels.tif", f"_labels{NIFTI_SUFFIX}", "_instances.csv") if self.labels else ()
        maps = ("_probabilities.png", f"_probabilities{NIFTI_SUFFIX}") if self.probabilities is not None else ()
        return (*masks, "_overlay.png", *labels, *maps, *([".geojson"] if self.geojson else []))


def segment_items(
    segment: SegmentImages,
    items: Sequence[Item],
    batch_size: int = BATCH_SIZE,
    segment_whole: SegmentScan | None = None,
    check: Callable[[Path], object] | None = None,
    check_slices: Callable[[Item, int], object] | None = None,
) -> Iterator[list[FileResult]]:
    """Segments files, a few at a time. One that cannot be used does not keep the others from it.

    Args:
        segment: Segments images, each with its caption.
        items: The files.
        batch_size: Largest number of images that are segmented together.
        segment_whole: Segments a volume at once, with a network of three dimensions; without it slice by slice.
        check: Raises `ValueError` for files that are not to be read, such as too large ones.
        check_slices: Raises `ValueError` for files with too many slices.

    Returns:
        Results in the order of the files, as soon as they are there. An empty list says that a long volume goes on.
    """
    batch: list[FileResult] = []
    pixels = 0
    for number, item in enumerate(items, 1):
        read = read_item(item, check, check_slices, keep_values=segment_whole is not None)
        if segment_whole is not None:
            yield [_segment_whole(segment_whole, read)]
            continue
        batch.append(read)
        pixels += read.scan.slices.size if read.scan else 0
        is_volume = read.scan is not None and len(read.scan) > 1
        if is_volume or len(batch) == batch_size or pixels > BATCH_PIXELS or number == len(items):
            yield _segment_images(segment, batch[:-1] if is_volume else batch)
            if read.scan is not None and is_volume:
                yield from _segment_slices(segment, item, read.scan)
            batch, pixels = [], 0


def time_results(batches: Iterable[list[FileResult]]) -> Iterator[tuple[FileResult, float]]:
    """What `segment_items` yields, one by one, each with its share of the seconds that its batch took."""
    started = time.perf_counter()
    for rows in batches:
        seconds = time.perf_counter() - started
        for row in rows:
            yield row, seconds / len(rows)
        if rows:
            started = time.perf_counter()


def read_item(
    item: Item,
    check: Callable[[Path], object] | None = None,
    check_slices: Callable[[Item, int], object] | None = None,
    keep_values: bool = False,
) -> FileResult:
    """A file as `read_scan` reads it, or the sentence that says why it cannot be used. The log has more."""
    if item.problem:
        return FileResult(item, item.problem)
    try:
        with item.open() as path:
            try:
                if check is not None:
                    check(path)
                scan = read_scan(item.series or path, keep_values, item.members)
                if check_slices is not None:
                    check_slices(item, len(scan))
                return FileResult(item, scan=scan)
            except Exception as error:  # of any library that reads files
                return FileResult(item, explain(error, item, path))
    except Exception as error:  # of a zip
        return FileResult(item, explain(error, item, item.path))


def explain(error: Exception, item: Item, path: Path | None = None) -> str:
    """A sentence that names the file as its user does."""
    logger.info(f"{item.name} cannot be used.", exc_info=error)
    sentence = as_sentence(error, extra="medical") or type(error).__name__
    if path is not None and str(path) != item.name:  # a file has another name here than its user gave it
        own = f"{re.escape(str(path))}|{re.escape(path.name)}"
        sentence = re.sub(own, lambda _: item.name, sentence)
    return show_name(sentence if item.name in sentence else f"{item.name}: {sentence}")


def _segment_images(segment: SegmentImages, batch: list[FileResult]) -> list[FileResult]:
    readable = [(row.scan.image(), row.item.text) for row in batch if row.scan]
    try:
        results = iter(segment(*zip(*readable)) if readable else [])
        return [FileResult(row.item, row.error, row.scan, next(results) if row.scan else None) for row in batch]
    except Exception as error:  # of one of them, such as a caption that may not be used, or too much memory for all
        if len(readable) == 1:
            return [FileResult(row.item, explain(error, row.item) if row.scan else row.error) for row in batch]
        return [result for row in batch for result in _segment_images(segment, [row])]


def _segment_whole(segment: SegmentScan, read: FileResult) -> FileResult:
    try:
        return replace(read, result=segment(read.scan, read.item.text)) if read.scan else read
    except Exception as error:  # such as a picture, or slices whose place is not known
        return FileResult(read.item, explain(error, read.item))


def _segment_slices(segment: SegmentImages, item: Item, scan: Scan) -> Iterator[list[FileResult]]:
    steps = segment_slices(segment, scan, item.text)
    try:
        while True:
            next(steps)
            yield []
    except StopIteration as end:
        yield [FileResult(item, None, scan, end.value)]
    except Exception as error:
        yield [FileResult(item, explain(error, item))]


def describe_result(row: FileResult, threshold: float) -> dict[str, Any]:
    """The report's entry of a file: what was asked, what was used, what was found and measured.

    Args:
        row: What became of the file.
        threshold: Probability above which a pixel belongs to the mask.
    """
    if row.scan is None or row.result is None:
        return {"image": row.item.name, "text": row.item.text or None, "error": row.error}
    result = row.result
    said = result.middle if isinstance(result, VolumeSegmentation) else result
    slices, height, width = row.scan.slices.shape[:3]
    out_of_scope = find_scope_problem(row.scan, said)
    caption_problem = find_caption_problem(said) if out_of_scope is None else None
    measures = (
        result.measure(threshold, row.scan)
        if isinstance(result, VolumeSegmentation)
        else measure_mask(result.mask(threshold), result.probabilities, row.scan.spacing)
    )
    return {
        "image": row.item.name,
        "text": said.text,
        "text_used": said.text_used,
        "reading": said.reading and asdict(said.reading),
        "written_captions": said.described and said.described["captions"],
        "consistency": said.check and asdict(said.check),
        "scope": said.scope and asdict(said.scope),
        "out_of_scope": out_of_scope,
        "labels": list(said.labels),
        "threshold": threshold,
        "slices": slices,
        "width": width,
        "height": height,
        "spacing_mm": row.scan.spacing,
        "slice_spacing_mm": row.scan.slice_spacing,
        "notes": [*row.scan.notes, *filter(None, [caption_problem])],
        **measures,
    }


def name_finding(result: Segmentation | VolumeSegmentation) -> str:
    """Names what a mask shows: the labels that are not the background."""
    said = result.middle if isinstance(result, VolumeSegmentation) else result
    return " and ".join(label for label in said.labels if label != BACKGROUND)


def save_mask(row: FileResult, threshold: float, folder: Path, name: str) -> list[str]:
    """Writes the masks of a file: as PNG of a picture or slice, and in the file's own format where that has masks.

    A volume whose slices have no place in a patient gets a NIfTI file whose slices are its own; one slice of a volume
    gets a PNG alone, since nothing is known of the others.

    Returns:
        Names of the files, the first in the format that suits the file best.
    """
    assert row.scan is not None and row.result is not None
    names = []
    writer = row.scan.mask_writer
    shape = row.scan.slices.shape[:3]
    if writer is not None and has_own_mask(row):
        masks = row.result.mask(threshold).reshape(shape)
        path = folder / f"{name}_mask{writer.suffix}"
        try:
            writer.save(masks, path, name_finding(row.result))
            names.append(path.name)
        except ValueError as error:  # a DICOM file that lacks what a Segmentation needs
            logger.info(f"{row.item.name}: {error}")
    if isinstance(row.result, VolumeSegmentation) and not names:
        masks = row.result.mask(threshold).astype(np.uint8)
        names.append(save_nifti(masks, row.scan, folder / f"{name}_mask{NIFTI_SUFFIX}"))
    if isinstance(row.result, Segmentation):
        masks_by_label = row.result.masks(threshold)
        for label, mask in masks_by_label.items():
            suffix = "_mask.png" if len(masks_by_label) == 1 else f"_{label}_mask.png"
            Image.fromarray(mask).convert("L").save(folder / f"{name}{suffix}")
            names.append(f"{name}{suffix}")
    return names


def has_own_mask(row: FileResult) -> bool:
    """Whether a file's format has masks, and all of its slices were segmented."""
    assert row.scan is not None
    return row.scan.mask_writer is not None and (isinstance(row.result, VolumeSegmentation) or len(row.scan) == 1)


def find_mask_problem(row: FileResult, names: Sequence[str]) -> str | None:
    """Says that a file has no mask in its own format, if so; `names` is what `save_mask` returned."""
    if not has_own_mask(row) or names[0].endswith(row.scan.mask_writer.suffix):  # type: ignore[union-attr]
        return None
    return "There is no DICOM Segmentation: the header lacks what one needs, such as UIDs or the place of frames."


def save_overlay(row: FileResult, threshold: float, folder: Path, name: str) -> str:
    """Writes the picture, or the volume's slice with the largest mask, with its mask; returns the file's name."""
    assert row.scan is not None and row.result is not None
    if isinstance(row.result, VolumeSegmentation):
        index = int(row.result.areas(threshold).argmax())
        overlay = draw_overlay(row.scan.image(index), row.result.mask(threshold, index))
    else:
        overlay = draw_overlay(row.result.image, row.result.mask(threshold))
    # In half the time of the usual level 6 or less, for files that are up to 7 % larger on average.
    overlay.save(folder / f"{name}_overlay.png", compress_level=3)
    return f"{name}_overlay.png"


def save_results(row: FileResult, outputs: Outputs, folder: Path, name: str) -> dict[str, Any]:
    """Writes all that was asked for of a file.

    Args:
        row: What became of the file, not an error.
        outputs: What to write.
        folder: Where to.
        name: What the names of the files begin with.

    Returns:
        The names of the files, by what they are, and the number of objects, `instances`.
    """
    assert row.scan is not None and row.result is not None
    threshold = outputs.threshold
    finding = name_finding(row.result)
    instances = label_instances(row.result.mask(threshold), finding)
    written: dict[str, Any] = {
        "masks": save_mask(row, threshold, folder, name),
        "overlay": save_overlay(row, threshold, folder, name),
        "instances": int(instances.max()),
    }
    if outputs.probabilities is not None:
        written["probabilities"] = save_probabilities(row, outputs.probabilities, folder, name)
    if outputs.labels or outputs.geojson:
        written |= save_instances(row, instances, finding, outputs, folder, name)
    return written


def save_instances(
    row: FileResult, instances: np.ndarray, finding: str, outputs: Outputs, folder: Path, name: str
) -> dict[str, str]:
    """Writes the objects of a file as a label map with a table, and as GeoJSON; returns the names of the files.

    Args:
        row, outputs, folder, name: As in `save_results`.
        instances: What `label_instances` returns.
        finding: What the objects are.
    """
    assert row.scan is not None and row.result is not None
    unit, spacing = choose_unit(finding, row.scan.known_spacing(instances.ndim))
    measured = measure_instances(instances, row.result.probabilities, spacing)
    written = {}
    if outputs.labels:
        written["label_map"] = save_labels(row, instances, folder, name)
        written["instance_table"] = f"{name}_instances.csv"
        rows = [_flatten(entry, unit) for entry in measured]
        table = write_table(rows, name_columns(rows) or ["id"])
        (folder / written["instance_table"]).write_text(table, encoding="utf-8", newline="")
    if outputs.geojson and instances.ndim == 2:
        from .geojson import GeoJsonFile  # only who has shapely

        written["geojson"] = f"{name}.geojson"
        with GeoJsonFile(folder / written["geojson"], finding, unit) as file:
            file.add(instances, measured)
    return written


def _flatten(entry: dict[str, Any], unit: str) -> dict[str, Any]:
    """An object as a row of a table."""
    place = dict(zip(("centroid_x", "centroid_y", "centroid_slice"), reversed(entry["centroid"])))
    return {**{name: value for name, value in entry.items() if name != "centroid"}, **place, "unit": unit}


def save_labels(row: FileResult, instances: np.ndarray, folder: Path, name: str) -> str:
    """Writes the numbers of objects in 16 bits, or in 32 where those are too few; returns the file's name.

    A picture gets a TIFF file, a volume and what was a NIfTI file gets NIfTI.
    """
    assert row.scan is not None
    values = instances.astype(np.uint16 if instances.max() < 2**16 else np.uint32)
    if _is_nifti(row):
        return save_nifti(values.reshape(row.scan.slices.shape[:3]), row.scan, folder / f"{name}_labels{NIFTI_SUFFIX}")
    import tifffile

    tifffile.imwrite(folder / f"{name}_labels.tif", values, compression="zlib")
    return f"{name}_labels.tif"


def save_probabilities(row: FileResult, bits: int, folder: Path, name: str) -> str:
    """Writes the probability of foreground in 8 or 16 bits; returns the file's name.

    A picture gets a PNG file in which the largest number of that many bits is 1. A volume and what was a NIfTI file
    gets NIfTI, with the slope that makes probabilities of the numbers.
    """
    assert row.scan is not None and row.result is not None
    probabilities = row.result.probabilities
    dtype = np.dtype(f"uint{bits}")
    if _is_nifti(row):
        values = probabilities.reshape(row.scan.slices.shape[:3])
        return save_nifti(values, row.scan, folder / f"{name}_probabilities{NIFTI_SUFFIX}", dtype)
    values = np.rint(probabilities * np.iinfo(dtype).max).astype(dtype)
    Image.fromarray(values).save(folder / f"{name}_probabilities.png")
    return f"{name}_probabilities.png"


def _is_nifti(row: FileResult) -> bool:
    """Whether numbers of a file's pixels are written as NIfTI."""
    assert row.scan is not None
    writer = row.scan.mask_writer
    return isinstance(row.result, VolumeSegmentation) or (writer is not None and writer.suffix == NIFTI_SUFFIX)


def save_nifti(values: np.ndarray, scan: Scan, path: Path, dtype: np.dtype | None = None) -> str:
    """Writes numbers of shape `(slices, height, width)` as a NIfTI file, in the place of the slices.

    Slices whose place is not known lie in it as if they were axial.

    Args:
        values: The numbers.
        scan: What they are of.
        path: Where to write them.
        dtype: How they are stored; floats in integers get a slope. By default as they are.

    Returns:
        The file's name.

    Raises:
        ValueError: If there are too many in a row for a NIfTI file.
    """
    import nibabel  # only who has volumes needs it

    from ..io.nifti import NiftiMaskWriter

    writer = scan.mask_writer
    if isinstance(writer, NiftiMaskWriter):
        writer.save_values(values, path, dtype)
        return path.name
    affine = None if writer is None else writer.slices_affine
    if affine is None:
        rows, columns = scan.spacing or (1.0, 1.0)
        values, affine = values.T, np.diag([-columns, -rows, scan.slice_spacing or 1.0, 1.0])
    if max(values.shape) > LONGEST_NIFTI_SIDE:
        raise ValueError(
            f"The mask has {max(values.shape):,} pixels along an axis, more than the {LONGEST_NIFTI_SIDE:,} of a "
            "NIfTI file. Cut the image into parts."
        )
    nibabel.save(nibabel.Nifti1Image(values, affine, dtype=dtype or values.dtype), path)
    return path.name
