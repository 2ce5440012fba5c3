import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_lvit import SIZE, WITH_BACKBONE, tiny_config, tiny_model, tiny_processor
from torch import nn

from lvit_hf import LViTConfig, LViTForImageSegmentation, LViTModel
from lvit_hf.model.modeling_lvit import (
    SCOPE_COMPONENTS,
    SCOPE_FLOOR,
    LViTScopeHead,
    mean_of_words,
    presence_features,
)
from lvit_hf.model.saving import REST_FILE, TOWER_FILE, save_half_precision


CAPTION = "one infected area, upper left lungs and all right lungs"  # "lungs" is two pieces
NO_TEXT = (None, "", "  ")


@pytest.fixture(params=["patch_map", "cross_attention", "sentence_map"])
def model(request) -> LViTForImageSegmentation:
    """A tiny model for each way in which language may enter."""
    return tiny_model(text_fusion=request.param, hidden_dropout_prob=0.0)


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.manual_seed(0)) * 2 - 1


def tokenize(*captions) -> dict[str, torch.Tensor]:
    return dict(tiny_processor()(text=list(captions), return_tensors="pt"))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def make_labels(pixel_values: torch.Tensor) -> torch.Tensor:
    return (pixel_values[:, 0] > 0).long()


# Parameters


def test_default_size_is_the_papers():
    with torch.device("meta"):
        model = LViTForImageSegmentation(LViTConfig())
    beside_text = [p for name, p in model.named_parameters() if "text_model" not in name and "null_text" not in name]
    assert sum(p.numel() for p in beside_text) == 29_908_033


def test_every_parameter_beside_the_frozen_text_tower_learns(model, pixel_values):
    model.train()(pixel_values, **tokenize(CAPTION, ""), labels=make_labels(pixel_values)).loss.backward()
    # A key bias shifts all scores of a softmax alike, so its gradient is zero but for rounding.
    learns = {name for name, gradient in gradients(model).items() if gradient.any() or "k_proj.bias" in name}
    assert learns == {name for name, _ in model.named_parameters() if "text_model" not in name}


def test_frozen_text_tower_stays_as_it_is(model):
    model.train()
    tower = model.lvit.text_model
    assert model.lvit.conv_encoder.training
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_text_tower_learns_when_it_is_not_frozen(pixel_values):
    model = tiny_model(freeze_text_model=False).train()
    assert model.lvit.text_model.training
    model(pixel_values, **tokenize(CAPTION, CAPTION), labels=make_labels(pixel_values)).loss.backward()
    assert any("text_model" in name and gradient.any() for name, gradient in gradients(model).items())


@pytest.mark.parametrize("number_of_layers", [0, 2])
def test_depth_of_the_text_tower(number_of_layers, pixel_values):
    text_config = {**tiny_config().text_config.to_dict(), "num_hidden_layers": number_of_layers}
    model = tiny_model(text_config=text_config)
    assert len(model.lvit.text_model.encoder.layer) == number_of_layers
    assert model(pixel_values, **tokenize(CAPTION, "")).logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("conv_encoder.blocks.0.layers.1.convolution", nn.Conv2d(64, 64, 3)),
        ("text_projection.layers.0", nn.Conv1d(16, 64, 3)),
        ("vision_transformer.decoder.1.layers.0.mlp.fc1", nn.Linear(64, 256)),
    ],
)
def test_initialisation_is_pytorchs_own(name, reference):
    model = LViTModel(tiny_config(hidden_sizes=[32, 64]))
    weight = model.get_submodule(name).weight
    assert weight.shape == reference.weight.shape
    for measure in (torch.std, torch.amax):
        torch.testing.assert_close(measure(weight), measure(reference.weight), rtol=0.05, atol=0)


def test_every_norm_of_the_network_has_the_configuration_s_epsilon(model):
    config = tiny_config(text_fusion=model.config.text_fusion, layer_norm_eps=1e-3)
    norms = [m for m in LViTForImageSegmentation(config).modules() if type(m) is nn.LayerNorm]
    tower = sum(type(module) is nn.LayerNorm for module in model.lvit.text_model.modules())
    assert sum(norm.eps == 1e-3 for norm in norms) == len(norms) - tower > 0


