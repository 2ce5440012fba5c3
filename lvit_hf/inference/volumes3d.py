"""Segments volumes with a network of three dimensions: window by window, on the grid of the file."""

from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference

from ..io.scan import Scan
from ..model.modeling_lvit import LViTForImageSegmentation
from ..model.processing_lvit import LViTProcessor
from ..model.segmenter_lvit import Segmentation
from .volume import VolumeSegmentation, count_thresholds


WINDOW_OVERLAP = 0.25


def scan_to_image(scan: Scan) -> nibabel.Nifti1Image:
    """The slices of a scan with their place in the patient, in the order `(slice, row, column)`.

    Raises:
        ValueError: If the file does not say where its slices lie, or they are in colour.
    """
    affine = None if scan.mask_writer is None else scan.mask_writer.slices_affine
    if affine is None or scan.slices.ndim != 3:
        raise ValueError(
            "A network of three dimensions needs grey slices whose place is known, evenly spaced: a NIfTI file, a "
            "DICOM series or a DICOM file of several frames."
        )
    return nibabel.Nifti1Image(scan.slices, affine)


@torch.inference_mode()
def segment_volume(
    model: LViTForImageSegmentation,
    processor: LViTProcessor,
    volume: Any,
    text: str | None = None,
    overlap: float = WINDOW_OVERLAP,
    batch_size: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Segments a volume of any size by a window that slides over it; the windows' logits are blended.

    Args:
        model: A network of `spatial_dims=3`, in evaluation mode.
        processor: Its processor, with an [`LViTVolumeProcessor`].
        volume: A nibabel image, or what else the processor takes.
        text: The caption; `None` and a blank one stand for no caption.
        overlap: Share of a window that the next one covers again, in [0, 1).
        batch_size: Number of windows that go through the network together.
        progress: Called with the numbers of finished and of all windows; what it raises ends the work.

    Returns:
        Probabilities of the first label in [0, 1], float32, of the volume's own shape and order of axes.

    Raises:
        ValueError: If the volume cannot be used.
    """
    volume_processor = processor.image_processor
    prepared = volume_processor.prepare(volume)
    text_inputs = {}
    if text and text.strip():
        tokens = processor(text=[text], return_tensors="pt").to(model.device)
        text_inputs = dict(zip(("text_embeds", "text_mask"), model.lvit.get_text_embeds(**tokens)))
    total, finished = count_windows(prepared.shape[1:], volume_processor.patch_size, overlap), 0

    def predict(windows: torch.Tensor) -> torch.Tensor:
        nonlocal finished
        texts = {name: tensor.expand(len(windows), *tensor.shape[1:]) for name, tensor in text_inputs.items()}
        logits = model(pixel_values=windows, **texts).logits
        finished += len(windows)
        if progress is not None:
            progress(finished, total)
        return logits

    logits = sliding_window_inference(
        prepared[None],
        roi_size=volume_processor.patch_size,
        sw_batch_size=batch_size,
        predictor=predict,
        overlap=overlap,
        mode="gaussian",
        sw_device=model.device,
        device=torch.device("cpu"),
    )
    image, affine = volume_processor.read(volume)
    scores = volume_processor.calibrate(torch.as_tensor(logits))[0, :1]
    return volume_processor.restore(scores, affine, image.shape[1:])[0].numpy()


def count_windows(shape: tuple[int, ...], patch_size: list[int], overlap: float) -> int:
    """Number of overlapping windows that cover a volume of that shape."""
    padded = tuple(map(max, shape, patch_size))
    steps = tuple(max(int(side * (1 - overlap)), 1) for side in patch_size)
    return len(dense_patch_slices(padded, patch_size, steps))


def segment_scan(
    model: LViTForImageSegmentation, processor: LViTProcessor, scan: Scan, text: str | None = None, **kwargs: Any
) -> VolumeSegmentation:
    """Segments a file that was read as a scan, as `segment_volume` does, in the order of its slices.

    The masks are written by `scan.mask_writer` and measured by `VolumeSegmentation.measure`.

    Raises:
        ValueError: As `scan_to_image`.
    """
    probabilities = segment_volume(model, processor, scan_to_image(scan), text, **kwargs)
    middle = len(scan) // 2
    scores, labels = probabilities[None, middle], (model.config.id2label[0],)
    said = Segmentation(scan.image(middle), scores, labels, text or None, bool(text and text.strip()))
    return VolumeSegmentation(count_thresholds(probabilities), said)
