"""DICOM files and series: slices as a viewer shows them, and masks as DICOM Segmentations that point to them."""

import importlib.metadata
import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import highdicom
import numpy as np
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)
from pydicom.valuerep import DS

from .dicom_pixels import (
    FRAME_GROUPS,
    PIXEL_ELEMENTS,
    Pixels,
    decode,
    find_mask,
    frame_items,
    has_element,
    is_lossy,
    items,
    measure,
    read_numbers,
    read_pixels,
    read_text,
    render,
)
from .errors import FileError, file_errors
from .kinds import has_preamble, is_dicom
from .scan import Scan, can_be_distance, check_size, describe_left_out


# Identifiers of the objects, without which a mask could not point to its image, and the size of the frames.
KEPT_ELEMENTS = (
    "Modality",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
)
TABLE_OF_CONTENTS = "is a table of contents"
SIZES = {"Rows": 0, "Columns": 0, "NumberOfFrames": 1, "SamplesPerPixel": 1}
COUNTS = ("Rows", "Columns", "NumberOfFrames")
# Where the pixels lie: so many numbers each.
KEPT_NUMBERS = {
    "PixelSpacing": 2,
    "SliceThickness": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "SpacingBetweenSlices": 1,
}
KEPT_FRAME_GROUPS = ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence")
# Largest difference between the gaps of a regular stack, as a share of one: positions are rounded in files.
GAP_TOLERANCE = 0.02
# Slices are at one place if they are not farther apart, in mm.
PLACE_TOLERANCE = 0.01
# Largest difference between the directions of parallel slices, about one degree.
DIRECTION_TOLERANCE = 0.02
# Farthest that a frame of a Segmentation lies from the slice it belongs to, in mm.
LARGEST_SHIFT = 0.5
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# A Segmentation must have them, if only empty.
EMPTY_ELEMENTS = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
MAX_INFLATED_BYTES = 2 * 1024**3

# What all slices of a stack have in common, and why one that differs is none of them.
BELONGINGS = {
    "SeriesInstanceUID": "another series",
    "StudyInstanceUID": "another study",
    "FrameOfReferenceUID": "another frame of reference",
}
SPACING_TOLERANCE = 1e-3  # as a share of it

# Findings that are no lesions.
PARTS_OF_BODIES = {"hippocampus": codes.SCT.Hippocampus, "nuclei": codes.SCT.Nucleus}


