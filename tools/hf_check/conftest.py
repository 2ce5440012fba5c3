"""Makes the common test suites of the installed transformers importable as `transformers_suite`.

The suites are in transformers' source distribution, not in its wheel. It is fetched once, with pip, into `.hf-check/`.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import torch


os.environ["RUN_SLOW"] = "1"  # transformers reads it when its suites are imported
FOLDER = Path(__file__).parents[2] / ".hf-check"


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


def stub_module(name: str, **attributes):
    """Stands in for a module that the suites import and the source distribution leaves out."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(attributes)


def pytest_configure():
    torch.set_num_threads(1)  # the suites' models are too small to share
    suite = fetch_suite(importlib.metadata.version("transformers"))
    sys.path.insert(0, str(suite.parent))
    stub_module(f"{suite.name}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stub_module(f"{suite.name}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stub_module(f"{suite.name}.utils.test_configuration_utils", config_common_kwargs={})
    stub_module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    terminalreporter.section("reasons of skipped tests")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:4} {reason}")
