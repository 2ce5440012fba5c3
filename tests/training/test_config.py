"""Configurations: overrides, stages, and what is refused, by the name of the key."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from lvit_hf.training.augmentation import AugmentationConfig
from lvit_hf.training.config import ModelConfig, TrainConfig, make_config, read_config
from lvit_hf.training.run import build_model
from lvit_hf.training.volumes import VolumeAugmentationConfig


FOLDER = Path(__file__).parents[2] / "configs"
CONTENT = {
    "model": {},
    "sources": [{"name": "a", "path": "b", "augmentation": {"rotate": 3}}],
    "augmentation": {"rotate": 9, "scale": 0.1},
    "training": {"output_dir": "runs/a", "max_steps": 5},
}
OF_VOLUMES = {"name": "a", "path": "b", "structures": [{"name": "heart", "labels": [1], "captions": ["heart"]}]}
TEACHER = "teacher={checkpoint: a, sources: [a], share: 1}"
STAGES = [{"training": {"max_steps": 1}, "model": {"input_size": 8}}, {"augmentation": {"scale": 0.2}}]


def read(folder: Path, *overrides: str, content: object = CONTENT) -> TrainConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_config(path, list(overrides))


def test_overrides_replace_values(tmp_path):
    config = read(tmp_path, "training.max_steps=7", "model.checkpoint=somewhere", "sources.0.path=c")
    assert config.training == {"output_dir": "runs/a", "max_steps": 7}
    assert config.model.checkpoint == "somewhere" and config.sources[0].path == "c"


@pytest.mark.parametrize(
    "override", ["sources.1.path=c", "sources.a.path=c", "training.max_steps.x=1", "training.seed=["]
)
def test_overrides_that_fit_nothing_are_refused(tmp_path, override):
    with pytest.raises(ValueError, match="fits nothing in the file"):
        read(tmp_path, override)


def test_an_override_has_a_key_and_a_value(tmp_path):
    with pytest.raises(ValueError, match="has the form section.key=value, got 'training.seed'"):
        read(tmp_path, "training.seed")


@pytest.mark.parametrize(
    "override",
    [
        "model.config={id2label: {0: polyp}, attn_implementation: sdpa, num_labels: 1}",
        "augmentation={translate: 1, crop: [4, 4]}",
        f"sources=[{OF_VOLUMES | {'augmentation': {'translate': 4}}}]",
        "semi_supervised={beta: 1, labelled_share: 0.01}",
        TEACHER,
        "training={output_dir: a, lr_scheduler_type: reduce_lr_on_plateau, lr_scheduler_kwargs: {patience: 3}}",
        "training={output_dir: a, lr_scheduler_type: polynomial, lr_scheduler_kwargs: {power: 2}}",
    ],
)
def test_what_is_right_is_taken(tmp_path, override):
    read(tmp_path, override)


@pytest.mark.parametrize(
    ("source", "augmentation"),
    [({"name": "a", "path": "b"}, AugmentationConfig()), (OF_VOLUMES, VolumeAugmentationConfig())],
    ids=["images", "volumes"],
)
def test_what_stands_for_a_key_that_is_left_out_could_be_in_a_file(source, augmentation):
    others = {**source, "name": "other"}
    config = make_config({**CONTENT, "sources": [source, others], "augmentation": {}, "semi_supervised": {}}, "a")
    config.augmentation = asdict(augmentation)
    again = make_config(asdict(config), "what is read")
    assert (again.model, again.semi_supervised) == (config.model, config.semi_supervised)


def test_numbers_may_be_written_as_yaml_takes_them_for_text(tmp_path):
    assert read(tmp_path, "training.learning_rate=1e-3").training["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # keys
        ("modle.input_size=8", "modle is not known; did you mean model?"),
        ("model.input_siz=8", "model.input_siz is not known; did you mean input_size?"),
        ("model.config.text_fuson=patch_map", "model.config.text_fuson is not known; did you mean text_fusion?"),
        ("learning_rate=1", "learning_rate is not known; did you mean training.learning_rate?"),
        ("training.lerning_rate=1", "training.lerning_rate is not known; did you mean learning_rate?"),
        ("sources.0.wieght=1", "sources.0.wieght is not known; did you mean weight?"),
        ("sources.0.augmentation.rotat=1", "sources.0.augmentation.rotat is not known; did you mean rotate?"),
        ("augmentation.rotat=1", "augmentation.rotat is not known; did you mean rotate?"),
        ("teacher={checkpoint: a, sources: [a], shar: 1}", "teacher.shar is not known; did you mean share?"),
        ("semi_supervised.betta=1", "semi_supervised.betta is not known; did you mean beta?"),
        ("stages=[{trainin: {}}]", "stages.0.trainin is not known; did you mean training?"),
        ("stages=[{training: {max_stps: 1}}]", "stages.0.training.max_stps is not known; did you mean max_steps?"),
        ("training.lr_scheduler_kwargs.min_lr=1", "min_lr is not known to linear; there is no such key here."),
        (
            "training={output_dir: a, lr_scheduler_type: cosine_with_restarts, lr_scheduler_kwargs: {zzz: 1}}",
            "training.lr_scheduler_kwargs.zzz is not known to cosine_with_restarts; did you mean num_cycles?",
        ),
        ("model.config.text_config={}", "model.config.text_config is not known; did you mean "),
        # types
        ("model=3", "model should be a dictionary, got 3."),
        ("sources.0.path=3", "sources.0.path should be a valid string, got 3."),
        ("training.max_steps=many", "training.max_steps should be a valid integer"),
        ("training.bf16=3", "training.bf16 should be a valid boolean"),
        ("model.config.hidden_sizes=8", "model.config.hidden_sizes should be a valid"),
        ("model.config.hidden_sizes=[a]", "model.config.hidden_sizes.0 should be a valid integer"),
        ("stages=3", "stages should be a valid list, got 3."),
        ("stages=[3]", "stages.0 should be a dictionary, got 3."),
        # values
        ("training.lr_scheduler_type=csine", "training.lr_scheduler_type should be 'linear', 'cosine'"),
        ("training.eval_strategy=step", "training.eval_strategy should be 'no', 'steps' or 'epoch', got 'step'."),
        ("training.learning_rate=-1", "training.learning_rate should be greater than or equal to 0, got -1."),
        ("training.per_device_train_batch_size=0", "training.per_device_train_batch_size should be greater than 0"),
        ("sources=[]", "sources should have at least 1 item"),
        ("sources.0.weight=0", "sources.0.weight should be greater than 0, got 0."),
        ("sources.0.name=a/b", "sources.0.name should match pattern"),
        ("sources.0.augmentation.blur=2", "sources.0.augmentation.blur should be less than or equal to 1, got 2."),
        ("augmentation.blur=-1", "augmentation.blur should be greater than or equal to 0, got -1."),
        ("augmentation.scale=2", "augmentation.scale should be less than or equal to 1, got 2."),
        ("augmentation.translate=4", "translate in the augmentation of images is a share"),
        ("sources.0.augmentation.crop=[9, 4]", "sources.0.augmentation.crop does not fit: the smaller number comes"),
        ("sources=[{name: a, path: b}, {name: a, path: c}]", "Each source needs a name of its own, got a, a."),
        ("semi_supervised.labelled_share=1", "semi_supervised.labelled_share should be less than 1"),
        ("semi_supervised.labelled_share=0", "semi_supervised.labelled_share should be greater than 0"),
        ("absent_captions=0.1", "absent_captions takes captions of other sources, but there is one source."),
        (f"stages=[{ {'stages': [CONTENT]} }]", "A stage has no stages of its own."),
        ("model.config.num_labels=0", "model.config.num_labels should be greater than 0, got 0."),
        ("teacher={checkpoint: a, sources: [b], share: 0}", "teacher.share should be greater than 0"),
        ("teacher={checkpoint: a, sources: [none]}", "teacher.sources names none, but the sources are"),
        ("average_decay=1", "average_decay should be less than 1"),
        # what is missing
        ("training={}", "training.output_dir is missing."),
        ("sources=[{name: a}]", "sources.0.path is missing."),
        ("training.lr_scheduler_type=warmup_stable_decay", "training.lr_scheduler_kwargs.num_decay_steps is missing"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_of_its_key(tmp_path, override, message):
    with pytest.raises(ValueError) as error:
        read(tmp_path, override)
    header, *sentences = str(error.value).split("\n- ")
    assert "run.yaml" in header
    assert len(sentences) == 1 and message in sentences[0]


@pytest.mark.parametrize("override", ["semi_supervised={}", f"sources=[{OF_VOLUMES}]"])
def test_a_teacher_is_refused_where_it_would_not_be_asked(tmp_path, override):
    with pytest.raises(ValueError, match="teacher is for supervised training on images."):
        read(tmp_path, override, TEACHER)


@pytest.mark.parametrize("content", [None, 3, ["model"], "model"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="The file should be a dictionary"):
        read(tmp_path, content=content)


def test_all_that_is_wrong_is_said_at_once_and_once(tmp_path):
    """A key that is wrong for all stages is named where it stands."""
    with pytest.raises(ValueError) as error:
        read(tmp_path, "training.lerning_rate=1", "stages.1.training.bf16=4", content={**CONTENT, "stages": STAGES})
    _, *sentences = str(error.value).split("\n- ")
    assert [sentence.split()[0] for sentence in sentences] == ["training.lerning_rate", "stages.1.training.bf16"]


def test_a_schedule_may_be_completed_by_each_stage(tmp_path):
    kwargs = {"lr_scheduler_kwargs": {"num_decay_steps": 2}}
    training = {**CONTENT["training"], "lr_scheduler_type": "warmup_stable_decay"}
    content = {**CONTENT, "training": training, "stages": [{"training": kwargs}] * 2}
    assert [stage.training["lr_scheduler_kwargs"] for stage in read(tmp_path, content=content).stages] == [
        {"num_decay_steps": 2}
    ] * 2


def test_a_source_goes_before_what_all_sources_share(tmp_path):
    assert read(tmp_path).sources[0].augmentation == {"rotate": 3, "scale": 0.1}


def test_a_stage_takes_from_the_file_what_it_does_not_say(tmp_path):
    first, last = read(tmp_path, content={**CONTENT, "stages": STAGES}).stages
    assert first.training == {"output_dir": "runs/a/stage-1", "max_steps": 1}
    assert last.training == {"output_dir": "runs/a", "max_steps": 5}
    assert (first.model.input_size, last.model.input_size) == (8, None)
    assert (first.model.checkpoint, last.model.checkpoint) == (None, "runs/a/stage-1/best")
    assert [stage.sources[0].augmentation["scale"] for stage in (first, last)] == [0.1, 0.2]


@pytest.mark.parametrize("config", [{"hidden_sizes": [8, 24, 48, 96]}, {"text_fusion": "sum"}], ids=str)
def test_fields_of_a_model_that_do_not_fit_each_other_are_a_sentence(config):
    with pytest.raises(ValueError, match="model.config cannot be used.*" + next(iter(config))):
        build_model(ModelConfig(config=config))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_that_come_with_the_package_are_right(path):
    config = read_config(path)
    for stage in config.stages or [config]:
        for source in stage.sources:
            assert not Path(source.path).is_absolute() and ".." not in Path(source.path).parts
            assert source.labelled_ids is None or (FOLDER.parent / source.labelled_ids).is_file()
