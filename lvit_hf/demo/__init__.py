"""The demo in the browser, and the service behind it."""

from .page import build_demo, launch, load_demo, serve


__all__ = ["build_demo", "launch", "load_demo", "serve"]
