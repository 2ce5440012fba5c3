"""Where checkpoints are: those that come with the package, folders of the user's, and the Hub."""

import os
import re
from pathlib import Path


_PACKAGE = Path(__file__).parents[1]


def _find_shipped(name: str) -> Path:
    """A folder inside the installed package, or beside it in the repository."""
    inside, beside = _PACKAGE / name, _PACKAGE.parent / name
    return inside if inside.is_dir() else beside


SHIPPED_FOLDER, EXAMPLES_FOLDER = _find_shipped("checkpoints"), _find_shipped("examples")

# For checkpoints of volumes.
VOLUME_EXAMPLES_FOLDER = SHIPPED_FOLDER / "lvit-small-hippocampus" / "examples"

# Used where the user names no other.
DEFAULT_CHECKPOINT = SHIPPED_FOLDER / "lvit-small"


def list_shipped() -> dict[str, Path]:
    """Folders of the checkpoints that come with the package, by their names."""
    return {file.parent.name: file.parent for file in sorted(SHIPPED_FOLDER.glob("*/config.json"))}


def find_checkpoint(name: str | os.PathLike) -> str:
    """The folder or the name on the Hub of a checkpoint, of which a shipped one may be named without its folder.

    Raises:
        ValueError: If there is no such folder, and it cannot be a name on the Hub either.
    """
    shipped = list_shipped()
    if Path(name).exists():
        return str(name)
    if str(name) in shipped:
        return str(shipped[str(name)])
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", str(name)):
        names = ", ".join(shipped)
        raise ValueError(f"There is no checkpoint {name}. It is a folder, USER/NAME on the Hub, or one of {names}.")
    return str(name)
