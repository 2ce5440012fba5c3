"""A Space in which the network runs in the visitor's own browser: its folder, which any web server can serve."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import nn

from ..inference.backends import NETWORK
from ..inference.segmenter import Segmenter
from ..io.checkpoints import find_checkpoint
from ..io.examples import read_examples
from ..io.hub import local_folder, split_revision
from ..model.captions_lvit import render_caption
from ..model.image_processing_lvit import LViTImageProcessor
from ..model.modeling_lvit import LViTForImageSegmentation
from .export import TextTower, export_graph, free_length, prepare_model, probe_tokens, probe_vectors
from .model_card import EXAMPLES
from .npm import PACKAGES, copy_packages


PAGE = Path(__file__).with_name("static")
TEMPLATE = Path(__file__).with_name("static_space.md")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

# Files that are loaded when they are needed, with a bar that shows how far they are. They are compressed.
LARGE = ("*.onnx", "*.wasm")

# Weights of fewer values stay in float32: they take no room.
FEWEST_HALVED = 1024
SCOPE_HEAD = "scope_head"  # of variances, which need all digits


class BrowserNetwork(nn.Module):
    """The network with all that comes before and after it but does not depend on the size of an image.

    Args:
        model: The model, with its batch norms folded.
        image_processor: The checkpoint's.
    """

    image_mean: torch.Tensor
    image_std: torch.Tensor

    def __init__(self, model: LViTForImageSegmentation, image_processor: LViTImageProcessor):
        super().__init__()
        self.model = model
        self.image_processor = image_processor
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(getattr(image_processor, name)).reshape(-1, 1, 1))

    def forward(
        self, pixels: torch.Tensor, text_embeds: torch.Tensor, text_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Takes RGB in [0, 255], of shape `(1, 3, height, width)`, and word vectors, of which there may be none.

        Returns:
            `probabilities` in [0, 1] of shape `(1, 1, height, width)`, and `scope` where the model has a scope head.
        """
        pixel_values = (pixels * self.image_processor.rescale_factor - self.image_mean) / self.image_std
        outputs = self.model(pixel_values=pixel_values, text_embeds=text_embeds, text_mask=text_mask)
        results = {"probabilities": self.image_processor.calibrate(outputs.logits)}
        if outputs.scope is not None:
            results["scope"] = outputs.scope
        return results


