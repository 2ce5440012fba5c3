"""The page and the service: how they are put together and served."""

import logging
import os
from pathlib import Path

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware

from ..data.append import prepare_folder
from ..inference.collection import MAX_FILE_BYTES
from ..inference.segmenter import Segmenter
from ..io.checkpoints import DEFAULT_CHECKPOINT
from .access import TokenGuard, read_access
from .checked_blocks import CheckedBlocks
from .engine import KEEP_SECONDS, Engine
from .service import add_endpoints
from .uploads import UNEXPECTED
from .viewer import HERE, Answers


logger = logging.getLogger(__name__)

QUEUE_SIZE = 64

# Gradio's default with more contrast, as WCAG AA asks for.
THEME = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300"
)


def build_demo(
    segmenter: Segmenter,
    name: str = DEFAULT_CHECKPOINT.name,
    any_model: bool = False,
    keep: str | os.PathLike | None = None,
) -> gr.Blocks:
    """Builds the page.

    Args:
        segmenter: The checkpoint that it begins with.
        name: Its name in the selector.
        any_model: Whether visitors may have any folder and any model on the Hub loaded. It is for a page that its
            owner alone can reach.
        keep: Folder of a data set to which masks that were corrected on the page are added, with their images; by
            default none can be. It is for a page that its owner alone can reach, too.

    Raises:
        OSError: If the folder cannot be made.
        ValueError: If others can reach the page, or rows cannot be added to the folder.
    """
    if keep is not None:
        check_keep(Path(keep))
    # Otherwise gradio keeps time and session of the last 10,000 requests, and sums them up again after each one.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
    engine = Engine(segmenter, name, any_model and is_private())
    with CheckedBlocks(
        title="LViT: text-guided medical image segmentation",
        analytics_enabled=False,
        delete_cache=(KEEP_SECONDS, KEEP_SECONDS),
        fill_width=True,
    ) as demo:
        Answers(engine, None if keep is None else Path(keep).resolve()).build()
        add_endpoints(engine)
    return demo.queue(max_size=QUEUE_SIZE)


def is_private() -> bool:
    """Whether the page is reached from its own machine alone: it is no Space, and listens on loopback."""
    server = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    return "SPACE_ID" not in os.environ and server in ("127.0.0.1", "localhost", "::1")


def check_keep(folder: Path):
    """Refuses to keep the images of others, and a folder that is not for it, as `prepare_folder` does."""
    if not is_private():
        raise ValueError(
            "--keep writes images to the disk of whoever runs the page, so others must not reach it: it works neither "
            "on a Space nor where GRADIO_SERVER_NAME opens the page to other machines."
        )
    prepare_folder(folder)


def launch(demo: gr.Blocks, **kwargs) -> tuple:
    """Serves the page with the settings that fit medical images: nothing is kept that need not be.

    `LVIT_AUTH=USER:PASSWORD` in the environment asks visitors to log in; agents, which cannot, then find no tools.
    `LVIT_TOKEN` is for programs: who does not send it gets neither answers nor the page. `/health` answers anybody
    that the server is up.

    Raises:
        ValueError: As `read_access`.
    """
    auth, token = read_access()
    return demo.launch(
        max_file_size=MAX_FILE_BYTES,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=100,
        footer_links=["api"],
        mcp_server=auth is None,
        theme=THEME,
        css=(HERE / "viewer.css").read_text(encoding="utf-8"),
        auth=auth,
        app_kwargs={
            "middleware": [Middleware(TokenGuard, token=token)] if token else None,
            "routes": [APIRoute("/health", lambda: PlainTextResponse("ok"))],
            # What gradio raises for names that it does not know, among other things.
            "exception_handlers": dict.fromkeys((FnIndexInferError, KeyError, TypeError), refuse_call),
        },
        **kwargs,
    )


def refuse_call(request: Request, error: Exception) -> JSONResponse:
    """Answers a call of an endpoint, or with a parameter, that there is none of; anything else is the page's fault."""
    is_call = "/call/" in request.url.path or "/run/" in request.url.path
    if isinstance(error, FnIndexInferError) or is_call:
        logger.warning(f"A call of {request.url.path} was refused.", exc_info=error)
        sentence = "There is no such endpoint, or it has other parameters. /gradio_api/info lists them all."
        return JSONResponse({"detail": sentence}, status_code=422)
    logger.error(UNEXPECTED, exc_info=error)
    return JSONResponse({"detail": UNEXPECTED}, status_code=500)


def load_demo(
    model: str | os.PathLike = DEFAULT_CHECKPOINT,
    any_model: bool = False,
    backend: str = "auto",
    keep: str | os.PathLike | None = None,
) -> gr.Blocks:
    """Loads a checkpoint, for a backend as in `Segmenter.from_pretrained`, and builds the page for it.

    Raises:
        OSError, ValueError: If the checkpoint cannot be loaded, and as in `build_demo`.
    """
    name = Path(model).name if Path(model).is_dir() else str(model)
    return build_demo(Segmenter.from_pretrained(model, backend), name, any_model, keep)


def serve(
    model: str | os.PathLike = DEFAULT_CHECKPOINT,
    any_model: bool = False,
    backend: str = "auto",
    keep: str | os.PathLike | None = None,
):
    """Loads a checkpoint, for a backend as in `Segmenter.from_pretrained`, and serves the page until it is stopped.

    Raises:
        OSError, ValueError: If the checkpoint cannot be loaded, and as in `build_demo`.
    """
    launch(load_demo(model, any_model, backend, keep))
