"""What a data set holds, and what is wrong with it, before anything is trained on it."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from ..inference.drawing import OVERLAY_COLOR, draw_outlines
from ..io.readers import is_picture_name
from ..model.captions_lvit import parse_caption
from ..model.processing_lvit import LViTProcessor
from .append import PREDICTED
from .load import (
    SPLITS,
    TEXT_COLUMNS,
    Picture,
    Split,
    SplitNotFoundError,
    explain_one_mask,
    read_cell,
    read_split,
    stored_files,
    take_evenly,
)


FREQUENT = 3
NO_FAMILY = "none"
SHEET_COLUMNS, SHEET_IMAGES = 6, 12


def read_all_splits(path: str) -> dict[str, Split]:
    """The splits that a data set has.

    Raises:
        FileNotFoundError: If there is no such data set, or it has no split.
        ValueError: If a table cannot be read or lacks a column.
    """
    splits, reasons = {}, []
    for name in SPLITS:
        try:
            splits[name] = read_split(path, name)
        except SplitNotFoundError as error:
            reasons.append(str(error))
    if not splits:
        raise FileNotFoundError("; ".join(reasons))
    return splits


def check_data(path: str, splits: dict[str, Split], processor: LViTProcessor, num_text_vectors: int) -> dict[str, Any]:
    """Looks at every image, mask and caption.

    Args:
        path: Where the data set was read from.
        splits: As [`read_all_splits`] returns.
        processor: Of the model that is to read the captions.
        num_text_vectors: Number of words and punctuation marks that the model takes of a caption.

    Returns:
        A dictionary that can be written as JSON, with `path`, `splits` (what [`check_images`] and [`check_captions`]
        say of each, and its `problems` and `orphans`), `duplicates` (groups of `split/id` of the same pixels) and
        `orphans` (image files in the folder that no row names).
    """
    report: dict[str, Any] = {"path": path, "splits": {}}
    owners: dict[str, list[str]] = {}
    for name, split in splits.items():
        images, digests = check_images(split.rows, name)
        for row, digest in digests.items():
            owners.setdefault(digest, []).append(f"{name}/{row}")
        columns = [column for column in TEXT_COLUMNS if column in split.rows.column_names]
        report["splits"][name] = {
            **images,
            "problems": split.problems + images["problems"],
            "orphans": split.orphans,
            "captions": {
                column: check_captions(split.rows, column, processor, num_text_vectors) for column in columns
            },
        }
    report["duplicates"] = [rows for rows in owners.values() if len(rows) > 1]
    report["orphans"] = find_orphans(Path(path), splits.values())
    return report


def check_images(data: datasets.Dataset, description: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """Decodes every image and mask of a split.

    Args:
        data: Rows as `load_data` returns.
        description: What the progress bar says.

    Returns:
        Two dictionaries. The first has the number of `images`; `sizes` and `modes`, the number of images of each; the
        smallest, middle and largest share of `foreground`, in [0, 1], and by what `rules` of `find_foreground` it was
        found, with the number of masks; the ids with `empty_masks`; and `problems`, a sentence for each image or mask
        that is broken or does not fit its partner. The second has a digest of each image's pixels by its id.
    """
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    shares, empty, digests = [], [], {}
    alike = Counter(zip(data["id"], data["text"]))  # an image may have several captions
    problems = [f"{name}: {count} rows have this id and caption." for (name, _), count in alike.items() if count > 1]
    for row in tqdm(undecoded(data), unit="image", desc=description, disable=None):
        try:
            image = read_cell(row["image"], Picture.read)
            pixels, (foreground, rule) = np.asarray(image), read_cell(row["mask"], explain_one_mask)
            if pixels.shape[:2] != foreground.shape:
                raise ValueError(
                    f"the mask has {describe_size(foreground)} pixels and the image {describe_size(pixels)}."
                )
        except (OSError, ValueError) as error:
            problems.append(f"{row['id']}: {error}")
            continue
        sizes[describe_size(pixels)] += 1
        modes[image.mode] += 1
        digests[row["id"]] = digest_pixels(pixels)
        rules[rule] += 1
        shares.append(float(foreground.mean()))
        if not foreground.any():
            empty.append(row["id"])
    findings = {
        "images": len(data),
        "sizes": dict(sizes.most_common()),
        "modes": dict(modes.most_common()),
        "foreground": np.quantile(shares, [0, 0.5, 1]).tolist() if shares else None,
        "rules": dict(rules.most_common()),
        "empty_masks": empty,
        "problems": problems,
    }
    return findings, digests


def undecoded(data: datasets.Dataset) -> datasets.Dataset:
    """The rows with files in place of images, so that a broken one does not end the iteration."""
    for column in ("image", "mask"):
        data = data.cast_column(column, datasets.Image(decode=False))
    return data


def describe_size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def digest_pixels(pixels: np.ndarray) -> str:
    """The same for the same pixels, in whatever format they were stored; grey stored as colour is grey."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def check_captions(
    data: datasets.Dataset, column: str, processor: LViTProcessor, num_text_vectors: int
) -> dict[str, Any]:
    """Reads every caption as the model would.

    Returns:
        The number of `distinct` captions, the most `frequent` ones with their numbers, the number of captions of each
        of the `families` in the grammar, the ids of those `without` one, `unknown_words` (to the tokenizer)
        with the number of captions, the number of words and punctuation marks of the `longest`, and the captions that
        are `too_long` for the model, with their numbers.
    """
    tokenizer = processor.tokenizer
    texts = [(text or "").strip() for text in data[column]]
    counts = Counter(text for text in texts if text)
    unknown: Counter[str] = Counter()
    families: Counter[str] = Counter()
    lengths = {}
    for text, count in counts.items():
        understood = parse_caption(text)
        families[understood.family if understood else NO_FAMILY] += count
        words = set(re.findall(r"\w+|[^\w\s]", text))
        unknown.update({word: count for word in words if tokenizer.unk_token in tokenizer.tokenize(word)})
        lengths[text] = max(processor(text=text, truncation=False, padding=False)["word_ids"][0])
    return {
        "distinct": len(counts),
        "frequent": dict(counts.most_common(FREQUENT)),
        "families": dict(families.most_common()),
        "without": [name for name, text in zip(data["id"], texts) if not text],
        "unknown_words": dict(unknown.most_common()),
        "longest": max(lengths.values(), default=0),
        "too_long": {text: counts[text] for text, length in lengths.items() if length > num_text_vectors},
    }