def stage_static_space(name: str, folder: Path):
    """Puts the Space's files into an empty folder: page, runtime, network, text tower, tokenizer and examples.

    Args:
        name: The checkpoint: a shipped one's name, a folder, or `USER/NAME[@REVISION]`. Its network is exported for
            one image of the processor's size, with weights in float16.
        folder: Where the files go.

    Raises:
        ValueError: If the checkpoint cannot be loaded, the page cannot do what it does, or a package of npm does not
            come; the message says what is wrong.
    """
    segmenter = Segmenter.from_pretrained(name, backend="torch")
    _check(name, segmenter)
    copy_packages(folder)
    path, checkpoint = find_checkpoint(name), local_folder(name)
    for file in PAGE.iterdir():
        shutil.copyfile(file, folder / file.name)
    for tokenizer_file in TOKENIZER_FILES:
        shutil.copyfile(checkpoint / tokenizer_file, folder / tokenizer_file)
    examples = _copy_examples(checkpoint / EXAMPLES, folder)
    _export(segmenter, folder)
    large = [file for pattern in LARGE for file in sorted(folder.glob(pattern))]
    for file in large:
        file.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    sizes = {file.name: file.stat().st_size for file in large}
    settings = {**_describe(segmenter), "examples": examples, "bytes": sizes}
    (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    model = None if Path(path).exists() else split_revision(path)[0]
    _fill(TEMPLATE, folder / "README.md", packages=PACKAGES, model=model)
    _fill(PAGE / "sw.js", folder / "sw.js", **_list_small(folder, sizes))


def _check(name: str, segmenter: Segmenter):
    """Refuses what the page does not do."""
    config, processor = segmenter.model.config, segmenter.processor
    image_processor = processor.image_processor
    if segmenter.is_volumetric or config.num_labels > 1:
        raise ValueError(f"{name} cannot run in a browser: the page segments images, with one label.")
    default, divisor = LViTImageProcessor(), image_processor.size_divisor
    names = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_flip_channel_order", "resample")
    unknown = [setting for setting in names if getattr(image_processor, setting) != getattr(default, setting)]
    unknown += ["pad_short_text"] if processor.pad_short_text else []
    unknown += ["size"] if image_processor.size.height % divisor or image_processor.size.width % divisor else []
    if unknown:
        raise ValueError(f"{name} cannot run in a browser: the page does not do as its {' and '.join(unknown)} says.")


def _copy_examples(source: Path, folder: Path) -> list[dict[str, str]]:
    """Copies a checkpoint's examples. Of one that is segmented in tiles it takes the tile in the middle."""
    if not source.is_dir():
        return []
    (folder / EXAMPLES).mkdir()
    examples = []
    for example in read_examples(source):
        path, side = example.path, example.tile_size
        target = folder / EXAMPLES / (path.name if side is None else f"{path.stem}.png")
        if side is None:
            shutil.copyfile(path, target)
        else:
            _cut_middle(Image.open(path).convert("RGB"), side).save(target)
        examples.append({"image": target.relative_to(folder).as_posix(), "text": example.text})
    return examples


def _cut_middle(image: Image.Image, side: int) -> Image.Image:
    side = min(side, *image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _export(segmenter: Segmenter, folder: Path):
    """Writes `network.onnx` and `text_model.onnx`, each with its weights inside."""
    model, image_processor = segmenter.model, segmenter.processor.image_processor
    prepare_model(model)
    pixels = torch.zeros(1, 3, image_processor.size.height, image_processor.size.width)
    inputs = {"pixels": pixels, **probe_vectors(model.config)}
    network = export_graph(BrowserNetwork(model, image_processor), inputs, "onnx")
    tower = export_graph(TextTower(model), probe_tokens(), "onnx", free_length(model.config))
    for exported, name in ((network, "network.onnx"), (tower, "text_model.onnx")):
        _save_half(exported.components[NETWORK].program, folder / name)


def _save_half(program: Any, path: Path):
    """Saves a graph with its weights in float16. The runtime widens them while it loads, and computes in float32."""
    import onnx
    import onnx_ir
    from onnx import helper, numpy_helper

    model = onnx_ir.to_proto(program)
    casts = []
    for weight in model.graph.initializer:
        values, name = numpy_helper.to_array(weight), weight.name
        if values.dtype == np.float32 and values.size >= FEWEST_HALVED and SCOPE_HEAD not in name:
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
    for node in model.graph.node:
        del node.metadata_props[:]  # where in the source it comes from
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _describe(segmenter: Segmenter) -> dict[str, Any]:
    """What the page must know of the checkpoint."""
    config, processor = segmenter.model.config, segmenter.processor
    size, text_config = processor.image_processor.size, config.get_text_config()
    most = text_config.max_position_embeddings
    [tokens] = processor(text=[most * "a "])["input_ids"]
    captions = segmenter.head.captions if segmenter.can_describe else []
    return {
        "size": [size.height, size.width],
        "vectors": [config.num_text_vectors, text_config.hidden_size],
        "longest": min(len(tokens), most),
        "kinds": config.scope_kinds,
        "captions": [render_caption(caption) for caption in captions],
    }


def _list_small(folder: Path, large: dict[str, int]) -> dict[str, Any]:
    """The files that a first visit keeps at once, and a digest of all, by which the browser knows a newer Space."""
    digest = hashlib.sha256()
    small = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
            name = file.relative_to(folder).as_posix()
            small += [] if name in large or name in (*TOKENIZER_FILES, "sw.js", "README.md") else [name]
    return {"digest": digest.hexdigest()[:16], "files": small}


def _fill(template: Path, target: Path, **fields: Any):
    content = jinja2.Template(template.read_text(encoding="utf-8"), keep_trailing_newline=True).render(fields)
    target.write_text(content, encoding="utf-8")
