"""Checkpoints of the reference implementation become ours, with the text path and the images it was trained on."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rule_made import FIXTURES, rule_made
from safetensors.torch import load_file
from tiny_lvit import WITH_BACKBONE, tiny_model
from transformers import BertConfig, BertModel, BertTokenizer
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTForImageSegmentation, LViTProcessor
from lvit_hf.training.conversion import (
    build_processor,
    convert_checkpoint,
    load_backbone_weights,
    load_reference_checkpoint,
    load_text_model,
    reference_config,
)


PIECES = [
    "one",
    "two",
    "infect",
    "##ed",
    "area",
    "##s",
    ",",
    ".",
    "upper",
    "lower",
    "left",
    "right",
    "lung",
    "and",
    "bi",
    "##lateral",
    "e",
    "##of",
    "xxx",
    "pulmonary",
]
CAPTIONS = {
    "short, filled up": "Infected areas, left lung.",
    "cut in the middle": "Bilateral pulmonary infected areas , two infected areas , upper lower left lung and upper "
    "lower right lung .",
    "cut at 25 pieces with [CLS] and [SEP]": "infected bilateral " * 9,
}
SHAPES = json.loads((FIXTURES / "official_parity.json").read_text(encoding="utf-8"))["state_dict"]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> Path:
    """A BERT of the reference's width, with two layers and few words."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {piece: index for index, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES])}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), num_hidden_layers=2, intermediate_size=64)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(text_model, tmp_path_factory) -> tuple[LViTForImageSegmentation, LViTProcessor]:
    """A checkpoint as the reference's training script saves it on two GPUs, converted, saved and loaded."""
    folder = tmp_path_factory.mktemp("converted")
    state_dict = {f"module.{name}": rule_made(name, shape) for name, shape in SHAPES.items()}
    state_dict["module.inc.norm.num_batches_tracked"] = torch.tensor(7)
    state_dict["module.inc.total_ops"] = torch.zeros(1)
    checkpoint = {
        "epoch": 3,
        "best_model": True,
        "model": "LViT",
        "state_dict": state_dict,
        "val_loss": torch.ones(()),
    }
    torch.save(checkpoint, folder / "best_model-LViT.pth.tar")
    command = ["convert", str(folder / "best_model-LViT.pth.tar"), str(folder), "--text-model", str(text_model)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return LViTForImageSegmentation.from_pretrained(folder).eval(), LViTProcessor.from_pretrained(folder)


def stand_ins(**shapes: list[int]) -> dict[str, torch.Tensor]:
    """Tensors of the reference's names and shapes that take no memory; `shapes` replaces some."""
    return {name: torch.zeros(()).expand(shape) for name, shape in {**SHAPES, **shapes}.items()}


def save(checkpoint, folder: Path) -> Path:
    torch.save(checkpoint, folder / "model.pth.tar")
    return folder / "model.pth.tar"


def word_vectors(caption: str, folder: Path) -> torch.Tensor:
    """The reference's text path, word by word: 25 pieces with [CLS] and [SEP], averaged by word, ten words."""
    tokenizer, bert = BertTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder)
    pieces = ["[CLS]", *tokenizer.tokenize(caption)[:23], "[SEP]"]
    with torch.no_grad():
        vectors = bert(torch.tensor([tokenizer.convert_tokens_to_ids(pieces)])).last_hidden_state[0]
    words: list[list[torch.Tensor]] = []
    for piece, vector in list(zip(pieces, vectors))[1:-1]:
        if piece.startswith("##"):
            words[-1].append(vector)
        else:
            words.append([vector])
    return torch.stack([torch.stack(word).mean(0) for word in words[:10]])


def test_saved_checkpoint_computes_what_the_reference_computed(converted):
    model, _ = converted
    pixel_values = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    text_embeds = torch.randn(2, 10, 768, generator=torch.Generator().manual_seed(2)) * 0.5
    with torch.no_grad():
        logits = model(pixel_values, text_embeds=text_embeds).logits
    expected = load_file(FIXTURES / "official_parity.safetensors")["logits"]
    assert (logits - expected).abs().max() < 1e-4


def test_images_are_blue_green_red_and_not_normalized(converted):
    _, processor = converted
    image = np.full((50, 60, 3), (255, 128, 0), np.uint8)
    pixel_values = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixel_values[0, :, 100, 100], torch.tensor([0.0, 128 / 255, 1.0]))


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_become_the_word_vectors_of_the_reference(name, converted, text_model):
    model, processor = converted
    caption = CAPTIONS[name]
    filled = caption + " EOF XXX" * (9 - len(caption.split()))
    with torch.no_grad():
        vectors, mask = model.lvit.get_text_embeds(**processor(text=caption, return_tensors="pt"))
    assert mask.all()
    torch.testing.assert_close(vectors[0], word_vectors(filled, text_model))


