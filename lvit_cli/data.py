"""`lvit data`: what a data set holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import DATA_HELP, DEFAULT_MODEL, FAILED, ModelOption, errors_as_sentences, keep_libraries_quiet


if TYPE_CHECKING:
    from lvit_hf.data.load import Split

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data():
    """Look at a data set."""


@app.command()
def check(
    path: Annotated[str, typer.Argument(metavar="DATA", help=f"Data set: {DATA_HELP}.")],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--out", file_okay=False, help="Folder for the findings, as JSON and Markdown, and a contact sheet."
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
):
    """Say what a data set holds and what is wrong with it; the exit status is 1 where rows cannot be used.

    Captions are read as the model would.
    """
    with errors_as_sentences(extra="evaluate"):
        splits, report = examine(path, model)
        from lvit_hf.data.check import draw_contact_sheet, has_problems, render_check

        typer.echo(render_check(report))
        if output_dir is not None:
            output_dir.mkdir(parents=True, exist_ok=True)
            content = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            (output_dir / "data_check.json").write_text(content, encoding="utf-8")
            (output_dir / "data_check.md").write_text(render_check(report), encoding="utf-8")
            draw_contact_sheet(splits).savefig(output_dir / "contact_sheet.png", dpi=120)
    if has_problems(report):
        raise typer.Exit(FAILED)


def examine(path: str, model: str) -> tuple[dict[str, "Split"], dict[str, Any]]:
    """The splits of a data set, and what `check_data` finds in them with the tokenizer of a checkpoint."""
    keep_libraries_quiet()
    from lvit_hf.data.check import check_data, read_all_splits
    from lvit_hf.inference.segmenter import load_processor

    config, processor = load_processor(model)
    splits = read_all_splits(path)
    return splits, check_data(path, splits, processor, config.num_text_vectors)
