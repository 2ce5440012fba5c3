"""`lvit train`, `fit-scope`, `fit-presence` and `convert`: checkpoints from data, and from the reference's."""

from pathlib import Path
from typing import Annotated

import typer

from .common import ConfigArgument, OverridesArgument, errors_as_sentences, keep_libraries_quiet


def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
):
    """Train a model."""
    with errors_as_sentences(extra="train"):
        from lvit_hf.training.run import train as run_training

        run_training(config, resume=resume, overrides=overrides)


def fit_scope(config: ConfigArgument, overrides: OverridesArgument = None):
    """Teach a checkpoint which images are of the kinds that it was trained on."""
    with errors_as_sentences(extra="train"):
        keep_libraries_quiet()
        from lvit_hf.training.scope import fit_scope as run

        typer.echo(f"Saved: {run(config, overrides)}")


def fit_presence(config: ConfigArgument, overrides: OverridesArgument = None):
    """Teach a checkpoint to tell images that show nothing."""
    with errors_as_sentences(extra="train"):
        keep_libraries_quiet()
        from lvit_hf.training.presence import fit_presence as run

        typer.echo(f"Saved: {run(config, overrides)}")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth.tar file of the reference implementation.")],
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the converted checkpoint.")],
    text_model: Annotated[
        str | None,
        typer.Option(help="The BERT it was trained with, a folder or Hub id; by default BERT-base uncased."),
    ] = None,
):
    """Convert a checkpoint of the reference implementation."""
    with errors_as_sentences():
        from lvit_hf.training.conversion import REFERENCE_TEXT_MODEL, convert_checkpoint

        convert_checkpoint(checkpoint, output_dir, text_model=text_model or REFERENCE_TEXT_MODEL)
