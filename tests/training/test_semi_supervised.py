"""Pseudo-labels, contrastive captions, and a semi-supervised run on images made here."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
import yaml
from PIL import Image
from squares import make_rows
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf.training.augmentation import AugmentationConfig, finish
from lvit_hf.training.contrastive import ContrastiveSet, encode_captions, language_vision_loss
from lvit_hf.training.pseudo_labels import PSEUDO_LABEL_FILE, PseudoLabels, UnlabelledRows
from lvit_hf.training.run import train
from lvit_hf.training.semi_supervised import FixedRatioSampler, SemiSupervisedDataset


LEFT, RIGHT = "one infected area, upper left lung", "one infected area, upper right lung"


def test_refreshes_have_the_closed_form(tmp_path):
    labels = PseudoLabels(tmp_path / PSEUDO_LABEL_FILE, (2, 4, 4))
    predictions = np.random.default_rng(0).random((6, 2, 4, 4), dtype=np.float32)
    momentum = 0.9
    for number, prediction in enumerate(predictions):
        labels.prepare()
        labels.refresh([0, 1], prediction, momentum if number else 0.0)
        labels.commit()
    refreshes = len(predictions) - 1
    powers = momentum ** np.arange(refreshes - 1, -1, -1)
    expected = momentum**refreshes * predictions[0] + (1 - momentum) * np.tensordot(powers, predictions[1:], 1)
    np.testing.assert_allclose([labels[0], labels[1]], expected, rtol=1e-5)


@pytest.mark.parametrize("has_links", [True, False])
def test_an_interrupted_refresh_and_later_ones_leave_saved_labels_as_they_were(tmp_path, monkeypatch, has_links):
    if not has_links:  # as some file systems have none

        def refuse(*_):
            raise OSError

        monkeypatch.setattr(os, "link", refuse)
    labels = PseudoLabels(tmp_path / PSEUDO_LABEL_FILE, (1, 2, 2))
    for value in (0.25, 0.75):
        labels.prepare()
        labels.refresh([0], np.full((1, 2, 2), value), momentum=0.0)
        if value == 0.25:
            labels.commit()
            (tmp_path / "checkpoint").mkdir()
            labels.save(tmp_path / "checkpoint")
    assert labels[0].max() == 0.25  # not committed
    labels.commit()
    assert labels[0].max() == 0.75
    (tmp_path / "later").mkdir()
    labels.save(tmp_path / "later")
    for _ in range(2):
        labels.restore(tmp_path / "checkpoint")
        assert labels[0].max() == 0.25
        labels.path.unlink()  # as in another folder
    labels.restore(tmp_path / "later")
    assert labels[0].max() == 0.75


def test_a_pseudo_label_takes_the_place_of_the_mask(tmp_path):
    labels = PseudoLabels(tmp_path / PSEUDO_LABEL_FILE, (3, 32, 32))
    labels.prepare()
    labels.refresh([2], np.full((1, 32, 32), 0.4), momentum=0.0)
    labels.commit()
    row = UnlabelledRows(make_rows(2, seed=0), labels, offset=1)[1]
    assert np.asarray(row["mask"]) == pytest.approx(0.4 * 255, abs=0.5)


def test_a_pseudo_label_is_mirrored_with_its_image_and_its_caption(tmp_path):
    rows = make_rows(1, seed=0)
    labels = PseudoLabels(tmp_path / PSEUDO_LABEL_FILE, (1, 32, 32))
    labels.prepare()
    labels.refresh([0], np.asarray(rows[0]["mask"])[None] / 255 * 0.3, momentum=0.0)
    labels.commit()
    config = AugmentationConfig(flip_horizontal=1.0, gamma=(1, 1), intensity=0, blur=0, text_dropout=0)
    drawn = SemiSupervisedDataset([rows], [UnlabelledRows(rows, labels, 0)], [config], 32, [False])[1, 0, 0]
    assert drawn["is_unlabelled"]
    row = finish(drawn)
    np.testing.assert_allclose(row["mask"], labels[0][:, ::-1], atol=1 / 255)
    image = np.moveaxis(np.asarray(rows[0]["image"], np.float32) / 255, -1, 0)
    np.testing.assert_allclose(row["image"], image[..., ::-1], atol=1e-5)
    assert {row["text"], rows[0]["text"]} == {LEFT, RIGHT}


def test_only_the_masks_of_labelled_images_have_cut_edges(tmp_path):
    mask = np.pad(np.ones((12, 12), np.uint8), 10)  # of 0 and 1
    rows = datasets.Dataset.from_list(
        [{"image": Image.fromarray(255 * mask), "mask": Image.fromarray(mask), "text": ""}]
    )
    labels = PseudoLabels(tmp_path / PSEUDO_LABEL_FILE, (1, 32, 32))
    labels.prepare()
    labels.refresh([0], mask[None].astype(np.float32), momentum=0.0)
    labels.commit()
    moves = AugmentationConfig(rotate=30, gamma=(1, 1), intensity=0, blur=0)
    data = SemiSupervisedDataset([rows], [UnlabelledRows(rows, labels, 0)], [moves], 32, [True])
    (hard, is_soft), (soft, _) = ((finish(data[source, 0, 0])["mask"], data[source, 0, 0]) for source in (0, 1))
    assert not is_soft["is_unlabelled"] and set(np.unique(hard)) == {0, 1} and len(np.unique(soft)) > 10
    assert np.array_equal(soft > 0.5, hard) and soft.sum() == pytest.approx(144, rel=0.03)


def test_every_batch_has_the_same_number_of_labelled_images():
    sampler = FixedRatioSampler([5], [20], weights=[1], seed=0, batch_size=8, num_labelled=3)
    draws = list(sampler)
    assert len(draws) == len(sampler) == 20 // 5 * 8
    sources = np.array([source for source, _, _ in draws]).reshape(-1, 8)
    assert (sources == [0, 0, 0, 1, 1, 1, 1, 1]).all()
    assert sorted(row for source, row, _ in draws if source == 1) == list(range(20))
    assert len({seed for *_, seed in draws}) == len(draws)  # a labelled image comes back augmented in another way
    assert draws == list(sampler)
    sampler.set_epoch(1)
    for kind in (0, 1):
        first, second = ([draw for draw in part if draw[0] == kind] for part in (draws, list(sampler)))
        assert first != second and {draw[1] for draw in first} == {draw[1] for draw in second}


def test_a_batch_of_several_sources_draws_both_parts_by_their_weights():
    draws = list(FixedRatioSampler([9, 5], [400, 300], weights=[1, 3], seed=0, batch_size=4, num_labelled=1))
    sources = np.array([source for source, *_ in draws])
    assert len(draws) == 700 // 3 * 4 and (sources.reshape(-1, 4)[:, 0] < 2).all()
    assert (sources == 1).sum() / (sources < 2).sum() == pytest.approx(0.75, abs=0.1)
    assert (sources == 3).sum() / (sources > 1).sum() == pytest.approx(0.75, abs=0.05)
    assert len(FixedRatioSampler([9], [2], weights=[1], seed=0, batch_size=8, num_labelled=4)) == 8


def test_the_loss_is_least_where_the_prediction_has_the_shape_of_the_mask():
    masks = torch.zeros(1, 8, 8)
    masks[:, :4] = 1
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    language_vision_loss(logits.sigmoid(), masks).backward()
    assert logits.grad is not None
    assert (logits.grad[:, :4] < 0).all() and (logits.grad[:, 4:] > 0).all()
    assert language_vision_loss(masks * 0.3, masks) == pytest.approx(0, abs=1e-6)


def test_a_caption_finds_the_mean_mask_of_its_own_kind():
    model, processor, rows = tiny_model(), tiny_processor(), make_rows(12, seed=0)
    contrastive_set = ContrastiveSet.from_labelled(rows, size=32)
    assert sorted(contrastive_set.captions) == [LEFT, RIGHT]
    contrastive_set.encode(model, processor)
    similarity, masks = contrastive_set.nearest(encode_captions([LEFT, RIGHT], model, processor))
    assert similarity == pytest.approx(torch.ones(2), abs=1e-5)
    assert masks[0, :, :16].sum() > 0 == masks[0, :, 16:].sum()
    assert masks[1, :, 16:].sum() > 0 == masks[1, :, :16].sum()


@pytest.mark.parametrize("foreground", [255, 1])
def test_the_contrastive_mask_of_a_caption_is_the_mean_of_its_masks(foreground):
    masks = [np.pad(np.full((2, 2), foreground, np.uint8), ((0, 2), (side, 2 - side))) for side in (0, 1)]
    rows = [{"mask": Image.fromarray(mask), "text": text} for text in (LEFT, RIGHT) for mask in masks]
    contrastive_set = ContrastiveSet.from_labelled([*rows, {**rows[0], "text": RIGHT}], size=4)
    assert contrastive_set.captions == [LEFT, RIGHT]
    assert contrastive_set.masks[0, 0].tolist() == [0.5, 1, 0.5, 0]
    assert contrastive_set.masks[1, 0].tolist() == pytest.approx([2 / 3, 1, 1 / 3, 0])
    shares = ContrastiveSet.from_labelled(rows, size=2).masks[0]  # of foreground in each square, of 8 bits
    np.testing.assert_allclose(shares, [[0.75, 0.25], [0, 0]], atol=1 / 255)


def test_more_captions_than_a_batch_have_each_its_own_vector():
    model, processor = tiny_model(), tiny_processor()
    captions = [f"{'one ' * (number % 9)}{'area ' * (number // 9)}left" for number in range(70)]
    alone = torch.cat([encode_captions([caption], model, processor) for caption in captions[-7:]])
    torch.testing.assert_close(encode_captions(captions, model, processor)[-7:], alone)


def write_contrastive_folder(folder: Path, captions: tuple[str, str]):
    """One mask on the left and one on the right, with these captions."""
    rows = {row["text"]: row["mask"] for row in make_rows(12, seed=0)}
    folder.mkdir(exist_ok=True)
    for name, side in (("fig0.png", LEFT), ("fig1.BMP", RIGHT)):
        rows[side].save(folder / name)
    table = pandas.DataFrame({"Image": ["fig1.BMP", "fig0.png"], "Description": captions[::-1]})  # in another order
    table.to_excel(folder / "captions.xlsx", index=False)


def test_a_folder_of_contrastive_masks(tmp_path):
    write_contrastive_folder(tmp_path, (LEFT, RIGHT))
    contrastive_set = ContrastiveSet.from_folder(tmp_path, size=16)
    assert contrastive_set.captions == [RIGHT, LEFT]
    assert contrastive_set.masks.shape == (2, 16, 16) and contrastive_set.masks.max() == 1
    assert contrastive_set.masks[0, :, :8].sum() == contrastive_set.masks[1, :, 8:].sum() == 0
    (tmp_path / "fig1.BMP").unlink()
    with pytest.raises(ValueError, match="fig1 has no mask"):
        ContrastiveSet.from_folder(tmp_path, size=16)


@pytest.fixture
def config(tmp_path):
    tiny_model(hidden_dropout_prob=0.0).save_pretrained(tmp_path / "checkpoint")
    tiny_processor().save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "data").mkdir()
    for split, count in (("train", 16), ("valid", 4)):
        make_rows(count, seed=count).to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    (tmp_path / "ids.txt").write_text("\n".join(f"16-{number}" for number in range(6)))
    source = {"name": "squares", "path": str(tmp_path / "data"), "labelled_ids": str(tmp_path / "ids.txt")}
    content = {
        "model": {"checkpoint": str(tmp_path / "checkpoint")},
        "sources": [source],
        "average_decay": 0.9,
        "semi_supervised": {"refresh_steps": 2, "beta": 0.9},
        "training": {
            "output_dir": str(tmp_path / "once"),
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_steps": 3,
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_resumed_run_ends_with_the_same_pseudo_labels(config, tmp_path):
    train(config)
    whole = np.load(tmp_path / "once" / "checkpoint-6" / PSEUDO_LABEL_FILE)
    assert whole.shape == (10, 32, 32) and 0 < whole.mean() < 1
    first = np.load(tmp_path / "once" / "checkpoint-3" / PSEUDO_LABEL_FILE)
    assert not np.array_equal(first, whole)
    for folder in ("checkpoint-6", "best"):
        (tmp_path / "once" / folder).rename(tmp_path / folder)
    train(config, resume=True)
    np.testing.assert_array_equal(np.load(tmp_path / "once" / "checkpoint-6" / PSEUDO_LABEL_FILE), whole)


def test_labels_are_refreshed_once_an_epoch_by_default(config, tmp_path):
    # Ten unlabelled images, two in a batch: an epoch has five steps.
    train(config, overrides=["semi_supervised.refresh_steps=null", "training.eval_steps=1", "training.save_steps=1"])
    steps = [tmp_path / "once" / f"checkpoint-{step}" / PSEUDO_LABEL_FILE for step in (1, 4, 5)]
    first, before, after = (np.load(path) for path in steps)
    assert np.array_equal(first, before) and not np.array_equal(before, after)


def test_a_run_without_unlabelled_images_warns_and_is_supervised(config, tmp_path, caplog):
    (tmp_path / "ids.txt").write_text("\n".join(f"16-{number}" for number in range(16)))
    with caplog.at_level(logging.WARNING):
        train(config)
    assert "no unlabelled images" in caplog.text
    assert not list((tmp_path / "once").rglob(PSEUDO_LABEL_FILE))


SHORT = ["training.max_steps=1", "training.eval_steps=1", "training.save_steps=1"]


def test_contrastive_masks_that_do_not_fit_are_warned_of(config, tmp_path, caplog):
    write_contrastive_folder(tmp_path / "fitting", (LEFT, RIGHT))
    write_contrastive_folder(tmp_path / "swapped", (RIGHT, LEFT))
    with caplog.at_level(logging.WARNING):
        train(config, overrides=[f"semi_supervised.contrastive={tmp_path / 'fitting'}", *SHORT])
        assert "contrastive" not in caplog.text
        swapped = [f"semi_supervised.contrastive={tmp_path / 'swapped'}", "semi_supervised.min_similarity=1.1"]
        train(config, overrides=[*swapped, *SHORT, f"training.output_dir={tmp_path / 'again'}"])
    assert "the LV loss will mislead" in caplog.text
    assert "2 of 2 captions have no contrastive caption with a similarity of at least 1.1" in caplog.text


def test_two_processes_share_the_pseudo_labels(config, tmp_path):
    train(config, overrides=SHORT)
    single = np.load(tmp_path / "once" / "checkpoint-1" / PSEUDO_LABEL_FILE)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]
    command = [*launcher, "lvit_cli.main", "train", config, f"training.output_dir={tmp_path / 'two'}", *SHORT]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "two" / "checkpoint-1" / PSEUDO_LABEL_FILE), single, atol=1e-5)


def test_labelled_ids_that_are_not_there_are_named(config, tmp_path):
    (tmp_path / "ids.txt").write_text("16-0\nmissing")
    with pytest.raises(ValueError, match="missing"):
        train(config)
