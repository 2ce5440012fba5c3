"""What callers of the service send is checked before gradio reads it, so that they learn what was wrong."""

import inspect
import logging
import math
from collections.abc import Sequence
from typing import Any

import gradio as gr


logger = logging.getLogger(__name__)

LONGEST_QUOTE = 60


class CheckedBlocks(gr.Blocks):
    """A page whose named endpoints refuse what they cannot read with a sentence that names the parameter."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any, **kwargs: Any) -> list:
        if block_fn.api_visibility == "public":
            names = list(inspect.signature(block_fn.fn).parameters)[: len(block_fn.inputs)]
            if sentence := find_wrong_input(names, block_fn.inputs, inputs):
                raise gr.Error(sentence, print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:  # of several libraries, with messages that speak of the server
            logger.warning("An input cannot be used.", exc_info=error)
            raise gr.Error(
                "A file cannot be used: it must be uploaded to this server first. Use via API shows how.",
                print_exception=False,
            )


def find_wrong_input(names: Sequence[str], components: Sequence, values: Sequence) -> str | None:
    """A sentence about the first value that is not of its parameter's type, or about their number."""
    if len(values) != len(names):
        return f"{len(names)} values are needed ({', '.join(names)}), got {len(values)}."
    for name, component, value in zip(names, components, values):
        if expected := _find_expected(component, value):
            quoted = repr(value)
            quoted = quoted if len(quoted) <= LONGEST_QUOTE else f"{quoted[:LONGEST_QUOTE]}..."
            return f"{name} must be {expected}, got {quoted}."
    return None


def _find_expected(component: Any, value: Any) -> str | None:
    """What a value of the component is, if this is none."""
    match component:
        case gr.Number() | gr.Slider():
            low, high = component.minimum, component.maximum
            is_whole = getattr(component, "precision", None) == 0
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            is_right = is_number and (not is_whole or value == int(value))
            if is_right and (low is None or value >= low) and (high is None or value <= high):
                return None
            limits = [
                f" of {word} {limit}" for word, limit in (("at least", low), ("at most", high)) if limit is not None
            ]
            return ("a whole number" if is_whole else "a number") + " and".join(limits)
        case gr.Dropdown():
            names = [str(name) for _, name in component.choices]
            return None if value is None or value in names else f"one of {', '.join(names)}"
        case gr.Textbox():
            return None if value is None or isinstance(value, str) else "a text"
        case gr.File(file_count="multiple"):
            is_list = isinstance(value, list) and all(isinstance(file, dict) for file in value)
            return None if value is None or is_list else "a list of uploaded files"
        case gr.File():
            return None if value is None or isinstance(value, dict) else "an uploaded file"
    return None
