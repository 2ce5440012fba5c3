"""What a checkpoint's own kinds of images look like to it, so that others are told apart."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.load import load_data, take_evenly
from ..io.hub import local_folder
from ..model.captions_lvit import parse_caption
from ..model.modeling_lvit import LViTForImageSegmentation, LViTScopeHead, mean_channels, mean_colors
from ..model.processing_lvit import LViTProcessor
from ..model.saving import save_half_precision
from .augmentation import Augmentation, AugmentationConfig, finish
from .batches import MixtureSampler, TrainingDataset, ValidationDataset
from .config import SourceConfig, read_config


BATCH_SIZE = 32
# The distance within which this share of the validation images of a kind is, and how much farther the maps and the
# colours of an image may be: those of other hospitals and scanners are.
PASS, MARGIN, COLOR_MARGIN = 0.95, 1.2, 1.5
# Moved training images are of their kind. With other colours some are not: they reach as far as photographs.
SAME_LOOK = {"gamma": (1.0, 1.0), "intensity": 0.0, "blur": 0.0, "shade": 0.0, "noise": 0.0, "holes": 0.0}


def fit_scope(config_path: str | Path, overrides: list[str] | None = None, images: int = 600) -> Path:
    """Gives a checkpoint a scope head, which says how far an image is from the training images of each kind.

    Args:
        config_path: A YAML file as `lvit train` reads, with `model.checkpoint`. Each of its sources is a kind of
            images, named after the family of its captions.
        overrides: `section.key=value` strings that replace values of the file.
        images: Number of training images of each source to look at, half of them moved as in training.

    Returns:
        The folder of the saved model, `best` in the output folder.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If the configuration is wrong, or two sources are of one kind.
    """
    config = read_config(config_path, overrides)
    if config.model.checkpoint is None:
        raise ValueError("A scope head is fitted to a checkpoint: name it as model.checkpoint.")
    kinds = [name_kind(source) for source in config.sources]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"Each source must be another kind of images, got {', '.join(kinds)}.")
    checkpoint = local_folder(config.model.checkpoint)
    model = LViTForImageSegmentation.from_pretrained(checkpoint, use_safetensors=True, scope_kinds=[]).eval()
    processor = LViTProcessor.from_pretrained(checkpoint)
    model.config.scope_kinds = kinds
    model.scope_head = LViTScopeHead(model.config)
    for kind, source in enumerate(config.sources):
        train = draw_images(source, images, processor.image_processor.size["height"])
        valid = ValidationDataset(load_data(source.path, "valid"), source.validation_tile, source.max_validation)
        maps, colors = zip(*(describe_images(model, processor, rows, source.name) for rows in (train, valid)))
        model.scope_head.fit(kind, *maps, PASS, MARGIN)
        model.scope_head.fit_colors(kind, *colors, PASS, COLOR_MARGIN)
    best = Path(config.training["output_dir"]) / "best"
    save_half_precision(model, processor, best)
    return best


def name_kind(source: SourceConfig) -> str:
    """The family of most captions of a source, or its own name where none is understood."""
    captions = Counter(load_data(source.path, "train")["text"])
    families: Counter[str] = Counter()
    for text, count in captions.items():
        if caption := parse_caption(text):
            families[caption.family] += count
    return families.most_common(1)[0][0] if families else source.name


def draw_images(source: SourceConfig, images: int, size: int) -> list:
    """Rows of training images of a source, half of them moved."""
    rows = load_data(source.path, "train")
    moves = AugmentationConfig(**{**source.augmentation, **SAME_LOOK})
    moved = TrainingDataset([rows], [Augmentation(moves, size)])
    sampler = MixtureSampler([len(rows)], [1.0], seed=0, num_samples=images // 2)
    return [*(finish(moved[index]) for index in sampler), *take_evenly(rows, images // 2)]


def process_batches(
    processor: LViTProcessor, rows: list | ValidationDataset, name: str
) -> Iterator[tuple[list[dict], torch.Tensor]]:
    """Rows, some at a time, with their `pixel_values`."""
    for start in tqdm(range(0, len(rows), BATCH_SIZE), desc=name, unit="batch", disable=None):
        batch = [rows[index] for index in range(start, min(start + BATCH_SIZE, len(rows)))]
        yield batch, processor(images=[row["image"] for row in batch], return_tensors="pt")["pixel_values"]


@torch.inference_mode()
def describe_images(
    model: LViTForImageSegmentation, processor: LViTProcessor, rows: list | ValidationDataset, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `image_embeds` and the `mean_colors` of rows."""
    embeds, colors = [], []
    for _, pixel_values in process_batches(processor, rows, name):
        embeds.append(mean_channels(model.lvit.conv_encoder(pixel_values)))
        colors.append(mean_colors(pixel_values))
    return torch.cat(embeds), torch.cat(colors)
