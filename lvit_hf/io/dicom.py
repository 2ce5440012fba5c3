"""DICOM files and series: frames as a viewer shows them, and masks as DICOM Segmentations that point to them."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import highdicom
import numpy as np
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes

from .scan import Scan, check_size, window_volume


# Where the pixels lie, and the identifiers of the objects, without which a mask could not point to its image.
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
    "PixelSpacing",
    "SliceThickness",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
KEPT_FRAME_GROUPS = ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence")
FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# Largest difference between the gaps of a regular stack, as a share of one: positions are rounded in files.
GAP_TOLERANCE = 0.02
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

# What pydicom and highdicom raise, depending on what is wrong with a file.
BROKEN_FILE_ERRORS = (
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class DicomMaskWriter:
    """Writes masks as a DICOM Segmentation.

    Args:
        headers: Of the files that were segmented, in the order of the slices, without anything about the patient.
    """

    headers: list[Dataset]
    suffix: str = ".dcm"

    def save(self, masks: np.ndarray, path: Path):
        """See `MaskWriter`.

        Raises:
            ValueError: If the files lack what a Segmentation needs, such as the place of several frames.
        """
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name="LViT", family=codes.DCM.ArtificialIntelligence, version="1"
        )
        segment = SegmentDescription(
            segment_number=1,
            segment_label="foreground",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
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
                software_versions="1",
                device_serial_number="0",
                content_label="LVIT",
                omit_empty_frames=bool(masks.any()),
            )
        except BROKEN_FILE_ERRORS as error:  # elements that a Segmentation copies, such as the place of frames
            raise ValueError(f"The DICOM header does not allow a Segmentation: {error}.")
        segmentation.save_as(path)


def read_dicom(path: Path) -> Scan:
    """Reads a DICOM file of one frame or several: rescaled, windowed as it says, never inverted, without the patient.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no DICOM file, is broken, or has no pixels.
    """
    with path.open("rb") as file:
        dataset, slices = _read_file(file, path.name)
    return _make_scan([dataset], slices)


def read_series(files: Iterable[tuple[str, BinaryIO]]) -> Scan:
    """Reads the files of a DICOM series, in any order, one at a time.

    Args:
        files: The name of each file, for messages, and its content.

    Raises:
        ValueError: If one cannot be read, or they are no single stack of slices of one size.
    """
    datasets: list[Dataset] = []
    slices: list[np.ndarray] = []
    for name, file in files:
        dataset, frames = _read_file(file, name)
        datasets.append(dataset)
        slices.append(frames)
        _check_series(datasets, slices)
    if len(datasets) == 1:
        return _make_scan(datasets, slices[0])
    order = _order_of_slices(datasets)
    volume = np.concatenate([slices[index] for index in order])
    return _make_scan([datasets[index] for index in order], volume)


def _check_series(datasets: list[Dataset], slices: list[np.ndarray]):
    """Refuses the last file where it does not belong to those before it."""
    if datasets[-1].get("SeriesInstanceUID") != datasets[0].get("SeriesInstanceUID"):
        raise ValueError("The DICOM files are of several series; put each series into a zip of its own.")
    if len(slices) > 1 and (slices[-1].shape != slices[0].shape or len(slices[0]) > 1):
        raise ValueError("The DICOM files of a series must each be one frame, and all of one size.")
    check_size("The series", (len(slices) * len(slices[0]), *slices[0].shape[1:3]))


def _read_file(file: BinaryIO, name: str) -> tuple[Dataset, np.ndarray]:
    """The header without the patient, and the frames as `_read_frames` returns them."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about oddities of headers that do not matter here
            dataset = pydicom.dcmread(file)
            if "PixelData" not in dataset:
                raise ValueError(f"{name} is a DICOM file without an image.")
            frames = int(dataset.get("NumberOfFrames") or 1)
            check_size(name, (frames, int(dataset.Rows), int(dataset.Columns)))
            return _strip(dataset), _read_frames(dataset)
    except InvalidDicomError:
        raise ValueError(f"{name} is not a DICOM file.")
    except BROKEN_FILE_ERRORS as error:
        sentence = str(error)
        if name in sentence:
            raise
        raise ValueError(f"{name} is a DICOM file that cannot be read: {sentence.splitlines()[0]}")


