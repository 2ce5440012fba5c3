"""What a caption says about places, and how that changes when the image is flipped, transposed or cut."""

import re


# Words of place and their position along their axis: 0 is left or top, 1 the middle, 2 right or bottom.
ROWS = {"top": 0, "upper": 0, "middle": 1, "bottom": 2, "lower": 2}
COLUMNS = {"left": 0, "middle": 1, "right": 2}
ROW_STYLES = (("top", "middle", "bottom"), ("upper", "middle", "lower"))
COLUMN_WORDS = ("left", "middle", "right")

_ROW = "top|upper|middle|bottom|lower"
_PLACE = re.compile(rf"\b(?:(?P<row>{_ROW})\s+)?(?P<column>left|middle|right)\b|\b(?P<alone>{_ROW})\b", re.IGNORECASE)
_NAMES_PLACE = re.compile(rf"\b(?:{_ROW}|left|right|center|centre|central|around|periphery)\b", re.IGNORECASE)
_LUNG = re.compile(r"\blungs?\b", re.IGNORECASE)


def names_a_place(text: str) -> bool:
    """Whether a caption says where something is, which is true of the whole image but not of a part of it."""
    return bool(_NAMES_PLACE.search(text))


def rewrite_caption(
    text: str, flip_horizontal: bool = False, flip_vertical: bool = False, transpose: bool = False
) -> str:
    """Rewrites a caption so that it stays true of a transformed image.

    "Left" is the image's left. The image is first transposed (rows become columns), then flipped; rotations by 90
    degrees are a transposition and one flip. Each of the three is its own inverse.

    Args:
        text: The caption of the image before.
        flip_horizontal: Whether left and right change places.
        flip_vertical: Whether top and bottom change places.
        transpose: Whether rows and columns change places.

    Raises:
        ValueError: If the caption speaks of lungs and the image would be turned or put upside down.
    """
    if (flip_vertical or transpose) and _LUNG.search(text):
        raise ValueError(f"A chest is not turned or put upside down: {text!r}.")
    if transpose:
        text = _transpose(text)
    if flip_horizontal:
        text = _swap(text, {"left": "right", "right": "left"})
    if flip_vertical:
        text = _swap(text, {"top": "bottom", "bottom": "top", "upper": "lower", "lower": "upper"})
    return text


def _swap(text: str, pairs: dict[str, str]) -> str:
    pattern = re.compile(rf"\b({'|'.join(pairs)})\b", re.IGNORECASE)
    return pattern.sub(lambda match: _match_case(match[0], pairs[match[0].lower()]), text)


def _transpose(text: str) -> str:
    uses_upper = re.search(r"\b(upper|lower|nuclei|nucleus)\b", text, re.IGNORECASE)
    row_words = ROW_STYLES[1 if uses_upper else 0]

    def turn(match: re.Match) -> str:
        if match["alone"]:
            place = COLUMN_WORDS[ROWS[match["alone"].lower()]]
        elif match["row"]:
            row, column = ROWS[match["row"].lower()], COLUMNS[match["column"].lower()]
            place = f"{row_words[column]} {COLUMN_WORDS[row]}"
        else:
            place = row_words[COLUMNS[match["column"].lower()]]
        return _match_case(match[0], place)

    return _PLACE.sub(turn, text)


def _match_case(old: str, new: str) -> str:
    return new.capitalize() if old[0].isupper() else new
