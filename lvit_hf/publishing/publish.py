"""The Hub: what is published, what must not be, and the commit."""

import importlib.metadata
import json
import shutil
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, get_token
from huggingface_hub.utils import validate_repo_id

from ..evaluation.evaluate import RESULTS_FILE
from ..inference.backends import EXPORTED_FILES, RUNTIMES
from ..inference.segmenter import Segmenter
from ..io.hub import LOG_IN, HTTPError, explain_error
from .model_card import CARD, REPOSITORY_PLACEHOLDER, make_eval_results, parse_card, read_evaluation


HUB_CODE_FOLDER = Path(__file__).parents[1] / "model"

# The files of the package that run where it is not installed.
HUB_CODE = sorted(path.name for path in HUB_CODE_FOLDER.glob("*_lvit.py"))

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = ["config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
PUBLISHED_SUFFIXES = (".csv", ".jpg", ".json", ".md", ".nii.gz", ".png", ".safetensors", ".txt", ".yaml")

# Weights of an earlier commit would be loaded instead of new ones that are sharded otherwise.
REPLACED_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def find_problems(checkpoint: Path) -> list[str]:
    """What keeps a checkpoint from being published: each a sentence, none if it is clean and complete.

    Args:
        checkpoint: The folder of the checkpoint.
    """
    names = list_names(checkpoint)
    problems = [f"{name} is missing." for name in NEEDED if name not in names]
    problems += _find_weight_problems(checkpoint, names)
    for name in names:
        if not name.endswith(PUBLISHED_SUFFIXES) and name not in (*HUB_CODE, *EXPORTED_FILES):
            problems.append(
                f"{name} does not belong to a checkpoint; such a file may hold code that runs when opened."
            )
    problems += _find_card_problems(checkpoint)
    if not problems:
        exported = [backend for backend in RUNTIMES if (checkpoint / backend).is_dir()]
        try:
            for backend in ["torch", *exported]:
                Segmenter.from_pretrained(checkpoint, backend)
        except ValueError as error:
            problems.append(str(error))
    return problems


def list_names(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it, without hidden ones and what Python left behind."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    left_out = (".", "__pycache__")
    return [path.as_posix() for path in paths if not any(part.startswith(left_out) for part in path.parts)]


def _find_weight_problems(checkpoint: Path, names: list[str]) -> list[str]:
    if WEIGHTS in names:
        return []
    if WEIGHTS_INDEX not in names:
        return [f"{WEIGHTS} is missing."]
    try:
        shards = set(json.loads((checkpoint / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (AttributeError, KeyError, TypeError, ValueError):
        return [f"{WEIGHTS_INDEX} cannot be read."]
    return [f"{shard} is missing, which {WEIGHTS_INDEX} names." for shard in sorted(shards.difference(names))]


def _find_card_problems(checkpoint: Path) -> list[str]:
    path = checkpoint / CARD
    if not path.exists():
        return [f"{CARD}, the model card, is missing: lvit card writes it."]
    try:
        card = parse_card(path.read_text(encoding="utf-8"), ModelCard).data
        results = read_evaluation(checkpoint) if (checkpoint / RESULTS_FILE).exists() else None
    except ValueError as error:
        return [str(error)]
    problems = [] if card.get("license") else [f"{CARD} names no license in its front matter."]
    if not card.get("eval_results"):
        problems.append(
            f"{CARD} has no metrics (model-index): lvit evaluate --record measures them, lvit card writes them."
        )
    elif results is not None and not _same_figures(card.get("eval_results"), make_eval_results(results)):
        problems.append(f"{CARD} has other figures than {RESULTS_FILE}: lvit card writes it anew.")
    return problems


def _same_figures(first: list[EvalResult], second: list[EvalResult]) -> bool:
    """Compares without order: a card's front matter puts the figures of each data set together."""
    return sorted(map(str, first)) == sorted(map(str, second))


def stage_model(checkpoint: Path, repo_id: str, folder: Path):
    """Puts what is published of a checkpoint into an empty folder.

    The card gets the name of its repository, the code is that of this package, and the path from which the text tower
    once came is left out.

    Raises:
        ValueError: If the checkpoint cannot be published; the message names every reason.
    """
    validate_repo_id(repo_id)
    copy_checkpoint(checkpoint, folder)
    for name in HUB_CODE:
        shutil.copyfile(HUB_CODE_FOLDER / name, folder / name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"].pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    card = (folder / CARD).read_text(encoding="utf-8")
    (folder / CARD).write_text(card.replace(REPOSITORY_PLACEHOLDER, repo_id), encoding="utf-8")


def copy_checkpoint(checkpoint: Path, folder: Path):
    """Copies the files of a checkpoint.

    Raises:
        ValueError: If the checkpoint cannot be published; the message names every reason.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is no folder.")
    if problems := find_problems(checkpoint):
        raise ValueError("\n- ".join([f"{checkpoint} cannot be published:", *problems]))
    for name in list_names(checkpoint):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / name, folder / name)


def publish(
    folder: Path,
    repo_id: str,
    repo_type: str = "model",
    private: bool = False,
    create_pr: bool = False,
    variables: dict[str, str] | None = None,
    space_sdk: str = "gradio",
) -> str:
    """Uploads a folder in one commit, to a repository that is created if need be.

    Args:
        folder: The files.
        repo_id: `USER/NAME`.
        repo_type: `"model"`, `"space"` or `"dataset"`. What else a data set's repository holds stays there.
        private: Whether a new repository is private. One that exists stays as it is.
        create_pr: Whether to propose the commit as a pull request to a repository that exists.
        variables: Environment variables of the program that a Space runs.
        space_sdk: What a new Space is: `"gradio"` or `"static"`.

    Returns:
        The address of the commit or of the pull request.

    Raises:
        ValueError: If nobody is logged in, or the Hub refuses; the message says what to do.
    """
    if get_token() is None:
        raise ValueError(f"You are not known to the Hub: {LOG_IN}.")
    api = HfApi(library_name="lvit_hf", library_version=importlib.metadata.version("lvit_hf"))
    try:
        if not create_pr:
            sdk = space_sdk if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk)
        for name, value in (variables or {}).items():
            api.add_space_variable(repo_id, name, value)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type=repo_type,
            create_pr=create_pr,
            delete_patterns=None if repo_type == "dataset" else REPLACED_WEIGHTS,
            commit_message=f"Publish with lvit_hf {importlib.metadata.version('lvit_hf')}",
        )
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(explain_error(error, repo_id, repo_type) or str(error))
    return commit.pr_url or commit.commit_url
