"""Data sets of volumes: NIfTI files, maps of their labels, and the captions that each label answers."""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import torch
import yaml
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ..model.image_processing_volumes_lvit import LViTVolumeProcessor
from .load import SplitNotFoundError


NIFTI_SUFFIXES = (".nii.gz", ".nii")
GRID_TOLERANCE = 1e-2  # mm
LABEL_TOLERANCE = 1e-3  # labels that were stored with a slope are rounded


@dataclass
class Structure:
    """What a caption may ask for in every volume of a data set.

    Args:
        name: Name under which its figures stand.
        labels: Numbers in the maps of labels that belong to it; none for what is not there.
        captions: Captions that ask for it, learned in training. An empty one stands for no caption.
        paraphrases: Captions that ask for it and are kept out of training.
        share: How often it is asked for in training, relative to the others.
    """

    name: str
    labels: list[int]
    captions: list[str]
    paraphrases: list[str] = field(default_factory=list)
    share: float = 1.0

    def mask(self, label_map: torch.Tensor) -> torch.Tensor:
        """Which voxels belong to it: float32 of the map's shape."""
        return torch.isin(label_map.long(), torch.tensor(self.labels, dtype=torch.long)).float()


def read_structures(path: str | Path) -> list[Structure]:
    """What captions ask for in volumes, from the YAML file of a training run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has not one source of volumes, with its `structures`.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        [structures] = [source["structures"] for source in content["sources"] if source.get("structures")]
        return [Structure(**structure) for structure in structures]
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} must be a configuration of lvit train with one source that has structures: {error}."
        ) from error


@dataclass(frozen=True)
class VolumeFiles:
    """A volume and the map of its labels, on one grid."""

    id: str
    image: Path
    label_map: Path


def find_volumes(path: str | Path, split: str) -> list[VolumeFiles]:
    """The volumes of `PATH/SPLIT/images`, with the maps of the same names in `PATH/SPLIT/labels`, sorted by name.

    Raises:
        SplitNotFoundError: If there is no such split, or no NIfTI file in it.
        ValueError: If a volume has no map of labels.
    """
    folder = Path(path) / split
    images = sorted(file for suffix in NIFTI_SUFFIXES for file in folder.glob(f"images/*{suffix}"))
    if not images:
        raise SplitNotFoundError(f"There are no NIfTI files (.nii, .nii.gz) in {folder / 'images'}.")
    files = [VolumeFiles(file.name.split(".nii")[0], file, folder / "labels" / file.name) for file in images]
    missing = [file.label_map.name for file in files if not file.label_map.is_file()]
    if missing:
        raise ValueError(f"{folder / 'labels'} lacks the maps of labels of {len(missing)} volumes: {missing[:5]}.")
    return files


def read_nifti_image(path: Path) -> nibabel.Nifti1Image:
    """Opens a NIfTI file, whose voxels are read when they are needed.

    Raises:
        ValueError: If it is none, or a broken one.
    """
    try:
        return nibabel.Nifti1Image.from_filename(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a NIfTI file: {error}.")


def read_pair(files: VolumeFiles) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """Opens a volume and its map of labels, which is on the volume's grid and has labels as uint8.

    Raises:
        ValueError: If one cannot be read, the map has another grid, or values that are no labels from 0 to 255.
    """
    image, stored = read_nifti_image(files.image), read_nifti_image(files.label_map)
    values = np.asarray(stored.dataobj)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != image.shape[:3] or not np.allclose(stored.affine, image.affine, atol=GRID_TOLERANCE):
        raise ValueError(
            f"{files.label_map} must have the grid of its volume, got the shapes {values.shape} and {image.shape[:3]} "
            f"and the affines {stored.affine.tolist()} and {image.affine.tolist()}."
        )
    labels = values.round().clip(0, 255).astype(np.uint8)
    if not np.allclose(labels, values, atol=LABEL_TOLERANCE):
        raise ValueError(f"{files.label_map} has values that are no labels from 0 to 255.")
    return image, nibabel.Nifti1Image(labels, image.affine)


def load_volumes(path: str | Path, split: str, processor: LViTVolumeProcessor) -> list[dict]:
    """Reads one split into memory, in the orientation, the spacing and the intensities of a network.

    Returns:
        Rows with `id`, `image`, float32 `(channels, depth, height, width)`, and `label_map`, uint8
        `(depth, height, width)`.
    """
    rows = []
    for files in find_volumes(path, split):
        image, label_map = read_pair(files)
        rows.append(
            {
                "id": files.id,
                "image": processor.prepare(image),
                "label_map": processor.prepare_map(label_map, image).to(torch.uint8),
            }
        )
    return rows
