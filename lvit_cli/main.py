"""The `lvit` command, its commands in the order in which a user meets them."""

import gc
import importlib.metadata
import logging
from pathlib import Path
from typing import Annotated

import typer

from . import caption, data, evaluation, finetune, predict, publish, slide, train
from .common import DEFAULT_MODEL, Backend, BackendOption, ModelOption, errors_as_sentences, keep_libraries_quiet


# What the libraries make when they are imported stays. To look through it after every 700 new objects takes 0.6 s.
gc.set_threshold(50_000)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def show_version(is_asked: bool):
    if is_asked:
        typer.echo(f"lvit_hf {importlib.metadata.version('lvit_hf')}")
        raise typer.Exit


@app.callback()
def lvit(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the log too, with the whole error of a file that cannot be used.")
    ] = False,
):
    """Text-guided medical image segmentation with LViT."""
    if verbose:
        logging.basicConfig(level=logging.INFO)


def demo(
    model: ModelOption = DEFAULT_MODEL,
    any_model: Annotated[
        bool,
        typer.Option(
            "--any-model",
            envvar="LVIT_ANY_MODEL",
            help="Let visitors load any folder or Hub id, on this machine alone.",
        ),
    ] = False,
    backend: BackendOption = Backend.auto,
    keep: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Data set folder for masks that are corrected on the page, on this machine alone."
        ),
    ] = None,
):
    """Serve the page in the browser."""
    with errors_as_sentences(extra="app"):
        keep_libraries_quiet()
        from lvit_hf.io.port import check_port

        check_port()
        from lvit_hf.demo import serve

        serve(model, any_model, backend, keep)


app.command()(predict.predict)
app.command()(slide.slide)
app.command()(demo)
app.add_typer(data.app, name="data")
app.command()(train.train)
app.command()(finetune.finetune)
app.command()(evaluation.evaluate)
app.command()(evaluation.calibrate)
app.command()(caption.caption)
app.command()(caption.train_captions)
app.command()(caption.evaluate_captions)
app.command()(train.fit_scope)
app.command()(train.fit_presence)
app.add_typer(publish.app)
app.command()(train.convert)

if __name__ == "__main__":
    app()
