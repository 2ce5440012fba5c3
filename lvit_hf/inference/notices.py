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


def describe_kinds(kinds: Iterable[str]) -> str:
    """Kinds of images in words: families of captions by what their images are, others by their name."""
    return ", ".join(KINDS[name][0] if name in KINDS else name for name in kinds)


def find_scope_problem(scan: Scan, result: Segmentation) -> str | None:
    """Why an image is none that the checkpoint was trained on, as a sentence; `None` where nothing speaks against it.

    Args:
        scan: The file.
        result: What the model says of it, or of its slice in the middle. Without a scope head and without captions of
            its own, it says nothing.
    """
    scope = result.scope
    names = (result.described or {}).get("families", {}) if scope is None else scope.scores
    kinds = describe_kinds(names)
    if names and KINDS.keys() >= names.keys():
        known = set().union(*(KINDS[name][1] for name in names)) | ANY_KIND
        if scan.modality is not None and scan.modality not in known:
            return f"The file is of modality {scan.modality}, but the checkpoint was trained on {kinds}."
        if scan.modality is None and len(scan) > 1:
            return f"The file is a volume, but the checkpoint was trained on {kinds}."
    if scope is not None and not scope.in_scope:
        return f"The image looks like none that the checkpoint was trained on: {kinds}."
    return None


def find_caption_problem(result: Segmentation) -> str | None:
    """Says that a caption asks for what an image of that kind does not show, so that the mask is empty."""
    if result.excluded_family is None or result.scope is None:
        return None
    kinds = [describe_kinds([kind]) for kind in (result.excluded_family, result.scope.kind)]
    return f"The caption is one for {kinds[0]}, but the image is one of {kinds[1]}: the mask is empty."
