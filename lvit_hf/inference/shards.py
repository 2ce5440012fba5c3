"""Sources of many images, cut into shards, each of which is read, segmented and written as a whole."""

import logging
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import fsspec

from ..io.errors import FileError, as_sentence, file_errors
from ..io.readers import is_picture_name, is_scan_name
from ..io.scan import name_some
from ..io.tables import is_table_name, read_table
from .files import Item, read_suffix
from .predictor import DICOM_SUFFIXES, list_items


logger = logging.getLogger(__name__)

SHARD_FILES = 64
PACKED = (".parquet", ".tar")


@dataclass(frozen=True)
class FileShard:
    """Files that every machine sees under the same path."""

    items: tuple[Item, ...]

    def open(self, folder: Path) -> list[Item]:
        return list(self.items)


@dataclass(frozen=True)
class UrlShard:
    """Files that are fetched, with their captions."""

    urls: tuple[str, ...]
    texts: tuple[str | None, ...]

    def open(self, folder: Path) -> list[Item]:
        system, _, paths = fsspec.get_fs_token_paths(self.urls, expand=False)
        contents = system.cat_ranges(paths, None, None, on_error="return")
        return list(_store(folder, zip(self.urls, contents, self.texts)))


@dataclass(frozen=True)
class ParquetShard:
    """A row group of a Parquet file with a column `image`, and perhaps one `text`."""

    url: str
    row_group: int
    first: int
    text: str | None

    def open(self, folder: Path) -> list[Item]:
        import pyarrow.parquet

        with file_errors(self.url), fsspec.open(self.url, "rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            columns = [name for name in ("image", "text") if name in parquet.schema_arrow.names]
            rows = parquet.read_row_group(self.row_group, columns=columns).to_pylist()
        return list(_store(folder, (self._read(number, row) for number, row in enumerate(rows, self.first))))

    def _read(self, number: int, row: dict[str, Any]) -> tuple[str, bytes | Exception, str | None]:
        image = row["image"] if isinstance(row["image"], dict) else {"bytes": row["image"]}
        name = f"{self.url}/{image.get('path') or number}"
        content = image.get("bytes") or ValueError(f"{name} has no image in its row.")
        return name, content, row.get("text") or self.text


@dataclass(frozen=True)
class TarShard:
    """A tar of images, as WebDataset has them: the caption of `a.png` is in `a.txt`."""

    url: str
    text: str | None

    def open(self, folder: Path) -> list[Item]:
        texts: dict[str, str] = {}
        with (
            file_errors(self.url),
            fsspec.open(self.url, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*") as archive,
        ):
            items = list(_store(folder, self._read(archive, texts)))
        return [replace(item, text=texts.get(_key(item.name)) or item.text) for item in items]

    def _read(self, archive: tarfile.TarFile, texts: dict[str, str]) -> Iterator[tuple[str, bytes, str | None]]:
        for member in filter(tarfile.TarInfo.isfile, archive):
            content: IO[bytes] = archive.extractfile(member)  # type: ignore[assignment]
            name = f"{self.url}/{member.name}"
            if member.name.endswith(".txt"):
                texts[_key(name)] = content.read().decode("utf-8", "replace").strip()
            elif is_image_name(member.name):
                yield name, content.read(), self.text


Shard = FileShard | UrlShard | ParquetShard | TarShard


def is_image_name(name: str) -> bool:
    """Whether a file that is not here is taken, by its name: to look into all of them would be to fetch them."""
    return is_picture_name(Path(name)) or is_scan_name(Path(name)) or name.lower().endswith(DICOM_SUFFIXES)


def _key(name: str) -> str:
    """What the files of one sample have in common."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _store(folder: Path, files: Iterable[tuple[str, Any, str | None]]) -> Iterator[Item]:
    """Writes the contents of files under names that are safe; an error in place of a content is the file's problem."""
    for number, (name, content, text) in enumerate(files):
        path = folder / f"{number}{read_suffix(name)}"
        if isinstance(content, Exception):
            sentence = as_sentence(content)
            yield Item(name, text, path, problem=sentence if name in sentence else f"{name}: {sentence}")
        else:
            path.write_bytes(content)
            yield Item(name, text, path)


def list_shards(sources: Sequence[str], text: str | None) -> list[Shard]:
    """Cuts sources into shards; the same sources always into the same ones.

    Args:
        sources: What `list_items` takes, Parquet files with a column `image`, tars of images, and URLs of such files,
            of folders of them and of tables, for fsspec.
        text: The caption of images that have none in their source.

    Raises:
        ImportError: If the library for a kind of URL is not installed.
        OSError, ValueError: If a source cannot be used, or has no image.
    """
    local = [Path(source).absolute() for source in sources if not _is_remote(source)]
    items = list_items(local, text) if local else []
    shards: list[Shard] = [FileShard(tuple(part)) for part in _cut(items)]
    for source in filter(_is_remote, sources):
        found = list(_list_url(source if "://" in source else f"file://{Path(source).absolute()}", text))
        if not found:
            raise ValueError(f"There is no image at {source}.")
        shards += found
    return shards


def _is_remote(source: str) -> bool:
    return "://" in source or source.endswith(PACKED)


def _cut(values: Sequence) -> Iterator[Sequence]:
    return (values[start : start + SHARD_FILES] for start in range(0, len(values), SHARD_FILES))


def _list_url(url: str, text: str | None) -> Iterator[Shard]:
    system, path = fsspec.core.url_to_fs(url)
    urls = [system.unstrip_protocol(name) for name in sorted(system.find(path))]
    files = [(name, text) for name in urls if is_image_name(name)]
    known = {name for name in urls if is_image_name(name) or is_table_name(Path(name)) or name.endswith(PACKED)}
    if left_out := [name for name in urls if name not in known]:
        logger.warning(f"Left out, since their names are not those of images: {name_some(left_out)}.")
    if is_table_name(Path(url)):
        files = [(image, caption or text) for image, caption in _read_captions(url)]
    for part in _cut(files):
        names, texts = zip(*part)
        yield UrlShard(names, texts)
    for name in urls:
        if name.endswith(".tar"):
            yield TarShard(name, text)
        elif name.endswith(".parquet"):
            yield from _list_row_groups(name, text)


def _read_captions(url: str) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder, fsspec.open(url, "rb") as file:
        table = Path(folder, Path(url).name)
        table.write_bytes(file.read())
        try:
            rows = read_table(table, ("image", "text")).rows
        except ValueError as error:
            raise ValueError(str(error).replace(str(table), url))
    return [(f"{url.rpartition('/')[0]}/{row['image']}", row["text"]) for row in rows]


def _list_row_groups(url: str, text: str | None) -> Iterator[ParquetShard]:
    import pyarrow.parquet

    with file_errors(url), fsspec.open(url, "rb") as file:
        parquet = pyarrow.parquet.ParquetFile(file)
        if "image" not in parquet.schema_arrow.names:
            raise FileError(f"{url} needs a column image; it has {', '.join(parquet.schema_arrow.names)}.")
        first = 0
        for number in range(parquet.num_row_groups):
            yield ParquetShard(url, number, first, text)
            first += parquet.metadata.row_group(number).num_rows
