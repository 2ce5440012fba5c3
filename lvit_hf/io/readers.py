"""One way to read every kind of image file: pictures, DICOM, NIfTI, and the files of a DICOM series."""

import gzip
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image

from .errors import FileError, file_errors
from .kinds import GZIP_MAGIC, has_preamble, is_dicom, is_nifti, is_tiff
from .pictures import read_picture, read_picture_mask, read_tiff, read_tiff_mask
from .scan import Scan, describe_left_out, name_some


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".heic", ".heif")
NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")
SCAN_SUFFIXES = (".dcm", *NIFTI_SUFFIXES)

# Of all files in a zip, unpacked, and of one packed by gzip.
MAX_UNPACKED_BYTES = 2 * 1024**3
MAX_FILES = 2000

HEAD_BYTES = 540
UNWANTED = "a DICOM Segmentation"
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
# Formats that are not read, by what they begin with.
OTHER_FORMATS = {
    b"NRRD": "an NRRD file; save it as NIfTI",
    b"ObjectType": "a MetaImage file; save it as NIfTI",
    b"\x89HDF": "an HDF5 or MINC file; save it as NIfTI",
    b"%PDF": "a PDF; save its picture as PNG",
    b"%!PS": "a PostScript file; save its picture as PNG",
    b"Rar!": "a RAR archive; pack a series as zip",
    b"7z\xbc\xaf": "a 7z archive; pack a series as zip",
}
# What operating systems put into folders.
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}

PathLike = str | os.PathLike
OpenFile = Callable[[], Any]
AnyPath = TypeVar("AnyPath", bound=PurePath)


def read_scan(
    path: PathLike | Iterable[PathLike], keep_values: bool = False, members: Collection[PurePosixPath] = ()
) -> Scan:
    """Reads an image. A file's content tells what it is, or else its name; docs/formats.md says what is done with it.

    Args:
        path: A picture that Pillow reads, HEIC, a TIFF file of one page or several, a DICOM file, a NIfTI file, one of
            these packed by gzip; or the files of a DICOM series: a zip of them, their folder, or their paths.
        keep_values: Whether the scan of a DICOM or NIfTI file has its measured values too.
        members: Of a zip: those of its files, as `name_members` names them, that are the series; by default all.

    Returns:
        The scan; its `notes` are to be shown to the user.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If the library for its format is not installed.
        ValueError: If it cannot be used; the message names the file and says why.
    """
    return _read(path, _ScanReaders(keep_values, members))


def read_mask(path: PathLike | Iterable[PathLike], scan: Scan | None = None) -> np.ndarray:
    """Reads a mask in any of the formats: booleans of shape `(slices, height, width)`; see `explain_mask`.

    Raises:
        ValueError: If it cannot be read, or it cannot be known which pixels are meant; the message says what would do.
    """
    return explain_mask(path, scan)[0]


def explain_mask(path: PathLike | Iterable[PathLike], scan: Scan | None = None) -> tuple[np.ndarray, str]:
    """Reads a mask, and says what was taken for foreground, by the rule of `find_foreground`.

    In NIfTI whole numbers are labels: every one but 0 is foreground.

    Args:
        path: What `read_scan` takes.
        scan: What the mask is of: frames of a DICOM Segmentation are put on its slices.
    """
    return _read(path, _MaskReaders(scan=scan))


@dataclass
class _ScanReaders:
    """What reads each kind of file."""

    keep_values: bool = False
    members: Collection[PurePosixPath] = ()

    def picture(self, path: Path) -> Any:
        return read_picture(path)

    def tiff(self, path: Path) -> Any:
        return read_tiff(path)

    def nifti(self, path: Path) -> Any:
        from .nifti import read_nifti

        return read_nifti(path, self.keep_values)

    def dicom(self, path: Path) -> Any:
        from .dicom import read_dicom

        with path.open("rb") as file:
            if self.is_unwanted(file):
                raise FileError(f"{path} is {UNWANTED}, which is a mask and no image.")
        return read_dicom(path, self.keep_values)

    def series(self, files: list[tuple[str, OpenFile]], name: str) -> Any:
        from .dicom import read_series

        return read_series(files, name, self.keep_values)

    def is_unwanted(self, file: IO[bytes]) -> bool:
        """Whether a DICOM file is a mask."""
        from .dicom import SEGMENTATIONS

        with suppress(Exception):  # it is told what is wrong when it is read
            return _read_elements(file, "SOPClassUID")[0] in SEGMENTATIONS
        return False


