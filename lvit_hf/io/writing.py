"""Files that appear under their names when they are whole, and take no other's place."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside a file or folder to write to, which takes its place at the end, or vanishes after an error.

    The name is of this call alone, so that two that write the same file at once do not meet; the last one stays.

    Args:
        path: Where it will be. A file there is replaced.

    Raises:
        OSError: If there is a folder that is not empty.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:50]}.", suffix=".part", dir=path.parent) as folder:
        part = Path(folder, path.name)
        yield part
        part.replace(path)


def check_replaceable(path: Path, mark: str):
    """Refuses, before the work, to write over what a command did not write.

    Args:
        path: The file.
        mark: What is in every file that it writes, and in no other.

    Raises:
        FileExistsError: If there is a folder, or a file without it.
    """
    if path.exists() and (path.is_dir() or mark.encode() not in path.read_bytes()):
        raise FileExistsError(f"{path} exists, and this command did not write it; give the result another name.")