@pytest.mark.parametrize(
    "addition",
    [
        {"text_fusion": "sentence_map"},
        {"presence_head": True},
        {"scope_kinds": ["a", "b"]},
        {"caption_attributes": [{"family": "polyp", "name": "n", "values": ["x", "y"], "multiple": False}]},
    ],
    ids=lambda addition: next(iter(addition)),
)
def test_a_part_that_a_checkpoint_lacks_begins_as_it_is_made(addition, tmp_path):
    tiny_model(text_fusion="cross_attention").save_pretrained(tmp_path)
    if "caption_attributes" in addition:
        addition = {**addition, "num_captions": 3}
    model = LViTForImageSegmentation.from_pretrained(tmp_path, **addition)
    parts = (model.lvit.sentence_map, model.presence_head, model.scope_head, model.caption_head)
    [part] = [part for part in parts if part is not None]
    for name, value in type(part)(model.config).state_dict().items():
        if value.unique().numel() == 1:  # not drawn by chance
            assert torch.equal(part.state_dict()[name], value), name


def test_the_null_text_begins_near_zero_and_positions_at_it():
    model = LViTModel(tiny_config(num_text_vectors=100))
    assert model.null_text.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(level.embeddings.position_embeddings.any() for level in model.vision_transformer.encoder)


# Text


def test_without_a_mask_every_token_counts(model):
    inputs = tokenize(CAPTION)
    expected, _ = model.lvit.get_text_embeds(**inputs)
    found, _ = model.lvit.get_text_embeds(inputs["input_ids"], word_ids=inputs["word_ids"])
    torch.testing.assert_close(found, expected)


def test_pieces_of_a_word_are_averaged_after_the_whole_caption_was_encoded(model):
    inputs = tokenize(CAPTION)
    text_embeds, text_mask = model.lvit.get_text_embeds(**inputs)
    with torch.no_grad():
        pieces = model.lvit.text_model(inputs["input_ids"], attention_mask=inputs["attention_mask"])[0][0, 1:-1]
    # one infected area , upper left (lung ##s) and all right, and beyond the ten words lung ##s
    words = [*pieces[:6], pieces[6:8].mean(0), *pieces[8:11]]
    assert text_mask.all()
    torch.testing.assert_close(text_embeds[0], torch.stack(words))


def test_short_captions_are_padded_and_masked(model):
    inputs = tokenize("left lungs", CAPTION)
    text_embeds, text_mask = model.lvit.get_text_embeds(**inputs)
    assert text_mask.sum(-1).tolist() == [2, 10]
    outputs = model(pixel_values=torch.zeros(2, 3, 32, 32), **inputs)
    assert torch.equal(outputs.text_mask, text_mask) and torch.equal(outputs.text_embeds, text_embeds)
    assert not text_embeds[0, 2:].any()
    for features in model.lvit.text_projection(text_embeds, text_mask):
        assert torch.equal(features.any(-1), text_mask)


def test_tokens_are_words_where_no_word_ids_are_given(model):
    inputs = tokenize("left lung", "one area, lower left lung")  # no word of several pieces
    text_embeds, text_mask = model.lvit.get_text_embeds(inputs["input_ids"], inputs["attention_mask"])
    expected_embeds, expected_mask = model.lvit.get_text_embeds(**inputs)
    torch.testing.assert_close(text_embeds, expected_embeds)
    assert torch.equal(text_mask, expected_mask)


@torch.no_grad()
@pytest.mark.parametrize("caption", NO_TEXT)
def test_no_text_is_the_null_text(model, pixel_values, caption):
    null_text = model.lvit.null_text.expand(2, -1, -1)
    expected = model(pixel_values, text_embeds=null_text)
    for inputs in ({}, tokenize(caption, caption)):
        outputs = model(pixel_values, **inputs)
        torch.testing.assert_close(outputs.logits, expected.logits)
        assert torch.equal(outputs.text_embeds, null_text)
        assert outputs.text_mask.all()


