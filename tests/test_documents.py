"""What README and docs say can be typed: every command exists, and what runs without the Hub is run."""

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import typer
from data_layouts import write_csv_files
from PIL import Image
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.io.checkpoints import EXAMPLES_FOLDER


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, line.split("  #")[0].strip())
    for page in PAGES
    for line in re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8")).splitlines()
    if line.startswith("lvit ")
]
# The blocks of a page, in their order, but for those that ask the Hub, a server or data that nobody has by that name.
SNIPPETS = [
    pytest.param("\n".join(blocks), id=page.name)
    for page in PAGES
    if (
        blocks := [
            textwrap.dedent(code)
            for code in re.findall(
                r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
            )
            if not re.search(r"USER/|client|QATA|KVASIR|MONUSEG|configs/|data/|runs/", code)
        ]
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("user")
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "slide.png")
    Image.open(EXAMPLES_FOLDER / "chest-xray.jpg").save(folder / "chest-xray.png")
    shutil.copy(get_testdata_file("CT_small.dcm"), folder / "scan.dcm")
    for name in ("scan", "volume"):
        nibabel.save(
            nibabel.Nifti1Image(noise[:40, :50, 0:3].repeat(10, axis=2), np.eye(4)), folder / f"{name}.nii.gz"
        )
    tifffile.imwrite(folder / "SLIDE.svs", np.tile(noise, (8, 6, 1))[:512, :512], tile=(256, 256), photometric="rgb")
    (folder / "table.csv").write_text("image,text\nslide.png,The nuclei are evenly distributed.\n")
    for name in ("DATA", "my-data"):
        (folder / name).mkdir()
        write_csv_files(folder / name)
    return folder


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_and_option_exists(page, command):
    _, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    while hasattr(group, "commands"):
        name, *arguments = arguments
        group = group.commands[name]
    try:
        group.make_context(name, arguments)
    except Exception as error:
        assert "does not exist" in str(error)  # a folder of the reader's


@pytest.mark.parametrize(
    "command",
    [
        line
        for page, line in COMMANDS
        if page in ("README.md", "outputs.md") and line.split()[1] not in ("demo", "train")
    ],
)
def test_the_commands_of_the_readme_and_of_the_outputs_run(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LVIT_MODEL", raising=False)
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("code", SNIPPETS)
def test_the_snippets_run(code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(code, {})
