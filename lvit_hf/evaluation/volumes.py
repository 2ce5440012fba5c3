"""What a network of volumes makes of captions: right ones, paraphrases, another's, none, and of what is not there."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..data.volumes import Structure, find_volumes, read_nifti_image
from ..inference.volumes3d import segment_volume
from ..model.modeling_lvit import LViTForImageSegmentation
from ..model.processing_lvit import LViTProcessor
from .metrics import boundary_scores, overlap_scores


TOLERANCE_MM = 1.0


def evaluate_volumes(
    model: LViTForImageSegmentation,
    processor: LViTProcessor,
    path: str,
    structures: Sequence[Structure],
    split: str = "valid",
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Measures a network on whole volumes, on their own grids.

    Of a structure's paraphrases every volume takes one, in turn.

    Args:
        model: A network of `spatial_dims=3`, in evaluation mode.
        processor: Its processor.
        path: What `find_volumes` reads.
        structures: What captions ask for, with the labels that answer them.
        split: `"train"`, `"valid"` or `"test"`.
        limit: Number of volumes that are looked at; all without it.
        progress: Called with the numbers of finished and of all volumes.

    Returns:
        For each structure, and its paraphrases as `NAME, paraphrased`: means over volumes of `dice` and `nsd` (at 1
        mm) in [0, 1], `hd95` in mm and `volume_error` in mm³, and the number of `volumes`; where nothing is to be
        found, the share of `empty` masks. For each pair of structures, `NAME, captioned OTHER`, with the `dice` of the
        mask that the other's caption gives.
    """
    measures: dict[str, list[dict[str, float]]] = defaultdict(list)
    files = find_volumes(path, split)[:limit]
    for number, file in enumerate(files):
        volume, label_map = read_nifti_image(file.image), read_nifti_image(file.label_map)
        labels = torch.from_numpy(np.asarray(label_map.dataobj).astype(np.int64))
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()

        def segment(text: str) -> torch.Tensor:
            return torch.from_numpy(segment_volume(model, processor, volume, text) > 0.5)

        masks = {}
        for structure in structures:
            target = structure.mask(labels).bool()
            masks[structure.name] = segment(structure.captions[0])
            measures[structure.name].append(_measure(masks[structure.name], target, spacing))
            if structure.paraphrases:
                text = structure.paraphrases[number % len(structure.paraphrases)]
                measures[f"{structure.name}, paraphrased"].append(_measure(segment(text), target, spacing))
        for structure in structures:
            target = structure.mask(labels).bool()
            for other, mask in masks.items():
                if other != structure.name and structure.labels:
                    measures[f"{structure.name}, captioned {other}"].append({"dice": _dice(mask, target)})
        if progress is not None:
            progress(number + 1, len(files))
    return {
        name: {**{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}, "volumes": len(rows)}
        for name, rows in measures.items()
    }


def _dice(mask: torch.Tensor, target: torch.Tensor) -> float:
    return overlap_scores((mask & target).sum().double(), (mask.sum() + target.sum()).double())[0].item()


def _measure(mask: torch.Tensor, target: torch.Tensor, spacing: list[float]) -> dict[str, float]:
    if not target.any():
        return {"empty": float(not mask.any()), "volume_error": mask.sum().item() * float(np.prod(spacing))}
    hd95, nsd = boundary_scores(mask, target, TOLERANCE_MM, spacing)
    error = abs(mask.sum().item() - target.sum().item()) * float(np.prod(spacing))
    return {"dice": _dice(mask, target), "hd95": hd95, "nsd": nsd, "volume_error": error}