def find_orphans(folder: Path, splits: Collection[Split]) -> list[str]:
    """Image files below a folder that no row of any split names, relative to it; none where rows hold the images."""
    if not folder.is_dir():
        return []
    named = {
        Path(path)
        for split in splits
        for column in ("image", "mask")
        for path, _ in stored_files(split.rows, column)
        if path
    }
    kept = [split.rows for split in splits if PREDICTED in split.rows.column_names]
    named |= {folder / name for rows in kept for name in rows[PREDICTED] if name}
    # A row names a link (of git-annex, DVC, ...) and with it the file that it leads to.
    known = {_place(path) for path in named} | {path.resolve() for path in named}
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if is_picture_name(path))
    return [
        path.as_posix()
        for path in files
        if _place(folder / path) not in known and not any(part.startswith(".") for part in path.parts)
    ]


def _place(path: Path) -> Path:
    """The absolute path of a file, which may be a link, with the links in its folders resolved."""
    return path.parent.resolve() / path.name


def has_problems(report: dict[str, Any]) -> bool:
    """Whether rows cannot be used."""
    return any(split["problems"] for split in report["splits"].values())


def sort_duplicates(report: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """The groups of equal images that lie in several splits, and those within one."""
    across = [rows for rows in report["duplicates"] if len({row.split("/")[0] for row in rows}) > 1]
    return across, [rows for rows in report["duplicates"] if rows not in across]


def render_check(report: dict[str, Any]) -> str:
    """What was found, for a reader. Problems are all named; of what is merely notable, some."""
    lines = [f"# {report['path']}"]
    for name, split in report["splits"].items():
        lines += ["", f"## {name}: {split['images']} images", "", *_describe_images(split)]
        for column, captions in split["captions"].items():
            lines += _describe_captions(column, captions)
        if split["orphans"]:
            lines.append(f"- Orphans: {_some(split['orphans'])}.")
        if split["problems"]:
            lines += ["", f"**{len(split['problems'])} problems:**", "", *(f"- {text}" for text in split["problems"])]
    across, within = sort_duplicates(report)
    lines += ["", "## All splits", ""]
    for description, groups in (("in several splits", across), ("twice in one split", within)):
        lines.append(f"- Images {description}: {_some([' = '.join(rows) for rows in groups])}.")
    lines.append(f"- Image files that no row names: {_some(report['orphans'])}.")
    return "\n".join(lines) + "\n"


def _describe_images(split: dict[str, Any]) -> list[str]:
    lines = [f"- Sizes: {describe_counts(split['sizes'])}.", f"- Modes: {describe_counts(split['modes'])}."]
    if split["foreground"]:
        low, middle, high = (f"{100 * share:.1f} %" for share in split["foreground"])
        lines.append(f"- Foreground of a mask: {low} to {high}, middle {middle}.")
        lines.append(f"- Taken for foreground: {describe_counts(split['rules'])}.")
    lines.append(f"- Empty masks: {_some(split['empty_masks'])}.")
    return lines


def _describe_captions(column: str, captions: dict[str, Any]) -> list[str]:
    too_long = [f'"{text}"' for text in captions["too_long"]]
    return [
        f"- Captions in the column {column}: {captions['distinct']} distinct, "
        f"often {describe_counts(captions['frequent'])}.",
        f"- Families of captions: {describe_counts(captions['families'])}.",
        f"- Images without a caption there: {_some(captions['without'])}.",
        f"- Words that the tokenizer does not know: {describe_counts(captions['unknown_words'])}.",
        f"- Longest caption: {captions['longest']} words and punctuation marks; longer than the model takes: "
        f"{_some(too_long, 3)}.",
    ]


def describe_counts(counts: dict[str, int], shown: int = 10) -> str:
    """The first of what was counted, with the counts."""
    more = ["..."] if len(counts) > shown else []
    return "; ".join([f"{name} ({count})" for name, count in list(counts.items())[:shown]] + more) or "none"


def _some(names: list[str], shown: int = 10) -> str:
    """How many names there are, and the first of them."""
    if not names:
        return "none"
    more = f"; and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)}: {'; '.join(names[:shown])}{more}"


def draw_contact_sheet(splits: dict[str, Split]) -> Figure:
    """Some images of every split, spread evenly over it, with the outlines of their masks and their captions."""
    rows = [(name, row) for name, split in splits.items() for row in undecoded(take_evenly(split.rows, SHEET_IMAGES))]
    height = -(-len(rows) // SHEET_COLUMNS)
    figure = Figure(figsize=(2.4 * SHEET_COLUMNS, 2.9 * height), layout="constrained")
    for axes in figure.subplots(height, SHEET_COLUMNS, squeeze=False).flat:
        if not rows:
            axes.set_axis_off()
            continue
        name, row = rows.pop(0)
        axes.set_title(f"{name}/{row['id']}", fontsize="xx-small", parse_math=False)
        try:
            image, (mask, _) = read_cell(row["image"], Picture.read), read_cell(row["mask"], explain_one_mask)
        except (OSError, ValueError):
            image, mask = Image.new("L", (1, 1)), np.zeros((1, 1), bool)
        draw_outlines(axes, image.convert("RGB"), [(mask, OVERLAY_COLOR)], row["text"])
    return figure
