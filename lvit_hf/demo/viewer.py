"""What the page asks the server for: the script in `viewer.js` calls the methods of `Answers` and draws their results.

Every call has one dictionary from the browser and gets one back. In it `visitor` names the browser's window and `id`
its request: whatever is not the visitor's last request is ended here and dropped there.
"""

import base64
import functools
import inspect
import io
import json
import os
import re
import zlib
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
import numpy as np
from cachetools import LRUCache
from PIL import Image

from ..evaluation.metrics import overlap
from ..inference.archive import ResultArchive
from ..inference.collection import collect, is_series
from ..inference.drawing import draw_overlay
from ..inference.files import FileResult, Item, find_mask_problem, has_own_mask, save_mask, save_overlay
from ..inference.notices import describe_kinds
from ..inference.segmenter import Progress
from ..inference.slices import VolumeSegmentation, count_thresholds
from ..io.checkpoints import EXAMPLES_FOLDER, VOLUME_EXAMPLES_FOLDER
from ..io.examples import Example, read_examples
from ..io.readers import read_mask
from ..model.captions_lvit import (
    FAMILIES,
    Caption,
    Finding,
    LungInfectionFamily,
    lung_finding,
    parse_caption,
    turn_sides,
)
from ..model.segmenter_lvit import BACKGROUND, Segmentation
from .corrections import Prediction
from .engine import Engine, Request, Settings, stem_of
from .jobs import Job, Jobs, Stopped
from .planes import write_planes
from .service import check_caption, describe, make_item, name_settings
from .texts import TEXTS, say
from .uploads import MAX_CAPTION, check_slices, clean_caption, explain, find_upload, results_folder, serve_file


HERE = Path(__file__).parent
TILE_SIZES = (96, 128, 176, 256, 384, 512)

# Longest sides in pixels of what the browser gets: of pictures, of maps, and of small pictures.
SHOWN_IMAGE, SHOWN_MAP, THUMBNAIL = 4096, 1536, 96
SHOWN_CAPTIONS = 3
# Nuclei are lost in a slide that is shrunk: from this many pixels on the page asks for tiles.
LARGEST_UNTILED = 264

# Families of frontal images, on which left and right may be the patient's.
FRONTAL = [name for name, family in FAMILIES.items() if family.has_sides]

NOT_USED = "The caption was not understood, so it was not used."

Payload = dict[str, Any]


# What a caption may be, where none is written yet.
HINT, VOLUME_HINT = "one small polyp on the top left.", "the anterior hippocampus."


@dataclass(frozen=True)
class Source:
    """What a visitor has given: `"image"`, `"volume"` or `"many"`, and its files."""

    kind: str
    items: tuple[Item, ...]


