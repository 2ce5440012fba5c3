"""The Trainer step by step: losses, pseudo-labels and averaged weights are what they should be made of."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from squares import make_rows
from tiny_lvit import SIZE, load_weights, tiny_model, tiny_processor
from torch.nn.functional import cosine_similarity
from transformers import TrainerState

from lvit_hf import LViTForImageSegmentation
from lvit_hf.model.modeling_lvit import segmentation_loss
from lvit_hf.training.batches import augment
from lvit_hf.training.config import TrainConfig, make_config
from lvit_hf.training.pseudo_labels import PSEUDO_LABEL_FILE
from lvit_hf.training.run import make_trainer, save_best
from lvit_hf.training.semi_supervised import RefreshPseudoLabels, SemiSupervisedCollator
from lvit_hf.training.trainer import AVERAGE_FILE


STEPS = 3
COUNTS = {"few": 7, "more": 9}  # training images of two sources
LABELLED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    tiny_model(hidden_dropout_prob=0.0).save_pretrained(folder / "checkpoint")
    tiny_processor().save_pretrained(folder / "checkpoint")
    for name, count in COUNTS.items():
        (folder / name).mkdir()
        make_rows(count, seed=count).to_parquet(folder / name / "train-0.parquet")
        make_rows(4, seed=100).to_parquet(folder / name / "valid-0.parquet")
        (folder / f"{name}.txt").write_text("\n".join(f"{count}-{number}" for number in range(LABELLED)))
    return folder


def make(folder: Path, output: Path, semi_supervised: dict | None = None, **training) -> TrainConfig:
    sources = [
        {
            "name": name,
            "path": str(folder / name),
            "augmentation": {"text_dropout": 0, "gamma": [1, 1], "intensity": 0, "blur": 0},
            "labelled_ids": str(folder / f"{name}.txt"),
        }
        for name in COUNTS
    ]
    content = {
        "model": {"checkpoint": str(folder / "checkpoint")},
        "sources": sources,
        "average_decay": 0.7,
        "training": {
            "output_dir": str(output),
            "max_steps": STEPS,
            "per_device_train_batch_size": 6,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            **training,
        },
    }
    return make_config(content | ({"semi_supervised": semi_supervised} if semi_supervised else {}), "the test")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def predict(model: LViTForImageSegmentation, rows: list[dict]) -> torch.Tensor:
    inputs = tiny_processor()(
        images=[row["image"] for row in rows], text=[row["text"] for row in rows], return_tensors="pt"
    )
    return model.eval()(**inputs).logits[:, 0].sigmoid()


@pytest.mark.parametrize("lv_weight", [0, 0.1, 3])
def test_a_loss_is_equal_to_its_parts(folder, tmp_path, lv_weight):
    trainer = make_trainer(make(folder, tmp_path, {"lv_weight": lv_weight}))
    trainer.prepare_contrastive_set()
    trainer.refresh_pseudo_labels(momentum=0.0)
    batch = augment(next(iter(trainer.get_train_dataloader())), tiny_processor())
    model = trainer.model.eval()
    with torch.no_grad():
        given = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))
        logits = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], word_ids=batch["word_ids"])
    # Half of a batch is labelled, and each contrastive mask is the mean of the labelled masks of a caption.
    labelled = [row for source in trainer.train_dataset.sources[:2] for row in source]
    draws = list(trainer._get_train_sampler())[:6]
    captions = [trainer.train_dataset[draw]["text"] for draw in draws]
    assert [draw[0] < 2 for draw in draws] == [True] * 3 + [False] * 3
    masks = [
        np.mean([np.asarray(row["mask"]) / 255 for row in labelled if row["text"] == text], axis=0)
        for text in captions[3:]
    ]
    probabilities = logits.logits[3:, 0].sigmoid()
    similar = cosine_similarity(probabilities.flatten(1), torch.tensor(np.stack(masks)).float().flatten(1))
    of_masks = segmentation_loss(logits.logits, batch["labels"], model.config)
    torch.testing.assert_close(given, of_masks + lv_weight * (1 - similar).mean(), rtol=1e-4, atol=1e-5)
    batch["has_lv_loss"] = torch.zeros(6, dtype=torch.bool)  # as where all captions were left out
    without, outputs = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)), return_outputs=True)
    torch.testing.assert_close(without, of_masks, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.logits, logits.logits)


@pytest.mark.parametrize(("share", "batch_size"), [(0.1, 4), (0.9, 4), (0.5, 1)])
def test_a_batch_has_room_for_both_kinds(folder, tmp_path, share, batch_size):
    settings = {"labelled_share": share}
    trainer = make_trainer(make(folder, tmp_path, settings, per_device_train_batch_size=batch_size))
    with pytest.raises(ValueError, match=f"makes [04] of {batch_size} images of a batch labelled"):
        trainer.get_train_dataloader()


def test_images_without_a_caption_have_no_part_in_what_is_said_of_captions(folder, tmp_path, caplog):
    rows = make_rows(9, seed=9)
    texts = ["", " ", *rows["text"][2:]]
    (tmp_path / "data").mkdir()
    rows.remove_columns("text").add_column("text", texts[::-1]).to_parquet(tmp_path / "data" / "train-0.parquet")
    make_rows(2, seed=100).to_parquet(tmp_path / "data" / "valid-0.parquet")
    config = make(folder, tmp_path / "run", {"min_similarity": 1.1})
    config.sources[1].path = str(tmp_path / "data")
    trainer = make_trainer(config)
    assert all(caption.strip() for caption in trainer.captions) and len(trainer.captions) == 2
    trainer.prepare_contrastive_set()
    assert "2 of 2 captions" in caplog.text


def test_images_without_a_mask_and_with_a_caption_have_the_lv_loss():
    [row] = make_rows(1, seed=0)
    rows = [
        {**row, "text": text, "is_unlabelled": is_unlabelled}
        for text in ("left lung", "", "  ")
        for is_unlabelled in (False, True)
    ]
    assert SemiSupervisedCollator(tiny_processor())(rows)["has_lv_loss"].tolist() == [False, True] + 4 * [False]


@pytest.fixture(scope="module")
def finished(folder):
    """The state of a semi-supervised run whose labels were refreshed at its second step, and its output folder."""
    output = folder / "finished"
    trainer = make_trainer(make(folder, output, {"refresh_steps": 2, "beta": 0.6}))
    trainer.train()
    save_best(trainer)
    return trainer.state, output


def saved_model(folder: Path, checkpoint: Path) -> LViTForImageSegmentation:
    model = LViTForImageSegmentation.from_pretrained(folder / "checkpoint")
    model.load_state_dict(load_file(checkpoint / AVERAGE_FILE))
    return model


def unlabelled_rows(folder: Path) -> list[dict]:
    return [row for count in COUNTS.values() for row in list(make_rows(count, seed=count))[LABELLED:]]


def test_a_pseudo_label_forgets_by_the_steps_since_the_last_refresh(folder, finished):
    _, output = finished
    first, second, third = (np.load(output / f"checkpoint-{step}" / PSEUDO_LABEL_FILE) for step in (1, 2, 3))
    rows = unlabelled_rows(folder)
    untrained = LViTForImageSegmentation.from_pretrained(folder / "checkpoint")
    np.testing.assert_allclose(first, predict(untrained, rows), atol=1e-4)
    predicted = predict(saved_model(folder, output / "checkpoint-2"), rows).numpy()
    assert np.abs(predicted - first).max() > 0.05
    np.testing.assert_allclose(second, 0.6**2 * first + (1 - 0.6**2) * predicted, atol=1e-4)
    assert np.array_equal(second, third)


@pytest.mark.parametrize(
    "refresh_steps, accumulation, batches, expected",
    [(2, 1, 6, [2, 4]), (4, 1, 2, [4]), (None, 1, 3, [3]), (None, 2, 5, [2, 4]), (None, 4, 3, [1, 2, 3, 4, 5])],
)
def test_labels_are_refreshed_at_their_steps_but_for_the_last(
    folder, tmp_path, refresh_steps, accumulation, batches, expected
):
    settings = {"refresh_steps": refresh_steps, "beta": 0.6}
    trainer = make_trainer(make(folder, tmp_path, settings, gradient_accumulation_steps=accumulation))
    [callback] = [each for each in trainer.callback_handler.callbacks if isinstance(each, RefreshPseudoLabels)]
    refreshed = {}
    trainer.refresh_pseudo_labels = lambda momentum: refreshed.setdefault(state.global_step, momentum)
    for step in range(1, 7):
        state = TrainerState(global_step=step, max_steps=6)
        callback.on_step_end(trainer.args, state, trainer.control, train_dataloader=range(batches))
    assert refreshed == dict.fromkeys(expected, 0.6 ** expected[0])


def test_captions_that_the_contrastive_set_does_not_know_are_warned_of(folder, tmp_path, caplog):
    trainer = make_trainer(make(folder, tmp_path, {"min_similarity": 0.999}))
    trainer.prepare_contrastive_set()
    assert not caplog.text
    trainer.captions = [*trainer.captions, "two polyps"]
    trainer.prepare_contrastive_set()
    assert "1 of 3 captions" in caplog.text and "the first is 'two polyps'" in caplog.text
    trainer.captions = []
    trainer.prepare_contrastive_set()
    assert "No unlabelled image has a caption" in caplog.text


def test_each_image_gets_its_own_pseudo_label(folder, tmp_path):
    trainer = make_trainer(make(folder, tmp_path, {"refresh_steps": 2}))
    trainer.refresh_pseudo_labels(momentum=0.0)
    sources = trainer.train_dataset.sources[2:]
    assert [len(source) for source in sources] == [count - LABELLED for count in COUNTS.values()]
    with trainer.evaluated_model() as model:
        for source in sources:
            expected = predict(model, list(source))
            for row, probability in zip(source, expected):
                np.testing.assert_allclose(np.asarray(row["mask"]) / 255, probability, atol=1 / 255)


def test_an_evaluation_looks_at_averaged_weights_and_leaves_the_trained_ones(folder, tmp_path):
    trainer = make_trainer(make(folder, tmp_path))
    average = trainer.average.average.module
    with torch.no_grad():
        average.classifier.bias.add_(50)  # all foreground
    before, averaged = weights(trainer.model), weights(average)
    trainer.model.train()
    metrics = trainer.evaluate()
    assert same(weights(trainer.model), before) and same(weights(average), averaged)
    assert trainer.model.training
    area = (np.asarray(make_rows(1, seed=100)[0]["mask"]) > 0).mean()
    assert metrics["eval_few_dice"] == pytest.approx(2 * area / (1 + area), abs=1e-3)


def test_the_average_moves_by_its_decay(finished):
    """It begins with the weights of the first step."""
    _, output = finished
    trained = [load_file(output / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3)]
    averaged = [load_file(output / f"checkpoint-{step}" / AVERAGE_FILE) for step in (1, 2, 3)]
    for name in (
        "classifier.weight",
        "lvit.vision_transformer.encoder.0.layers.0.mlp.fc1.weight",
        "lvit.conv_encoder.stem.normalization.running_var",
    ):
        assert torch.equal(averaged[0][name], trained[0][name])
        for before, after, weights in zip(averaged, averaged[1:], trained[1:]):
            assert not torch.equal(after[name], weights[name])
            torch.testing.assert_close(after[name], 0.7 * before[name] + 0.3 * weights[name])


def test_what_is_saved_are_the_averaged_weights_of_the_best_step(finished):
    state, output = finished
    scores = dict.fromkeys(range(1, STEPS + 1), 0.0)
    for entry in state.log_history:
        for name in COUNTS:
            scores[entry["step"]] += entry.get(f"eval_{name}_dice", 0) / len(COUNTS)
    best = max(scores, key=lambda step: scores[step])
    assert state.best_metric == pytest.approx(scores[best])
    assert Path(state.best_model_checkpoint).name == f"checkpoint-{best}"
    averaged = load_file(output / f"checkpoint-{best}" / AVERAGE_FILE)
    saved = load_weights(output / "best")
    others = [load_file(output / f"checkpoint-{step}" / "model.safetensors") for step in scores if step > 1]
    for name in (
        "lvit.conv_encoder.stem.convolution.weight",
        "lvit.vision_transformer.encoder.0.layers.0.mlp.fc1.weight",
    ):
        torch.testing.assert_close(saved[name].float(), averaged[name], rtol=1e-3, atol=1e-4)
        assert not any(torch.allclose(saved[name].float(), other[name], rtol=1e-3, atol=1e-4) for other in others)


def test_the_last_step_is_evaluated_whatever_the_interval(folder, tmp_path):
    trainer = make_trainer(make(folder, tmp_path, eval_steps=2, save_steps=2))
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_few_dice" in entry]
    assert steps == [2, 3] and (tmp_path / "checkpoint-3").is_dir()
    assert load_weights(save_best(trainer))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_text_tower_learns_unless_it_is_frozen(folder, tmp_path, frozen):
    trainer = make_trainer(make(folder, tmp_path, max_steps=1))
    trainer.model.config.freeze_text_model = frozen
    trainer.model.lvit.text_model.requires_grad_(not frozen)
    before = weights(trainer.model.lvit.text_model)
    trainer.train()
    assert same(weights(trainer.model.lvit.text_model), before) == frozen


def test_every_source_has_its_own_settings(folder, tmp_path):
    config = make(folder, tmp_path)
    few, more = config.sources
    few.augmentation["flip_horizontal"], more.augmentation["flip_horizontal"] = 0.0, 1.0
    few.max_validation, more.validation_tile, few.weight = 2, SIZE // 2, 0.0
    trainer = make_trainer(config)
    data = trainer.train_dataset
    for seed, (source, step) in itertools.product(range(8), enumerate((1, -1))):
        image = np.asarray(data.sources[source][0]["image"].convert("RGB"))[:, ::step]
        np.testing.assert_array_equal(data[source, 0, seed]["image"], np.moveaxis(image, -1, 0))
    assert [len(images) for images in trainer.eval_dataset.values()] == [2, 4 * 4]
    assert {draw[0] for draw in trainer._get_train_sampler()} == {1}


def test_a_run_that_gains_nothing_is_stopped(folder, tmp_path):
    config = make(folder, tmp_path, max_steps=20, learning_rate=0.0)
    config.early_stopping = 2
    config.model.freeze = ["conv_encoder", "vision_transformer", "reconstruction", "conv_decoder"]
    trainer = make_trainer(config)
    trainer.train()
    assert trainer.state.global_step == 3  # the first evaluation, and two that are no better


def test_the_mean_over_sources_is_logged(finished):
    state, _ = finished
    logged = {entry["step"]: entry["eval_mean_dice"] for entry in state.log_history if "eval_mean_dice" in entry}
    for step, mean in logged.items():
        parts = [
            entry.get(f"eval_{name}_dice") for name in COUNTS for entry in state.log_history if entry["step"] == step
        ]
        assert mean == pytest.approx(np.mean([part for part in parts if part is not None]))
    assert list(logged) == [1, 2, 3]


def make_taught(folder: Path, output: Path, share: float, **others) -> TrainConfig:
    """A run in which a teacher is asked about the first source and not about the second."""
    config = make(folder, output)
    content = {
        "model": {"checkpoint": config.model.checkpoint},
        "sources": [{"name": name, "path": str(folder / name)} for name in COUNTS],
        "training": config.training,
        "teacher": {"checkpoint": config.model.checkpoint, "sources": [next(iter(COUNTS))], "share": share},
    }
    return make_config(content | others, "the test")


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_teacher_is_mixed_into_the_targets_of_what_it_knows(folder, tmp_path, share):
    trainer = make_trainer(make_taught(folder, tmp_path, share))
    rows = [trainer.train_dataset[source, number, 0] for number in range(3) for source in range(2)]
    batch = trainer.data_collator(rows)
    plain = augment({name: values for name, values in batch.items() if name != "taught"}, trainer.processing_class)
    mixed = trainer._prepare_inputs(batch)
    trainer.model.eval()  # the same weights as the teacher's
    with torch.no_grad():
        inputs = {name: values for name, values in plain.items() if name != "labels"}
        probabilities = trainer.model(**inputs).logits[:, 0].sigmoid()
    torch.testing.assert_close(mixed["labels"][1::2], plain["labels"][1::2], rtol=0, atol=0)
    expected = share * probabilities + (1 - share) * plain["labels"]
    torch.testing.assert_close(mixed["labels"][::2], expected[::2], rtol=0, atol=1e-4)
    assert "taught" not in mixed


def test_a_teacher_is_not_asked_for_what_is_not_there(folder, tmp_path):
    data = make_trainer(make_taught(folder, tmp_path, 1.0, absent_captions=0.5)).train_dataset
    items = [data[source, 0, seed] for source in range(2) for seed in range(40)]
    assert {(item["taught"], bool(item["mask"].any())) for item in items[:40]} == {(True, True), (False, False)}
    assert not any(item["taught"] for item in items[40:])


def test_a_teacher_stays_as_it_is_while_the_network_learns(folder, tmp_path):
    trainer = make_trainer(make_taught(folder, tmp_path, 0.5))
    before = weights(trainer.teacher)
    trainer.train()
    assert same(weights(trainer.teacher), before)
    assert not same(weights(trainer.model), before)


def test_frozen_norms_keep_their_statistics_and_learn_their_weights(folder, tmp_path):
    model = {"checkpoint": str(folder / "checkpoint"), "freeze_norms": True}
    trainer = make_trainer(make_taught(folder, tmp_path, 0.5, model=model))
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert same({name: before[name] for name in statistics}, after)
    norms = [name.removesuffix("running_mean") + "weight" for name in statistics if name.endswith("running_mean")]
    assert any(not torch.equal(before[name], after[name]) for name in norms)


def test_a_teacher_must_read_captions_as_the_network_does(folder, tmp_path):
    other = tiny_model()
    next(other.lvit.text_model.parameters()).data.add_(1)
    other.save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    config = make_taught(folder, tmp_path / "run", 0.5)
    config.teacher.checkpoint = str(tmp_path / "other")
    with pytest.raises(ValueError, match="has another text tower than the model"):
        make_trainer(config)
