"""Many uploaded files, and zips of them, as a list of images with their captions. No name is used as a path."""

import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from ..io.readers import group_images, is_junk, name_members, open_zip
from ..io.tables import is_table_name, read_table
from .files import Item


MAX_IMAGES = 500
MAX_FILE_BYTES = 100 * 1024**2


def collect(uploads: Sequence[str], text: str) -> list[Item]:
    """Lists the images of uploads in their order: pictures, scans, zips of them, and CSV files with their captions.

    Args:
        uploads: Paths of uploaded files.
        text: The caption of images that no CSV file names.

    Returns:
        An item for each image, or several if CSV files have several captions for it, and one for each row of a CSV
        file that names no image.

    Raises:
        OSError, ValueError: If a CSV file cannot be used, or there are too many images or none.
    """
    items: list[Item] = []
    captions: list[tuple[str, str]] = []
    for upload in map(Path, uploads):
        for item in _list_upload(upload):
            if item.problem is None and is_table_name(Path(item.name)):
                captions += _read_captions(item)
            else:
                items.append(item)
    if not items:
        raise ValueError(
            "There is no image in the uploaded files. Add pictures, DICOM or NIfTI files, or zips of them."
        )
    for count in (len(items), len(captions)):
        if count > MAX_IMAGES:
            raise ValueError(
                f"These are {count:,} images, more than the {MAX_IMAGES} that are taken at once. Upload fewer, or use "
                "lvit predict."
            )
    return _add_captions(items, captions, text)


def is_series(path: Path) -> bool:
    """Whether a file is a zip of the slices of one DICOM series, and of no other images."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with open_zip(path) as archive:
            members = name_members(archive)
            groups = group_images({name: partial(archive.open, member) for name, member in members.items()})
    except Exception:  # whoever reads it says what is wrong with it
        return False
    has_others = any(is_table_name(name) or name.suffix.lower() == ".zip" for name in members)
    return len(groups) == 1 and len(groups[0]) > 1 and not has_others


def _list_upload(upload: Path) -> Iterator[Item]:
    if not zipfile.is_zipfile(upload):
        yield Item(upload.name, path=upload)
        return
    try:
        with open_zip(upload) as archive:
            members = archive.infolist()
    except ValueError as error:
        yield Item(upload.name, problem=str(error))
        return
    for member in members:
        if not member.is_dir() and not is_junk(member.filename):
            yield _list_member(upload, member)


def _list_member(upload: Path, member: zipfile.ZipInfo) -> Item:
    problem = None
    if member.filename.lower().endswith(".zip"):
        problem = f"{member.filename} is a zip inside a zip; upload it by itself."
    elif member.file_size > MAX_FILE_BYTES:
        problem = f"{member.filename} has more than {MAX_FILE_BYTES >> 20} MB."
    return Item(member.filename, problem=problem, path=upload, member=member)


def _parts(name: str) -> tuple[str, ...]:
    """The folders and the name of a file, the same for every way to write them; none of them leads upwards."""
    parts = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).parts
    # A browser's upload loses characters of its name that a name in a CSV file still has.
    names = (re.sub(r"[^\w.-]", "", part) for part in parts if part not in ("/", ".", ".."))
    return tuple(name.casefold() for name in names)


def _read_captions(item: Item) -> list[tuple[str, str]]:
    """Names of images, with the folder of the CSV file inside its zip, and their captions."""
    folder = PurePosixPath(item.name).parent if item.member else PurePosixPath()
    with item.open() as path:
        try:
            rows = read_table(path, ("image", "text")).rows
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), item.name))
        return [(str(folder / row["image"]), row["text"]) for row in rows]


def _add_captions(items: list[Item], captions: Iterable[tuple[str, str]], text: str) -> list[Item]:
    keys = [_parts(item.name) for item in items]
    texts: list[list[str]] = [[] for _ in items]
    unknown = []
    for name, caption in captions:
        found = _find(_parts(name), keys)
        if len(found) == 1:
            texts[found[0]].append(caption)
        else:
            reason = f"{len(found)} images have this name" if found else "there is no such image"
            unknown.append(Item(name, caption, problem=f"The CSV file has a caption for {name}, but {reason}."))
    captioned = [replace(item, text=own or text) for item, its_texts in zip(items, texts) for own in its_texts or [""]]
    return captioned + unknown


def _find(name: tuple[str, ...], keys: list[tuple[str, ...]]) -> list[int]:
    """Numbers of the images that a CSV file means: of that path, else of one that ends like it, else of that name."""
    for matches in (lambda key: key == name, lambda key: key[-len(name) :] == name, lambda key: key[-1:] == name[-1:]):
        if found := [number for number, key in enumerate(keys) if matches(key)]:
            return found
    return []
