"""Whether an image shows anything to find: learned from training images of which some show nothing."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from ..io.hub import local_folder
from ..model.image_processing_lvit import binarize_map
from ..model.modeling_lvit import LViTForImageSegmentation, LViTPresenceHead, presence_features
from ..model.processing_lvit import LViTProcessor
from ..model.saving import save_half_precision
from .config import read_config
from .scope import draw_images, process_batches


# Weight of the squared coefficients beside the sum of the images' losses.
PENALTY = 5.0


def fit_presence(config_path: str | Path, overrides: list[str] | None = None, images: int = 1200) -> Path:
    """Gives a checkpoint a presence head, which says whether an image shows anything to find.

    It is fitted to what the network makes of training images without their captions. With a caption it reads the
    features that the caption has moved.

    Args:
        config_path: A YAML file as `lvit train` reads, with `model.checkpoint`. Some training images of its sources
            have an empty mask.
        overrides: `section.key=value` strings that replace values of the file.
        images: Number of training images of each source to look at, half of them moved as in training.

    Returns:
        The folder of the saved model, `best` in the output folder.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If the configuration is wrong, or all images show something.
    """
    config = read_config(config_path, overrides)
    if config.model.checkpoint is None:
        raise ValueError("A presence head is fitted to a checkpoint: name it as model.checkpoint.")
    checkpoint = local_folder(config.model.checkpoint)
    model = LViTForImageSegmentation.from_pretrained(checkpoint, use_safetensors=True, presence_head=False).eval()
    processor = LViTProcessor.from_pretrained(checkpoint)
    size = processor.image_processor.size["height"]
    parts = [
        read_features(model, processor, draw_images(source, images, size), source.name) for source in config.sources
    ]
    features, present = map(torch.cat, zip(*parts))
    if present.all():
        raise ValueError("Every training image shows something: a presence head is learned from some that do not.")
    model.config.presence_head = True
    head = model.presence_head = fit_head(LViTPresenceHead(model.config), features, present)
    # Its log-odds bound logits, of which the processor makes probabilities by its temperature and bias.
    head.weight *= processor.image_processor.temperature
    head.bias = (head.bias - processor.image_processor.logit_bias) * processor.image_processor.temperature
    best = Path(config.training["output_dir"]) / "best"
    save_half_precision(model, processor, best)
    return best


@torch.inference_mode()
def read_features(
    model: LViTForImageSegmentation, processor: LViTProcessor, rows: list, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `presence_features` of rows without their captions, and whether each has any foreground."""
    features: list[torch.Tensor] = []
    present: list[bool] = []
    for batch, pixel_values in process_batches(processor, rows, name):
        features.append(presence_features(model.lvit(pixel_values)))
        present += [shows_something(row["mask"]) for row in batch]
    return torch.cat(features), torch.tensor(present)


def shows_something(mask: Image.Image | np.ndarray) -> bool:
    """Whether a mask, or the shares of foreground in [0, 1] that a moved one has, are not empty."""
    foreground = binarize_map(mask) if isinstance(mask, Image.Image) else mask > 0.5
    return bool(foreground.any())


def fit_head(head: LViTPresenceHead, features: torch.Tensor, present: torch.Tensor) -> LViTPresenceHead:
    """Fits a head in place, by maximum likelihood with a penalty on large coefficients.

    Args:
        head: The head.
        features: `presence_features` of images.
        present: Booleans: whether each shows anything.
    """
    std, head.mean = torch.std_mean(features, dim=0)
    head.scale = std + 1e-6
    standardized = (features - head.mean) / head.scale
    weight = torch.zeros(features.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=1000, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = standardized @ weight + bias
        loss = binary_cross_entropy_with_logits(logits, present.float(), reduction="sum")
        loss = loss + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    head.weight, head.bias = weight.detach(), bias.detach()
    return head
