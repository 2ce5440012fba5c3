"""The port of the page, which gradio reads when it is imported."""

import os


def check_port():
    """Refuses a `GRADIO_SERVER_PORT` that is none, where gradio would end in a traceback.

    Raises:
        ValueError: If it is not the number of a port.
    """
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"GRADIO_SERVER_PORT is the number of a port, 1 to 65535, got {port!r}.")
