import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_lvit import tiny_model, tiny_processor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoProcessor,
    pipeline,
)
from without_package import CODE, TASK, TEXT

from lvit_hf import (
    LViTConfig,
    LViTForImageSegmentation,
    LViTImageProcessor,
    LViTModel,
    LViTPipeline,
    LViTProcessor,
)
from lvit_hf.model import configuration_lvit


REPOSITORY = "someone/lvit"
FILES = CODE | {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Checkpoints of one model: `full` and `sharded` in float32, `half` in float16; and an image."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_model().save_pretrained(folder / "full")
    tiny_model().save_pretrained(folder / "sharded", max_shard_size="20KB")
    tiny_model().half().save_pretrained(folder / "half")
    for checkpoint in ("full", "sharded", "half"):
        tiny_processor().save_pretrained(folder / checkpoint)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    return folder


@torch.no_grad()
def answers(model: LViTForImageSegmentation, image: Image.Image) -> dict[str, torch.Tensor]:
    """What the package answers, in the form of without_package.py."""
    processor = tiny_processor()
    inputs = processor(images=image, text=TEXT, return_tensors="pt")
    [segment] = pipeline(TASK, model=model, processor=processor, device="cpu")(image, text=TEXT)
    return {
        "pixel_values": inputs["pixel_values"],
        "last_hidden_state": model.lvit(**inputs).last_hidden_state,
        "logits": model(**inputs).logits,
        "mask": torch.tensor(list(segment["mask"].tobytes())),
        "score": torch.tensor(segment["score"]),
    }


def test_a_saved_folder_holds_everything_and_no_pickle(checkpoints):
    assert names(checkpoints / "full") == FILES | {"model.safetensors"}
    shards = {path.name for path in (checkpoints / "sharded").glob("model-*.safetensors")}
    assert len(shards) > 1
    assert names(checkpoints / "sharded") == FILES | shards | {"model.safetensors.index.json"}
    config = json.loads((checkpoints / "full" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForImageSegmentation"}
    assert set(config["custom_pipelines"]) == {TASK}


def test_a_folder_that_is_saved_again_gets_the_code_of_now(checkpoints, tmp_path):
    for name in CODE:
        (tmp_path / name).write_text("# of an earlier version")
    tiny_model().save_pretrained(tmp_path)
    for name in CODE:
        assert (tmp_path / name).read_bytes() == (checkpoints / "full" / name).read_bytes()


def test_code_that_is_not_beside_the_configuration_comes_from_its_checkpoint(checkpoints, tmp_path, monkeypatch):
    """As in a process that loaded a part of a checkpoint's code from the Hub."""
    config, alone = AutoConfig.from_pretrained(checkpoints / "full"), "configuration_lvit.py"
    for folder in ("loaded", "kept"):
        (tmp_path / folder).mkdir()
    shutil.copy(configuration_lvit.__file__, tmp_path / "loaded")
    for name in CODE - {alone}:
        (tmp_path / "kept" / name).write_text("# its own")
    monkeypatch.setattr(configuration_lvit, "__file__", str(tmp_path / "loaded" / alone))
    for folder in ("new", "kept"):
        config.save_pretrained(tmp_path / folder)
    for name in CODE:
        expected = (checkpoints / "full" / name).read_text()
        assert (tmp_path / "new" / name).read_text() == expected
        assert (tmp_path / "kept" / name).read_text() == (expected if name == alone else "# its own")


def test_the_installed_package_loads_without_trust(checkpoints):
    folder = checkpoints / "full"
    for trust in ({}, {"trust_remote_code": True}):
        assert type(AutoConfig.from_pretrained(folder, **trust)) is LViTConfig
        assert type(AutoModel.from_pretrained(folder, **trust)) is LViTModel
        assert type(AutoModelForImageSegmentation.from_pretrained(folder, **trust)) is LViTForImageSegmentation
        assert type(AutoImageProcessor.from_pretrained(folder, **trust)) is LViTImageProcessor
        assert type(AutoProcessor.from_pretrained(folder, **trust)) is LViTProcessor
        segmenter = pipeline(TASK, model=folder, device="cpu", **trust)
        assert (type(segmenter), type(segmenter.model)) == (LViTPipeline, LViTForImageSegmentation)


@pytest.mark.parametrize("stored", ["full", "half"])
def test_weights_compute_in_float32_unless_dtype_says_otherwise(checkpoints, stored):
    folder = checkpoints / stored
    expected = tiny_model() if stored == "full" else tiny_model().half().float()
    for model in (
        LViTForImageSegmentation.from_pretrained(folder),
        AutoModelForImageSegmentation.from_pretrained(folder),
        pipeline(TASK, model=folder, device="cpu").model,
    ):
        parameters, expected_parameters = (dict(of.named_parameters()) for of in (model, expected))
        torch.testing.assert_close(parameters, expected_parameters, rtol=0, atol=0)
    for dtype in (torch.float16, torch.bfloat16):
        assert LViTModel.from_pretrained(folder, dtype=dtype).dtype == dtype
        assert AutoModelForImageSegmentation.from_pretrained(folder, dtype=dtype).dtype == dtype
    # On a CPU a pipeline computes in float32 what is stored in float16.
    for dtype, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        assert pipeline(TASK, model=folder, device="cpu", dtype=dtype).model.dtype == expected


@pytest.mark.parametrize("device_map", ["auto", {"lvit": "disk", "classifier": "cpu"}])
def test_device_map_places_the_model(checkpoints, tmp_path, device_map):
    model = AutoModelForImageSegmentation.from_pretrained(
        checkpoints / "sharded", device_map=device_map, offload_folder=tmp_path
    )
    image = Image.open(checkpoints / "image.png")
    inputs = tiny_processor()(images=image, text=TEXT, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.cpu()
    torch.testing.assert_close(logits, answers(tiny_model(), image)["logits"])


@pytest.fixture(scope="module")
def remote(checkpoints, tmp_path_factory) -> Path:
    """The answers of a process without the package and without a network."""
    home, out = tmp_path_factory.mktemp("hf_home"), tmp_path_factory.mktemp("answers")
    cache = home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    revision = "0123456789" * 4
    shutil.copytree(checkpoints / "full", cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    script = Path(__file__).parents[1] / ("without_package.py")
    process = subprocess.run(
        [sys.executable, "-I", script, checkpoints, REPOSITORY, out],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=out,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return out


@pytest.mark.parametrize("checkpoint", ["full", "half", "sharded", "repository"])
def test_a_checkpoint_answers_the_same_without_the_package(checkpoints, remote, checkpoint):
    model = tiny_model().half().float() if checkpoint == "half" else tiny_model()
    expected = answers(model, Image.open(checkpoints / "image.png"))
    torch.testing.assert_close(load_file(remote / f"{checkpoint}.safetensors"), expected)


@pytest.mark.parametrize("copy", ["from_folder", "from_repository", "from_pipeline"])
def test_a_loaded_checkpoint_can_be_saved_again(checkpoints, remote, copy):
    assert names(remote / copy) == names(checkpoints / "full")
    for name in CODE | {"processor_config.json"}:
        assert (remote / copy / name).read_text() == (checkpoints / "full" / name).read_text()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (remote / copy, checkpoints / "full")]
    for key in ("auto_map", "custom_pipelines"):  # of its own code, not the repository's that it was loaded from
        assert configs[0][key] == configs[1][key]
    original = load_file(remote / "full.safetensors")
    torch.testing.assert_close(load_file(remote / f"{copy}.safetensors"), original, rtol=0, atol=0)
    assert type(AutoModelForImageSegmentation.from_pretrained(remote / copy)) is LViTForImageSegmentation