@dataclass
class _MaskReaders(_ScanReaders):
    """The same of masks."""

    scan: Scan | None = None

    def picture(self, path: Path) -> Any:
        return read_picture_mask(path)

    def tiff(self, path: Path) -> Any:
        return read_tiff_mask(path)

    def nifti(self, path: Path) -> Any:
        from .nifti import read_nifti_mask

        return read_nifti_mask(path)

    def dicom(self, path: Path) -> Any:
        from .dicom import read_dicom_mask

        return read_dicom_mask(path, self.scan)

    def series(self, files: list[tuple[str, OpenFile]], name: str) -> Any:
        from .dicom import read_series_mask

        return read_series_mask(files, name)

    def is_unwanted(self, file: IO[bytes]) -> bool:
        return False


def _read(path: PathLike | Iterable[PathLike], readers: _ScanReaders) -> Any:
    if not path or isinstance(path, bytes):
        raise FileError(f"An image is a path, or a list of the paths of a series, got {path!r}.")
    if not isinstance(path, str | os.PathLike):
        paths = [Path(part) for part in path]
        for part in paths:
            with file_errors(str(part)):
                part.lstat()  # which raises where there is no such file
        return (
            _read(paths[0], readers) if len(paths) == 1 else _read_files({str(path): path for path in paths}, readers)
        )
    path = Path(path)
    with file_errors(str(path)):
        if path.is_dir():
            os.scandir(path).close()  # which raises where it cannot be opened
            return _read_files({file.relative_to(path).as_posix(): file for file in list_files(path)}, readers, path)
        head = _read_head(path)
        if head.startswith(ZIP_MAGIC):
            return _read_zip(path, readers)
        if not head.startswith(GZIP_MAGIC):
            return _read_file(path, head, readers)
        head = _read_head(path, gzip.open)
        if is_nifti(head):
            return readers.nifti(path)
        with _unpacked(path) as inner:
            try:
                return _read_file(inner, head, readers)
            except ValueError as error:
                sentence = str(error).replace(str(inner), str(path)).replace(inner.name, path.name)
                raise FileError(sentence) from error


