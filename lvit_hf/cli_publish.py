"""`lvit card`, `lvit push` and `lvit push-space`: a checkpoint's card, the checkpoint and the demo on the Hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from transformers.utils import logging

from .cli_common import FAILED, ModelOption, errors_as_sentences
from .inference import SHIPPED_CHECKPOINT
from .model_card import TEMPLATE, write_card
from .publishing import list_names, publish, stage_model
from .space import stage_space


app = typer.Typer()

CheckpointArgument = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of the checkpoint.")]
RepoOption = Annotated[str, typer.Option("--repo-id", metavar="USER/NAME", help="Repository on the Hub.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="List the files and their sizes, upload nothing.")]


@app.command()
def card(
    checkpoint: CheckpointArgument,
    template: Annotated[Path, typer.Option(help="Card with Jinja fields for the figures.")] = TEMPLATE,
    examples: Annotated[
        Path, typer.Option(help="Folder with images and examples.csv: image, text, tile_size.")
    ] = SHIPPED_CHECKPOINT.parent.parent / "examples",
):
    """Write a checkpoint's README.md, with the figures that lvit evaluate --record left there."""
    logging.disable_progress_bar()
    with errors_as_sentences(FAILED):
        write_card(checkpoint, template, examples)


@app.command()
def push(
    checkpoint: CheckpointArgument,
    repo_id: RepoOption,
    private: PrivateOption = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose it as a pull request to a repository that exists.")
    ] = False,
    dry_run: DryRunOption = False,
):
    """Publish a checkpoint on the Hub, with its processor, code, card and examples, in one commit.

    The token is that of hf auth login, or HF_TOKEN.
    """
    logging.disable_progress_bar()
    with errors_as_sentences(FAILED), TemporaryDirectory() as folder:
        stage_model(checkpoint, repo_id, Path(folder))
        if dry_run:
            list_files(Path(folder))
        else:
            typer.echo(publish(Path(folder), repo_id, private=private, create_pr=create_pr))


@app.command()
def push_space(
    repo_id: RepoOption,
    model: ModelOption = str(SHIPPED_CHECKPOINT),
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
):
    """Publish the demo as a Space, with a checkpoint in it or with one that it loads from the Hub.

    The token is that of hf auth login, or HF_TOKEN.
    """
    logging.disable_progress_bar()
    with errors_as_sentences(FAILED), TemporaryDirectory() as folder:
        variable = stage_space(model, Path(folder))
        if dry_run:
            list_files(Path(folder))
        else:
            variables = {"LVIT_MODEL": variable} if variable else None
            typer.echo(publish(Path(folder), repo_id, "space", private, variables=variables))


def list_files(folder: Path):
    """Prints the names and sizes of all files in a folder, and the sum."""
    sizes = {name: (folder / name).stat().st_size for name in list_names(folder)}
    for name, size in [*sizes.items(), (f"{len(sizes)} files", sum(sizes.values()))]:
        typer.echo(f"{size:>12,} bytes  {name}")