@torch.no_grad()
@pytest.mark.parametrize("caption", NO_TEXT)
def test_a_row_without_text_leaves_the_others_unchanged(model, pixel_values, caption):
    mixed = model(pixel_values, **tokenize(CAPTION, caption)).logits
    with_text = model(pixel_values[:1], **tokenize(CAPTION)).logits
    without = model(pixel_values[1:]).logits
    torch.testing.assert_close(mixed, torch.cat([with_text, without]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(pixel_values[:1]).logits, with_text, atol=1e-2)


@torch.no_grad()
def test_vectors_instead_of_ids(model, pixel_values):
    inputs = tokenize("left lungs", CAPTION)
    expected = model(pixel_values, **inputs).logits
    text_embeds, text_mask = model.lvit.get_text_embeds(**inputs)
    torch.testing.assert_close(model(pixel_values, text_embeds=text_embeds, text_mask=text_mask).logits, expected)
    # Masked vectors count for nothing, and those beyond the network's number are cut.
    noise = torch.where(text_mask[..., None], text_embeds, torch.randn_like(text_embeds))
    longer = {"text_embeds": nn.functional.pad(noise, (0, 0, 0, 3)), "text_mask": nn.functional.pad(text_mask, (0, 3))}
    torch.testing.assert_close(model(pixel_values, **longer).logits, expected)
    # Fewer are padded.
    short = model(pixel_values[:1], text_embeds=text_embeds[:1, :2]).logits
    torch.testing.assert_close(short, expected[:1], rtol=1e-4, atol=1e-4)


# Images


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (48, 48), (16, 80), (64, 36)])
def test_other_image_sizes(model, size):
    pixel_values = torch.rand(1, 3, *size)
    logits = model(pixel_values, **tokenize(CAPTION)).logits
    assert logits.shape == (1, 1, *size)
    assert logits.isfinite().all()
    assert not torch.allclose(logits, model(pixel_values).logits, atol=1e-3)


