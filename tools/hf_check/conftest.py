"""Makes the common test suites of the installed transformers importable as `transformers_suite`.

The suites are in transformers' source distribution, not in its wheel. It is fetched once, with pip, into `.hf-check/`.
It lacks the suite of the exporters, which is fetched from the repository.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from urllib.request import urlopen

import pytest
import torch


os.environ["RUN_SLOW"] = "1"  # transformers reads it when its suites are imported
FOLDER = Path(__file__).parents[2] / ".hf-check"
REPOSITORY = "https://raw.githubusercontent.com/huggingface/transformers"


def fetch_suite(version: str) -> Path:
    """Returns the folder with the suites of a version of transformers, downloading it where it is missing."""
    suite = FOLDER / version / "transformers_suite"
    marker = suite / "__init__.py"  # written last
    if marker.exists():
        return suite
    command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers", f"transformers=={version}"]
    subprocess.run([sys.executable, "-m", *command, "--dest", str(FOLDER)], check=True)
    prefix = f"transformers-{version}/tests/"
    with tarfile.open(FOLDER / f"transformers-{version}.tar.gz") as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(prefix)]
        for member in members:
            member.name = member.name.removeprefix(prefix)
        archive.extractall(suite, members, filter="data")
    marker.touch()
    return suite


def fetch_export_suite(suite: Path, version: str):
    """Fetches the exporters' suite of a version of transformers to the others, where it is missing."""
    file = suite / "exporters" / "test_export.py"
    if not file.exists():
        with urlopen(f"{REPOSITORY}/v{version}/tests/exporters/{file.name}", timeout=30) as response:
            content = response.read()
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)


def stub_export_suite(suite: Path, error: OSError):
    """Says among the reasons of skipped tests why the exporters' suite is not run."""

    class ExportTesterMixin:
        def test_export(self):
            pytest.skip(f"The exporters' suite cannot be fetched from {REPOSITORY}: {error}")

    stub_module(f"{suite.name}.exporters.test_export", ExportTesterMixin=ExportTesterMixin)


def stub_module(name: str, **attributes):
    """Stands in for a module that the suites import and the source distribution leaves out."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(attributes)


def pytest_configure():
    torch.set_num_threads(1)  # the suites' models are too small to share
    version = importlib.metadata.version("transformers")
    suite = fetch_suite(version)
    sys.path.insert(0, str(suite.parent))
    try:
        fetch_export_suite(suite, version)
    except OSError as error:  # no connection
        stub_export_suite(suite, error)
    stub_module(f"{suite.name}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stub_module(f"{suite.name}.utils.test_configuration_utils", config_common_kwargs={})
    stub_module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    terminalreporter.section("reasons of skipped tests")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:4} {reason}")
