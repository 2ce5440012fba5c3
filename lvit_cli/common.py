"""What the modules of the `lvit` command share: exit statuses, the option for a checkpoint, errors as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from lvit_hf.io.errors import as_sentence


FAILED, WRONG_USAGE = 1, 2
ModelOption = Annotated[
    str, typer.Option("--model", envvar="LVIT_MODEL", help="Checkpoint: a folder, or USER/NAME[@REVISION] on the Hub.")
]


@contextmanager
def errors_as_sentences(status: int, extra: str | None = None) -> Iterator[None]:
    """Ends the program with a sentence on stderr and this status where the user's input or machine is at fault.

    Args:
        status: The exit status.
        extra: The optional dependencies of the command, named where one is not installed.
    """
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"Error: {as_sentence(error, extra)}", err=True)
        raise typer.Exit(status)
