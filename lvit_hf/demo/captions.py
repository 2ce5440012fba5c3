"""The caption builder: selects and chips for what the families of captions can state."""

from functools import partial

import gradio as gr

from ..model.captions_lvit import (
    FAMILIES,
    Caption,
    CaptionFamily,
    Finding,
    LungInfectionFamily,
    lung_finding,
    parse_caption,
)
from .texts import translated


def write_caption(family: CaptionFamily, finding: Finding, before: str = "") -> str:
    """A caption that states a finding, in the words of the family's data.

    Args:
        family: The family.
        finding: What is chosen.
        before: A caption of the same family to which the finding is added.
    """
    if isinstance(family, LungInfectionFamily):
        return family.render_finding({**_count_areas(family, finding), **finding})
    caption = parse_caption(before) if before else None
    earlier = caption.findings if caption is not None and caption.family == family.name else ()
    try:
        return family.render(Caption(family.name, (*earlier, finding)))
    except ValueError:  # no sentence of the family has them all
        return " ".join(family.render_finding({name: value}) for name, value in finding.items())


def _count_areas(family: LungInfectionFamily, finding: Finding) -> Finding:
    left, right = (tuple(finding.get(lung, ())) for lung in family.LUNGS.values())
    return lung_finding(left, right) if left or right else {}


def build_caption_builder(text: gr.Textbox):
    """Adds the builder, which writes into `text`."""
    names = list(FAMILIES)
    choice = gr.Dropdown(names, value=names[0], label=translated("family"))
    groups = [_build_family(family, text, visible=family.name == names[0]) for family in FAMILIES.values()]
    choice.change(
        lambda chosen: [gr.update(visible=name == chosen) for name in names],
        choice,
        groups,
        show_progress="hidden",
        api_visibility="private",
    )
    gr.Button(translated("no_text"), size="sm").click(
        lambda: "", outputs=text, show_progress="hidden", api_visibility="private"
    )


def _build_family(family: CaptionFamily, text: gr.Textbox, visible: bool) -> gr.Column:
    names = [attribute.name for attribute in family.attributes]
    with gr.Column(visible=visible) as column:
        inputs: list[gr.components.Component] = [
            gr.CheckboxGroup(attribute.values, label=attribute.name)
            if attribute.multiple
            else gr.Dropdown(["", *attribute.values], value="", label=attribute.name)
            for attribute in family.attributes
        ]
        buttons = [(gr.Button(translated("write"), size="sm"), False)]
        if family.header:
            buttons.append((gr.Button(translated("append"), size="sm"), True))
    for button, adds in buttons:
        button.click(
            partial(_write, family, names, adds),
            [text, *inputs],
            text,
            show_progress="hidden",
            api_visibility="private",
        )
    return column


def _write(family: CaptionFamily, names: list[str], adds: bool, before: str, *values) -> str:
    finding = {name: tuple(value) if isinstance(value, list) else value for name, value in zip(names, values) if value}
    if not finding:
        raise gr.Error("Choose what the caption is to say first.", print_exception=False)
    return write_caption(family, finding, before if adds else "")
