"""Where checkpoints are: those that come with the package, folders of the user's, and the Hub."""

import os
from pathlib import Path


_PACKAGE = Path(__file__).parents[1]

# Inside an installed package, or beside it in the repository.
SHIPPED_FOLDER = next(
    (folder for folder in (_PACKAGE / "checkpoints", _PACKAGE.parent / "checkpoints") if folder.is_dir()),
    _PACKAGE / "checkpoints",
)

# Used where the user names no other.
DEFAULT_CHECKPOINT = SHIPPED_FOLDER / "lvit-small"


def list_shipped() -> dict[str, Path]:
    """Folders of the checkpoints that come with the package, by their names."""
    return {file.parent.name: file.parent for file in sorted(SHIPPED_FOLDER.glob("*/config.json"))}


def find_checkpoint(name: str | os.PathLike) -> str:
    """The folder or the name on the Hub of a checkpoint, of which a shipped one may be named without its folder."""
    return str(name) if Path(name).exists() else str(list_shipped().get(str(name), name))
