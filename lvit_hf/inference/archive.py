"""Results as one zip: masks, overlays, a table for spreadsheets and the report."""

import itertools
import json
import re
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, Self

from .files import FileResult, describe_result, explain, find_mask_problem, save_mask, save_overlay
from .report import write_table


COLUMNS = (
    "image",
    "text",
    "text_used",
    "area_pixels",
    "area_percent",
    "area_mm2",
    "components",
    "largest_diameter",
    "diameter_unit",
    "mean_probability",
    "voxels",
    "volume_ml",
    "slices",
    "out_of_scope",
    "masks",
    "error",
)


class ResultArchive:
    """A zip that results are added to one by one: `masks/`, `overlays/`, `table.csv` and `report.json`.

    Args:
        path: Where to write it.
        threshold: Probability above which a pixel belongs to a mask.
        settings: What the report says of how the images were segmented.
    """

    def __init__(self, path: Path, threshold: float, settings: dict[str, Any]):
        self.report = {**settings, "threshold": threshold, "images": [], "failures": []}
        self._threshold = threshold
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._names = NameGiver()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object):
        self._archive.writestr("table.csv", write_table([*self.report["images"], *self.report["failures"]], COLUMNS))
        self._archive.writestr("report.json", json.dumps(self.report, indent=2, ensure_ascii=False) + "\n")
        self._archive.close()

    def add(self, row: FileResult) -> dict[str, Any]:
        """Adds a file's result, or why there is none, and returns its entry in the report."""
        try:
            entry = self._write(row)
        except Exception as error:  # such as a volume that is too large for its format
            entry = describe_result(FileResult(row.item, explain(error, row.item)), self._threshold)
        self.report["failures" if "error" in entry else "images"].append(entry)
        return entry

    def _write(self, row: FileResult) -> dict[str, Any]:
        entry = describe_result(row, self._threshold)
        if row.error is None:
            name = self._names.give(row.item.name)
            with tempfile.TemporaryDirectory() as folder:
                entry["masks"] = save_mask(row, self._threshold, Path(folder), name)
                entry["notes"] += filter(None, [find_mask_problem(row, entry["masks"])])
                entry["overlay"] = save_overlay(row, self._threshold, Path(folder), name)
                for file in entry["masks"]:
                    self._archive.write(Path(folder, file), f"masks/{file}")
                self._archive.write(Path(folder, entry["overlay"]), f"overlays/{entry['overlay']}")
        return entry


class NameGiver:
    """Names for files that come from others' names and that are each safe and given once."""

    def __init__(self):
        self._given: set[str] = set()

    def give(self, name: str) -> str:
        stem = PurePosixPath(name.replace("\\", "/")).name.split(".")[0]
        safe = re.sub(r"[^\w-]+", "_", stem)[:100] or "image"
        for number in itertools.count(1):
            candidate = safe if number == 1 else f"{safe}-{number}"
            if candidate.casefold() not in self._given:
                self._given.add(candidate.casefold())
                return candidate
        raise AssertionError  # there is always one more number
