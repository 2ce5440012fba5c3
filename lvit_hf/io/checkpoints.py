"""Where checkpoints are: those that come with the package, folders of the user's, and the Hub."""

import os
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
    """The folder or the name on the Hub of a checkpoint, of which a shipped one may be named without its folder."""
    return str(name) if Path(name).exists() else str(list_shipped().get(str(name), name))
