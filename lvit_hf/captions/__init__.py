"""What captions mean. The grammar travels with every checkpoint: it is `lvit_hf/model/captions_lvit.py`."""

from ..model.captions_lvit import (
    FAMILIES,
    Attribute,
    Caption,
    CaptionFamily,
    Finding,
    Reading,
    name_side,
    parse_caption,
    read_caption,
    register_family,
    render_caption,
    rewrite_caption,
    turn_sides,
)


__all__ = [
    "FAMILIES",
    "Attribute",
    "Caption",
    "CaptionFamily",
    "Finding",
    "Reading",
    "name_side",
    "parse_caption",
    "read_caption",
    "register_family",
    "render_caption",
    "rewrite_caption",
    "turn_sides",
]
