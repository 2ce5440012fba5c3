# Copyright 2026 The lvit_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Image processor for LViT: any medical image a user has, to the tensors the model takes, and back to masks."""

import io
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging


logger = logging.get_logger(__name__)

CONTENT_TYPES = (bytes, bytearray, memoryview)
IMAGE_TYPES = (str, os.PathLike, Image.Image, np.ndarray, torch.Tensor, *CONTENT_TYPES)
NUMBERS_OF_CHANNELS = (1, 3, 4)

# Shares of a deep image's pixels that may saturate when it is windowed to 8 bits.
WINDOW_PERCENTILES = (0.5, 99.5)
# A least or greatest value that fills this share of an image is padding, background or saturation.
CONSTANT_SHARE = 0.05
# With fewer values than that, an image is a phantom or a drawing, of which nothing is left out.
FEWEST_LEVELS = 64
# Of so many values and more, every seventh, thirteenth and so on is looked at to find their window.
WINDOW_SAMPLE = 6_000_000
# Floats that reach less than this part of white, or of 255, are measured values of another unit.
DARKEST_WHITE = 0.25

# Of TIFF.
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0

# A mask with more values than that has half-tones, with fewer labels.
MOST_LABELS = 16
LOSSY_FORMATS = ("JPEG", "MPO", "AVIF", "HEIF")
# Of formats that are lossy or not, what a file without loss has. In JPEG 2000 that is the wavelet 5-3, a 1 in the
# marker COD.
LOSSLESS_MARKS = {
    "WEBP": re.compile(b"VP8L"),
    "JPEG2000": re.compile(rb"\xff\x4f\xff\x51((?!\xff\x52\x00).)*\xff\x52\x00.{10}\x01", re.DOTALL),
}
# How far JPEG moves values of a mask's areas.
TRACE = 32
# Of what is not black, the share in areas of dark values that is more than the traces of JPEG.
SOLID_SHARE = 0.02


class _Content(io.BytesIO):
    """A file in memory, by its name in messages."""

    def __str__(self) -> str:
        return "What was given as bytes"


def open_image(path: str | os.PathLike) -> Image.Image:
    """Opens and decodes an image file without changing its mode, so that 16-bit files keep their depth.

    Pillow has no mode for colours of 16 bits: such an image has 8, and all of them for `pil_to_array`, until it is
    changed or copied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no image that Pillow reads, is broken, or is too large to be one.
    """
    try:
        image = Image.open(path)
        rawmodes = {_rawmode(tile) for tile in image.tile}
        if image.format in LOSSLESS_MARKS and image.fp is not None:  # Pillow does not tell
            image.fp.seek(0)
            image.info["lossless"] = has_no_loss(image.fp.read(), image.format)
        _load(image)
        if len(rawmodes) == 1 and (match := re.fullmatch("(LA|RGBA?);16([BLN])", rawmodes.pop() or "")):
            image.deep_colors = _read_deep_colors(path, *match.groups())  # type: ignore[attr-defined]
    except FileNotFoundError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image in a format that Pillow reads (PNG, JPEG, TIFF, BMP, WebP, ...).")
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}")
    except Exception as error:
        raise ValueError(f"{path} is a broken image file: {describe_error(error)}") from error
    return image


def has_no_loss(content: bytes, kind: str) -> bool:
    """Whether an image of one of `LOSSLESS_MARKS` was compressed without loss, as far as its file says."""
    return LOSSLESS_MARKS[kind].search(content) is not None


def _load(image: Image.Image):
    """Decodes an image that may not be decoded yet.

    A TIFF file that is to be turned by a quarter has `_tile_size` as it is stored and `size` as it is shown. Pillow
    maps the pixels of one that it knows by name into memory with the wrong one of these.
    """
    name = getattr(image, "filename", "")
    if getattr(image, "_tile_size", image.size) != image.size:
        image.filename = ""  # type: ignore[attr-defined]
    image.load()
    if name:
        image.filename = name  # type: ignore[attr-defined]


def describe_error(error: Exception) -> str:
    """The first line of what a library says, or what kind of error it is."""
    return next(iter(str(error).splitlines()), "").strip() or type(error).__name__