@dataclass(frozen=True)
class DicomMaskWriter:
    """Writes masks as a DICOM Segmentation.

    Args:
        headers: Of the files that were segmented, in the order of the slices, without anything about the patient. One
            header of a file with several frames.
        places: Where the slices lie; `None` where the file does not say it.
        frames: Number of frames of that file, and which of them the slices are; `None` for files of one frame.
    """

    headers: list[Dataset]
    places: list["Place | None"]
    frames: tuple[int, list[int]] | None = None
    suffix: str = ".dcm"

    @property
    def slices_affine(self) -> np.ndarray | None:
        """See `MaskWriter`. Slices of several gaps have none, and a gantry's tilt is in it."""
        places = [place for place in self.places if place is not None]
        spacing = _pixel_spacing(self.headers[0])
        if spacing is None or _find_gap(self.places)[0] is None:
            return None
        positions, (rows, columns) = [place.position for place in places], places[0].directions.reshape(2, 3)
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
        axes = np.stack([step, columns * spacing[0], rows * spacing[1], positions[0]], axis=1)
        to_ras = np.array([[-1.0], [-1], [1]])  # DICOM's axes grow to the left and to the back
        return np.vstack([axes * to_ras, [0, 0, 0, 1]])

    def save(self, masks: np.ndarray, path: Path, finding: str):
        """See `MaskWriter`. What is no known part of a body is a lesion.

        Raises:
            ValueError: If the files lack what a Segmentation needs, such as the place of several frames.
        """
        if self.frames is not None:
            in_file = np.zeros((self.frames[0], *masks.shape[1:]), bool)
            in_file[self.frames[1]] = masks
            masks = in_file
        version = importlib.metadata.version("lvit_hf")
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name="LViT", family=codes.DCM.ArtificialIntelligence, version=version
        )
        part = PARTS_OF_BODIES.get(finding)
        abnormal, normal = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.AnatomicalStructure
        segment = SegmentDescription(
            segment_number=1,
            segment_label=finding,
            segmented_property_category=abnormal if part is None else normal,
            segmented_property_type=part or codes.SCT.Lesion,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        try:
            segmentation = Segmentation(
                source_images=self.headers,
                pixel_array=masks,
                segmentation_type="BINARY",
                segment_descriptions=[segment],
                series_instance_uid=highdicom.UID(),
                series_number=1,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="lvit_hf",
                manufacturer_model_name="LViT",
                software_versions=version,
                device_serial_number="0",
                content_label="LVIT",
                omit_empty_frames=bool(masks.any()),
            )
        except Exception as error:  # elements that a Segmentation copies, such as the place of frames
            raise ValueError(f"The DICOM header does not allow a Segmentation: {error}.") from error
        segmentation.save_as(path)


def read_dicom(path: Path, keep_values: bool = False) -> Scan:
    """Reads a DICOM file of one frame or several: rescaled, windowed as it says, white never black, no patient.

    Args:
        path: The file.
        keep_values: As in `read_series`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no DICOM file, is broken, or has no pixels; the message says why.
    """
    return read_series([(path.name, lambda: path.open("rb"))], path.name, keep_values)


def read_series(files: Iterable[tuple[str, Callable[[], BinaryIO]]], name: str, keep_values: bool = False) -> Scan:
    """Reads the files of a DICOM series, in any order, and what lies beside it.

    Of several series, directions or sizes the one with the most slices is taken. Slices are ordered by where they lie
    along the normal of their direction. What is left out is named in the scan's notes.

    Args:
        files: The name of each file, for messages, and what opens it.
        name: What they are together, for messages.
        keep_values: Whether the scan has the rescaled values of grey slices too.

    Raises:
        ValueError: If there is no image, or there are slices without a place, or several at one place.
    """
    return _make_scan(*_read_stack(files, name), keep_values)


def read_series_mask(files: Iterable[tuple[str, Callable[[], BinaryIO]]], name: str) -> tuple[np.ndarray, str]:
    """The foreground of a series of masks, as `read_series` orders it, and what was taken for it."""
    frames, pixels, _ = _read_stack(files, name)
    values = np.stack([pixels[frame.part.name].stored[frame.number] for frame in frames])
    return find_mask(values, any(part.lossy for part in pixels.values()))


def _read_stack(
    files: Iterable[tuple[str, Callable[[], BinaryIO]]], name: str
) -> tuple[list["Frame"], dict[str, Pixels], list[tuple[str, str]]]:
    """The frames in their order, the pixels of their files by name, and what was left out with the reason."""
    parts, left_out = _read_headers(list(files))
    stack = _choose_stack(parts, left_out, name)
    check_size(name, (len(stack), *stack[0].part.size[:2]))
    frames = _order(stack, left_out, name)
    pixels = _decode_parts(list({frame.part.name: frame.part for frame in frames}.values()), left_out, name)
    return [frame for frame in frames if frame.part.name in pixels], pixels, left_out


def read_dicom_mask(path: Path, scan: Scan | None = None) -> tuple[np.ndarray, str]:
    """The foreground of a DICOM Segmentation, or of an image with labels, and what was taken for it.

    Args:
        path: The file.
        scan: What was segmented, if it is known. Frames of a Segmentation lie where its slices lie.

    Returns:
        Booleans of shape `(slices, height, width)`. Without a scan, a Segmentation has the slices it has frames of.
    """
    [part], _ = _read_headers([(path.name, lambda: path.open("rb"))])
    with file_errors(path.name, "is a DICOM file that cannot be read"), _quiet():
        dataset = _read_content(part.name, part.open, [])
        values = decode(dataset, path.name)
        if read_text(dataset, "SOPClassUID") not in SEGMENTATIONS:
            return find_mask(values, is_lossy(dataset))
        highest = (read_numbers(dataset, "MaximumFractionalValue", 1) or (255.0,))[0]
        fractions = read_text(dataset, "SegmentationType") == "FRACTIONAL"
        return _join_segments(values > (highest / 2 if fractions else 0), part, scan), "all segments"


@dataclass(frozen=True)
class Place:
    """Where a frame lies in the patient: its first pixel in mm, and the directions of its rows and columns."""

    position: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class Part:
    """A file as its header describes it.

    Args:
        name: For messages.
        open: Opens it.
        header: Its elements that a mask needs.
        size: `(height, width)` or `(height, width, colours)`.
        places: Of each frame; `None` where the file does not say it.
        notes: What was not believed.
    """

    name: str
    open: Callable[[], BinaryIO]
    header: Dataset
    size: tuple[int, ...]
    places: list[Place | None]
    notes: list[str]


@dataclass(frozen=True)
class Frame:
    part: Part
    number: int

    @property
    def place(self) -> Place | None:
        return self.part.places[self.number]


def _quiet() -> warnings.catch_warnings:
    """Without warnings about oddities of headers that do not matter here."""
    return warnings.catch_warnings(action="ignore")


def _read_headers(files: list[tuple[str, Callable[[], BinaryIO]]]) -> tuple[list[Part], list[tuple[str, str]]]:
    """What the files are; and the names of those that are no image, with the reason."""
    parts, left_out = [], []
    for name, open_file in files:
        try:
            with file_errors(name, "is a DICOM file that cannot be read"), _quiet():
                part = _read_part(name, open_file)
        except FileError as error:
            if len(files) == 1:
                raise
            left_out.append((name, _reason(error, name)))
            continue
        if isinstance(part, Part):
            parts.append(part)
        elif len(files) == 1:
            raise FileError(f"{name} {part}.")
        elif part != TABLE_OF_CONTENTS:
            left_out.append((name, part))
    return parts, left_out


def _reason(error: FileError, name: str) -> str:
    """What an error says of a file, to be said of several."""
    return str(error).removeprefix(f"{name} ").rstrip(".")


def _read_part(name: str, open_file: Callable[[], BinaryIO]) -> Part | str:
    """What a file is, or why it is no image."""
    notes: list[str] = []
    dataset = _read_content(name, open_file, notes)
    directory = read_text(dataset.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
    if directory or os.path.basename(name).casefold() == "dicomdir":
        return TABLE_OF_CONTENTS
    if not any(element in dataset for element in PIXEL_ELEMENTS):
        return "is a DICOM file without an image"
    rows, columns, frames, samples = (
        int((read_numbers(dataset, keyword, 1) or (default,))[0]) for keyword, default in SIZES.items()
    )
    check_size(name, (frames, rows, columns))
    size = (rows, columns, 3) if samples == 3 else (rows, columns)
    header = _strip(dataset, notes)
    return Part(name, open_file, header, size, _read_places(dataset, frames), notes)


def _read_content(name: str, open_file: Callable[[], BinaryIO], notes: list[str]) -> Dataset:
    with open_file() as file:
        content = file.read()
    if not is_dicom(content[:132]):
        raise FileError(f"{name} is not a DICOM file.")
    _check_deflated(name, content)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if not read_text(dataset.file_meta, "TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    if "NumberOfFrames" in dataset and (read_numbers(dataset, "NumberOfFrames", 1) or (0,))[0] < 1:
        if has_element(dataset, "NumberOfFrames"):
            notes.append("The file's NumberOfFrames cannot be and is not used: it is read as one frame.")
        del dataset.NumberOfFrames  # pydicom's decoders look at it too
    return dataset


def _check_deflated(name: str, content: bytes):
    """Refuses a deflated file that would not fit into memory."""
    if not has_preamble(content) or DeflatedExplicitVRLittleEndian.encode() not in content[:2048]:
        return
    start = 144 + int.from_bytes(content[140:144], "little")  # behind the group of the file's own elements
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(content[start:], MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise FileError(f"{name} would have more than {MAX_INFLATED_BYTES >> 30} GB unpacked.")


def _strip(dataset: Dataset, notes: list[str]) -> Dataset:
    """The header's elements that a mask needs and that can be, and no other."""
    kept = Dataset()
    kept.file_meta = dataset.file_meta
    for element in KEPT_ELEMENTS:
        if text := read_text(dataset, element):
            setattr(kept, element, int(float(text)) if element in COUNTS else text)
    for element, count in KEPT_NUMBERS.items():
        numbers = read_numbers(dataset, element, count)
        if numbers is not None and _can_be(element, numbers):
            setattr(kept, element, [DS(number, auto_format=True) for number in numbers] if count > 1 else numbers[0])
        elif has_element(dataset, element):
            notes.append(f"The file's {element} cannot be and is not used.")
    for sequence in FRAME_GROUPS:
        if groups := [_strip_group(group) for group in items(dataset, sequence)]:
            setattr(kept, sequence, groups)
    _share_directions(kept)
    for element in EMPTY_ELEMENTS:
        setattr(kept, element, "")
    return kept


def _can_be(element: str, numbers: tuple[float, ...]) -> bool:
    """Whether numbers can be distances, or the directions of rows and columns."""
    if element == "ImageOrientationPatient":
        rows, columns = np.reshape(numbers, (2, 3))
        lengths = np.linalg.norm([rows, columns], axis=1)
        return bool(np.abs(lengths - 1).max() < DIRECTION_TOLERANCE and abs(rows @ columns) < DIRECTION_TOLERANCE)
    return element == "ImagePositionPatient" or all(map(can_be_distance, numbers))


def _strip_group(group: Dataset) -> Dataset:
    kept = Dataset()
    for sequence in KEPT_FRAME_GROUPS:
        if found := items(group, sequence):
            setattr(kept, sequence, found)
    return kept


def _share_directions(header: Dataset):
    """Moves what frames have in common to where a Segmentation looks for it."""
    shared, own = (items(header, sequence) for sequence in FRAME_GROUPS)
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        found = [items(group, name) for group in own]
        if shared and found and found[0] and name not in shared[0] and all(each == found[0] for each in found):
            setattr(shared[0], name, found[0])


def _read_places(dataset: Dataset, frames: int) -> list[Place | None]:
    """Where each frame lies."""
    offsets = read_numbers(dataset, "GridFrameOffsetVector", frames) if frames > 1 else None
    places: list[Place | None] = []
    for frame in range(frames):
        position = _find(dataset, "PlanePositionSequence", "ImagePositionPatient", frame)
        directions = _find(dataset, "PlaneOrientationSequence", "ImageOrientationPatient", frame)
        if position is None or directions is None:
            return [None] * frames
        if frames > 1 and not frame_items(dataset, "PlanePositionSequence", frame):
            if offsets is None:
                return [None] * frames  # one place for all
            normal = np.cross(*np.reshape(directions, (2, 3)))
            position = tuple(position + normal * (offsets[frame] - offsets[0]))
        places.append(Place(np.array(position), np.array(directions)))
    return places


def _find(dataset: Dataset, sequence: str, element: str, frame: int = 0) -> tuple[float, ...] | None:
    """The numbers of an element, if they can be: of a frame, or else of all."""
    for place in (*frame_items(dataset, sequence, frame), dataset):
        numbers = read_numbers(place, element, KEPT_NUMBERS[element])
        if numbers is not None and _can_be(element, numbers):
            return numbers
    return None


def _choose_stack(parts: list[Part], left_out: list[tuple[str, str]], name: str) -> list[Frame]:
    """The frames that lie in one direction, are of one size and of one series: the most that there are."""
    stacks: list[list[Frame]] = []
    for part in parts:
        for frame in (Frame(part, number) for number in range(len(part.places))):
            stack = next((stack for stack in stacks if _belongs(frame, stack[0])), None)
            if stack is None:
                stacks.append(stack := [])
            stack.append(frame)
    if not stacks:
        why = f": {' '.join(left_out[0])}" if left_out else ""
        raise FileError(f"{name} has no DICOM image in it{why}.")
    chosen = max(stacks, key=lambda stack: (len(stack), np.prod(stack[0].part.size)))
    first = chosen[0]
    for stack in stacks:
        if stack is chosen:
            continue
        reason = _compare(stack[0], first)
        if reason is None:
            raise FileError(
                f"The DICOM files of {name} do not say where their slices lie (ImagePositionPatient), so they are no "
                "volume. Give one of them."
            )
        others = dict.fromkeys(frame.part.name for frame in stack if frame.part is not first.part)
        left_out += [(other, reason) for other in others]
        if any(frame.part is first.part for frame in stack):
            left_out.append((f"{len(stack)} frames of {first.part.name}", reason))
    return chosen


def _belongs(frame: Frame, first: Frame) -> bool:
    """Whether a frame is of the stack of another one: files are of one only if they say where they lie."""
    return (frame.place is not None or frame.part is first.part) and _compare(frame, first) is None


def _compare(frame: Frame, first: Frame) -> str | None:
    """Why a frame is of no stack with another one."""
    for element, reason in BELONGINGS.items():
        if read_text(frame.part.header, element) != read_text(first.part.header, element):
            return reason
    if frame.part.size != first.part.size:
        return "another size"
    if frame.part is not first.part and len(frame.part.places) + len(first.part.places) > 2:
        return "a stack of its own"
    if frame.place is None or first.place is None:
        return None if frame.place is first.place else "no place"
    if np.abs(frame.place.directions - first.place.directions).max() > DIRECTION_TOLERANCE:
        return "another direction"
    spacing, other = _pixel_spacing(frame.part.header), _pixel_spacing(first.part.header)
    if spacing is not None and other is not None and not np.allclose(spacing, other, rtol=SPACING_TOLERANCE):
        return "another spacing"
    return None


def _order(stack: list[Frame], left_out: list[tuple[str, str]], name: str) -> list[Frame]:
    """The frames from one end of the stack to the other."""
    depths = _depths([frame.place for frame in stack])
    if depths is None:  # frames of one file
        return stack
    ordered: list[Frame] = []
    last = -np.inf
    for index in np.argsort(depths, kind="stable"):
        frame = stack[index]
        if depths[index] - last > PLACE_TOLERANCE:
            ordered.append(frame)
            last = depths[index]
        elif _is_copy(frame.part, ordered[-1].part):
            left_out.append((frame.part.name, f"a copy of {ordered[-1].part.name}"))
        else:
            what = "DICOM files of the series" if frame.part is not ordered[-1].part else f"frames of {name}"
            raise FileError(f"Several {what} are of the same slice; keep one of each.")
    return ordered


def _is_copy(part: Part, other: Part) -> bool:
    if part is other:  # frames of one file
        return False
    with part.open() as file, other.open() as other_file:
        return file.read() == other_file.read()


def _depths(places: Sequence[Place | None]) -> np.ndarray | None:
    """Where slices lie along the normal of the first one, in mm, if it is known of all."""
    known = [place for place in places if place is not None]
    if len(known) < len(places) or not known:
        return None
    return np.array([place.position for place in known]) @ np.cross(*known[0].directions.reshape(2, 3))


def _decode_parts(parts: list[Part], left_out: list[tuple[str, str]], name: str) -> dict[str, Pixels]:
    """The pixels of the files by their names; those that cannot be read are left out."""
    decoded: dict[str, Pixels] = {}
    for part in parts:
        try:
            with file_errors(part.name, "is a DICOM file that cannot be read"), _quiet():
                dataset = _read_content(part.name, part.open, [])
                pixels = read_pixels(dataset, part.name)
                pixels.lossy = is_lossy(dataset)
                if pixels.stored.shape[:3] != (len(part.places), *part.size[:2]):
                    raise FileError(f"{part.name} is a DICOM file that cannot be read: its pixels have another size.")
        except FileError as error:
            if len(parts) == 1:
                raise
            left_out.append((part.name, _reason(error, part.name)))
        else:
            decoded[part.name] = pixels
    if not decoded:
        raise FileError(f"{name} has no slice that can be read: {' '.join(left_out[-1])}.")
    return decoded


def _make_scan(
    frames: list[Frame], pixels: dict[str, Pixels], left_out: list[tuple[str, str]], keep_values: bool
) -> Scan:
    parts = list({frame.part.name: frame.part for frame in frames}.values())
    files = [pixels[part.name] for part in parts]
    slices, notes = render(files)
    values = np.concatenate([measure(file) for file in files]) if keep_values and slices.ndim == 3 else None
    order = None
    if (count := len(parts[0].places)) > 1:  # the frames of one file, which may lie in another order
        numbers = [frame.number for frame in frames]
        slices, order = slices[numbers], (count, numbers)
        values = None if values is None else values[numbers]
    headers = [part.header for part in parts]
    spacing = next(filter(None, map(_pixel_spacing, headers)), None)
    between, gap_notes = _slice_spacing(frames)
    _complete_headers(headers, spacing, between)
    writer = DicomMaskWriter(headers, [frame.place for frame in frames], order)
    header_notes = dict.fromkeys(note for part in parts for note in part.notes)
    notes = [*header_notes, *notes, *gap_notes, *describe_left_out(left_out)]
    modality = read_text(headers[0], "Modality") or None
    return Scan(slices, spacing, between, writer, tuple(notes), modality, values)


def _complete_headers(headers: list[Dataset], spacing: tuple[float, float] | None, between: float | None):
    """What a Segmentation must have and anonymisers take out: a thickness, and a name for the space."""
    space = generate_uid(entropy_srcs=[read_text(headers[0], "SeriesInstanceUID")])
    for header in headers:
        if spacing is not None and FRAME_GROUPS[0] not in header:
            header.PixelSpacing = list(spacing)
            if "SliceThickness" not in header:
                header.SliceThickness = between or min(spacing)
        if "ImagePositionPatient" in header and "FrameOfReferenceUID" not in header:
            header.FrameOfReferenceUID = space


def _slice_spacing(frames: list[Frame]) -> tuple[float | None, list[str]]:
    """The distance between the slices' centres, if there are several and it is the same everywhere."""
    places = [frame.place for frame in frames]
    said = _find(frames[0].part.header, "PixelMeasuresSequence", "SpacingBetweenSlices")
    return (said[0], []) if said and len(frames) > 1 and None in places else _find_gap(places)


def _find_gap(places: Sequence[Place | None]) -> tuple[float | None, list[str]]:
    depths = _depths(places)
    if depths is None or len(places) == 1:
        return None, []
    gaps = np.abs(np.diff(depths))
    if gaps.min() == 0 or np.ptp(gaps) > GAP_TOLERANCE * gaps.mean():
        return None, [f"The slices lie {gaps.min():.3g} to {gaps.max():.3g} mm apart: some may be missing."]
    return float(gaps.mean()), []


def _pixel_spacing(header: Dataset) -> tuple[float, float] | None:
    """In the patient. (A radiograph's ImagerPixelSpacing is at the detector, where the shadow is larger.)"""
    found = _find(header, "PixelMeasuresSequence", "PixelSpacing")
    return (found[0], found[1]) if found else None


def _join_segments(foreground: np.ndarray, part: Part, scan: Scan | None) -> np.ndarray:
    """One mask for each place, of all segments there."""
    depths = _depths(part.places)
    if depths is None:
        return foreground
    writer = scan.mask_writer if scan is not None else None
    targets = _depths(writer.places) if isinstance(writer, DicomMaskWriter) else None
    if targets is None:
        targets = np.sort(depths)
        targets = targets[np.diff(targets, prepend=-np.inf) > PLACE_TOLERANCE]
    masks = np.zeros((len(targets), *foreground.shape[1:]), bool)
    for frame, depth in zip(foreground, depths):
        nearest = int(np.abs(targets - depth).argmin())
        if abs(targets[nearest] - depth) > LARGEST_SHIFT:
            raise FileError(f"{part.name} has frames where the scan has no slice: it belongs to another one.")
        masks[nearest] |= frame
    return masks
