"""The model card of a checkpoint: a template, the checkpoint's own figures, and a picture of what it does."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, RepoCard
from PIL import Image, ImageOps

from ..evaluation.evaluate import RESULTS_FILE, TEXT_LABELS, digest_checkpoint
from ..inference.drawing import draw_overlay
from ..inference.notices import describe_kinds
from ..inference.segmenter import Segmenter
from ..io.checkpoints import EXAMPLES_FOLDER
from ..io.examples import TABLE, Example, read_examples
from ..model.configuration_lvit import LViTConfig
from ..model.image_processing_lvit import LViTImageProcessor


TEMPLATE = Path(__file__).with_name("model_card.md")
CARD, PICTURE, EXAMPLES = "README.md", "result.jpg", "examples"

# Where a card says this it means the repository that it is published in.
REPOSITORY_PLACEHOLDER = "USER/NAME"

METRICS = {"dice": ("dice", "mean over images"), "iou": ("iou", "mean over images")}
METRICS |= {"pooled_dice": ("dice", "over all pixels"), "pooled_iou": ("iou", "over all pixels")}
METRIC_NAMES = {"dice": "Dice", "iou": "IoU"}

PICTURE_HEIGHT, PICTURE_GAP = 300, 10

Card = TypeVar("Card", bound=RepoCard)


def read_evaluation(checkpoint: Path) -> list[dict[str, Any]]:
    """The results that `lvit evaluate --record` left in a checkpoint's folder.

    Returns:
        For each data set and way of giving captions a dictionary with at least `data`, `split`, `text`, `images` and
        the four figures in [0, 1].

    Raises:
        FileNotFoundError: If there is no evaluation.json.
        ValueError: If it holds something else.
    """
    path = checkpoint / RESULTS_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. lvit evaluate --record writes it.")
    needed = {"data", "split", "text", "images", *METRICS}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        complete = bool(results) and all(needed <= result.keys() for result in results)
    except (AttributeError, TypeError, ValueError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is no list of results of lvit evaluate --record.")
    return results


def describe_protocol(result: dict[str, Any]) -> str:
    """How masks were made and compared, in a few words."""
    size = result.get("size")
    parts = [f"at {size} x {size} pixels" if size else "at each image's size"]
    if result.get("official_masks"):
        parts.append("the reference's rule for masks")
    if tile_size := result.get("tile_size"):
        parts.append(f"tiles of {tile_size}")
    if views := result.get("views"):
        parts.append(f"averaged over flips ({views})")
    if (threshold := result.get("threshold", 0.5)) != 0.5:
        parts.append(f"threshold {threshold}")
    return ", ".join(parts)


def describe_share(fraction: float) -> str:
    """In percent, without the sign."""
    return f"{100 * fraction:.1f}"


def describe_caption(result: dict[str, Any]) -> str:
    return TEXT_LABELS.get(result["text"], result["text"])


def make_eval_results(results: list[dict[str, Any]]) -> list[EvalResult]:
    """The figures with and without captions, in percent, as the Hub keeps them in a card's model-index."""
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=re.sub(r"[^\w.-]+", "-", result["data"]).lower(),
            dataset_name=result["data"],
            dataset_split=result["split"],
            metric_type=metric,
            metric_name=f"{METRIC_NAMES[metric]}, {average}; caption: {describe_caption(result)}; "
            + describe_protocol(result),
            metric_value=round(100 * result[figure], 2),
        )
        for result in results
        if result["text"] in ("correct", "none")
        for figure, (metric, average) in METRICS.items()
    ]


def render_card(checkpoint: Path, template: Path = TEMPLATE) -> ModelCard:
    """Fills a template with a checkpoint's figures.

    Args:
        checkpoint: A folder with config.json, processor_config.json, evaluation.json and examples/.
        template: A card with Jinja fields for `config`, `kinds` (of images that it knows, in words),
            `image_processor`, `results`, `picture` and `example`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the template or the results cannot be used.
    """
    results = read_evaluation(checkpoint)
    example = read_examples(checkpoint / EXAMPLES)[0]
    config = LViTConfig.from_pretrained(checkpoint)
    content = fill_template(
        template,
        {"protocol": describe_protocol, "caption": describe_caption, "percent": describe_share},
        config=config,
        kinds=describe_kinds(config.scope_kinds or config.caption_families),
        image_processor=LViTImageProcessor.from_pretrained(checkpoint),
        results=results,
        picture=PICTURE,
        example={**asdict(example), "image": example.path.relative_to(checkpoint).as_posix()},
    )
    card = parse_card(content, ModelCard)
    card.data["model_name"] = "LViT"
    card.data["eval_results"] = make_eval_results(results)
    return card


def fill_template(template: Path, filters: Mapping[str, Callable], **fields: Any) -> str:
    """Fills the Jinja fields of a card.

    Args:
        template: The card.
        filters: What its fields may be piped through.
        fields: What its fields may name.

    Raises:
        FileNotFoundError: If there is no such template.
        ValueError: If it is broken, or has a field that is not given.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= filters
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(fields)
    except jinja2.TemplateError as error:
        raise ValueError(f"{template} is no template of a card: {error}.")


def parse_card(content: str, kind: type[Card]) -> Card:
    """Reads a card.

    Raises:
        ValueError: If its front matter is broken.
    """
    try:
        return kind(content)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The front matter of the card cannot be read: {' '.join(str(error).split())}")


def write_card(checkpoint: Path, template: Path, examples: Path | None = None):
    """Writes a checkpoint's card, the picture in it and the examples that the picture shows.

    Args:
        checkpoint: The folder of the checkpoint.
        template: As in `render_card`.
        examples: A folder with images and `examples.csv` (`image`, `text` and `tile_size`); without it the
            checkpoint's own, or those of the package where it has none.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the checkpoint, the template or the results cannot be used.
    """
    digest = digest_checkpoint(checkpoint)
    if any(result.get("checkpoint_digest", digest) != digest for result in read_evaluation(checkpoint)):
        raise ValueError(
            f"{checkpoint / RESULTS_FILE} is of other weights or settings: measure again with lvit evaluate --record."
        )
    own = checkpoint / EXAMPLES
    examples = examples or (own if own.is_dir() else EXAMPLES_FOLDER)
    shown = read_examples(examples)
    segmenter = Segmenter.from_pretrained(checkpoint)
    draw_examples(segmenter, shown).save(checkpoint / PICTURE, quality=90)
    if examples.resolve() != own.resolve():
        copy_examples(examples, own, shown)
    render_card(checkpoint, template).save(checkpoint / CARD)


def copy_examples(source: Path, target: Path, examples: list[Example]):
    """Copies the examples of a folder, with their table and what it says of their origin and licence."""
    origin = [*source.glob("README.md"), *source.glob("LICENSE*")]
    for path in [source / TABLE, *origin, *(example.path for example in examples)]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def draw_examples(segmenter: Segmenter, examples: list[Example]) -> Image.Image:
    """The examples in a row, each beside its overlay."""
    panels = []
    for example in examples:
        [result] = segmenter.segment([example.path], [example.text], tile_size=example.tile_size, describe=False)
        for image in (result.image, draw_overlay(result.image, result.mask())):
            panels.append(ImageOps.contain(image, (10 * PICTURE_HEIGHT, PICTURE_HEIGHT)))
    width = sum(panel.width + PICTURE_GAP for panel in panels) - PICTURE_GAP
    picture, left = Image.new("RGB", (width, PICTURE_HEIGHT), "white"), 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + PICTURE_GAP
    return picture