def _read_head(path: Path, opener: Callable[..., Any] = open) -> bytes:
    with opener(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise FileError(f"{path} is empty.")
    return head


def _read_file(path: Path, head: bytes, readers: _ScanReaders) -> Any:
    """Reads a file by its content, or else by its name."""
    for magic, what in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise FileError(f"{path} is {what}.")
    if has_preamble(head):  # which may be the beginning of a TIFF file, for other readers
        return readers.dicom(path)
    if is_nifti(head):
        return readers.nifti(path)
    if is_tiff(head):
        return readers.tiff(path)
    if _is_picture(path):
        return readers.picture(path)
    if is_dicom(head) or path.suffix.lower() == ".dcm":
        return readers.dicom(path)
    return readers.nifti(path) if path.name.lower().endswith(NIFTI_SUFFIXES) else readers.picture(path)


def _is_picture(path: Path) -> bool:
    """Whether Pillow knows the content."""
    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # a damaged file can make a library raise anything
        return False


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A file that holds what another one holds packed by gzip."""
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    with tempfile.NamedTemporaryFile(suffix=suffix) as file, gzip.open(path) as packed:
        size = 0
        while chunk := packed.read(1 << 20):
            size += file.write(chunk)
            if size > MAX_UNPACKED_BYTES:
                raise FileError(f"{path} would have more than {MAX_UNPACKED_BYTES >> 30} GB unpacked.")
        file.flush()
        yield Path(file.name)


def _read_files(files: dict[str, Path], readers: _ScanReaders, folder: Path | None = None) -> Any:
    """Reads the files of a series by their names."""
    if len(files) > MAX_FILES:
        raise FileError(f"{folder or 'The series'} holds more than {MAX_FILES} files.")
    opened: dict[str, OpenFile] = {name: partial(path.open, "rb") for name, path in files.items()}
    return _read_series(opened, str(folder) if folder else f"The series of {name_some(list(files), 1)}", readers)


def _read_zip(path: Path, readers: _ScanReaders) -> Any:
    with open_zip(path) as archive:
        members = name_members(archive)
        chosen = readers.members or members
        return _read_series({str(name): partial(archive.open, members[name]) for name in chosen}, path.name, readers)


def name_members(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files in a zip, without those that are hidden, each by a name of its own; a zip can have one name twice."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = PurePosixPath(*(part for part in PurePosixPath(member.filename).parts if part not in ("/", "..")))
        if not member.is_dir() and not is_junk(member.filename):
            members[name.with_stem(f"{name.stem} ({len(members) + 1})") if name in members else name] = member
    return members


def _read_series(files: dict[str, OpenFile], name: str, readers: _ScanReaders) -> Any:
    dicom: dict[str, OpenFile] = {}
    left_out: dict[str, str] = {}
    for file_name, open_file in files.items():
        try:
            with open_file() as file:
                reason = None if is_dicom(file.read(HEAD_BYTES)) else "no DICOM file"
            if reason is None:
                with open_file() as file:
                    reason = UNWANTED if readers.is_unwanted(file) else None
        except OSError as error:
            reason = error.strerror or str(error)
        if reason is None:
            dicom[file_name] = open_file
        else:
            left_out[Path(file_name).name] = reason
    if not dicom:
        held = f", but {name_some(list(left_out))}; give such a file by itself" if left_out else ""
        raise FileError(f"{name} has no DICOM file in it{held}.")
    result = readers.series(list(dicom.items()), name)
    if not isinstance(result, Scan):
        return result
    return replace(result, notes=(*result.notes, *describe_left_out(list(left_out.items()))))


def list_files(folder: Path) -> list[Path]:
    """The files in a folder and the folders below it, in order, without those that are hidden.

    Folders that cannot be opened are listed too, so that who reads them says so.
    """
    found: list[Path] = []
    for parent, _, names in os.walk(folder, onerror=lambda error: found.append(Path(error.filename))):
        found += [Path(parent, name) for name in names if not _is_device(Path(parent, name))]
    return [path for path in sorted(found) if not is_junk(path.relative_to(folder).as_posix())]


def _is_device(path: Path) -> bool:
    """Whether something is no file, such as a pipe, which would be waited for."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # such as of a link to nothing: who reads it says so
        return False


def group_images(files: Mapping[AnyPath, OpenFile]) -> list[tuple[AnyPath, ...]]:
    """Image files, the slices of one DICOM series together, in the order of the first of each.

    Files of a series that all lie at one place, or have none, are no slices, such as the radiographs of a study. A
    series can lie in several folders; where one place is in two of them, these hold copies, each a series by itself.

    Args:
        files: What opens each file. None is hidden.
    """
    groups: dict[tuple[PurePath, tuple[str, ...]], dict[AnyPath, str]] = {}
    for path, open_file in files.items():
        is_half = path.suffix.lower() == ".img" and path.with_suffix(".hdr") in files
        if not is_half and _is_image(path, open_file):
            series, place = _read_place(path, open_file)
            groups.setdefault((path.parent, series), {})[path] = place
    joined: dict[tuple[str, ...], list[dict[AnyPath, str]]] = {}
    for (_, series), group in groups.items():
        parts = joined.setdefault(series, [])
        other = next((part for part in parts if series[0] and _are_apart(part, group)), None)
        if other is None:
            parts.append(group)
        else:
            other |= group
    found = [group for parts in joined.values() for group in parts]
    split = ([tuple(group)] if len(set(group.values())) > 1 else zip(group) for group in found)
    return sorted(chain.from_iterable(split))


def _are_apart(files: dict[AnyPath, str], others: dict[AnyPath, str]) -> bool:
    """Whether all files have places, and no place is one of both."""
    places, other_places = set(files.values()), set(others.values())
    return "" not in places | other_places and places.isdisjoint(other_places)


def _read_place(path: PurePath, open_file: OpenFile) -> tuple[tuple[str, ...], str]:
    """What the slices of a DICOM series have in common, and where this one lies; a file's own name if it has none."""
    with suppress(Exception), open_file() as file:  # it is told what is wrong when it is read
        if is_dicom(file.read(HEAD_BYTES)):
            from .dicom import BELONGINGS  # only who has such files needs its libraries

            file.seek(0)
            *belongings, place = _read_elements(file, *BELONGINGS, "ImagePositionPatient")
            return tuple(belongings), place
    return (path.name,), ""


def tell_series_apart(files: Sequence[OpenFile]) -> list[str]:
    """What tells DICOM series from one another, shortly, by a file of each: numbers, descriptions or else UIDs."""
    names = ("SeriesNumber", "SeriesDescription", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    headers = []
    for open_file in files:
        with open_file() as file:
            headers.append([re.sub(r"[^\w .-]", " ", value) for value in _read_elements(file, *names)])
    distinct = (list(values) for values in zip(*headers) if all(values) and len(set(values)) == len(files))
    return next(distinct, [str(number) for number in range(1, len(files) + 1)])


def _read_elements(file: IO[bytes], *names: str) -> list[str]:
    """Elements of a DICOM file's header; blank where it does not have them."""
    import pydicom  # only who has such files needs it

    header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(names))
    return [str(header.get(name) or "") for name in names]


def _is_image(path: PurePath, open_file: OpenFile) -> bool:
    """Whether a file is one that `read_scan` reads, by its name or else by its content.

    One that cannot be opened is: who reads it says why.
    """
    if path.name.casefold() == "dicomdir":
        return False
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if is_picture_name(name) or is_scan_name(name):
        return True
    try:
        with open_file() as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return True
    with suppress(Exception), open_file() as file:  # of a damaged archive
        if head.startswith(ZIP_MAGIC):
            return _holds_dicom(file)
        if head.startswith(GZIP_MAGIC):
            head = gzip.GzipFile(fileobj=file).read(HEAD_BYTES)
    return is_dicom(head) or is_nifti(head)


def _holds_dicom(file: IO[bytes]) -> bool:
    """Whether a zip has a DICOM file in it."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as part:
                if is_dicom(part.read(HEAD_BYTES)):
                    return True
    return False


def is_picture_name(path: PurePath) -> bool:
    """Whether a file's name is that of an image which Pillow reads, and not hidden."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN and not path.name.startswith(".")


def is_scan_name(path: PurePath) -> bool:
    """Whether a file's name is that of a DICOM or NIfTI file."""
    return path.name.lower().endswith(SCAN_SUFFIXES)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip whose files can all be unpacked into memory. Their names are never used as paths.

    Raises:
        ValueError: If it is broken, encrypted or too large.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
        if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise FileError(f"{path.name} holds more than {MAX_FILES} files or {MAX_UNPACKED_BYTES >> 30} GB.")
        if any(member.flag_bits & 1 for member in members):
            raise FileError(f"{path.name} is encrypted.")
        broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise FileError(f"{path.name} is a broken zip: {error}")
    if broken:
        raise FileError(f"{path.name} is a broken zip: {Path(broken).name} is damaged.")
    return archive


def is_junk(name: str) -> bool:
    """Whether a file, by its path, is hidden or one that an operating system puts into folders."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith(".") and part != ".." or part.casefold() in JUNK for part in parts)