def _read_deep_colors(path: str | os.PathLike, channels: str, order: str) -> np.ndarray:
    """The pixels of a file with 16 bits in each of several channels, of which Pillow keeps the high bytes only.

    The file is decoded again, with the bytes in the other order too.

    Returns:
        `uint16` of shape `(height, width)` or `(height, width, 3)`, upright and on black.
    """
    if channels == "LA":  # two channels of two bytes are four of one
        pixels = _decode(path, "RGBA", "RGBA").astype(np.uint16)
        high, low = pixels[..., 0::2], pixels[..., 1::2]
    else:
        other = "L" if order == "B" or order == "N" and sys.byteorder == "big" else "B"
        high, low = (_decode(path, channels, f"{channels};16{kind}").astype(np.uint16) for kind in (order, other))
    deep = high << 8 | low
    if channels.endswith("A"):
        deep = np.rint(deep[..., :-1] * (deep[..., -1:] / 65535)).astype(np.uint16)
    return deep[..., 0] if deep.shape[-1] == 1 else deep


def _rawmode(tile: Any) -> str | None:
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    return arguments[0] if arguments and isinstance(arguments[0], str) else None


def _decode(path: str | os.PathLike, mode: str, rawmode: str) -> np.ndarray:
    with Image.open(path) as image:
        image._mode = mode
        image.tile = [
            tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
            for tile in image.tile
        ]
        return np.asarray(make_upright(image))


def flatten_transparency(image: Image.Image) -> Image.Image:
    """Puts a transparent image on black, the background of radiographs and endoscopes."""
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(background, image).convert("RGB")


def make_upright(image: Image.Image) -> Image.Image:
    """Applies EXIF's orientation; an image whose EXIF block is damaged stays as it is stored."""
    _load(image)  # so that what is raised below is about EXIF
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        logger.warning("The EXIF block of an image is damaged: the image is taken as it is stored.")
        logger.info("The damaged EXIF block:", exc_info=True)
        return image


