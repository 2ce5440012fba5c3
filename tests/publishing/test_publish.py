import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from data_layouts import write_csv_files
from gradio_client import Client, handle_file
from huggingface_hub import DatasetCard, SpaceCard, constants
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import File, LoopbackHub, Repository
from packaging.requirements import Requirement
from PIL import Image
from publishable import save_checkpoint, save_examples
from safetensors.torch import load_file, save_file
from static_page import need_packages
from tiny_lvit import tiny_model, tiny_processor
from transformers import pipeline
from without_package import CODE, TASK, TEXT

import lvit_hf
from lvit_hf import LViTForImageSegmentation
from lvit_hf.inference.segmenter import Segmenter, load_processor
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT, list_shipped
from lvit_hf.io.hub import explained_errors, local_folder
from lvit_hf.publishing.model_card import TEMPLATE, write_card
from lvit_hf.publishing.publish import find_problems, publish
from lvit_hf.publishing.space import make_requirements, stage_space
from lvit_hf.training.config import ModelConfig
from lvit_hf.training.run import build_model


TESTS = Path(__file__).parents[1]
TOKEN, FOREIGN_TOKEN, WRONG_TOKEN = "hf_someone", "hf_other", "hf_wrong"
PUBLISHED = CODE | {
    "README.md",
    "config.json",
    "evaluation.json",
    "examples/examples.csv",
    "examples/noise.png",
    "model.safetensors",
    "processor_config.json",
    "result.jpg",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A checkpoint that can be published, with the path of this machine that transformers leaves in it."""
    folder = tmp_path_factory.mktemp("ready") / "checkpoint"
    save_checkpoint(folder)
    save_examples(folder.parent / "examples")
    write_card(folder, TEMPLATE, folder.parent / "examples")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["_name_or_path"] = str(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def checkpoint(ready, tmp_path) -> Path:
    return Path(shutil.copytree(ready, tmp_path / "checkpoint"))


# Checks before publishing


def spoil_shards(folder: Path):
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    next(folder.glob("model-00002-*")).unlink()


def write_index(content: str):
    def spoil(folder: Path):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return spoil


def spoil_weights(folder: Path):
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def rewrite(name: str, old: str, new: str):
    def spoil(folder: Path):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return spoil


def add(name: str):
    def spoil(folder: Path):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing."),
        (lambda folder: (folder / "processor_config.json").unlink(), "processor_config.json is missing."),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing."),
        (spoil_shards, "model.safetensors.index.json names"),
        (write_index("{}"), "index.json cannot be read"),
        (write_index("no JSON"), "index.json cannot be read"),
        (spoil_weights, "tensors of the network are missing"),
        (add("optimizer.pt"), "optimizer.pt does not belong"),
        (add("checkpoint-10/training_args.bin"), "checkpoint-10/training_args.bin does not belong"),
        (add("setup.py"), "setup.py does not belong"),
        (add("weights.pkl"), "weights.pkl does not belong"),
        (add("pytorch_model.bin"), "pytorch_model.bin does not belong"),
        (lambda folder: (folder / "README.md").unlink(), "lvit card writes it"),
        (rewrite("README.md", "license: cc-by-nc-sa-4.0\n", ""), "names no license"),
        (rewrite("README.md", "model-index:", "other:"), "has no metrics"),
        (rewrite("README.md", "---\n", "---\n]["), "cannot be read"),
        (rewrite("evaluation.json", "0.7123", "0.8"), "has other figures than evaluation.json"),
        (rewrite("config.json", '"lvit"', '"bert"'), "is not an LViT checkpoint"),
    ],
)
def test_a_dirty_or_incomplete_checkpoint_is_refused(checkpoint, spoil, message):
    assert find_problems(checkpoint) == []
    spoil(checkpoint)
    [problem] = find_problems(checkpoint)
    assert message in problem


def test_hidden_files_and_caches_of_python_are_left_out(checkpoint):
    add("__pycache__/modeling_lvit.cpython-311.pyc")(checkpoint)
    add(".cache/token.bin")(checkpoint)
    add(".DS_Store")(checkpoint)
    assert find_problems(checkpoint) == []


# Over HTTP


@dataclass
class Shell:
    """A process that runs `lvit` against the Hub on loopback."""

    process: subprocess.Popen

    def __call__(self, *arguments, token: str | None = TOKEN, **environment: str) -> dict:
        command = {"arguments": [str(a) for a in arguments], "environment": {"HF_TOKEN": token, **environment}}
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        report = json.loads(self.process.stdout.readline())
        assert report["error"] is None and "Traceback" not in report["err"], report
        for secret in (TOKEN, FOREIGN_TOKEN, WRONG_TOKEN):
            assert secret not in report["out"] + report["err"]
        return report

    def error_of(self, *arguments, **environment) -> str:
        """The sentence with which a command fails."""
        report = self(*arguments, **environment)
        assert report["status"] != 0, report
        [sentence] = [line for line in report["err"].splitlines() if line.startswith("Error: ")]
        return sentence.removeprefix("Error: ")


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub({TOKEN: "someone", FOREIGN_TOKEN: "other"})
    yield hub
    hub.stop()
    assert hub.not_understood == []


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory) -> dict[str, str]:
    """Of processes that use the Hub on loopback, with a cache of their own and nobody logged in.

    Xet, the Hub's own storage, has a server that cannot be had here; without it the client uses LFS.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LVIT_"))}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_DISABLE_XET": "1"}
    settings["HF_ASSETS_CACHE"] = constants.HF_ASSETS_CACHE  # packages of npm
    return {**kept, **settings, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost"}


@pytest.fixture(scope="module")
def lvit(environment) -> Iterator[Shell]:
    with subprocess.Popen(
        [sys.executable, TESTS / "lvit_shell.py"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Shell(process)
        process.stdin.close()


@dataclass
class Pushed:
    report: dict
    requests: list[str]
    commit: str


@pytest.fixture(scope="module")
def pushed(hub, lvit, ready) -> Pushed:
    """The first commit to someone/lvit. On `main` another follows it, with other weights."""
    report = lvit("push", ready, "--repo-id", "someone/lvit")
    assert report["status"] == 0, report
    commit, requests = hub.repositories["models/someone/lvit"].branches["main"], list(hub.requests)
    other = Path(shutil.copytree(ready, ready.parent / "other"))
    spoil_seed(other)
    assert lvit("push", other, "--repo-id", "someone/lvit")["status"] == 0
    return Pushed(report, requests, commit)


def spoil_seed(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= -1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_push_is_one_commit_of_everything(hub, pushed, ready):
    assert pushed.report["out"].strip() == f"{hub.endpoint}/someone/lvit/commit/{pushed.commit}"
    assert len([request for request in pushed.requests if "/commit/" in request]) == 1
    files = hub.repositories["models/someone/lvit"].commits[pushed.commit]
    assert set(files) == PUBLISHED
    assert files["model.safetensors"].content == (ready / "model.safetensors").read_bytes()
    for name in CODE:
        assert files[name].content == (Path(lvit_hf.__file__).parent / "model" / name).read_bytes()
    card = files["README.md"].content.decode()
    assert 'model="someone/lvit"' in card and "USER/NAME" not in card
    for file in files.values():
        assert str(ready).encode() not in file.content


def test_a_dry_run_lists_the_files_and_asks_the_hub_nothing(hub, lvit, ready):
    before = len(hub.requests)
    report = lvit("push", ready, "--repo-id", "someone/dry", "--dry-run", token=None)
    assert report["status"] == 0 and len(hub.requests) == before
    *lines, total = report["out"].splitlines()
    sizes = {name: int(size.replace(",", "")) for size, _, name in (line.split() for line in lines)}
    assert set(sizes) == PUBLISHED
    assert sizes["model.safetensors"] == (ready / "model.safetensors").stat().st_size
    assert total.split() == [f"{sum(sizes.values()):,}", "bytes", f"{len(PUBLISHED)}", "files"]


def test_a_private_repository_and_a_pull_request(hub, lvit, ready, pushed):
    assert lvit("push", ready, "--repo-id", "someone/hidden", "--private")["status"] == 0
    assert hub.repositories["models/someone/hidden"].private
    arguments = ("predict", ready / "examples", "--out", ready / "out", "--model", "someone/hidden")
    assert "There is no someone/hidden" in lvit.error_of(*arguments, token=FOREIGN_TOKEN)
    report = lvit("push", ready, "--repo-id", "someone/lvit", "--create-pr", token=FOREIGN_TOKEN)
    assert report["status"] == 0, report
    assert report["out"].strip() == f"{hub.endpoint}/someone/lvit/discussions/1"
    repository = hub.repositories["models/someone/lvit"]
    assert repository.branches["refs/pr/1"] != repository.branches["main"]


def test_weights_of_an_earlier_push_do_not_stay(hub, lvit, ready, tmp_path):
    sharded = Path(shutil.copytree(ready, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    tiny_model().save_pretrained(sharded, max_shard_size="20KB")
    for folder in (ready, sharded):
        assert lvit("push", folder, "--repo-id", "someone/resharded")["status"] == 0
    repository = hub.repositories["models/someone/resharded"]
    files = repository.commits[repository.branches["main"]]
    assert "model.safetensors" not in files and "model.safetensors.index.json" in files


def load_in_another_process(environment: dict[str, str], revision: str, image: Path, out: Path) -> dict:
    command = [sys.executable, "-I", TESTS / "from_hub.py", "someone/lvit", revision, image, out]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return load_file(out)


@torch.no_grad()
def test_without_the_package_a_pinned_revision_answers_as_the_local_checkpoint(
    hub, pushed, ready, environment, tmp_path
):
    image_path = ready / "examples" / "noise.png"
    model, image = LViTForImageSegmentation.from_pretrained(ready), Image.open(image_path)
    logits = model(**tiny_processor()(images=image, text=TEXT, return_tensors="pt")).logits
    [segment] = pipeline(TASK, model=model, processor=tiny_processor(), device="cpu")(image, text=TEXT)
    expected = {"logits": logits, "mask": torch.tensor(list(segment["mask"].tobytes()))}

    pinned = load_in_another_process(environment, pushed.commit, image_path, tmp_path / "pinned")
    torch.testing.assert_close(pinned, expected)

    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    with hub.unplugged():
        cached = load_in_another_process(offline, pushed.commit, image_path, tmp_path / "cached")
    torch.testing.assert_close(cached, expected)


def hf_download(environment: dict[str, str], folder: Path, *arguments: str) -> set[str]:
    """Runs `hf download`, with a cache of its own. Returns the names of the files that came."""
    command = [Path(sys.executable).with_name("hf"), "download", *arguments, "--local-dir", folder / "model"]
    kept = {**environment, "HF_HOME": str(folder / "home")}
    process = subprocess.run(command, env=kept, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    paths = [path.relative_to(folder / "model") for path in (folder / "model").rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if path.parts[0] != ".cache"}


def test_hf_download_gets_the_pinned_revision(pushed, ready, environment, tmp_path):
    names = hf_download(environment, tmp_path, "someone/lvit", "--revision", pushed.commit)
    assert names == PUBLISHED
    for name in ("model.safetensors", "tokenizer.json", "examples/noise.png"):
        assert (tmp_path / "model" / name).read_bytes() == (ready / name).read_bytes()


def test_a_download_that_breaks_off_goes_on_from_what_has_arrived(hub, environment, tmp_path):
    weights = File((DEFAULT_CHECKPOINT / "model-00001-of-00002.safetensors").read_bytes(), lfs=True)
    hub.objects[weights.sha256] = weights.content
    hub.repositories["models/someone/large"] = Repository("someone")
    hub.repositories["models/someone/large"].commit("main", {"model.safetensors": weights})
    broken_after = len(weights.content) // 2
    hub.ranges, hub.break_downloads_after = [], broken_after
    hf_download(environment, tmp_path, "someone/large")
    [asked_for] = hub.ranges
    assert broken_after / 2 < int(asked_for.removeprefix("bytes=").removesuffix("-")) <= broken_after
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights.content


def test_a_model_is_named_the_same_way_everywhere(pushed, ready, lvit, tmp_path):
    image = ready / "examples" / "noise.png"
    named = f"someone/lvit@{pushed.commit}"
    runs = {
        "local": (ready, {}),
        "pinned": (named, {}),
        "latest": ("someone/lvit", {}),
        "variable": (None, {"LVIT_MODEL": named}),
    }
    masks = {}
    for run, (model, variables) in runs.items():
        options = ["--model", model] if model else []
        report = lvit("predict", image, "--text", TEXT, "--out", tmp_path / run, *options, **variables)
        assert report["status"] == 0, report
        masks[run] = np.asarray(Image.open(tmp_path / run / "noise_mask.png"))
    for run in ("pinned", "variable"):
        np.testing.assert_array_equal(masks[run], masks["local"])
    assert (masks["latest"] != masks["local"]).any()


def test_what_keeps_a_model_from_loading_is_said_in_a_sentence(hub, pushed, ready, lvit, tmp_path):
    def error_of(model: str, token: str | None = TOKEN) -> str:
        return lvit.error_of("predict", ready / "examples", "--out", tmp_path, "--model", model, token=token)

    gated, empty = Repository("someone", gated=True), Repository("someone")
    gated.commit("main", hub.repositories["models/someone/lvit"].commits[pushed.commit])
    hub.repositories |= {"models/someone/gated": gated, "models/someone/empty": empty}
    for token in (None, FOREIGN_TOKEN):
        assert "is gated: ask for access" in error_of("someone/gated", token)
        assert "There is no someone/missing" in error_of("someone/missing", token)
    assert "does not accept your token: log in" in error_of("someone/gated", WRONG_TOKEN)
    assert "someone/lvit@v9 cannot be loaded: someone/lvit has no such branch" in error_of("someone/lvit@v9")
    assert "no config.json" in error_of("someone/empty")
    with hub.unplugged():
        assert f"The Hub cannot be reached at {hub.endpoint}" in error_of("someone/gated")


def test_every_command_that_reads_a_model_or_data_says_what_keeps_it_from_loading(hub, ready, lvit, tmp_path):
    def error_of(data: str, model: str | Path, token: str | None = TOKEN) -> str:
        return lvit.error_of("data", "check", data, "--model", model, token=token)

    write_csv_files(tmp_path / "data")
    assert "There is no someone/missing" in error_of(str(tmp_path / "data"), "someone/missing")
    gated, empty = Repository("someone", gated=True), Repository("someone")
    gated.commit("main", {"train.csv": File(b"image,mask,text\n", lfs=False)})
    hub.repositories |= {"datasets/someone/gated": gated, "datasets/someone/empty": empty}
    assert "/datasets/someone/gated to ask for access" in error_of("someone/gated", ready, FOREIGN_TOKEN)
    assert "'someone/missing' doesn't exist on the Hub or cannot be accessed" in error_of("someone/missing", ready)
    assert "does not accept your token: log in" in error_of("someone/missing", ready, WRONG_TOKEN)
    assert "doesn't contain any data files" in error_of("someone/empty", ready)


def test_what_keeps_a_push_from_arriving_is_said_in_a_sentence(hub, lvit, ready):
    def error_of(repo_id: str, token: str | None, *options: str) -> str:
        return lvit.error_of("push", ready, "--repo-id", repo_id, *options, token=token)

    assert "You are not known to the Hub: log in" in error_of("someone/new", None)
    assert "does not accept your token: log in" in error_of("someone/new", WRONG_TOKEN)
    assert "it needs write access" in error_of("someone/new", FOREIGN_TOKEN)
    assert "There is no someone/new" in error_of("someone/new", TOKEN, "--create-pr")
    assert "Repo id must" in error_of("no/good/name", TOKEN)
    assert "models/someone/new" not in hub.repositories
    with hub.unplugged():
        assert f"The Hub cannot be reached at {hub.endpoint}" in error_of("someone/new", TOKEN)


@pytest.mark.parametrize("kind", ["model", "space", "dataset"])
def test_weights_of_an_earlier_commit_go_and_other_files_and_those_of_data_sets_stay(hub, monkeypatch, tmp_path, kind):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    name = f"someone/earlier-{kind}"
    publish(tmp_path, name, kind)
    repository = hub.repositories[f"{kind}s/{name}"]
    assert not repository.private
    old = {path: File(b"old", lfs=False) for path in ("old.safetensors", "old.safetensors.index.json", "notes.md")}
    repository.commit("main", {**repository.commits[repository.branches["main"]], **old})
    address = publish(tmp_path, name, kind)
    commit = repository.branches["main"]
    assert address.startswith(hub.endpoint) and address.endswith(f"{name}/commit/{commit}")
    stays = set(old) if kind == "dataset" else {"notes.md"}
    assert set(repository.commits[commit]) == {"README.md", *stays}


@pytest.mark.parametrize(("reason", "said"), [("Too many requests", "Too many requests"), (None, "it gave no reason")])
def test_any_other_refusal_is_a_sentence_with_the_reason_of_the_hub(reason, said):
    response = httpx.Response(429, request=httpx.Request("GET", "https://huggingface.co/api/models/someone/lvit"))
    error = HfHubHTTPError("429 Client Error", response=response, server_message=reason)
    with pytest.raises(ValueError) as raised, explained_errors("someone/lvit"):
        raise OSError("cannot load it") from error
    assert str(raised.value) == f"The Hub answered 429 for someone/lvit: {said}."


def test_training_goes_on_from_a_pinned_revision(ready, monkeypatch, tmp_path):
    cached = tmp_path / "models--someone--lvit"
    shutil.copytree(ready, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, processor = build_model(ModelConfig(checkpoint="someone/lvit@v1"))
    torch.testing.assert_close(model.state_dict(), tiny_model().state_dict(), rtol=0, atol=0)
    assert processor.image_processor.size == tiny_processor().image_processor.size
    assert local_folder("someone/lvit@v1") == cached / "snapshots" / ("0" * 40)  # of which train-captions makes a copy
    assert local_folder(str(ready)) == ready
    assert local_folder("lvit-small") == list_shipped()["lvit-small"]
    for wrong, reason in (
        ("runs/missing/best", "folder, USER/NAME on the Hub, or one of"),
        ("user/a--b", "Cannot have --"),
    ):
        with pytest.raises(ValueError, match=reason):
            local_folder(wrong)


def test_all_of_a_pinned_revision_is_of_that_revision(ready, monkeypatch, tmp_path):
    cached = tmp_path / "models--someone--lvit"
    (cached / "refs").mkdir(parents=True)
    for revision, digit in (("v1", "1"), ("main", "2")):
        folder = cached / "snapshots" / (digit * 40)
        shutil.copytree(ready, folder)
        (cached / "refs" / revision).write_text(digit * 40)
        tiny_processor(temperature=float(digit)).save_pretrained(folder)
        tiny_model(id2label={0: revision}).save_pretrained(folder)
    spoil_seed(cached / "snapshots" / ("2" * 40))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    weights = [tensor.clone() for tensor in tiny_model().state_dict().values()]
    for name, revision, temperature in (("someone/lvit@v1", "v1", 1), ("someone/lvit", "main", 2)):
        segmenter, (config, processor) = Segmenter.from_pretrained(name), load_processor(name)
        model, _ = build_model(ModelConfig(checkpoint=name))
        for found in (segmenter.processor, processor):
            assert found.image_processor.temperature == temperature
        for found in (segmenter.model.config, config, model.config):
            assert found.id2label == {0: revision}
        same = [torch.equal(one, other) for one, other in zip(model.state_dict().values(), weights)]
        assert all(same) == (revision == "v1")
        expected = -1 if revision == "main" else 1
        torch.testing.assert_close(segmenter.model.classifier.weight, expected * tiny_model().classifier.weight)
    (cached / "snapshots" / ("2" * 40) / "config.json").write_text('{"model_type": "bert"}')
    Segmenter.from_pretrained("someone/lvit@v1")  # whatever has become of the repository since


def test_weights_are_read_from_no_pickle(ready, tmp_path):
    folder = Path(shutil.copytree(ready, tmp_path / "checkpoint"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for load in (Segmenter.from_pretrained, lambda name: build_model(ModelConfig(checkpoint=str(name)))):
        with pytest.raises((OSError, ValueError), match="model.safetensors"):
            load(folder)


def test_offline_a_model_that_is_not_cached_is_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="someone/lvit cannot be loaded: .* HF_HUB_OFFLINE forbids"):
        Segmenter.from_pretrained("someone/lvit")


# Data sets

PUSH_DATA = """
import sys
from huggingface_hub import DatasetCard
from lvit_hf.data.load import load_data
for split, name_on_the_hub in (("train", "train"), ("valid", "validation")):
    load_data(sys.argv[1], split).push_to_hub("someone/data", split=name_on_the_hub)
card = DatasetCard.load("someone/data")
card.validate()
card.save(sys.argv[2])
"""


def test_the_card_of_a_data_set_is_published_alone_and_tells_datasets_where_its_files_are(
    hub, lvit, ready, environment, tmp_path
):
    write_csv_files(tmp_path / "data")
    command = ["push-dataset-card", tmp_path / "data", "--repo-id", "someone/data", "--model", ready]
    command += ["--license", "cc-by-4.0", "--source", "Noise."]
    report = lvit(*command)
    repository = hub.repositories["datasets/someone/data"]
    commit = repository.branches["main"]
    assert report["out"].strip() == f"{hub.endpoint}/datasets/someone/data/commit/{commit}"
    assert list(repository.commits[commit]) == ["README.md"]

    process = subprocess.run(
        [sys.executable, "-c", PUSH_DATA, tmp_path / "data", tmp_path / "card.md"],
        env={**environment, "HF_TOKEN": TOKEN},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    card = DatasetCard.load(tmp_path / "card.md")
    assert (card.data.license, card.data.size_categories) == ("cc-by-4.0", ["n<1K"])
    assert "6 medical images with masks and captions" in card.text
    found = lvit("data", "check", "someone/data", "--model", ready)
    assert "## train: 3 images" in found["out"] and "## valid: 3 images" in found["out"]

    assert lvit(*command)["status"] == 0
    files = set(repository.commits[repository.branches["main"]])
    assert files == {"README.md", *(f"data/{name}-00000-of-00001.parquet" for name in ("train", "validation"))}
    assert "Invalid metadata in README.md" in lvit.error_of(*command, "--license", "mine")
    proposed = lvit(*command, "--name", "Noise", "--create-pr", token=FOREIGN_TOKEN)["out"].strip()
    assert proposed == f"{hub.endpoint}/datasets/someone/data/discussions/1"
    assert lvit(*command, "--repo-id", "someone/hidden", "--private")["status"] == 0
    assert hub.repositories["datasets/someone/hidden"].private and not repository.private


# The Space


def link_environment(requirements: list[str], folder: Path) -> Path:
    """A clean environment with these requirements and what they require in turn, linked from this one.

    It holds what an installation would, without the minutes and gigabytes that PyTorch takes; only the versions of
    PyTorch and Python are this machine's. `make space-check` takes the Space's own.

    Returns:
        Its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    pending, linked = [Requirement(line) for line in requirements], set()
    while pending:
        wanted = pending.pop()
        if str(wanted) in linked:
            continue
        linked.add(str(wanted))
        distribution = importlib.metadata.distribution(wanted.name)
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
        for extra in wanted.extras or {""}:
            required = map(Requirement, distribution.requires or [])
            pending += [item for item in required if item.marker is None or item.marker.evaluate({"extra": extra})]
    return folder / "bin" / "python"


def install_environment(requirements: list[str], folder: Path) -> Path:
    """A clean environment of the Space's Python, into which pip installs these requirements and what they require."""
    subprocess.run([os.environ.get("SPACE_PYTHON", "python3.12"), "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", *requirements], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_served(process: subprocess.Popen, url: str):
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"app.py ended: {process.stderr.read()}")


@pytest.mark.parametrize(
    "make_environment", [link_environment, pytest.param(install_environment, marks=pytest.mark.install)]
)
def test_the_space_runs_on_its_requirements_alone(make_environment, ready, free_port, tmp_path):
    space = tmp_path / "space"
    space.mkdir()
    assert stage_space(str(ready), space) is None
    python = make_environment((space / "requirements.txt").read_text().splitlines(), tmp_path / "environment")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LVIT_", "PYTHON"))}
    settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(free_port), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [python, "app.py"],
        cwd=space,
        env={**kept, **settings, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            url = f"http://127.0.0.1:{free_port}"
            wait_until_served(process, url)
            image = ready / "examples" / "noise.png"
            client = Client(url, verbose=False, download_files=tmp_path / "downloads")
            answer = client.predict(image=handle_file(image), text=TEXT, api_name="/segment")
        finally:
            process.terminate()
    [expected] = Segmenter.from_pretrained(ready).segment([image], [TEXT])
    [mask] = [part for part in answer if str(part).endswith("_mask.png")]
    np.testing.assert_array_equal(np.asarray(Image.open(mask)) > 0, expected.mask())


def test_the_space_pins_what_the_tests_pass_with_and_what_its_hardware_takes():
    tested = (TESTS.parent / "requirements.txt").read_text().splitlines()
    pins = [re.sub(r"\[.*]", "", pin.lower()) for pin in make_requirements()]
    assert [pin for pin in pins if pin not in map(str.lower, tested)] == ["torch==2.11.0"]
    [torch_range] = [item for item in importlib.metadata.requires("lvit_hf") if item.startswith("torch")]
    assert Requirement(torch_range).specifier.contains("2.11.0")


@pytest.mark.parametrize("where", ["in the Space", "on the Hub"])
def test_a_space_is_pushed_with_a_checkpoint_or_with_the_name_of_one(hub, lvit, ready, pushed, where):
    name = f"someone/space-{where[:2]}"
    on_hub = f"someone/lvit@{pushed.commit}"
    model, options = (ready, ["--private"]) if where == "in the Space" else (on_hub, [])
    report = lvit("push-space", "--repo-id", name, "--model", model, *options)
    assert report["status"] == 0, report
    repository = hub.repositories[f"spaces/{name}"]
    assert repository.private == bool(options)
    files = repository.commits[repository.branches["main"]]
    assert {"README.md", "app.py", "requirements.txt", "lvit_hf/__init__.py", "examples/examples.csv"} <= set(files)
    weights = [path for path in files if path.endswith(".safetensors")]
    card = SpaceCard(files["README.md"].content.decode()).data
    assert card["sdk_version"] == importlib.metadata.version("gradio")
    assert (card["app_file"], card["python_version"]) == ("app.py", "3.12.12")
    if where == "in the Space":
        assert weights == ["checkpoints/lvit-small/model.safetensors"]
        assert repository.variables == {} and card.get("models") is None
    else:
        assert weights == [] and card["models"] == ["someone/lvit"]
        assert repository.variables["LVIT_MODEL"]["value"] == on_hub


def test_a_space_is_written_to_a_folder_unless_it_is_a_dry_run(lvit, ready, tmp_path):
    command = ("push-space", "--model", ready, "--out", tmp_path / "space")
    for options in (["--dry-run"], []):
        report = lvit(*command, *options)
        assert report["status"] == 0 and "app.py" in report["out"]
        assert (tmp_path / "space" / "app.py").exists() == (not options)
    assert "is not empty" in lvit.error_of(*command)


def test_a_static_space_holds_the_network_and_no_program_for_a_server(hub, lvit, pushed, tmp_path):
    need_packages(tmp_path)
    model = f"someone/lvit@{pushed.commit}"
    report = lvit("push-space", "--static", "--repo-id", "someone/browser", "--model", model)
    assert report["status"] == 0, report
    repository = hub.repositories["spaces/someone/browser"]
    files = repository.commits[repository.branches["main"]]
    assert {"index.html", "network.onnx", "text_model.onnx", "tokenizer.json", "examples/noise.png"} <= set(files)
    assert not [name for name in files if name.endswith((".py", ".safetensors", ".tgz"))]
    card = SpaceCard(files["README.md"].content.decode()).data
    assert (card["sdk"], card["app_file"], card["models"]) == ("static", "index.html", ["someone/lvit"])


def test_a_checkpoint_that_is_dirty_or_cannot_be_loaded_gets_no_space(hub, checkpoint, lvit):
    add("optimizer.pt")(checkpoint)
    arguments = ("push-space", "--repo-id", "someone/space", "--model")
    assert "cannot be published" in lvit.error_of(*arguments, checkpoint)
    assert "There is no someone/missing" in lvit.error_of(*arguments, "someone/missing")
    assert "spaces/someone/space" not in hub.repositories
