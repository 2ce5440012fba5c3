"""What the modules of the `lvit` command share: exit statuses, common options, errors as sentences.

Nothing of `lvit_hf` is imported before a command runs, so that help and misspelt options are answered at once.
"""

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


FAILED, WRONG_USAGE = 1, 2

DEFAULT_MODEL = "lvit-small"
SMALLEST_TILE = 16
DATA_HELP = "a folder, a CSV file, or an id on the Hub"

Side = StrEnum("Side", ["image", "patient"])
OnUnknown = StrEnum("OnUnknown", ["ignore", "use", "error"])
Views = StrEnum("Views", ["mirror", "all"])


class Backend(StrEnum):
    auto = "auto"
    torch = "torch"
    compile = "compile"
    openvino = "openvino"
    openvino_bf16 = "openvino-bf16"
    openvino_int8 = "openvino-int8"
    onnx = "onnx"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="LVIT_MODEL",
        help="Checkpoint: lvit-small, lvit-small-monuseg (slides), a folder, or USER/NAME[@REVISION] on the Hub.",
    ),
]
ThresholdOption = Annotated[float, typer.Option(min=0, max=1, help="Probability above which a pixel is in the mask.")]
SideOption = Annotated[
    Side, typer.Option(help="Whose left and right captions name: the image's, or the patient's in a chest X-ray.")
]
OnUnknownOption = Annotated[
    OnUnknown,
    typer.Option(
        help="What is done with a caption that is not understood: ignore segments without it, use takes it as it is, "
        "and error refuses its image."
    ),
]
ViewsOption = Annotated[
    Views | None,
    typer.Option(help="Test-time augmentation: average over the image and its mirror image, or over all eight flips."),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        help="What runs the network. compile is for a GPU and slow to load; openvino and onnx take what "
        "lvit export wrote; auto takes the fastest that is there and gives the same masks."
    ),
]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Training configuration.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Values that replace those of the file.")
]


@contextmanager
def errors_as_sentences(status: int = FAILED, extra: str | None = None) -> Iterator[None]:
    """Ends the program with a sentence on stderr and this status where the user's input or machine is at fault.

    Args:
        status: The exit status.
        extra: The optional dependencies of the command, named where one is not installed.
    """
    try:
        yield
    except BrokenPipeError:  # whoever reads the output has enough; click ends the program without a word
        raise
    except (ImportError, OSError, ValueError) as error:
        from lvit_hf.io.errors import as_sentence

        typer.echo(f"Error: {as_sentence(error, extra)}", err=True)
        raise typer.Exit(status)


def import_libraries():
    """Imports PyTorch and transformers. What they make stays, so no garbage is looked for in it, nor at the end."""
    if "torch" in sys.modules:  # and with it objects that may go again
        return
    gc.disable()
    import lvit_hf  # noqa: F401

    gc.freeze()
    gc.enable()


def keep_libraries_quiet():
    """Leaves the screen to the one progress bar that matters."""
    import_libraries()
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")  # of MONAI's calls to itself
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when it is imported, which not every command does
