"""`lvit finetune`: a checkpoint trained further on few images of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from .common import DATA_HELP, DEFAULT_MODEL, ModelOption, errors_as_sentences


def finetune(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help=f"Data set with the splits train and valid: {DATA_HELP}.")
    ],
    output_dir: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings, named as those of `lvit train`.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=1, help="Training steps at most; it stops where nothing is gained.")] = 200,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="A part of the network that stays as it is, such as conv_encoder; may be given again."),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option("--lora", min=1, help="Train low-rank adapters of this rank alone; needs peft.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
):
    """Train a checkpoint further on few images, and say whether that made it better."""
    with errors_as_sentences(extra="train"):
        from lvit_hf.training.finetune import finetune as run
        from lvit_hf.training.finetune import finetune_config

        config = finetune_config(data, model, output_dir, steps, freeze or [], lora_rank, overrides or [])
        result = run(config, resume)
    change = 100 * (result.after - result.before)
    verdict = "better" if change > 0 else "not better; keep the checkpoint that you have"
    typer.echo(
        f"Dice per image on the validation images: {100 * result.before:.1f} before, {100 * result.after:.1f} after "
        f"{result.steps} steps ({change:+.1f}): {verdict}.\n"
        f"Saved, without the heads for captions, scope and presence: {result.folder}"
    )
    if change > 0:
        typer.echo(f"Next: lvit evaluate {result.folder} {data}")
