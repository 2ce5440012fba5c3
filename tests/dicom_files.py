"""Small DICOM files of one's own for tests."""

import io
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lvit_hf.io.readers import group_images, list_files


AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)


def make_dicom(pixels: np.ndarray, position=(0, 0, 0), orientation=AXIAL, series="1.2.3", **elements) -> Dataset:
    """A CT file of one frame, grey or RGB; an element that is `None` is left out, one of bytes is written as it is."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", series, "1.2.9"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.25], 5
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if isinstance(value, bytes) and name != "PixelData":
            tag = Tag(name)
            dataset._dict[tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True)
        elif value is not None:
            setattr(dataset, name, value)
        elif name in dataset:
            delattr(dataset, name)
    return dataset


def content_of(dataset: Dataset) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def save_dicom(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content_of(dataset))
    return path


def list_groups(folder: Path) -> list[tuple[Path, ...]]:
    """The images and series in a folder."""
    return group_images({path: partial(path.open, "rb") for path in list_files(folder)})


def save_zip(files: dict[str, Dataset | bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in files.items():
            archive.writestr(name, file if isinstance(file, bytes) else content_of(file))
    return path