def test_null_text_starts_as_the_fillers(converted, text_model):
    model, _ = converted
    torch.testing.assert_close(model.lvit.null_text.data, word_vectors("EOF XXX " * 9, text_model))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("bare", [True, False])
def test_state_dict_is_found_bare_or_inside_and_with_either_prefix(prefix, bare, tmp_path):
    tensors = {f"{prefix}outc.bias": torch.ones(1)}
    found = load_reference_checkpoint(save(tensors if bare else {"epoch": 1, "state_dict": tensors}, tmp_path))
    assert found == {"outc.bias": torch.ones(1)}


def test_a_checkpoint_that_was_saved_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")  # which the file says
    assert load_reference_checkpoint(save({"outc.bias": torch.ones(1)}, tmp_path)) == {"outc.bias": torch.ones(1)}


def test_configuration_is_read_off_the_shapes():
    shapes = {
        "inc.conv.weight": [64, 1, 3, 3],
        "outc.weight": [4, 64, 1, 1],
        "downVit.CTBN3.conv.weight": [49, 14, 3],
        "text_module4.weight": [512, 384, 3],
        "downVit.Encoder_blocks.0.mlp.fc1.weight": [128, 64],
    }
    config = reference_config(stand_ins(**shapes))
    assert (config.num_channels, config.num_labels, config.num_text_vectors, config.mlp_ratio) == (1, 4, 14, 2)
    assert (config.image_size, config.text_config.hidden_size) == (112, 384)
    assert (config.hidden_sizes, config.patch_sizes) == ([64, 128, 256, 512], [16, 8, 4, 2])
    assert config.class_balanced_loss  # by which the reference trains


def test_images_are_resized_to_what_the_network_takes(converted):
    processor = build_processor(converted[1].tokenizer, 112)
    assert processor(images=Image.new("RGB", (60, 50)), return_tensors="pt")["pixel_values"].shape[2:] == (112, 112)


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in stand_ins().items() if key != name}


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (without("outc.weight"), "lacks outc.weight"),
        (without("up3.nConvs.1.conv.bias"), "lacks: lvit.conv_decoder.blocks.1.second_layer.convolution.bias"),
        (stand_ins(**{"extra.weight": [3]}), "no place in the network: extra.weight"),
        (stand_ins(**{"outc.bias": [2]}), r"outc.bias \(\(2,\) in place of \(1,\)\)"),
        ({"epoch": 1}, "has no state dict"),
        ([torch.ones(1)], "has no state dict"),
        ({"state_dict": {"outc.bias": torch.ones(1)}, "arguments": Namespace()}, "type argparse.Namespace"),
    ],
)
def test_what_does_not_fit_is_named(checkpoint, message, text_model, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(checkpoint, tmp_path), tmp_path / "out", text_model=text_model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(9)]
)
def test_files_that_are_no_checkpoint_are_refused(content, tmp_path):
    (tmp_path / "model.pth.tar").write_bytes(content)
    with pytest.raises(ValueError, match="is not a PyTorch checkpoint"):
        load_reference_checkpoint(tmp_path / "model.pth.tar")
    with pytest.raises(OSError, match="cannot be read"):
        load_reference_checkpoint(tmp_path)


def test_a_text_tower_is_not_loaded_from_a_pickle(text_model, tmp_path):
    shutil.copytree(text_model, tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save(BertModel.from_pretrained(text_model).state_dict(), tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be used.*model.safetensors"):
        load_text_model(tmp_path / "bert", 768)


def test_an_image_backbone_is_not_filled_by_other_weights(tmp_path):
    path = save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3), "_fc.weight": torch.zeros(1)}, tmp_path)
    backbone = tiny_model(**WITH_BACKBONE).lvit.conv_encoder.backbone
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of the image backbone, such as stem.normalization"):
        load_backbone_weights(backbone, path)


def test_text_tower_must_be_there_and_of_the_width(text_model, tmp_path):
    checkpoint = save(stand_ins(), tmp_path)
    with pytest.raises(ValueError, match="cannot be used.*bert-base-uncased"):
        convert_checkpoint(checkpoint, tmp_path / "out", text_model=tmp_path / "nothing")
    checkpoint = save(stand_ins(**{"text_module4.weight": [512, 384, 3]}), tmp_path)
    with pytest.raises(ValueError, match="bert of width 768"):
        convert_checkpoint(checkpoint, tmp_path / "out", text_model=text_model)
    assert not (tmp_path / "out").exists()
