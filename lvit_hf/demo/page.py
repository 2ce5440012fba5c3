"""The page: its layout, what its events do, and how it is served."""

import os
from pathlib import Path

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from gradio import processing_utils
from gradio.route_utils import FnIndexInferError

from ..inference.captioning import CaptioningSegmenter
from ..io.checkpoints import DEFAULT_CHECKPOINT
from .checked_blocks import CheckedBlocks
from .engine import KEEP_SECONDS, Engine
from .files import MAX_FILE_BYTES, cache_shown_picture
from .image_tab import build_image_tab
from .many_tab import build_many_tab
from .style import CSS, THEME
from .texts import I18N, translated
from .volume_tab import build_volume_tab


QUEUE_SIZE = 64


def build_demo(segmenter: CaptioningSegmenter, name: str = DEFAULT_CHECKPOINT.name) -> gr.Blocks:
    """Builds the page.

    Args:
        segmenter: The checkpoint that it begins with.
        name: Its name in the selector.
    """
    # Otherwise gradio keeps time and session of the last 10,000 requests, and sums them up again after each one.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
    processing_utils.save_pil_to_cache = cache_shown_picture
    engine = Engine(segmenter, name, allows_others="SPACE_ID" not in os.environ)
    with CheckedBlocks(
        title="LViT segmentation", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as demo:
        gr.Markdown(translated("intro"))
        with gr.Tabs():
            with gr.Tab(translated("image_tab")):
                build_image_tab(engine)
            with gr.Tab(translated("volume_tab")):
                build_volume_tab(engine)
            with gr.Tab(translated("many_tab")):
                build_many_tab(engine)
    return demo.queue(max_size=QUEUE_SIZE)


def launch(demo: gr.Blocks, **kwargs) -> tuple:
    """Serves the page with the settings that fit medical images: nothing is kept that need not be.

    `LVIT_AUTH=USER:PASSWORD` in the environment asks visitors to log in; agents, which cannot, then find no tools.
    `/health` answers that the server is up.
    """
    user, _, password = os.environ.get("LVIT_AUTH", "").partition(":")
    auth = (user, password) if user and password else None
    return demo.launch(
        max_file_size=MAX_FILE_BYTES,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=100,
        footer_links=["api"],
        mcp_server=auth is None,
        i18n=I18N,
        theme=THEME,
        css=CSS,
        auth=auth,
        app_kwargs={
            "routes": [APIRoute("/health", lambda: PlainTextResponse("ok"))],
            # What gradio raises for names that it does not know.
            "exception_handlers": dict.fromkeys((FnIndexInferError, KeyError, TypeError), refuse_call),
        },
        **kwargs,
    )


def refuse_call(request: Request, error: Exception) -> JSONResponse:
    """Answers a call of an endpoint, or with a parameter, that there is none of."""
    sentence = "There is no such endpoint, or it has other parameters. /gradio_api/info lists them all."
    return JSONResponse({"detail": sentence}, status_code=422)


def load_demo(model: str | os.PathLike = DEFAULT_CHECKPOINT) -> gr.Blocks:
    """Loads a checkpoint and builds the page for it.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
    """
    return build_demo(
        CaptioningSegmenter.from_pretrained(model), Path(model).name if Path(model).is_dir() else str(model)
    )


def serve(model: str | os.PathLike = DEFAULT_CHECKPOINT):
    """Loads a checkpoint and serves the page until it is stopped.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
    """
    launch(load_demo(model))
