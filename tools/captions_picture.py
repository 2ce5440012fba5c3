"""Draws docs/captions.jpg: one chest X-ray with two captions, and the two masks."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT, EXAMPLES_FOLDER


CAPTIONS = (
    "unilateral pulmonary infection, one infected area, lower left lung.",
    "unilateral pulmonary infection, one infected area, upper middle lower right lung.",
)
SIDE, GAP, LINE = 400, 12, 52


def draw_picture(segmenter: Segmenter, path: Path) -> Image.Image:
    """The image beside its overlays, each with its caption below."""
    results = segmenter.segment([path] * len(CAPTIONS), CAPTIONS)
    panels = [("one image", results[0].image)]
    panels += [(caption, draw_overlay(result.image, result.mask())) for caption, result in zip(CAPTIONS, results)]
    picture = Image.new("RGB", (len(panels) * (SIDE + GAP) - GAP, SIDE + LINE), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for number, (caption, panel) in enumerate(panels):
        left = number * (SIDE + GAP)
        picture.paste(panel.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, 0))
        words = caption.replace(", ", ",\n", 1)
        pen.multiline_text((left + 4, SIDE + 6), words, fill="black", font=font)
    return picture


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "docs" / "captions.jpg"
    draw_picture(Segmenter.from_pretrained(DEFAULT_CHECKPOINT), EXAMPLES_FOLDER / "chest-xray.jpg").save(
        target, quality=88
    )
