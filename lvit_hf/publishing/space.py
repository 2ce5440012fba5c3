"""The demo as a Space: its folder, with versions that the Space's hardware accepts."""

import shutil
import tomllib
from pathlib import Path

import jinja2
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..inference.segmenter import Segmenter
from ..io.checkpoints import DEFAULT_CHECKPOINT
from ..io.hub import split_revision
from .publish import copy_checkpoint


ROOT = DEFAULT_CHECKPOINT.parent.parent
TEMPLATE = Path(__file__).with_name("space.md")

# The newest that ZeroGPU takes; a Space on a CPU takes them as well.
SPACE_PYTHON = "3.12.12"
SPACE_PINS = {"torch": "2.11.0"}


def read_pins() -> dict[str, str]:
    """Versions that the tests pass with, except for those that the hardware dictates, by normalised name."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in tested.items()} | SPACE_PINS


def make_requirements() -> list[str]:
    """What the demo needs, and OpenVINO, by which a Space on a CPU is faster, each at one version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, pins, pinned = project["optional-dependencies"], read_pins(), []
    runtime = [line for line in extras["export"] if line.startswith("openvino")]
    for line in project["dependencies"] + extras["app"] + runtime:
        item = Requirement(line)
        asked = f"[{','.join(sorted(item.extras))}]" if item.extras else ""
        pinned.append(f"{item.name}{asked}=={pins[canonicalize_name(item.name)]}")
    return sorted(pinned)


def stage_space(model: str, folder: Path) -> str | None:
    """Puts the Space's files into an empty folder.

    Args:
        model: The checkpoint that it serves: a folder, which becomes part of the Space, or `USER/NAME[@REVISION]`.
        folder: Where the files go.

    Returns:
        What the variable `LVIT_MODEL` of the Space must be; `None` if the checkpoint is part of it.

    Raises:
        FileNotFoundError: If the package was installed without the repository that holds the demo.
        ValueError: If the checkpoint cannot be published, or not be loaded from the Hub.
    """
    local = Path(model).exists()
    if local:
        copy_checkpoint(Path(model), folder / DEFAULT_CHECKPOINT.relative_to(ROOT))
    else:
        Segmenter.from_pretrained(model)
    shutil.copyfile(ROOT / "app.py", folder / "app.py")
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.pyi")
    for name in ("lvit_hf", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "requirements.txt").write_text("\n".join(make_requirements()) + "\n", encoding="utf-8")
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True)
    named = None if local else split_revision(model)[0]
    fields = {"gradio": read_pins()["gradio"], "python": SPACE_PYTHON, "model": named}
    (folder / "README.md").write_text(template.render(fields), encoding="utf-8")
    return None if local else model
