import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from captioning import captioning_model
from PIL import Image
from tiny_lvit import tiny_processor
from tiny_volumes import tiny_volume_model, tiny_volume_processor

from lvit_cli.common import WRONG_USAGE
from lvit_hf.inference.segmenter import Segmenter


TEXTS = ["one infected area, upper left lung", None, "two infected areas, left and right lung"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    settings = {"text_fusion": "sentence_map", "scope_kinds": ["polyp"], "presence_head": True}
    captioning_model("lung infection", "polyp", **settings).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def compiled(folder):
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    return Segmenter.from_pretrained(folder, "compile")


def make_images(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (50, 30 + side, 3), dtype=np.uint8)) for side in range(count)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it computes in bfloat16, see the next test")
def test_masks_and_captions_are_those_of_torch_for_any_number_of_images(compiled, folder):
    plain = Segmenter.from_pretrained(folder, "torch")
    for count in (1, 3, 11):
        texts = (4 * TEXTS)[:count]
        results, expected = (
            segmenter.segment(make_images(count), texts, batch_size=16) for segmenter in (compiled, plain)
        )
        assert len(results) == count
        for result, other in zip(results, expected):
            np.testing.assert_allclose(result.scores, other.scores, atol=1e-5)
            np.testing.assert_array_equal(result.mask(), other.mask())
            assert 0 < result.mask().mean() < 1
            assert result.written_caption == other.written_caption
            assert result.scope.score == pytest.approx(other.scope.score, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_on_a_gpu_are_those_of_torch(compiled, folder):
    plain = Segmenter.from_pretrained(folder, "torch")
    for count in (1, 11):
        texts = (4 * TEXTS)[:count]
        results, expected = (segmenter.segment(make_images(count), texts) for segmenter in (compiled, plain))
        for result, other in zip(results, expected):
            assert (result.mask() != other.mask()).mean() < 0.02
    assert compiled.model.device.type == "cuda"


def test_is_compiled_once_for_all_numbers_of_images_and_all_captions(compiled):
    torch._dynamo.utils.counters.clear()
    for count in (1, 2, 9):
        compiled.segment(make_images(count), (4 * TEXTS)[:count])
        compiled.segment(make_images(count), describe=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_says_so_where_nothing_can_be_compiled(folder, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    command = ["predict", tmp_path / "image.png", "--model", folder, "--backend", "compile", "--out", tmp_path / "out"]
    without_compiler = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", "from lvit_cli.main import app; app()", *map(str, command)],
        env=without_compiler,
        capture_output=True,
        text=True,
    )
    assert result.returncode == WRONG_USAGE
    [sentence] = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert sentence.startswith("Error: The network cannot be compiled here; the backend torch runs it.")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("backend", ["compile", "openvino", "onnx"])
def test_networks_of_volumes_have_one_backend(tmp_path, backend):
    tiny_volume_model().save_pretrained(tmp_path)
    tiny_volume_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the backend torch runs them"):
        Segmenter.from_pretrained(tmp_path, backend)
    assert Segmenter.from_pretrained(tmp_path).backend == "torch"


def test_zerogpu_compiles_nothing(folder, monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    with pytest.raises(ValueError, match="ZeroGPU compiles nothing"):
        Segmenter.from_pretrained(folder, "compile")
