"""The converted network computes what the reference implementation computes, with weights made by a rule."""

import json
import math

import pytest
import torch
from rule_made import FIXTURES, rule_made
from safetensors.torch import load_file

from lvit_hf import LViTForImageSegmentation
from lvit_hf.training.conversion import convert_state_dict, reference_config


TEXT_CONFIG = {"model_type": "bert", "vocab_size": 30, "hidden_size": 768, "num_hidden_layers": 0}


@pytest.fixture(scope="module")
def parity():
    description = json.loads((FIXTURES / "official_parity.json").read_text(encoding="utf-8"))
    state_dict = {name: rule_made(name, shape) for name, shape in description["state_dict"].items()}
    model = LViTForImageSegmentation(reference_config(state_dict, TEXT_CONFIG)).eval()
    report = model.load_state_dict(convert_state_dict(state_dict), strict=False)
    assert not report.unexpected_keys
    assert all("text_model" in name or "null_text" in name or "num_batches" in name for name in report.missing_keys)
    pixel_values = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    text_embeds = torch.randn(2, 10, 768, generator=torch.Generator().manual_seed(2)) * 0.5
    logits = model(pixel_values, text_embeds=text_embeds).logits
    (logits.sigmoid().mean() * 100).backward()
    return model, logits.detach(), description


def test_logits_are_those_of_the_reference(parity):
    _, logits, _ = parity
    expected = load_file(FIXTURES / "official_parity.safetensors")["logits"]
    assert (logits - expected).abs().max() < 1e-4


def test_every_live_gradient_has_the_norm_of_the_reference(parity):
    model, _, description = parity
    norms = description["gradient_norm"]
    # A tensor of ours that the conversion fills with a number comes from the reference's tensor of that number.
    names = list(norms)
    markers = {name: torch.full(description["state_dict"][name], float(number)) for number, name in enumerate(names)}
    squares: dict[str, float] = {}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for ours, marker in convert_state_dict(markers).items():
        name = names[int(marker.flatten()[0])]
        squares[name] = squares.get(name, 0.0) + gradients[ours].square().sum().item()
    live = {name: norm for name, norm in norms.items() if norm is not None}
    assert set(squares) == set(live)
    for name, norm in live.items():
        assert math.sqrt(squares[name]) == pytest.approx(norm, rel=1e-3), name
