"""What is common to loading from the Hub and publishing there: names of models, and errors that tell what to do."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The base class of the client's HTTP library, which is another library in each of its versions.
from huggingface_hub.errors import HTTPError as HTTPError

from .checkpoints import find_checkpoint


LOG_IN = "log in with hf auth login, or set HF_TOKEN to a token of yours"


def split_revision(name: str | os.PathLike) -> tuple[str, str]:
    """The path and the revision of a model's name.

    Args:
        name: A folder, `USER/NAME`, or `USER/NAME@REVISION` with a branch, a tag or a commit.

    Returns:
        The folder or `USER/NAME`, and the revision, which is `"main"` where the name has none.
    """
    path = str(name)
    if Path(path).exists():
        return path, "main"
    path, _, revision = path.partition("@")
    return path, revision or "main"


def local_folder(name: str) -> Path:
    """The folder of a model, which is downloaded if need be.

    Args:
        name: As in [`split_revision`], or a shipped checkpoint.

    Raises:
        ValueError: If it is no name, or the Hub does not give it; the message says what to do.
    """
    path, revision = split_revision(find_checkpoint(name))
    if Path(path).is_dir():
        return Path(path)
    with explained_errors(path):
        return Path(snapshot_download(path, revision=revision))


@contextmanager
def explained_errors(repo_id: str, repo_type: str = "model") -> Iterator[None]:
    """Turns an error of the Hub into a `ValueError` that says what to do. Other errors pass."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if sentence := explain_error(error, repo_id, repo_type):
            raise ValueError(sentence)
        raise


def explain_error(error: BaseException, repo_id: str, repo_type: str = "model") -> str | None:
    """What to do about an error of the Hub's client, or of a library that used it.

    Args:
        error: The error.
        repo_id: The repository that was asked for.
        repo_type: `"model"`, `"space"` or `"dataset"`.

    Returns:
        A sentence, or `None` if the Hub has no part in the error.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for refusal in chain:
        if isinstance(refusal, HfHubHTTPError):
            return _explain_refusal(refusal, repo_id, repo_type)
    if not any(isinstance(link, (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)) for link in chain):
        return None
    if is_offline_mode():
        return f"{repo_id} is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub."
    return (
        f"The Hub cannot be reached at {constants.ENDPOINT}, and {repo_id} is not in the cache. Check the connection."
    )


def _explain_refusal(error: HfHubHTTPError, repo_id: str, repo_type: str) -> str:
    page = f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(repo_type, '')}{repo_id}"
    match error:
        case RevisionNotFoundError():
            return f"{repo_id} has no such branch, tag or commit."
        case GatedRepoError():
            return f"{repo_id} is gated: ask for access at {page}, then {LOG_IN}."
        case RepositoryNotFoundError():
            return f"There is no {repo_id} on the Hub that you may see. Check the name; if it is private, {LOG_IN}."
    status = error.response.status_code
    if status == 401:
        return f"The Hub does not accept your token: {LOG_IN}."
    if status == 403:
        return f"Your token does not give the right to do this with {repo_id}: it needs write access to it."
    return f"The Hub answered {status} for {repo_id}: {error.server_message or 'it gave no reason'}."


def hash_weights(name: str | os.PathLike) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint's weights, as `sha256sum` prints it, by the file's name.

    Args:
        name: As in [`split_revision`], or a shipped checkpoint; of the Hub one that was loaded before.
    """
    path, revision = split_revision(find_checkpoint(name))
    is_local = Path(path).is_dir()
    folder = Path(path if is_local else snapshot_download(path, revision=revision, local_files_only=True))
    digests = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with file.open("rb") as weights:
            digests[file.name] = hashlib.file_digest(weights, "sha256").hexdigest()
    return digests