def answering(method: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """A method whose errors become answers, as sentences. It runs in another thread unless it waits by itself."""

    @functools.wraps(method)
    async def answer(self: "Answers", payload: Payload) -> Any:
        try:
            if inspect.iscoroutinefunction(method):
                return await method(self, payload)
            return await anyio.to_thread.run_sync(method, self, payload)
        except Stopped:
            return {"stopped": say("Stopped. Nothing of it was kept.")}
        except Exception as error:
            files = [*(payload.get("files") or []), payload.get("truth")] if isinstance(payload, dict) else []
            return {"error": say(explain(error, *(file for file in files if isinstance(file, str))))}

    return answer


class Answers:
    """Answers to the page.

    Args:
        engine: Segments what it asks for.
        keep: The data set to which corrected masks are added; `None` for a page on which no mask can be corrected.
    """

    def __init__(self, engine: Engine, keep: Path | None = None):
        self._engine = engine
        self._keep = keep
        self._jobs = Jobs()
        examples = VOLUME_EXAMPLES_FOLDER if engine.is_volumetric("") else EXAMPLES_FOLDER
        self._examples = read_examples(examples) if examples.is_dir() else []
        self._sources: LRUCache = LRUCache(64)

    def build(self) -> gr.HTML:
        """The page's one component."""
        scripts = ("brush.js", "planes.js", "viewer.js")
        script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in scripts)
        names = ["look", "read", "write", "segment", "stop", "facts", "part", "download"]
        names += ["mask", "keep"] if self._keep else []
        return gr.HTML(
            html_template=(HERE / "viewer.html").read_text(encoding="utf-8"),
            js_on_load=script,
            apply_default_css=False,
            elem_id="lvit",
            server_functions=[_as_function(getattr(self, name)) for name in names],
            value={},
            texts=TEXTS,
            examples=[self._show_example(example) for example in self._examples],
            hint=VOLUME_HINT if self._engine.is_volumetric("") else HINT,
            volumetric=self._engine.is_volumetric(""),
            families=[_show_family(name) for name in FAMILIES],
            models=self._engine.models,
            any_model=self._engine.any_model,
            device=self._engine.describe_device(""),
            kinds=describe_kinds(self._engine.checkpoint("").segmenter.model.config.caption_families),
            tile_sizes=TILE_SIZES,
            max_caption=MAX_CAPTION,
            links=_find_links(self._engine.default_model),
            keep=self._keep and self._keep.name,
        )

    @answering
    def look(self, payload: Payload) -> Payload:
        """What the files are, and a picture of them before they are segmented."""
        source = self._find_source(payload)
        if source.kind == "many":
            return {"kind": "many", "names": [item.name for item in source.items]}
        item = source.items[0]
        scan = self._engine.read(item)
        check_slices(item, len(scan))
        index = min(int(payload.get("slice", len(scan) // 2)), len(scan) - 1)
        return {"kind": source.kind, "name": item.name, **_show_slice(scan.image(index), index, len(scan))}

    @answering
    def read(self, payload: Payload) -> Payload:
        """What is understood of a caption, word by word."""
        text, side = clean_caption(payload.get("text")), str(payload.get("side") or "image")
        reading = self._engine.checkpoint(_model(payload)).segmenter.read_text(text, side)
        return {"reading": _show_reading(reading, side)}

    @answering
    def write(self, payload: Payload) -> Payload:
        """A caption in the words of the training data, from what is chosen in the builder."""
        family, chosen = FAMILIES[str(payload["family"])], payload["chosen"]
        finding = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items() if value}
        if not finding:
            raise ValueError("Choose what the caption is to say first.")
        return {"text": write_caption(family.name, finding)}

    @answering
    async def segment(self, payload: Payload) -> Payload:
        """Starts what the visitor asks for, or goes on with it: the result, or how far it is."""
        is_long = bool(payload.get("all") or payload.get("tile_size"))
        job = self._jobs.start(
            f"{payload['visitor']} {payload.get('slot', '')}",
            int(payload["id"]),
            lambda job: self._run(job, payload),
            is_long,
        )
        result = await self._jobs.wait(job)
        return {"running": job.progress} if result is None else result

    @answering
    def stop(self, payload: Payload) -> Payload:
        """Ends what the visitor asked for last."""
        self._jobs.stop(f"{payload['visitor']} {payload.get('slot', '')}")
        return {}

    @answering
    def facts(self, payload: Payload) -> Payload:
        """The measurements at another threshold, and the overlap with a true mask."""
        row, request = self._find_result(payload)
        threshold = float(payload["threshold"])
        facts = describe(self._engine, row, request, threshold)
        if payload.get("truth"):
            facts |= compare(row, request, threshold, find_upload(payload["truth"]))
        return {"facts": facts}

    @answering
    def part(self, payload: Payload) -> Payload:
        """A slice of a volume that was segmented."""
        row, _ = self._find_result(payload)
        assert row.scan is not None and isinstance(row.result, VolumeSegmentation)
        index = int(payload["slice"])
        return {
            **_show_slice(row.scan.image(index), index, len(row.scan)),
            "map": _encode_counts(row.result.counts[index]),
        }

    @answering
    def mask(self, payload: Payload) -> Payload:
        """The mask of a picture or slice at its own size, to be corrected."""
        return {"mask": _encode_map(self._find_prediction(payload).mask.astype(np.uint8))}

    @answering
    def keep(self, payload: Payload) -> Payload:
        """Adds a picture or slice with its corrected mask to the data set."""
        assert self._keep is not None
        model = name_settings(self._engine, _make_settings(payload))["model"]
        return self._find_prediction(payload).keep(self._keep, str(payload["split"]), model, payload["mask"])

    @answering
    def download(self, payload: Payload) -> Payload:
        """Writes a result as files; the browser fetches the one whose path it gets."""
        row, request = self._find_result(payload)
        threshold, what, name = float(payload["threshold"]), payload["what"], stem_of(request.item.name)
        notes: list[str] = []
        with results_folder() as folder:
            if what == "all":
                path = folder / f"{name}_results.zip"
                with ResultArchive(path, threshold, name_settings(self._engine, request.settings)) as archive:
                    entry = archive.add(row)
                if "error" in entry:
                    raise ValueError(entry["error"])
                notes = entry["notes"]
            elif what == "report":
                path = folder / f"{name}_measurements.json"
                report = describe(self._engine, row, request, threshold)
                path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            elif what == "overlay":
                path = folder / save_overlay(row, threshold, folder, name)
            else:
                names = save_mask(row, threshold, folder, name)
                notes += filter(None, [find_mask_problem(row, names)] if what == "native" else [])
                path = folder / (names[0] if what == "native" else names[-1])
            return {"path": serve_file(path), "name": path.name, "notes": list(map(say, notes))}

    def _run(self, job: Job, payload: Payload) -> Payload:
        source = self._find_source(payload)
        if source.kind == "many" and payload.get("row") is None:
            return self._run_many(job, source, payload)
        request = self._make_request(source, payload)
        shown = payload.get("slice")
        return self._show(self._segment(request, job.step), request, float(payload["threshold"]), shown)

    def _segment(self, request: Request, progress: Progress | None = None) -> FileResult:
        """A slice or all of them; `progress` is called between steps, and what it raises stops the work."""
        if request.slice_index is not None:
            return self._engine.segment(request, progress)
        with closing(self._engine.segment_volume(request)) as steps:
            for step in steps:
                if isinstance(step, tuple) and progress is not None:
                    progress(*step)
        assert isinstance(step, FileResult)  # the last
        return step

    def _run_many(self, job: Job, source: Source, payload: Payload) -> Payload:
        settings, threshold = _make_settings(payload), float(payload["threshold"])
        self._engine.checkpoint(settings.model)
        rows: list[Payload] = []
        items = [check_caption(item) for item in source.items]
        stopped = None
        with results_folder() as folder:
            path = folder / "segmentations.zip"
            with ResultArchive(path, threshold, name_settings(self._engine, settings)) as archive:
                try:
                    job.step(0, len(items))
                    for row in self._engine.segment_many(items, settings, lambda *_: job.step(0, 0)):
                        facts = archive.add(row)
                        rows.append({**facts, **_show_row(row, facts, threshold, settings)})
                        job.step(len(rows), len(items))
                except Stopped:
                    if not rows:
                        raise
                    stopped = say(f"Stopped: {len(rows)} of {len(items)} are done and in the zip.")
            return {
                "kind": "many",
                "rows": rows,
                "suggested_tiles": any(row.get("suggested_tiles") for row in rows),
                "path": serve_file(path),
                "name": path.name,
                "stopped": stopped,
            }

    def _find_source(self, payload: Payload) -> Source:
        if payload.get("example") is not None:
            example = self._examples[int(payload["example"])]
            text = payload.get("text")
            item = make_item(example.path, example.text if text is None else text)
            return self._as_source(item)
        text = "" if payload.get("row") is not None else clean_caption(payload.get("text"))
        paths = tuple(find_upload(path) for path in payload.get("files") or [])
        if not paths:
            raise ValueError("Add an image first.")
        if (paths, text) not in self._sources:
            self._sources[paths, text] = self._read_source(paths, text)
        return self._sources[paths, text]

    def _read_source(self, paths: tuple[Path, ...], text: str) -> Source:
        items = tuple(collect([str(path) for path in paths], text))
        is_one = len(paths) == 1 and len(items) == 1 and not items[0].problem and items[0].text == text
        in_zip = items[0].member is not None and not is_series(paths[0])
        if len(paths) > 1 or (in_zip and not is_one):
            return Source("many", items)
        return self._as_source(items[0] if in_zip else make_item(paths[0], text))

    def _as_source(self, item: Item) -> Source:
        return Source("volume" if len(self._engine.read(item)) > 1 else "image", (item,))

    def _make_request(self, source: Source, payload: Payload) -> Request:
        item = source.items[int(payload.get("row") or 0)]
        if item.problem:
            raise ValueError(item.problem)
        if source.kind == "many":  # the words are those of this file, whatever a CSV file says
            item = replace(item, text=clean_caption(payload.get("text")))
        slices = len(self._engine.read(item))
        check_slices(item, slices)
        settings = _make_settings(payload)
        all_slices = payload.get("all") or source.kind == "many" or self._engine.is_volumetric(settings.model)
        index = None if slices > 1 and all_slices else int(payload.get("slice") or 0)
        return Request(item, settings, index)

    def _find_result(self, payload: Payload) -> tuple[FileResult, Request]:
        """The result of a request, which is computed again where it is not kept any more."""
        request = self._make_request(self._find_source(payload), payload)
        return self._segment(request), request

    def _find_prediction(self, payload: Payload) -> Prediction:
        row, request = self._find_result(payload)
        index = int(payload["slice"]) if request.slice_index is None else request.slice_index
        return Prediction(row, request, index, float(payload["threshold"]))

    def _show(self, row: FileResult, request: Request, threshold: float, shown: int | None) -> Payload:
        """All that the page shows of a result; `shown` is the slice that it shows already."""
        assert row.scan is not None and row.result is not None
        facts = describe(self._engine, row, request, threshold)
        result = row.result
        if isinstance(result, VolumeSegmentation):
            said, index = result.middle, _find_largest(result, threshold, shown)
            maps: Payload = {"map": _encode_counts(result.counts[index])}
            if self._engine.is_volumetric(request.settings.model):
                maps["planes"] = _serve_planes(row)
        else:
            said, index = result, request.slice_index or 0
            null = result.null_probabilities
            maps = {
                "map": _encode_counts(count_thresholds(result.probabilities)),
                "null": None if null is None else _encode_counts(count_thresholds(null)),
                "classes": _encode_classes(result),
            }
        return {
            "kind": "volume" if len(row.scan) > 1 else "image",
            "whole": isinstance(result, VolumeSegmentation),
            "name": request.item.name,
            **_show_slice(row.scan.image(index), index, len(row.scan)),
            **maps,
            "facts": facts,
            "text": said.text or "",
            "reading": _show_reading(said.reading, request.settings.side),
            "absence": (said.described or {}).get("absence") if said is result else None,
            "frontal": any(shows(said, facts, name) for name in FRONTAL),
            "family": next((name for name in FAMILIES if shows(said, facts, name)), None),
            "verdict": judge(said),
            "notes": [say(sentence) for sentence in list_notes(said, facts)],
            "suggested_tiles": needs_tiles(said, facts, request.settings),
            "captions": _write_captions(said, request.settings.side),
            "native": has_own_mask(row),
        }

    def _show_example(self, example: Example) -> Payload:
        item = make_item(example.path, example.text)
        scan = self._engine.read(item)
        picture = scan.image(len(scan) // 2).convert("RGB")
        picture.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
        return {
            "name": item.name,
            "text": item.text,
            "tile_size": example.tile_size,
            "label": example.label or _name_kind(example.text),
            "picture": _encode_picture(picture, 80),
        }


def _name_kind(text: str) -> str:
    """What the images are of which a caption speaks; blank where it speaks of none that is known."""
    caption = parse_caption(text)
    return "" if caption is None else describe_kinds([caption.family])


def _as_function(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Gradio marks the functions that a browser may call, which bound methods do not let it do."""

    async def call(payload: Payload) -> Any:
        return await method(payload)

    call.__name__ = method.__name__
    return call


def _find_links(model: str) -> dict[str, str]:
    """Where a Space's code and a model of the Hub are described."""
    hub, space = "https://huggingface.co/", os.environ.get("SPACE_ID")
    links = {"code": f"{hub}spaces/{space}/tree/main"} if space else {}
    return links | ({"card": hub + model.partition("@")[0]} if "/" in model else {})


def judge(result: Segmentation) -> str:
    """Whether caption and image agree, in a word that the page explains."""
    if not result.text:
        return "none"
    if not result.text_used:
        return "unused"
    if result.check is None:
        return "unjudged"
    if result.check.score < 0.5:
        return "differs"
    return "partly" if result.check.disagreements else "fits"


def list_notes(result: Segmentation, facts: Payload) -> list[str]:
    """Sentences that a reader of the mask must know. Of an image that is out of scope, none says what it shows."""
    notes = [facts["out_of_scope"], *facts["notes"]]
    if result.text and not result.text_used:
        notes.append((result.reading and result.reading.message) or NOT_USED)
    if result.check is not None and not facts["out_of_scope"]:
        sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in result.check.disagreements]
        is_turned = facts["side"] == "patient" and _has_sides(result.reading)
        notes += map(_turn_words, sentences) if is_turned else sentences
    return [note for note in notes if note]


def shows(result: Segmentation, facts: Payload, family: str) -> bool:
    """Whether it is an image of a family: as the model sees it, or as its mask is named where it cannot tell."""
    if facts["out_of_scope"]:
        return False
    if result.scope is not None:
        return result.scope.kind == family
    return FAMILIES[family].finding in result.labels


def needs_tiles(result: Segmentation, facts: Payload, settings: Settings) -> bool:
    """Whether it is a slide that was shrunk."""
    return shows(result, facts, "nuclei") and max(result.image.size) > LARGEST_UNTILED and not settings.tile_size


def compare(row: FileResult, request: Request, threshold: float, truth: Path) -> dict[str, float]:
    """Dice and IoU with a true mask.

    Raises:
        OSError, ValueError: If the mask cannot be used.
    """
    assert row.result is not None and row.scan is not None
    masks, mask = read_mask(truth), row.result.mask(threshold)
    expected = masks
    if request.slice_index is not None:
        expected = masks[request.slice_index if len(masks) == len(row.scan) else 0]
    if expected.shape != mask.shape:
        sizes = [" x ".join(map(str, shape[::-1])) for shape in (expected.shape, mask.shape)]
        raise ValueError(f"The true mask has {sizes[0]} pixels and the image {sizes[1]}; they must be of one size.")
    return overlap(mask, expected)


def write_caption(family_name: str, finding: Finding) -> str:
    """A caption that states a finding, in the words of the family's data."""
    family = FAMILIES[family_name]
    if isinstance(family, LungInfectionFamily):
        left, right = (tuple(finding.get(lung, ())) for lung in family.LUNGS.values())
        finding = {**(lung_finding(left, right) if left or right else {}), **finding}
        return family.render_finding(finding)
    try:
        return family.render(Caption(family.name, (finding,)))
    except ValueError:  # no sentence of the family has them all
        return " ".join(family.render_finding({name: value}) for name, value in finding.items())


def _model(payload: Payload) -> str:
    return str(payload.get("model") or "")


def _make_settings(payload: Payload) -> Settings:
    side = str(payload.get("side") or "image")
    return Settings(_model(payload), side, tile_size=int(payload.get("tile_size") or 0))


def _has_sides(reading: Any) -> bool:
    return reading is not None and reading.caption is not None and FAMILIES[reading.caption.family].has_sides


def _turn_words(sentence: str) -> str:
    """A sentence about the image's left and right, said of the patient's."""
    turned = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b(?:[Ll]eft|[Rr]ight)\b", lambda match: turned[match[0]], sentence)


def _write_captions(result: Segmentation, side: str) -> list[Payload]:
    """The likeliest captions, with left and right as the visitor means them."""
    captions = (result.described or {}).get("captions", [])[:SHOWN_CAPTIONS]
    turn = turn_sides if side == "patient" else str
    return [{**caption, "text": turn(caption["text"])} for caption in captions]


def _show_reading(reading: Any, side: str) -> Payload | None:
    """What was understood of a caption, for the chips, with left and right as the visitor means them."""
    if reading is None:
        return None
    caption = reading.caption
    if side == "patient" and reading.text and _has_sides(reading):
        caption = parse_caption(turn_sides(reading.text)) or caption
    findings = [
        [[name, " ".join(value) if isinstance(value, tuple) else value] for name, value in finding.items()]
        for finding in (caption.findings if caption else ())
    ]
    return {
        "understood": reading.understood,
        "judged": reading.judged,
        "absent": reading.absent,
        "family": caption and caption.family,
        "findings": findings,
        "unknown": list(reading.unknown_words),
        "corrections": [list(pair) for pair in reading.corrections],
        "message": say(reading.message),
    }


def _show_family(name: str) -> Payload:
    family = FAMILIES[name]
    attributes = [
        {"name": attribute.name, "values": attribute.values, "multiple": attribute.multiple}
        for attribute in family.attributes
    ]
    return {"name": name, "attributes": attributes}


def _show_slice(image: Image.Image, index: int, slices: int) -> Payload:
    shown = image.convert("RGB") if image.mode not in ("L", "RGB") else image
    if max(shown.size) > SHOWN_IMAGE:
        shown = shown.copy()
        shown.thumbnail((SHOWN_IMAGE, SHOWN_IMAGE))
    return {
        "image": _encode_picture(shown, 92),
        "width": image.width,
        "height": image.height,
        "slice": index,
        "slices": slices,
    }


def _find_largest(result: VolumeSegmentation, threshold: float, shown: int | None = None) -> int:
    """The slice with the largest mask; where none has one, that which is shown, or that in the middle."""
    areas = result.areas(threshold)
    if areas.any():
        return int(areas.argmax())
    return len(areas) // 2 if shown is None else shown


def _show_row(row: FileResult, facts: Payload, threshold: float, settings: Settings) -> Payload:
    """What the table shows of a file beside its entry in the report."""
    asked = row.item.text or ""
    if row.result is None or row.scan is None or "error" in facts:
        return {"thumbnail": None, "problem": say(facts["error"]), "asked": asked}
    if isinstance(row.result, VolumeSegmentation):
        said, index = row.result.middle, _find_largest(row.result, threshold)
        picture = draw_overlay(row.scan.image(index), row.result.mask(threshold, index))
    else:
        said, picture = row.result, draw_overlay(row.result.image, row.result.mask(threshold))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return {
        "thumbnail": _encode_picture(picture, 80),
        "verdict": judge(said),
        "suggested_tiles": needs_tiles(said, facts, settings),
        "asked": asked,
        "said_notes": list(map(say, facts["notes"])),
    }


def _serve_planes(row: FileResult) -> Payload:
    """The three planes of a volume, whose voxels the browser fetches as a file."""
    assert row.scan is not None and isinstance(row.result, VolumeSegmentation)
    with results_folder() as folder:
        path = folder / f"{stem_of(row.item.name)}_planes.bin"
        planes = write_planes(path, row.scan, row.result)
        return {**planes, "path": serve_file(path)}


def _encode_picture(image: Image.Image, quality: int) -> str:
    content = io.BytesIO()
    image.save(content, "jpeg", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _encode_counts(counts: np.ndarray) -> Payload:
    """Bytes `(height, width)`, compressed; large maps at a size that a browser draws within a frame."""
    if max(counts.shape) > SHOWN_MAP:
        picture = Image.fromarray(counts)
        picture.thumbnail((SHOWN_MAP, SHOWN_MAP), Image.Resampling.NEAREST)
        counts = np.asarray(picture)
    return _encode_map(counts)


def _encode_map(values: np.ndarray) -> Payload:
    """Bytes `(height, width)`, compressed."""
    height, width = values.shape
    data = base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()
    return {"width": width, "height": height, "data": data}


def _encode_classes(result: Segmentation) -> Payload | None:
    """Of several labels, which has each pixel: their numbers, from 1, and 0 for the background."""
    if len(result.labels) == 1:
        return None
    likeliest = result.scores.argmax(0).astype(np.uint8) + 1
    likeliest[np.isin(likeliest, [index + 1 for index, label in enumerate(result.labels) if label == BACKGROUND])] = 0
    return _encode_counts(likeliest)