@torch.no_grad()
def test_positions_keep_their_place_at_other_sizes(model):
    embeddings = model.lvit.vision_transformer.encoder[0].embeddings
    row = torch.arange(8.0).repeat_interleave(8)  # of each patch in the 8 x 8 grid
    embeddings.position_embeddings.copy_(row[:, None].expand(-1, 8))
    patches = embeddings(torch.zeros(1, 8, 64, 48)) - embeddings.projection.bias  # a grid of 16 x 12
    rows = patches[0, :, 0].reshape(16, 12)
    assert (rows.diff(dim=0) > 0).all()
    torch.testing.assert_close(rows, rows[:, :1].expand(-1, 12))
    assert rows.mean().item() == pytest.approx(3.5, abs=1e-4)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "pixel_values are needed"),
        ({"pixel_values": torch.rand(3, SIZE, SIZE)}, "shape"),
        ({"pixel_values": torch.rand(2, 1, SIZE, SIZE)}, r"\(batch_size, 3, height, width\)"),
        ({"pixel_values": torch.rand(2, 3, 30, SIZE)}, "multiple of 4, got 30"),
        ({"pixel_values": torch.rand(2, 3, 0, SIZE)}, "positive"),
        ({"input_ids": torch.ones(3, 4, dtype=torch.long)}, "got 3 for 2"),
        ({"text_embeds": torch.rand(1, 4, 16)}, "got 1 for 2"),
        ({"text_embeds": torch.rand(2, 4, 15)}, "number of vectors, 16"),
        (
            {"text_embeds": torch.rand(2, 4, 16), "text_mask": torch.ones(2, 5)},
            r"text_mask must have the shape \(2, 4\)",
        ),
        ({"labels": torch.zeros(2, 16, 16)}, r"labels must have the shape \(2, 32, 32\)"),
        ({"labels": torch.zeros(2, 1, SIZE, SIZE)}, r"got \(2, 1, 32, 32\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_the_reason(inputs, reason, pixel_values):
    if inputs:
        inputs = {"pixel_values": pixel_values, **inputs}
    with pytest.raises(ValueError, match=reason):
        tiny_model()(**inputs)


# Loss


def dice_by_hand(probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean over images and classes of `(2 * overlap + 1) / (sum + 1)`, of `(batch_size, classes, height, width)`."""
    scores = [
        (2 * (p * t).sum().item() + 1) / (p.sum().item() + t.sum().item() + 1)
        for probability, target in zip(probabilities, targets)
        for p, t in zip(probability, target)
    ]
    return sum(scores) / len(scores)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0, 0.5, 1])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_of_one_label(pixel_values, weight, soft):
    outputs_labels = torch.rand(2, SIZE, SIZE) if soft else make_labels(pixel_values)
    outputs = tiny_model(dice_loss_weight=weight)(pixel_values, labels=outputs_labels)
    p, y = outputs.logits.sigmoid(), outputs_labels[:, None].float()
    cross_entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean().item()
    assert outputs.loss.item() == pytest.approx(
        weight * (1 - dice_by_hand(p, y)) + (1 - weight) * cross_entropy, rel=1e-4
    )


@torch.no_grad()
def test_class_balanced_loss_weighs_foreground_and_background_alike(pixel_values):
    model = tiny_model(class_balanced_loss=True, dice_loss_weight=0)
    labels = torch.zeros(2, SIZE, SIZE)
    labels[:, :2, :2] = 1
    outputs = model(pixel_values, labels=labels)
    p = outputs.logits.sigmoid()[:, 0]
    expected = -0.5 * p[labels == 1].log().mean() - 0.5 * (1 - p[labels == 0]).log().mean()
    torch.testing.assert_close(outputs.loss, expected)
    for count in (0, 1):  # of nothing there is no loss, and one pixel has half of it
        labels = torch.zeros(2, SIZE, SIZE)
        labels[0, 0, :count] = 1
        expected = -0.5 * p[labels == 1].log().sum() - 0.5 * (1 - p[labels == 0]).log().mean()
        torch.testing.assert_close(model(pixel_values, labels=labels).loss, expected)
        everything = -0.5 * p[labels == 0].log().mean() - 0.5 * (1 - p[labels == 1]).log().sum()
        torch.testing.assert_close(model(pixel_values, labels=1 - labels).loss, everything)


@torch.no_grad()
def test_several_labels(pixel_values, tmp_path):
    model = tiny_model(num_labels=3)
    labels = torch.randint(3, (2, SIZE, SIZE))
    outputs = model(pixel_values, labels=labels)
    assert outputs.logits.shape == (2, 3, SIZE, SIZE)
    p, y = outputs.logits.softmax(1), torch.stack([labels == index for index in range(3)], dim=1).float()
    cross_entropy = -(y * p.log()).sum(1).mean().item()
    assert outputs.loss.item() == pytest.approx(0.5 * (1 - dice_by_hand(p, y)) + 0.5 * cross_entropy, rel=1e-4)
    model.save_pretrained(tmp_path)
    reloaded = LViTForImageSegmentation.from_pretrained(tmp_path)
    assert torch.equal(reloaded(pixel_values).logits, outputs.logits)


def test_loss_falls_in_training(model, pixel_values):
    inputs = {"pixel_values": pixel_values, **tokenize(CAPTION, ""), "labels": make_labels(pixel_values)}
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# What transformers offers


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(model, pixel_values, use_reentrant):
    inputs = {"pixel_values": pixel_values, **tokenize(CAPTION, ""), "labels": make_labels(pixel_values)}
    model.train()(**inputs).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**inputs).loss.backward()
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_hidden_states_and_attentions_on_request(model, pixel_values):
    plain = model(pixel_values)
    assert plain.hidden_states is None
    assert plain.attentions is None
    model.set_attn_implementation("eager")
    outputs = model(pixel_values, output_hidden_states=True, output_attentions=True)
    widths = [8, 8, 16, 16, 8]  # the input of the first layer, the encoder's levels, the decoder's from the last
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 64, width) for width in widths]
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, 64, 64)] * 4
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 64))


@torch.no_grad()
def test_eager_and_sdpa_attention_agree(model, pixel_values):
    inputs = tokenize("left lung", CAPTION)
    logits = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        logits[implementation] = model(pixel_values, **inputs).logits
    torch.testing.assert_close(logits["eager"], logits["sdpa"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_folded_batch_norms_compute_the_same(model, pixel_values, tmp_path):
    model.train()
    for _ in range(3):  # statistics that are not the initial ones
        model(torch.randn(4, 3, SIZE, SIZE))
    inputs = {"pixel_values": pixel_values, **tokenize(CAPTION, "")}
    expected = model.eval()(**inputs).logits
    folded = model.fold_batch_norms()
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(**inputs).logits, expected, rtol=0, atol=1e-4)
    folded.save_pretrained(tmp_path)
    reloaded = LViTForImageSegmentation.from_pretrained(tmp_path)
    assert torch.equal(reloaded(**inputs).logits, folded(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, torch.float32), ("auto", torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
)
def test_checkpoints_in_half_precision_compute_in_float32_unless_told_otherwise(
    dtype, expected, pixel_values, tmp_path
):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    model = LViTForImageSegmentation.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    logits = model(pixel_values.to(expected), **tokenize(CAPTION, "")).logits
    assert logits.dtype == expected
    assert logits.isfinite().all()


@torch.no_grad()
def test_captions_that_are_almost_equal_are_far_apart_after_whitening():
    sentence_map = tiny_model(text_fusion="sentence_map").lvit.sentence_map
    generator = torch.manual_seed(0)
    common, differences = torch.randn(1, 1, 16, generator=generator), torch.randn(40, 1, 16, generator=generator)
    text_embeds = (10 * common + 0.1 * differences).expand(-1, 3, -1)
    text_mask = torch.ones(40, 3)
    sentence_map.fit(text_embeds, text_mask)
    whitened = (mean_of_words(text_embeds, text_mask) - sentence_map.mean) @ sentence_map.whitening
    assert torch.cosine_similarity(text_embeds[0, 0], text_embeds[1, 0], dim=0) > 0.999
    torch.testing.assert_close(
        torch.cov(whitened.T)[:16, :16], torch.eye(16), rtol=0, atol=0.05
    )  # the floor takes a little


@torch.no_grad()
def test_whitening_does_not_blow_up_what_hardly_varies():
    """A direction of a thousandth of the largest variance gets half of it, and smaller ones what they are worth."""
    sentence_map = tiny_model(text_fusion="sentence_map").lvit.sentence_map
    text_embeds = torch.randn(200, 1, 16, generator=torch.manual_seed(0)) * torch.logspace(0, -4, 16)
    sentence_map.fit(text_embeds, torch.ones(200, 1))
    whitened = (text_embeds[:, 0] - sentence_map.mean) @ sentence_map.whitening
    variances = torch.linalg.eigvalsh(torch.cov(text_embeds[:, 0].T.double()))
    expected = variances / (variances + variances.max() / 1000)
    torch.testing.assert_close(whitened.var(0)[:16], expected.float(), rtol=1e-3, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    "addition", [{"text_fusion": "sentence_map"}, {"image_backbone": "efficientnet_lite2"}], ids=str
)
def test_a_new_part_leaves_a_checkpoint_as_it_was(addition, tmp_path, pixel_values):
    tiny_model(**{**WITH_BACKBONE, "image_backbone": None}, text_fusion="cross_attention").save_pretrained(tmp_path)
    before, after = (
        LViTForImageSegmentation.from_pretrained(tmp_path, **settings).eval() for settings in ({}, addition)
    )
    inputs = {"pixel_values": pixel_values, **tokenize(CAPTION, "")}
    torch.testing.assert_close(after(**inputs).logits, before(**inputs).logits, rtol=0, atol=0)


def test_an_image_backbone_learns(pixel_values):
    model = tiny_model(**WITH_BACKBONE)
    model.train()(pixel_values, labels=make_labels(pixel_values)).loss.backward()
    learning = [name for name, gradient in gradients(model).items() if "backbone" in name and gradient.any()]
    assert {"stem", "stages", "projections"} == {name.split(".")[3] for name in learning}


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (16, 80)])
def test_an_image_backbone_takes_any_size_and_its_batch_norms_fold(size):
    model, pixel_values = tiny_model(**WITH_BACKBONE), torch.rand(1, 3, *size)
    expected = model(pixel_values).logits
    assert expected.shape == (1, 1, *size)
    folded = model.fold_batch_norms()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(pixel_values).logits, expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_variances_larger_than_half_precision_survive_in_its_checkpoints(tmp_path, pixel_values, dtype):
    model = tiny_model()
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    layer.running_var.fill_(1e5)
    save_half_precision(model, tiny_processor(), tmp_path)
    loaded = LViTForImageSegmentation.from_pretrained(tmp_path, dtype=dtype).eval()
    norms = [module for module in loaded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms[0].running_var.eq(1e5).all()
    assert loaded(pixel_values=pixel_values.to(dtype)).logits.isfinite().all()


def test_a_frozen_tower_has_a_file_of_its_own_that_is_the_same_in_every_version(tmp_path):
    torch.manual_seed(1)
    other = LViTForImageSegmentation(tiny_config())
    other.lvit.text_model.load_state_dict(tiny_model().lvit.text_model.state_dict())
    for folder, model in (("first", tiny_model()), ("second", other)):
        (tmp_path / folder).mkdir()
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_half_precision(model, tiny_processor(), tmp_path / folder)
        files = sorted(path.name for path in (tmp_path / folder).glob("model*.safetensors*"))
        assert files == [TOWER_FILE, REST_FILE, "model.safetensors.index.json"]
        tower, rest = (load_file(tmp_path / folder / name) for name in files[:2])
        assert {name for name in tower | rest if ".text_model." in name} == set(tower) and not set(tower) & set(rest)
        index = json.loads((tmp_path / folder / files[2]).read_text())
        assert index["weight_map"] == {**dict.fromkeys(tower, TOWER_FILE), **dict.fromkeys(rest, REST_FILE)}
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in (tower | rest).values())
        for name, tensor in (tower | rest).items():
            assert tensor.dtype == (expected[name].dtype if name in dict(model.named_buffers()) else torch.float16)
            torch.testing.assert_close(tensor.to(expected[name].dtype), expected[name], rtol=1e-3, atol=1e-4)
    towers, others = (
        [(tmp_path / folder / name).read_bytes() for folder in ("first", "second")] for name in files[:2]
    )
    assert towers[0] == towers[1] and others[0] != others[1]


def test_a_tower_that_learns_stays_in_the_file_of_all_weights(tmp_path):
    save_half_precision(tiny_model(freeze_text_model=False), tiny_processor(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_model_exports(model, pixel_values):
    inputs = {"pixel_values": pixel_values, **tokenize(CAPTION, "")}
    exported = torch.export.export(model, args=(), kwargs=inputs).module()
    torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [200, 10])
def test_the_distance_of_scope_is_mahalanobis_under_a_covariance_of_few_directions(count):
    config = tiny_config(scope_kinds=["a", "b"])
    head, generator = LViTScopeHead(config), torch.Generator().manual_seed(0)
    width = sum(config.hidden_sizes) + config.hidden_sizes[-1]
    images = torch.randn(7, width, generator=generator)
    expected = []
    for kind in range(2):
        mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
        train, valid = (torch.randn(rows, width, generator=generator) @ mixing + 3 * kind for rows in (count, 50))
        head.fit(kind, train, valid, share=0.8, margin=1.3)
        std, mean = torch.std_mean(train, dim=0)
        variances, directions = torch.linalg.eigh(torch.cov(((train - mean) / (std + 1e-3)).T, correction=0).double())
        smallest = width - SCOPE_COMPONENTS
        variances[:smallest] = variances[:smallest].mean()
        inverse = directions @ torch.diag(1 / (variances + SCOPE_FLOOR)) @ directions.T
        both = torch.cat([images, valid]).sub(mean).div(std + 1e-3).double()
        distances = torch.einsum("ni,ij,nj->n", both, inverse, both).sqrt()
        expected.append(distances[:7] / (1.3 * distances[7:].quantile(0.8)))
    shares = head(images, torch.zeros(7, config.num_channels - 1))  # of colours as any kind has them
    torch.testing.assert_close(shares, torch.stack(expected, 1).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.01, 3.0], ids=["alike", "unlike"])
def test_the_distance_of_colours_is_mahalanobis_with_a_least_limit(channels, spread):
    head, number = LViTScopeHead(tiny_config(scope_kinds=["a", "b"], num_channels=channels)), channels - 1
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(number, number, generator=generator)
    train, valid = torch.randn(2, 60, number, generator=generator) @ mixing
    train, valid = train + 0.5, spread * valid + 0.5
    head.fit_colors(1, train, valid, share=0.9, margin=1.5)
    centered = train - train.mean(0)
    inverse = torch.linalg.inv(centered.T @ centered / 59 + 0.01 * torch.eye(number))
    centered = valid - train.mean(0)
    distances = ((centered @ inverse) * centered).sum(-1).sqrt()
    limit = max(1.5 * distances.quantile(0.9).item(), 2.0)
    assert (limit == 2) == (spread < 1 or not number)
    shares = head(torch.zeros(60, head.mean.shape[1]), valid)[:, 1]  # of maps as any kind has them
    torch.testing.assert_close(shares, distances / limit, rtol=1e-3, atol=1e-4)


def test_no_logit_is_above_the_log_odds_that_there_is_anything(pixel_values):
    model = tiny_model(presence_head=True)
    inputs = {"pixel_values": pixel_values, **tokenize(CAPTION, "")}
    logits = model(**inputs).logits
    presence = model.presence_head(presence_features(model.lvit(**inputs)))
    model.presence_head = None
    before = model(**inputs).logits
    torch.testing.assert_close(logits, torch.minimum(before, presence[:, None, None, None]))
    assert (logits < before).any() and (logits == before).any()