def pil_to_array(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image, upright, `(height, width)` or `(height, width, 3)`; the first of several frames."""
    try:
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1:
            logger.warning(f"The image has {num_frames} frames; the first one is used.")
            image.seek(0)
        _load(image)  # a file may be decoded only now
    except Exception as error:
        raise ValueError(f"The image is broken: {describe_error(error)}") from error
    return frame_to_array(image)


def frame_to_array(image: Image.Image) -> np.ndarray:
    """As `pil_to_array`, of the frame at which the image is."""
    if hasattr(image, "deep_colors"):
        return image.deep_colors
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO  # a copy does not know
    image = make_upright(image)
    deep = image.mode == "F" or image.mode.startswith("I")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info and not deep:
        image = flatten_transparency(image)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB") and not deep:
        image = image.convert("RGB")
    return _correct_deep(np.asarray(image), image, white_is_zero) if deep else np.asarray(image)


def _correct_deep(array: np.ndarray, image: Image.Image, white_is_zero: bool) -> np.ndarray:
    """What Pillow leaves as it is stored where an image is deeper than 8 bits: negatives and transparent values."""
    transparent = array == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
    if white_is_zero:
        array = np.iinfo(array.dtype).max - array if array.dtype.kind == "u" else -array
    return array if transparent is None else np.where(transparent, array.min(), array)


def find_window(values: np.ndarray) -> tuple[float, float]:
    """The values that become black and white: the 0.5 and 99.5 percentiles of what is image.

    Values that are no numbers are left out, and so is a least or greatest value that fills 5 % or more: padding,
    background, saturation. So one extreme value does not decide, nor does a wide border.

    Args:
        values: Measured values in any unit, of any shape; of many, some are looked at, spread evenly.
    """
    flat = values.reshape(-1)
    sample = flat[:: 1 + 6 * (flat.size // WINDOW_SAMPLE)]  # neither of every second column nor of one colour alone
    if sample.dtype.kind == "f":
        sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    lowest, highest = sample.min(), sample.max()
    ends = [end for end in (lowest, highest) if np.count_nonzero(sample == end) >= CONSTANT_SHARE * sample.size]
    image = sample[~np.isin(sample, ends)] if ends else sample
    if ends and len(np.unique(image)) < FEWEST_LEVELS:
        image = sample
    low, high = (float(value) for value in np.percentile(image, WINDOW_PERCENTILES))
    return (low, high) if low < high else (float(lowest), float(highest))


def apply_window(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps values linearly to 8 bits, `low` to 0 and `high` to 255; what is no number becomes 0."""
    floats: np.ndarray = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    shares = (floats - low) / max(high - low, float(np.finfo(np.float32).tiny))
    return np.rint(np.nan_to_num(shares).clip(0, 1) * 255).astype(np.uint8)


def window_to_uint8(array: np.ndarray) -> np.ndarray:
    """Maps an image of any depth to 8 bits.

    `uint8` stays. Floats of which all but some outliers lie within [0, 1] are taken as shares of white, and those
    within [0, 255] as 8-bit values, unless all would be dark. Everything else (16 bits, Hounsfield units) is
    windowed linearly, see `find_window`.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    white = _find_white(array) if array.dtype.kind == "f" else None
    return apply_window(array, *(find_window(array) if white is None else (0.0, white)))


def _find_white(array: np.ndarray) -> float | None:
    """1 where floats are shares of white, 255 where they are 8-bit values, and `None` where they are neither."""
    marked = array[array != 0] if array.any() else array
    low, high = np.percentile(marked, WINDOW_PERCENTILES)
    if low < 0 or high > 255:
        return None
    if (marked == np.rint(marked)).all():
        return 1.0 if array.max() <= 1 else 255.0
    white = 1.0 if high <= 1 else 255.0
    return white if high >= DARKEST_WHITE * white else None


def is_image(image: Any) -> bool:
    """Whether it is one image of a kind that [`LViTImageProcessor`] takes, or an array of several."""
    return isinstance(image, IMAGE_TYPES) or hasattr(image, "read")


def check_kind(image: Any):
    """Refuses what is no image."""
    if not is_image(image):
        raise ValueError(
            f"An image must be a PIL image, a path, a URL, a file, an array or a tensor, got {type(image)}."
        )


def check_pixels(array: np.ndarray, is_map: bool):
    """Refuses images and maps without pixels, and images with values that are no numbers."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"The values of an image must be booleans, integers or floats, got {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"The image has no pixels: its shape is {array.shape}.")
    if not is_map and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("The image has values that are NaN or infinite; replace them before segmenting.")


def check_threshold(threshold: Any) -> float:
    """Returns a probability as a float, and refuses what is none."""
    if not isinstance(threshold, (int, float, np.number, torch.Tensor)) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability between 0 and 1, got {threshold!r}.")
    return float(threshold)


def find_foreground(mask: Image.Image | np.ndarray) -> tuple[np.ndarray, str]:
    """Reads a mask, however it is stored. Every part of the project that reads one calls this function.

    - Booleans: what is true. Floats within [0, 1]: what is above 0.5.
    - Two values, one of them 0: the other one, whichever it is.
    - Levels of grey, as JPEG and smooth edges make them: what is above half of 255, or of 65535 in masks of 16 bits.
    - Colours, also of a palette: the same for their largest channel. Where there are few colours and some of those
      that fill areas are darker, colours are classes: every one but black.
    - Labels, a few whole numbers or all from 0 on, below half of that range: every one but 0.
    - Opacity is no foreground: a transparent mask is put on black.

    Args:
        mask: A PIL image of any mode, or values of shape `(height, width)` or `(height, width, 3 or 4 channels)`.

    Returns:
        Booleans of shape `(height, width)`, and what was taken for foreground, in words.

    Raises:
        ValueError: If it cannot be known which pixels are meant; the message says what to save instead.
    """
    array = pil_to_array(mask) if isinstance(mask, Image.Image) else mask
    if array.ndim == 3:
        array = _flatten_opacity(np.moveaxis(array, -1, 0))
        array = array[0] if (array == array[:1]).all() else np.moveaxis(array, 0, -1)
    if isinstance(mask, Image.Image):
        _check_hidden_mask(mask, array)
        if _is_lossy(mask):
            return find_lossy(_brightest(array), str(mask.format), array)
    if array.ndim == 2:
        return find_labels(array)
    brightest = _brightest(array)
    if array.dtype.kind in "ui" and _has_dark_areas(array, brightest):
        return _check_background(array, brightest > 0, traces=0), "every colour but black"
    foreground, rule = find_labels(brightest)
    return _check_background(array, foreground), rule


def find_lossy(values: np.ndarray, kind: str, colors: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """As `find_foreground`, of values that were compressed so that they are no longer exact, which keeps no labels.

    Args:
        values: The mask, with any number of axes.
        kind: Its format, for messages.
        colors: What the values are the brightest channels of.
    """
    half = half_of_range(values)
    if values.any() and values.max() <= half:
        raise ValueError(
            f"The brightest value of this {kind} mask is {values.max()}, and its compression does not keep labels. "
            "Save the mask as PNG."
        )
    return _check_background(values if colors is None else colors, values > half), f"values above {half:g}"


def _is_lossy(image: Image.Image) -> bool:
    """Whether an image was compressed so that its values are no longer exact, as far as one can know."""
    compression = image.info.get("compression") if image.format == "TIFF" else None
    return image.format in LOSSY_FORMATS or compression == "jpeg" or not image.info.get("lossless", True)


def _brightest(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 2 else array.max(axis=-1)


def _has_dark_areas(array: np.ndarray, brightest: np.ndarray) -> bool:
    """Whether few colours `(height, width, 3)` are classes: some of those that fill areas are dark."""
    codes = _number_colors(array)
    dark = (brightest <= half_of_range(brightest)) & (brightest > 0)
    return _fill_areas(dark, codes) and len(np.unique(codes)) <= MOST_LABELS


def find_labels(values: np.ndarray, are_labels: bool = False) -> tuple[np.ndarray, str]:
    """As `find_foreground`, of values with one channel and any number of axes, the last two of which make a picture.

    Args:
        values: The mask.
        are_labels: Whether whole numbers are labels whatever they are, as in formats of volumes.
    """
    if values.dtype == bool:
        return values, "what is true"
    if values.dtype.kind == "f":
        if np.isinf(values).any():
            raise ValueError("A mask has no infinite values. Save 0 for what is no foreground.")
        values = np.nan_to_num(values)
    lowest, highest = values.min(), values.max()
    if lowest < 0:
        raise ValueError(f"A mask has no negative values, this one has {lowest:g}. Save 0 for what is no foreground.")
    present = list_values(values)
    labels = present[present > 0]
    if len(labels) < 2:
        return values > 0, f"the value {highest:g}" if highest else "nothing: all values are 0"
    if values.dtype.kind == "f" and (labels != np.rint(labels)).any():
        return (values > 0.5, "values above 0.5") if highest <= 1 else _cut(values)
    if not are_labels and highest > half_of_range(values):
        _refuse_dark_areas(values, labels)
        return _cut(values)
    few, dense = len(labels) < MOST_LABELS, labels[-1] == len(labels)
    if not (are_labels or few or dense):
        raise ValueError(
            f"The brightest value of the mask is {highest:g}, and there are {len(labels)} of them: it looks like a "
            "dark picture. Save the mask with the values 0 and 255."
        )
    if lowest > 0:
        raise ValueError(f"The mask has the values {_list(labels)}. Save 0 for what is no foreground.")
    return values > 0, f"every value but 0: {_list(labels)}"


def _cut(values: np.ndarray) -> tuple[np.ndarray, str]:
    half = half_of_range(values)
    if values.max() <= half:
        raise ValueError(
            f"The largest value of the mask is {values.max():g}: neither a probability nor a level of grey. Save the "
            "mask with the values 0 and 255."
        )
    return _check_background(values, values > half), f"values above {half:g}"


def _check_background(array: np.ndarray, foreground: np.ndarray, traces: float = TRACE / 255) -> np.ndarray:
    """Returns the foreground, but refuses one that leaves nothing out though greys or colours are several.

    Args:
        array: Values of the shape of the foreground, or with one axis more, the last, of channels.
        foreground: Booleans.
        traces: Share of white by which values of one colour may differ.
    """
    if foreground.all():
        colors = array.reshape(foreground.size, -1).astype(np.float64)
        white = 2 * half_of_range(colors) if colors.max() > 1 else 1
        if np.ptp(colors, axis=0).max() > traces * white:
            raise ValueError(
                "None of the mask's colours is black, so which one is no foreground? Make that one black."
            )
    return foreground


def _refuse_dark_areas(values: np.ndarray, labels: np.ndarray):
    """Refuses areas below half of the range beside brighter ones: labels, or levels of grey?"""
    dark = labels[labels <= half_of_range(values)]
    if len(labels) >= MOST_LABELS or _are_traces(dark, labels[len(dark) :]):
        return
    if _fill_areas(np.isin(values, dark), values):
        raise ValueError(
            f"The mask has areas of the values {_list(labels)}. Are all of them foreground, or only the bright ones? "
            "Save the mask with the values 0 and 255."
        )


def binarize_map(mask: Image.Image | np.ndarray) -> np.ndarray:
    """The foreground of a mask, booleans of shape `(height, width)`; see `find_foreground`."""
    return find_foreground(mask)[0]


def half_of_range(values: np.ndarray) -> float:
    """Half of the least of 255 and 65535 that the values do not exceed; beyond, of the values themselves."""
    highest = float(values.max())
    return next((white for white in (255.0, 65535.0) if highest <= white), highest) / 2


def list_values(values: np.ndarray) -> np.ndarray:
    """The different values, sorted; none of them is negative."""
    if values.dtype.kind == "f" and (values == np.rint(values)).all() and float(values.max()) <= 65535:
        values = values.astype(np.uint16)
    if values.dtype.kind == "f" or values.max() > 65535:
        return np.unique(values)
    parts = values if values.ndim > 2 else [values]  # slice by slice, since counting takes 8 bytes a voxel
    return np.flatnonzero(sum(np.bincount(part.reshape(-1), minlength=65536) for part in parts))


def _is_area(values: np.ndarray) -> np.ndarray:
    """Where a value has four neighbours of the same value in its picture, as within a label and not on an edge."""
    area = np.zeros(values.shape, bool)
    middle = values[..., 1:-1, 1:-1]
    around = (values[..., :-2, 1:-1], values[..., 2:, 1:-1], values[..., 1:-1, :-2], values[..., 1:-1, 2:])
    area[..., 1:-1, 1:-1] = np.logical_and.reduce([middle == other for other in around])
    return area


def _fill_areas(chosen: np.ndarray, values: np.ndarray) -> bool:
    """Whether what was chosen fills areas, and is not only edges and traces between them."""
    return bool(np.count_nonzero(chosen & _is_area(values)) > SOLID_SHARE * np.count_nonzero(values))


def _are_traces(dark: np.ndarray, bright: np.ndarray) -> bool:
    """Whether values are what JPEG makes of 0 and 255, also where it was stored as PNG later."""
    return len(bright) > 1 and 255 - TRACE <= bright[0] <= 255 and bool((dark <= TRACE).all())


def _number_colors(array: np.ndarray) -> np.ndarray:
    """One number for each colour of `(height, width, 3)`."""
    return array.astype(np.int64) @ (1 << 32, 1 << 16, 1)


def _check_hidden_mask(mask: Image.Image, array: np.ndarray):
    """Refuses a mask that is black and whose opacity or palette indices are not all the same."""
    if mask.mode in ("P", "PA", "RGBA", "LA") and not array.any():
        hidden = np.asarray(mask) if mask.mode == "P" else np.asarray(mask)[..., -1]
        if hidden.min() != hidden.max():
            raise ValueError(
                "The mask is black, and only its opacity or its palette's indices differ. Save it with the values 0 "
                "and 255."
            )


def _list(labels: np.ndarray) -> str:
    shown = ", ".join(f"{label:g}" for label in labels[:MOST_LABELS])
    return shown + ", ..." if len(labels) > MOST_LABELS else shown


class LViTImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    do_flip_channel_order (`bool`, *optional*, defaults to `self.do_flip_channel_order`):
        Whether to return channels as BGR, which the reference implementation's weights expect.
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        With `do_pad`, the number of pixels to a multiple of which height and width are padded.
    do_binarize_maps (`bool`, *optional*, defaults to `self.do_binarize_maps`):
        Whether segmentation maps are masks, read by `find_foreground`, rather than class indices.
    """

    do_flip_channel_order: bool
    size_divisor: int
    do_binarize_maps: bool


class LViTImageProcessor(PilBackend):
    r"""
    Turns images into `pixel_values` and segmentation maps into `labels`, and model outputs back into masks.

    Images may be PIL images of any mode, paths, URLs, open files, bytes of files, and numpy arrays or torch tensors of
    shape `(height, width)`, `(height, width, channels)` or `(channels, height, width)`; several of them may be a
    list or anything else that can be iterated over. All are brought to 8-bit RGB first: EXIF orientation is
    applied, transparency is put on black, deep images are windowed (see `window_to_uint8`), and of several frames the
    first is taken.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize to `size`.
        size (`dict`, *optional*, defaults to `{"height": 224, "width": 224}`): Size in pixels of the output.
        resample (`PILImageResampling`, *optional*, defaults to `BILINEAR`): Filter for images; maps use nearest.
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply 8-bit values by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to 1/255): The factor.
        do_normalize (`bool`, *optional*, defaults to `True`): Whether to subtract a mean and divide by a deviation.
        image_mean, image_std (`list[float]`, *optional*, defaults to 0.5): Mean and deviation of each channel.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): Whether to return three channels.
        do_flip_channel_order (`bool`, *optional*, defaults to `False`): Whether to return BGR.
        do_pad (`bool`, *optional*, defaults to `True`):
            Whether to pad on the right and the bottom to multiples of `size_divisor`, with black.
        size_divisor (`int`, *optional*, defaults to 16): See `do_pad`.
        do_binarize_maps (`bool`, *optional*, defaults to `True`):
            Whether segmentation maps are masks (see `find_foreground`) rather than class indices.
        temperature (`float`, *optional*, defaults to 1.0):
            What logits are divided by before they become probabilities, to calibrate these. Positive.
        logit_bias (`float`, *optional*, defaults to 0.0):
            What is added to logits after that, with one label.
    """

    valid_kwargs = LViTImageProcessorKwargs
    model_input_names = ["pixel_values", "original_sizes", "reshaped_input_sizes"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_flip_channel_order = False
    do_pad = True
    size_divisor = 16
    do_binarize_maps = True

    def __init__(self, temperature: float = 1.0, logit_bias: float = 0.0, **kwargs: Unpack[LViTImageProcessorKwargs]):
        if not 0 < temperature < math.inf or not math.isfinite(logit_bias):
            raise ValueError(
                f"temperature must be positive and logit_bias finite, got {temperature} and {logit_bias}."
            )
        super().__init__(**kwargs)
        self.temperature = temperature
        self.logit_bias = logit_bias

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[LViTImageProcessorKwargs],
    ) -> BatchFeature:
        """Preprocesses images, and segmentation maps with them.

        Args:
            images: One image or several.
            segmentation_maps: As many masks, of any size: PIL images, arrays or tensors of shape `(height, width)`.
            **kwargs: Any of the processor's settings, for this call, and `return_tensors`.

        Returns:
            `pixel_values` of shape `(batch_size, channels, height, width)`, float32; `original_sizes` and
            `reshaped_input_sizes` of shape `(batch_size, 2)`, int64, height and width in pixels of the upright images
            and of what they were resized to, without padding; and with maps `labels` of shape
            `(batch_size, height, width)`, int64. The model hands the sizes on, so that
            `post_process_semantic_segmentation` undoes what this call did.

        Raises:
            ValueError: If an image is broken, has no pixels or values that are no numbers, or if the numbers of images
                and maps differ.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens what is not an image yet: paths, URLs, open files and the bytes of files, one or several."""
        source = image_url_or_urls
        if holds_several(source):
            return [self.fetch_images(item) for item in source]
        check_kind(source)
        if isinstance(source, CONTENT_TYPES):
            return open_image(_Content(source))  # type: ignore[arg-type]
        if isinstance(source, os.PathLike) or hasattr(source, "read"):
            return open_image(source)
        if isinstance(source, str) and not source.startswith(("http://", "https://", "data:")):
            return open_image(source)
        return super().fetch_images(source)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        images = self.fetch_images(images)
        shape: tuple[int, ...] = getattr(images, "shape", ())
        if len(shape) == 3 and expected_ndims == 2 and shape[-1] not in NUMBERS_OF_CHANNELS:
            return list(images)  # maps, one behind the other
        flat = list(_flatten(images))
        if not flat:
            raise ValueError("There must be at least one image, got an empty list.")
        return flat

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        is_map: bool = False,
        do_binarize_maps: bool = False,
        **kwargs,
    ) -> np.ndarray:
        """Brings an image or a map to 8 bits, as `(channels, height, width)`. A map has one channel."""
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        if isinstance(image, Image.Image):
            holds_indices = image.mode == "P" and is_map and not do_binarize_maps
            array = np.asarray(image) if holds_indices else pil_to_array(image)
            input_data_format = ChannelDimension.LAST
        else:
            array = image
        check_pixels(array, is_map)
        array = _channels_first(array, input_data_format)
        if is_map and do_binarize_maps:
            mask = image if isinstance(image, Image.Image) else np.moveaxis(array, 0, -1)
            foreground, rule = find_foreground(mask)
            if rule.startswith("every"):
                logger.warning_once(
                    f"Foreground of masks: {rule}. If they are class indices, set do_binarize_maps=False."
                )
            return foreground[None].astype(np.uint8)
        if is_map:
            return _check_classes(array.max(axis=0, keepdims=True))
        array = window_to_uint8(_flatten_opacity(array))
        return np.repeat(array, 3, axis=0) if do_convert_rgb and len(array) == 1 else array

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        do_convert_rgb: bool,
        input_data_format: ChannelDimension | None,
        return_tensors: str | TensorType | None,
        do_binarize_maps: bool,
        **kwargs,
    ) -> BatchFeature:
        images = self._prepare_image_like_inputs(
            images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format
        )
        pixel_values = self._preprocess(images, **kwargs)
        sizes = {array.shape[-2:] for array in pixel_values}
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"Images of different sizes do not fit in one tensor, got {sorted(sizes)} (height, width): "
                "set do_resize=True or pass them one by one."
            )
        original_sizes = [array.shape[-2:] for array in images]
        resized = (kwargs["size"].height, kwargs["size"].width)
        data = {
            "pixel_values": pixel_values,
            "original_sizes": original_sizes,
            "reshaped_input_sizes": [resized] * len(images) if kwargs["do_resize"] else original_sizes,
        }
        if segmentation_maps is not None:
            maps = self._prepare_image_like_inputs(
                segmentation_maps, expected_ndims=2, is_map=True, do_binarize_maps=do_binarize_maps
            )
            if len(maps) != len(images):
                raise ValueError(f"There must be one segmentation map for each image, got {len(maps)}/{len(images)}.")
            unchanged = {"do_rescale": False, "do_normalize": False}
            maps = self._preprocess(maps, **{**kwargs, **unchanged, "resample": PILImageResampling.NEAREST})
            data["labels"] = [array[0].astype(np.int64) for array in maps]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | None,
        do_flip_channel_order: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        do_pad: bool,
        size_divisor: int,
        **kwargs,
    ) -> list[np.ndarray]:
        processed = []
        for image in images:
            if do_resize:
                if not (size.height and size.width):
                    raise ValueError(f"size must give height and width, got {dict(size)}.")
                image = self.resize(image, size, resample)
            if do_pad:
                height, width = (-(-side // size_divisor) * size_divisor for side in image.shape[-2:])
                image = self.pad([image], pad_size=SizeDict(height=height, width=width))[0]
            if do_flip_channel_order:
                image = image[::-1]
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(np.ascontiguousarray(image))
        return processed

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float = 0.5,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Converts model outputs into segmentation maps. Probabilities are resampled, never masks.

        Probabilities are calibrated with the processor's `temperature` and `logit_bias`.

        Args:
            outputs ([`LViTImageSegmentationOutput`]): What the model returned for all that this processor returned,
                `model(**inputs)`, so that it knows the sizes that images had in that call. Of outputs that do not, the
                processor's own settings are undone.
            target_sizes: `(height, width)` of each image, in pixels, as `inputs["original_sizes"]` has them. Without
                them maps keep the size of the logits. Padding is cut off first.
            threshold: Probability above which a pixel is foreground; read where there is one label.
            return_segmentation_scores: Whether to return probabilities too.

        Returns:
            For each image a map of shape `(height, width)`: 1 where foreground and 0 elsewhere with one label, class
            indices with several. With scores, objects with `segmentation` (that map) and `segmentation_scores`
            (probabilities in [0, 1] of shape `(num_labels, height, width)`).

        Raises:
            ValueError: If `threshold` is no probability, or `target_sizes` are not one size for each image.
        """
        threshold = check_threshold(threshold)
        probabilities = self.calibrate(outputs.logits)
        if target_sizes is not None and len(target_sizes) != len(probabilities):
            raise ValueError(
                f"There must be one target size for each image, got {len(target_sizes)}/{len(probabilities)}."
            )
        reshaped_sizes = getattr(outputs, "reshaped_input_sizes", None)
        results = []
        for index, scores in enumerate(probabilities):
            if target_sizes is not None:
                target_size = _check_size(target_sizes[index])
                reshaped = self._stored_size(scores, target_size) if reshaped_sizes is None else reshaped_sizes[index]
                scores = _restore_size(scores, _check_size(reshaped), target_size)
            segmentation = (scores[0] > threshold).long() if len(scores) == 1 else scores.argmax(0)
            data = {"segmentation": segmentation, "segmentation_scores": scores}
            results.append(SemanticSegmentationPostProcessorOutput(data=data))
        return results if return_segmentation_scores else [result.segmentation for result in results]

    def calibrate(self, logits: torch.Tensor) -> torch.Tensor:
        """Turns logits into probabilities, with `temperature` and, where there is one label, `logit_bias`.

        Args:
            logits: Of shape `(batch_size, num_labels, (depth,) height, width)`.

        Returns:
            Probabilities in [0, 1] of the same shape.
        """
        logits = logits.float() / self.temperature
        return (logits + self.logit_bias).sigmoid() if logits.shape[1] == 1 else logits.softmax(1)

    def _stored_size(self, scores: torch.Tensor, target_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the image within `scores`, if it was made with the processor's own settings."""
        grid = (scores.shape[-2], scores.shape[-1])
        if self.do_resize:
            height, width = self.size["height"], self.size["width"]
            padded = tuple(-(-side // self.size_divisor) * self.size_divisor for side in (height, width))
            return (height, width) if padded == grid else grid
        if any(wanted > side for wanted, side in zip(target_size, grid)):
            raise ValueError(
                f"Images that are not resized have maps of at least their size, got the target size {target_size} for "
                f"a map of {grid}."
            )
        return target_size


def _restore_size(scores: torch.Tensor, reshaped: tuple[int, int], target_size: tuple[int, int]) -> torch.Tensor:
    """Undoes padding and then resizing of `scores`, `(num_labels, height, width)`."""
    scores = scores[:, : reshaped[0], : reshaped[1]]
    if reshaped == target_size:
        return scores
    return nn.functional.interpolate(scores[None], target_size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def holds_several(source: Any) -> bool:
    """Whether images come in a list, a generator, a column of a table or the like."""
    if isinstance(source, np.ndarray):
        return source.ndim == 1 and source.dtype.kind in "OU"  # of paths or images
    return isinstance(source, Iterable) and not isinstance(source, Mapping) and not is_image(source)


def _check_size(target_size: Any) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in target_size)
    except (TypeError, ValueError):
        raise ValueError(f"A target size is a pair (height, width) of integers, got {target_size!r}.")
    if height < 1 or width < 1:
        raise ValueError(f"A target size must be positive, got {(height, width)}.")
    return height, width


def _check_classes(array: np.ndarray) -> np.ndarray:
    """Returns class indices as `uint8`, and refuses those that are none."""
    for bad in array[~((array >= 0) & (array <= 255) & (array == np.rint(array)))][:1]:
        raise ValueError(f"Class indices are whole numbers from 0 to 255, got {bad:g}.")
    return array.astype(np.uint8)


def _flatten(images: Any) -> Iterator[Any]:
    """The images of lists of lists and of arrays of several, one by one."""
    if isinstance(images, list) or getattr(images, "ndim", None) == 4:
        for part in images:
            yield from _flatten(part)
    else:
        yield images


def _channels_first(array: np.ndarray, input_data_format: str | ChannelDimension | None) -> np.ndarray:
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ValueError(f"An image must have 2 or 3 dimensions, got the shape {array.shape}.")
    if input_data_format is None and array.shape[0] == 1 and array.shape[-1] in (3, 4):
        input_data_format = ChannelDimension.LAST  # a strip of one row; grey images have other widths
    if input_data_format is None:
        if not {array.shape[0], array.shape[-1]} & set(NUMBERS_OF_CHANNELS):
            raise ValueError(f"An image must have 1, 3 or 4 channels, first or last, got the shape {array.shape}.")
        input_data_format = infer_channel_dimension_format(array, num_channels=NUMBERS_OF_CHANNELS)
    return np.moveaxis(array, -1, 0) if input_data_format == ChannelDimension.LAST else array


def _flatten_opacity(array: np.ndarray) -> np.ndarray:
    """`(channels, height, width)` without a fourth channel, which is opacity over black."""
    if len(array) != 4:
        return array
    colors, opacity = array[:3], array[3:]
    if array.dtype.kind == "f":
        return colors * (opacity / (1 if opacity.max() <= 1 else 255))
    opaque = 1 if array.dtype == bool else np.iinfo(array.dtype).max
    return np.rint(colors * (opacity / opaque)).astype(array.dtype)


__all__ = ["LViTImageProcessor"]
