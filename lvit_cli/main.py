"""The `lvit` command: segment images, convert and train checkpoints, serve the demo."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from tqdm import tqdm
from transformers.utils import logging

from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.inference.segmenter import SHIPPED_CHECKPOINT, SMALLEST_TILE, Segmentation, Segmenter
from lvit_hf.io.errors import as_sentence
from lvit_hf.io.readers import is_picture_name, is_scan_name, read_scan
from lvit_hf.io.tables import is_table_name, read_captions
from lvit_hf.model.pipeline_lvit import NUM_CAPTIONS

from .caption import calibrate_captions, caption, evaluate_captions, train_captions
from .common import FAILED, WRONG_USAGE, ModelOption, errors_as_sentences
from .data import app as data_commands
from .evaluation import calibrate, evaluate
from .publish import app as publish_commands
from .slide import slide


app = typer.Typer(
    help="Text-guided medical image segmentation with LViT.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(evaluate)
app.command()(calibrate)
app.add_typer(data_commands, name="data")
app.command()(caption)
app.command()(train_captions)
app.command()(evaluate_captions)
app.command()(calibrate_captions)
app.add_typer(publish_commands)
app.command()(slide)

OUTPUT_SUFFIXES = ("_mask.png", "_overlay.png")


@dataclass(frozen=True)
class Job:
    """An image to segment: its file, its caption and the name that its outputs begin with."""

    path: Path
    text: str | None
    name: str


@app.command()
def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="Images (pictures, DICOM, NIfTI), folders of them, or CSV files with the columns image (relative to "
            "the CSV) and text.",
        ),
    ],
    output_dir: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the results.")],
    text: Annotated[str | None, typer.Option(help="Caption of every image that no CSV captions.")] = None,
    model: ModelOption = str(SHIPPED_CHECKPOINT),
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability above which a pixel is foreground.")
    ] = 0.5,
    tile_size: Annotated[
        int | None,
        typer.Option(min=SMALLEST_TILE, help="Segment in tiles of this many pixels, for slides: about 175 at 40x."),
    ] = None,
    num_captions: Annotated[
        int,
        typer.Option(
            min=0,
            help="Captions over which the mask of a whole image without one is averaged, written by a model that can; "
            "0 for its null text.",
        ),
    ] = NUM_CAPTIONS,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or tiles that are segmented together.")] = 8,
):
    """Segment images: NAME_mask.png and NAME_overlay.png of each, and predictions.json with measurements."""
    logging.disable_progress_bar()
    with errors_as_sentences(WRONG_USAGE):
        captioned = list_images(inputs, text)
        segmenter = CaptioningSegmenter.from_pretrained(model)
        segmenter.num_captions = min(num_captions, len(segmenter.model.config.captions))
        output_dir.mkdir(parents=True, exist_ok=True)
    taken = {_key(path) for path, _ in captioned}
    report_name = free_name("predictions", [".json"], output_dir, taken)
    jobs = [Job(path, text, free_name(path.stem, OUTPUT_SUFFIXES, output_dir, taken)) for path, text in captioned]
    report: dict[str, Any] = {"model": model, "threshold": threshold, "tile_size": tile_size}
    report |= {"images": [], "failures": []}
    with errors_as_sentences(FAILED), tqdm(total=len(jobs), unit="image", disable=None) as bar:
        for job, result in segment_jobs(jobs, segmenter, tile_size, batch_size, bar):
            if isinstance(result, Segmentation):
                report["images"].append(save_outputs(job, result, threshold, output_dir))
            else:
                bar.write(f"Error: {result}", file=sys.stderr)
                report["failures"].append({"image": str(job.path), "error": str(result)})
            bar.update()
        content = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (output_dir / f"{report_name}.json").write_text(content, encoding="utf-8")
    if report["failures"]:
        raise typer.Exit(FAILED)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth.tar file of the reference implementation.")],
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the converted checkpoint.")],
    text_model: Annotated[
        str | None,
        typer.Option(help="The BERT it was trained with, a folder or Hub id; by default BERT-base uncased."),
    ] = None,
):
    """Convert a checkpoint of the reference implementation."""
    with errors_as_sentences(FAILED):
        from lvit_hf.training.conversion import REFERENCE_TEXT_MODEL, convert_checkpoint

        convert_checkpoint(checkpoint, output_dir, text_model=text_model or REFERENCE_TEXT_MODEL)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Training configuration.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Values that replace those of the file.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
):
    """Train a model."""
    with errors_as_sentences(FAILED, extra="train"):
        from lvit_hf.training.run import train as run_training

        run_training(config, resume=resume, overrides=overrides or [])


@app.command()
def demo(model: ModelOption = str(SHIPPED_CHECKPOINT)):
    """Serve the demo in the browser."""
    logging.disable_progress_bar()
    with errors_as_sentences(FAILED, extra="app"):
        from lvit_hf.demo import serve

        serve(model)


def list_images(inputs: list[Path], text: str | None) -> list[tuple[Path, str | None]]:
    """Files and captions that the arguments name: CSV files and folders are opened, anything else is an image.

    Raises:
        ValueError: If a CSV cannot be used, or there is no image at all.
    """
    captioned: list[tuple[Path, str | None]] = []
    for path in inputs:
        if path.is_dir():
            captioned += [(file, text) for file in sorted(path.iterdir()) if _is_image_name(file)]
        elif is_table_name(path):
            captioned += [(path.parent / name, caption or text) for name, caption in read_captions(path)]
        else:
            captioned.append((path, text))
    if not captioned:
        raise ValueError(f"There is no image in {', '.join(map(str, inputs))}.")
    return captioned


def free_name(stem: str, suffixes: Sequence[str], folder: Path, taken: set[str]) -> str:
    """A name under which no file that is read or written in this run lies yet; it and its files become taken."""
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        files = {_key(folder / f"{name}{suffix}") for suffix in suffixes}
        if taken.isdisjoint(files):
            break
    taken |= files
    return name


def segment_jobs(
    jobs: list[Job], segmenter: Segmenter, tile_size: int | None, batch_size: int, bar: tqdm
) -> Iterator[tuple[Job, Segmentation | ValueError]]:
    """Segments batch by batch; the result of a file that cannot be used is the error that says why."""

    def show_tiles(finished: int, total: int):
        bar.set_postfix_str(f"tile {finished} of {total}")

    for start in range(0, len(jobs), batch_size):
        readable: list[tuple[Job, Image.Image]] = []
        for job in jobs[start : start + batch_size]:
            try:
                readable.append((job, read_image(job.path, segmenter)))
            except ValueError as error:
                yield job, error
        images, texts = [image for _, image in readable], [job.text for job, _ in readable]
        results = segmenter.segment(images, texts, tile_size=tile_size, batch_size=batch_size, progress=show_tiles)
        yield from zip([job for job, _ in readable], results)


def read_image(path: Path, segmenter: Segmenter) -> Image.Image:
    """Opens an image as RGB. Whatever is wrong with it becomes a `ValueError` that names the file."""
    try:
        scan = read_scan(path)
        if len(scan) > 1:
            raise ValueError(f"{path} has {len(scan)} slices; give one of them, or use the demo, which takes volumes.")
        return segmenter.to_rgb(scan.image())
    except (ImportError, OSError, ValueError) as error:
        sentence = as_sentence(error, extra="medical")
        raise ValueError(sentence if str(path) in sentence else f"{path}: {sentence}")


def save_outputs(job: Job, segmentation: Segmentation, threshold: float, output_dir: Path) -> dict[str, Any]:
    """Writes the mask and the overlay of an image and returns its entry in the report."""
    mask_file, overlay_file = (f"{job.name}{suffix}" for suffix in OUTPUT_SUFFIXES)
    Image.fromarray(segmentation.mask(threshold)).convert("L").save(output_dir / mask_file)
    segmentation.overlay(threshold).save(output_dir / overlay_file)
    height, width = segmentation.probabilities.shape
    return {
        "image": str(job.path),
        "text": segmentation.text,
        "text_used": segmentation.text_used,
        "predicted_captions": segmentation.described and segmentation.described["captions"],
        "mask": mask_file,
        "overlay": overlay_file,
        "width": width,
        "height": height,
        **segmentation.measure(threshold),
    }


def _key(path: Path) -> str:
    """The same for every way to write a file's path, also where case does not matter."""
    return str(path.resolve()).casefold()


def _is_image_name(path: Path) -> bool:
    return is_picture_name(path) or is_scan_name(path) and not path.name.startswith(".")


if __name__ == "__main__":
    app()
