"""Networks that stand in for a model, run by PyTorch here: what they take and give is what the model does."""

import pytest
import torch
from captioning import captioning_model
from tiny_lvit import tiny_processor

from lvit_hf.inference.backends import (
    BACKENDS,
    COMPILED_TOKENS,
    NETWORK,
    RUNTIMES,
    TEXT_MODEL,
    CompiledNetwork,
    ExportedNetwork,
    TokenNetwork,
    VectorNetwork,
    load_network,
    probe_image,
    round_up,
)


TEXTS = ["one infected area, upper left lung", "two infected areas", "all infected areas, lung"]


@pytest.fixture(scope="module")
def model():
    settings = {"text_fusion": "sentence_map", "scope_kinds": ["polyp"], "presence_head": True}
    return captioning_model("lung infection", "polyp", **settings)


@pytest.fixture(scope="module")
def networks(model) -> dict[str, ExportedNetwork]:
    def encode(**tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(("text_embeds", "text_mask"), model.lvit.get_text_embeds(**tokens)))

    compiled = CompiledNetwork(model, images=4)
    compiled._compiled = TokenNetwork(model)  # what it would compile
    vectors = {NETWORK: VectorNetwork(model), TEXT_MODEL: encode}
    return {
        "tokens": ExportedNetwork({NETWORK: TokenNetwork(model)}, model.config, "tokens"),
        "vectors": ExportedNetwork(vectors, model.config, "vectors"),
        "compile": compiled,
    }


def inputs_of(model, count: int, with_text: bool) -> dict:
    sizes = {"original_sizes": torch.full((count, 2), 50), "reshaped_input_sizes": torch.full((count, 2), 32)}
    images = {"pixel_values": probe_image(model.config, count), **sizes}
    return images | (dict(tiny_processor()(text=(4 * TEXTS)[:count], return_tensors="pt")) if with_text else {})


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("name", ["tokens", "vectors", "compile"])
def test_a_network_says_what_the_model_says(model, networks, name, with_text, count):
    inputs, network = inputs_of(model, count, with_text), networks[name]
    expected, outputs = (each(**inputs, output_captions=True) for each in (model, network))
    assert network.backend == name and expected.logits.std() > 0.1
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.scope, expected.scope, atol=1e-5, rtol=1e-5)
    for part in ("logits", "value_probabilities"):
        found = getattr(outputs.captions, part)
        torch.testing.assert_close(found, getattr(expected.captions, part), atol=1e-5, rtol=1e-5)
    for part in ("original_sizes", "reshaped_input_sizes"):
        assert getattr(outputs, part) is inputs[part]
    assert network(**inputs).captions is None


@pytest.mark.parametrize(("count", "length"), [(1, 2), (4, 30), (5, COMPILED_TOKENS), (9, COMPILED_TOKENS + 1)])
def test_every_pass_of_a_compiled_network_has_one_shape(model, networks, count, length):
    pixels, tokens = probe_image(model.config, count), torch.arange(1, count * length + 1).reshape(count, length)
    network = networks["compile"]
    network._longest = COMPILED_TOKENS + 10
    filled = network._fill_up(pixels, input_ids=tokens, word_ids=2 * tokens)
    rows, columns = round_up(count, 4), COMPILED_TOKENS if length <= COMPILED_TOKENS else COMPILED_TOKENS + 10
    assert {name: tuple(tensor.shape[:2]) for name, tensor in filled.items()} == {
        "pixel_values": (rows, 3),
        "input_ids": (rows, columns),
        "word_ids": (rows, columns),
    }
    assert torch.equal(filled["input_ids"][:count, :length], tokens) and not filled["input_ids"][:, length:].any()
    assert torch.equal(filled["word_ids"], 2 * filled["input_ids"])
    assert all(torch.equal(row, pixels[-1]) for row in filled["pixel_values"][count:])
    assert filled["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    network._longest = model.config.get_text_config().max_position_embeddings


def test_numbers_are_rounded_up_to_whole_steps():
    assert [round_up(number, 4) for number in range(10)] == [0, 4, 4, 4, 4, 8, 8, 8, 8, 12]


def test_an_image_to_compare_networks_by_is_noise_that_is_not_square(model):
    image = probe_image(model.config, 2)
    assert image.shape[:2] == (2, 3) and image.shape[2] != image.shape[3]
    assert -1 <= image.min() < -0.9 and 0.9 < image.max() <= 1 and not torch.equal(image[0], image[1])
    assert torch.equal(image, probe_image(model.config, 2))
    model(pixel_values=image)


def test_backends_that_are_none_are_told_of(model, tmp_path):
    assert load_network(str(tmp_path), "torch", model) is None
    assert load_network(str(tmp_path), "auto", model) is None  # nothing was exported
    with pytest.raises(ValueError, match="must be one of auto, torch, compile, .*, got 'tensorrt'"):
        load_network(str(tmp_path), "tensorrt", model)


@pytest.mark.parametrize("backend", BACKENDS[3:])
def test_a_backend_whose_network_is_not_there_names_what_exports_it(model, tmp_path, backend):
    for package in RUNTIMES[backend.removesuffix("-bf16")]:
        pytest.importorskip(package, reason=f"{package} is not installed; pip install 'lvit_hf[export]' brings it")
    option = "--int8 --data DATA" if "int8" in backend else f"--to {backend.removesuffix('-bf16')}"
    with pytest.raises(ValueError, match=f"{tmp_path} has no network for .*; lvit export {tmp_path} {option} makes"):
        load_network(str(tmp_path), backend, model)


@pytest.mark.parametrize("backend", BACKENDS[3:])
def test_a_backend_whose_runtime_is_not_installed_names_what_installs_it(model, tmp_path, monkeypatch, backend):
    monkeypatch.setitem(RUNTIMES, backend.removesuffix("-bf16"), ("json", "no_such_runtime"))
    sentence = rf"The backend {backend} is not installed; this needs pip install 'lvit_hf\[export\]'"
    with pytest.raises(ValueError, match=sentence):
        load_network(str(tmp_path), backend, model)
