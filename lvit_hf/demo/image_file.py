"""The image input of the demo. (Gradio writes a stub beside a module with a component, so it has one of its own.)"""

import gradio as gr
from gradio.data_classes import ImageData


class ImageFile(gr.Image):
    """An image input that hands over the path of the file as it was uploaded.

    `gr.Image` opens it first, with an error that is none of ours where it is broken.
    """

    is_template = True

    def preprocess(self, payload: ImageData | None) -> str | None:
        return payload.path if payload else None
