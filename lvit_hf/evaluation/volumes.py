"""What a network of volumes makes of captions: right ones, paraphrases, another's, none, and of what is not there."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.load import spread_evenly
from ..data.volumes import Structure, find_volumes, read_pair
from ..model.segmenter_lvit import LViTSegmenter
from .metrics import boundary_scores, overlap


TOLERANCE_MM = 1.0
RESULTS_FILE = "volumes_evaluation.json"

Report = dict[str, dict[str, float]]


def evaluate_volumes(
    segmenter: LViTSegmenter,
    path: str,
    structures: Sequence[Structure],
    split: str = "valid",
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    threshold: float = 0.5,
    tolerance: float = TOLERANCE_MM,
    batch_size: int = 2,
) -> Report:
    """Measures a network on whole volumes, on their own grids.

    Of a structure's paraphrases every volume takes one, in turn.

    Args:
        segmenter: A checkpoint of three dimensions.
        path: What `find_volumes` reads.
        structures: What captions ask for, with the labels that answer them.
        split: `"train"`, `"valid"` or `"test"`.
        limit: Number of volumes that are looked at, spread evenly; all without it.
        progress: Called with the numbers of finished and of all volumes.
        threshold: Probability above which a voxel belongs to the mask.
        tolerance: Distance in mm up to which surfaces agree.
        batch_size: Number of windows that go through the network together.

    Returns:
        For each structure, and its paraphrases as `NAME, paraphrased`: the mean of `volume_error` in mm³ and the
        number of `volumes`; over those that have the structure the means of `dice` and `nsd`, the surface Dice, in
        [0, 1], and of `hd95` in mm; over the others the share of `empty` masks. For each pair of structures `NAME,
        captioned OTHER`, with the `dice` of the mask that the other's caption gives, where there is the first.
    """
    measures: dict[str, list[dict[str, float]]] = defaultdict(list)
    files = find_volumes(path, split)
    files = files if limit is None else [files[position] for position in spread_evenly(len(files), limit)]
    for number, file in enumerate(files):
        volume, label_map = read_pair(file)
        labels = torch.from_numpy(np.asarray(label_map.dataobj).astype(np.int64))
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()

        def segment(text: str) -> torch.Tensor:
            result = segmenter.segment_volume(volume, text, batch_size=batch_size)
            return torch.from_numpy(result.probabilities > threshold)

        masks = {structure.name: segment(structure.captions[0]) for structure in structures}
        for structure in structures:
            target = structure.mask(labels).bool()
            measures[structure.name].append(_measure(masks[structure.name], target, spacing, tolerance))
            if structure.paraphrases:
                text = structure.paraphrases[number % len(structure.paraphrases)]
                measures[f"{structure.name}, paraphrased"].append(_measure(segment(text), target, spacing, tolerance))
            for other, mask in masks.items():
                if other != structure.name and target.any():
                    measures[f"{structure.name}, captioned {other}"].append({"dice": overlap(mask, target)["dice"]})
        if progress is not None:
            progress(number + 1, len(files))
    return {name: {**_average(rows), "volumes": len(rows)} for name, rows in measures.items()}


def _average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure the mean over the volumes that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _measure(mask: torch.Tensor, target: torch.Tensor, spacing: list[float], tolerance: float) -> dict[str, float]:
    error = abs(mask.sum().item() - target.sum().item()) * math.prod(spacing)
    if not target.any():
        return {"empty": float(not mask.any()), "volume_error": error}
    hd95, nsd = boundary_scores(mask, target, tolerance, spacing)
    return {"dice": overlap(mask, target)["dice"], "hd95": hd95, "nsd": nsd, "volume_error": error}


def write_volume_evaluation(folder: Path, report: Report):
    """Writes figures as JSON, in place of older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def render_volume_evaluation(report: Report) -> str:
    """Figures as tables in Markdown: of each structure, and of the masks that others' captions give."""
    lines = [
        "| caption | Dice | surface Dice | HD95, mm | error of the volume, mm³ | empty | volumes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report.items():
        if " captioned " not in name:
            shares = [f"{100 * row[key]:.2f}" if key in row else "" for key in ("dice", "nsd", "empty")]
            distance = f"{row['hd95']:.2f}" if "hd95" in row else ""
            cells = [name, *shares[:2], distance, f"{row['volume_error']:.0f}", shares[2], row["volumes"]]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    crossed = [f"- {name}: {100 * row['dice']:.2f}" for name, row in report.items() if " captioned " in name]
    notes = [
        "Means over volumes, each on its own grid; shares in percent. *Empty* is the share of empty masks where "
        "nothing is to be found."
    ]
    if crossed:
        notes += ["", "Dice with one structure of the mask that another's caption gives:", "", *crossed]
    return "\n".join([*lines, "", *notes]) + "\n"
