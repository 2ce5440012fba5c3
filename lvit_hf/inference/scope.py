"""Whether an image is of a kind that a checkpoint was trained on."""

from collections.abc import Iterable

from ..io.scan import Scan
from ..model.segmenter_lvit import Segmentation


# What each family's images are, and how DICOM abbreviates what makes them.
KINDS = {
    "lung infection": ("chest radiographs", {"CR", "DX", "RG"}),
    "polyp": ("colonoscopy frames", {"ES", "XC"}),
    "nuclei": ("H&E slides", {"SM", "GM"}),
    "breast lesion": ("breast ultrasound", {"US"}),
}
# Of pictures that were put into DICOM, of which it does not say what made them.
ANY_KIND = {"OT", "SC", ""}

# Least probability of a family, below which an image looks like none.
SURE = 0.6


def describe_kinds(families: Iterable[str]) -> str | None:
    """The images that a checkpoint of these families knows, in words; `None` where one of them is not known here."""
    families = list(families)
    return ", ".join(KINDS[name][0] for name in families) if families and set(families) <= KINDS.keys() else None


def find_scope_problem(scan: Scan, result: Segmentation) -> str | None:
    """Why an image is none that the checkpoint was trained on, as a sentence.

    Args:
        scan: The file.
        result: What the model says of it, or of its slice in the middle. Where it was not described, nothing is known.
    """
    probabilities = (result.described or {}).get("families", {})
    kinds = describe_kinds(probabilities)
    if kinds is None:
        return None
    known = set().union(*(KINDS[name][1] for name in probabilities)) | ANY_KIND
    if scan.modality is not None and scan.modality not in known:
        return f"The file is of modality {scan.modality}, but the checkpoint was trained on {kinds}."
    if scan.modality is None and len(scan) > 1:
        return f"The file is a volume, but the checkpoint was trained on {kinds}."
    if max(probabilities.values()) < SURE:
        return f"The image looks like none that the checkpoint was trained on: {kinds}."
    return None
