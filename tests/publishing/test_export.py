import shutil
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from captioning import captioning_model
from onnxruntime import InferenceSession
from PIL import Image
from publishable import RESULTS, save_examples
from squares import make_rows
from tiny_lvit import SIZE, tiny_processor
from torch import nn
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.evaluation.evaluate import record_results
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.publishing.export import find_robust_layers
from lvit_hf.publishing.model_card import TEMPLATE, write_card
from lvit_hf.publishing.publish import find_problems


EXACT = ("openvino", "onnx")
TEXTS = ["one infected area, upper left lung", None, "two infected areas"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A checkpoint with a caption head, exported by the command for every runtime."""
    folder = tmp_path_factory.mktemp("exported")
    settings = {"text_fusion": "sentence_map", "scope_kinds": ["polyp"], "presence_head": True}
    captioning_model("lung infection", "polyp", **settings).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    for backend in EXACT:
        result = CliRunner().invoke(app, ["export", str(folder), "--to", backend])
        assert result.exit_code == 0, result.output
        assert str(folder / backend) in result.output
    return folder


def segment(folder: Path, backend: str, **settings) -> list:
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (50, 30 + side, 3), dtype=np.uint8)) for side in range(3)]
    return Segmenter.from_pretrained(folder, backend).segment(images, TEXTS, **settings)


def change_weights(folder: Path):
    model = Segmenter.from_pretrained(folder, "torch").model
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (1, 2 * SIZE, SIZE), (5, 8, 24)])
@pytest.mark.parametrize("texts", [None, TEXTS], ids=["without text", "with text"])
@pytest.mark.parametrize("backend", EXACT)
@torch.inference_mode()
def test_outputs_are_those_of_the_model_at_any_size(exported, backend, texts, shape):
    batch_size, height, width = shape
    segmenter = Segmenter.from_pretrained(exported, backend)
    inputs = {"pixel_values": torch.rand(batch_size, 3, height, width) * 2 - 1, "output_captions": True}
    if texts is not None:
        inputs |= segmenter.processor(text=(2 * texts)[:batch_size], return_tensors="pt")
    outputs, expected = segmenter.network(**inputs), segmenter.model(**inputs)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.scope, expected.scope, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.captions.logits, expected.captions.logits, atol=1e-4, rtol=0)
    probabilities = outputs.captions.value_probabilities
    torch.testing.assert_close(probabilities, expected.captions.value_probabilities, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", EXACT)
def test_segments_and_describes_as_torch_does(exported, backend):
    for result, expected in zip(segment(exported, backend), segment(exported, "torch")):
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-4)
        assert result.written_caption == expected.written_caption


def test_word_vectors_come_from_a_second_file(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "vectors")
    result = CliRunner().invoke(app, ["export", str(folder), "--to", "onnx", "--text", "vectors"])
    assert result.exit_code == 0, result.output
    session = InferenceSession(folder / "onnx" / "model.onnx")
    assert {item.name for item in session.get_inputs()} == {"pixel_values", "text_embeds", "text_mask"}
    for found, expected in zip(segment(folder, "onnx"), segment(folder, "torch")):
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert not [problem for problem in find_problems(folder) if "onnx" in problem]


def test_openvino_computes_in_bfloat16_where_the_processor_does(exported):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ValueError, match="does not compute in bfloat16; the backend openvino computes in float32"):
            Segmenter.from_pretrained(exported, "openvino-bf16")
        return
    assert Segmenter.from_pretrained(exported, "openvino-bf16").backend == "openvino-bf16"
    for result, expected in zip(segment(exported, "openvino-bf16"), segment(exported, "torch")):
        differences = np.abs(result.scores - expected.scores)
        assert 1e-4 < differences.max() < 0.1  # it rounds, and no more
        assert (result.mask() != expected.mask()).mean() < 0.02


def test_the_layers_that_bear_8_bits_are_those_whose_mistakes_the_mask_forgives():
    ops = openvino.opset13

    def weights(*shape: int):
        return ops.constant(np.ones(shape, np.float32))

    def convolve(node, name: str, *kernel: int, channels: int = 4):
        ones, edges = [1] * len(kernel), [side // 2 for side in kernel]
        return ops.convolution(node, weights(4, channels, *kernel), ones, edges, edges, ones, name=name)

    def multiply(node, name: str, width: int = 4):
        return ops.matmul(node, weights(4, width), False, False, name=name)

    pixels = ops.parameter([1, 3, 8, 8], np.float32, name="pixel_values")
    words = ops.parameter([1, 5, 4], np.float32, name="text_embeds")
    first = convolve(pixels, "of the image itself", 3, 3, channels=3)
    inner = convolve(convolve(first, "of single pixels before", 1, 1), "inner", 3, 3)
    taken = convolve(inner, "that the transformer takes", 3, 3)
    tokens = ops.transpose(ops.reshape(taken, [1, 4, 64], False), [0, 2, 1])
    spoken = multiply(words, "of the caption")
    attended = ops.scaled_dot_product_attention(multiply(tokens, "product"), spoken, spoken)
    sequence = convolve(ops.transpose(attended, [0, 2, 1]), "of a sequence", 3)
    grid = convolve(ops.reshape(sequence, [1, 4, 8, 8], False), "after", 3, 3)
    logits = convolve(grid, "of single pixels after", 1, 1)
    head = multiply(tokens, "of a head", 2)
    for node, name in ((logits, "logits"), (head, "scope")):
        node.output(0).set_names({name})
    program = openvino.Model([logits, head], [pixels, words])
    assert find_robust_layers(program) == {"of single pixels before", "inner", "product", "after"}


def test_openvino_computes_in_8_bits_what_bears_it(checkpoint, tmp_path):
    pytest.importorskip("nncf")
    folder = shutil.copytree(checkpoint, tmp_path / "quantized")
    make_rows(6, seed=0).to_parquet(tmp_path / "data" / "train-0.parquet")
    result = CliRunner().invoke(app, ["export", str(folder), "--int8", "--data", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    program = openvino.Core().read_model(folder / "openvino-int8" / "openvino_model.xml")
    types = [node.get_type_name() for node in program.get_ops()]
    assert types.count("FakeQuantize") > 20
    assert Segmenter.from_pretrained(folder).backend == "torch"  # auto gives the same masks
    for found, expected in zip(segment(folder, "openvino-int8"), segment(folder, "torch")):
        differences = np.abs(found.scores - expected.scores)
        assert 1e-4 < differences.max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--int8"], "--int8 and --data go together"),
        (["--data", "somewhere"], "--int8 and --data go together"),
        (["--int8", "--data", "somewhere", "--to", "onnx"], "--int8 is for OpenVINO: leave out --to."),
    ],
)
def test_says_what_8_bits_need(checkpoint, arguments, sentence):
    result = CliRunner().invoke(app, ["export", str(checkpoint), *arguments])
    assert result.exit_code == 1
    assert f"Error: {sentence}" in result.output


def test_auto_takes_openvino_where_it_is_and_has_the_same_weights(exported, checkpoint, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("auto takes the GPU")
    assert Segmenter.from_pretrained(exported).backend == "openvino"
    assert Segmenter.from_pretrained(checkpoint).backend == "torch"
    other = shutil.copytree(exported, tmp_path / "other")
    change_weights(other)
    assert Segmenter.from_pretrained(other).backend == "torch"
    with pytest.raises(ValueError, match="other weights; lvit export .*other --to onnx makes it anew"):
        Segmenter.from_pretrained(other, "onnx")


def test_a_runtime_is_imported_only_where_there_is_an_export(checkpoint, monkeypatch):
    monkeypatch.delitem(sys.modules, "openvino")
    assert Segmenter.from_pretrained(checkpoint).backend == "torch"
    assert "openvino" not in sys.modules


def test_says_what_to_do_where_a_backend_is_not_there(checkpoint):
    with pytest.raises(ValueError, match="no network for openvino; lvit export .* --to openvino makes it"):
        Segmenter.from_pretrained(checkpoint, "openvino")
    with pytest.raises(ValueError, match="no network for openvino-int8; lvit export .* --int8 --data DATA makes it"):
        Segmenter.from_pretrained(checkpoint, "openvino-int8")
    with pytest.raises(ValueError, match="backend must be one of auto, torch, compile, openvino, .*onnx"):
        Segmenter.from_pretrained(checkpoint, "tensorrt")


def test_predict_takes_a_backend(exported, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(image)
    for backend in ("torch", *EXACT):
        arguments = ["predict", image, "--model", exported, "--backend", backend, "--out", tmp_path / backend]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        masks = [np.asarray(Image.open(tmp_path / name / "image_mask.png")) for name in ("torch", backend)]
        assert (masks[0] != masks[1]).mean() < 0.001


def test_an_export_of_the_same_weights_is_published_and_no_other(exported, tmp_path):
    ready = shutil.copytree(exported, tmp_path / "ready")
    record_results(ready, RESULTS)
    save_examples(tmp_path / "examples")
    write_card(ready, TEMPLATE, tmp_path / "examples")
    assert find_problems(ready) == []
    change_weights(ready)
    [problem] = find_problems(ready)
    assert "of other weights" in problem
