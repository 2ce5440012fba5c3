"""The page: its layout, what its events do, and how it is served."""

import os
from pathlib import Path

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from gradio.route_utils import FnIndexInferError

from ..inference import SHIPPED_CHECKPOINT
from .checked_blocks import CheckedBlocks
from .engine import KEEP_SECONDS, DemoSegmenter, Engine
from .image_tab import build_image_tab
from .texts import I18N, translated


MAX_FILE_SIZE = "100mb"
QUEUE_SIZE = 64

# Gradio's default with more contrast, as WCAG AA asks for.
THEME = gr.themes.Default(primary_hue="teal").set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)
CSS = """
:root { --color-accent: var(--primary-700); }
.dark { --color-accent: var(--primary-400); }
.legend-item { color: #18181b !important; }
.dark .legend { background: white; border-radius: var(--radius-sm); }
"""


def build_demo(segmenter: DemoSegmenter, name: str = SHIPPED_CHECKPOINT.name) -> gr.Blocks:
    """Builds the page.

    Args:
        segmenter: The checkpoint that it begins with.
        name: Its name in the selector.
    """
    engine = Engine(segmenter, name, allows_others="SPACE_ID" not in os.environ)
    with CheckedBlocks(
        title="LViT segmentation", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as demo:
        gr.Markdown(translated("intro"))
        build_image_tab(engine)
    return demo.queue(max_size=QUEUE_SIZE)


def launch(demo: gr.Blocks, **kwargs) -> tuple:
    """Serves the page with the settings that fit medical images: nothing is kept that need not be.

    `LVIT_AUTH=USER:PASSWORD` in the environment asks visitors to log in; agents, which cannot, then find no tools.
    `/health` answers that the server is up.
    """
    user, _, password = os.environ.get("LVIT_AUTH", "").partition(":")
    auth = (user, password) if user and password else None
    return demo.launch(
        max_file_size=MAX_FILE_SIZE,
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


def load_demo(model: str | os.PathLike = SHIPPED_CHECKPOINT) -> gr.Blocks:
    """Loads a checkpoint and builds the page for it.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
    """
    return build_demo(DemoSegmenter.from_pretrained(model), Path(model).name if Path(model).is_dir() else str(model))


def serve(model: str | os.PathLike = SHIPPED_CHECKPOINT):
    """Loads a checkpoint and serves the page until it is stopped.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
    """
    launch(load_demo(model))