def _read_frames(dataset: Dataset) -> np.ndarray:
    """Frames of a file, grey or RGB, transformed as it says; white is never the least value.

    They are 8-bit pixels, or 32-bit floats where the file does not say which values are black and white.
    """
    image = highdicom.Image.from_dataset(dataset, copy=False)
    has_window = _has_window(dataset)
    frames = image.get_frames(
        dtype=np.float32,
        apply_voi_transform=has_window,
        voi_output_range=(0.0, 255.0),
        apply_icc_profile=False,
    )
    if has_window:
        return np.rint(frames).astype(np.uint8)
    if frames.ndim == 4:
        return np.rint(frames * (255 / (2 ** _color_bits(dataset) - 1))).astype(np.uint8)
    if dataset.BitsStored <= 8 and not dataset.PixelRepresentation:
        return frames.clip(0, 255).astype(np.uint8)
    return frames


def _color_bits(dataset: Dataset) -> int:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return int(dataset.RedPaletteColorLookupTableDescriptor[2])
    return int(dataset.BitsStored)


def _has_window(dataset: Dataset) -> bool:
    if dataset.get("SamplesPerPixel", 1) > 1 or dataset.PhotometricInterpretation == "PALETTE COLOR":
        return False
    groups = [group for sequence in FRAME_GROUPS for group in dataset.get(sequence, ())[:1]]
    places = [dataset, *(part for group in groups for part in group.get("FrameVOILUTSequence", ()))]
    return any(place.get(element) for place in places for element in ("WindowCenter", "VOILUTSequence"))


def _strip(dataset: Dataset) -> Dataset:
    """The header's elements that a mask needs, and no other."""
    kept = Dataset()
    kept.file_meta = dataset.file_meta
    for element in KEPT_ELEMENTS:
        if element in dataset:
            kept[element] = dataset[element]
    for sequence in FRAME_GROUPS:
        if sequence in dataset:
            setattr(kept, sequence, [_strip_group(group) for group in dataset.get(sequence)])
    for element in EMPTY_ELEMENTS:
        setattr(kept, element, "")
    return kept


def _strip_group(group: Dataset) -> Dataset:
    kept = Dataset()
    for sequence in KEPT_FRAME_GROUPS:
        if sequence in group:
            kept[sequence] = group[sequence]
    return kept


def _order_of_slices(headers: Sequence[Dataset]) -> list[int]:
    """Positions of the files from one end of the stack to the other."""
    depths = _depths(headers, headers[0])
    if depths is None:
        raise ValueError(
            "The DICOM files do not say where their slices lie (ImagePositionPatient), so they are no volume."
        )
    if len(np.unique(depths.round(3))) < len(depths):
        raise ValueError("Several DICOM files of the series are of the same slice; keep one of each.")
    return np.argsort(depths).tolist()


def _depths(places: Sequence[Dataset], orientation: Dataset) -> np.ndarray | None:
    """Where slices lie along the normal of the first one, in mm, if the elements say it."""
    try:
        positions = np.array([place.ImagePositionPatient for place in places], float)
        rows, columns = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
    except (AttributeError, TypeError, ValueError):
        return None
    return positions @ np.cross(rows, columns)


def _make_scan(headers: list[Dataset], frames: np.ndarray) -> Scan:
    slices = frames if frames.dtype == np.uint8 else window_volume(frames)
    modality = headers[0].get("Modality")
    return Scan(slices, _pixel_spacing(headers[0]), _slice_spacing(headers), DicomMaskWriter(headers), modality)


def _slice_spacing(headers: list[Dataset]) -> float | None:
    """The distance between the slices' centres, if there are several and it is the same everywhere."""
    if len(headers) > 1:
        depths = _depths(headers, headers[0])
    else:
        positions = _frame_groups(headers[0], "PlanePositionSequence")
        orientations = _frame_groups(headers[0], "PlaneOrientationSequence")
        depths = _depths(positions, orientations[0]) if len(positions) > 1 and orientations else None
    if depths is None:
        return None
    gaps = np.abs(np.diff(depths))
    if gaps.min() == 0 or np.ptp(gaps) > GAP_TOLERANCE * gaps.mean():
        return None
    return float(gaps.mean())


def _frame_groups(header: Dataset, name: str) -> list[Dataset]:
    """What the shared group of a file's frames, and that of each frame, say in a sequence."""
    groups = [group for sequence in FRAME_GROUPS for group in header.get(sequence, ())]
    return [part for group in groups for part in group.get(name, ())]


def _pixel_spacing(header: Dataset) -> tuple[float, float] | None:
    """In the patient. (A radiograph's ImagerPixelSpacing is at the detector, where the shadow is larger.)"""
    for place in [header, *_frame_groups(header, "PixelMeasuresSequence")]:
        if place.get("PixelSpacing"):
            rows, columns = place.PixelSpacing
            return float(rows), float(columns)
    return None
