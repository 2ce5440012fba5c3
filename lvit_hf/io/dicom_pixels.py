"""Pixels of DICOM files as a viewer shows them: decoded, rescaled, brought to 8 bits by one window for all slices."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.uid import JPEG2000, JPEG2000MC, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, RLELossless

from ..model.image_processing_lvit import (
    WINDOW_SAMPLE,
    apply_window,
    find_labels,
    find_lossy,
    find_window,
    has_no_loss,
)
from .errors import STOPS, FileError
from .scan import window_slices


PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def read_numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The numbers of an element, if it is there and has so many finite ones; anything else is as if it were not."""
    try:
        value = dataset.get(keyword)
        values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
        numbers = tuple(float(number) for number in values)
    except Exception:  # pydicom converts now, and values of files can be anything
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def read_text(dataset: Dataset, keyword: str) -> str:
    """The text of an element; blank if it has none."""
    try:
        return str(dataset.get(keyword) or "").strip()
    except Exception:
        return ""


def has_element(dataset: Dataset, keyword: str) -> bool:
    """Whether there is an element that is not empty, be it valid or not."""
    tag = pydicom.tag.Tag(keyword)
    if tag not in dataset:
        return False
    raw = dataset.get_item(tag)
    return raw is not None and raw.value not in (None, b"", "", [])


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none if it is no sequence."""
    try:
        value = dataset.get(keyword)
    except Exception:
        return []
    return list(value) if isinstance(value, pydicom.Sequence) else []


def frame_items(dataset: Dataset, keyword: str, frame: int) -> list[Dataset]:
    """What a file says in a functional group about a frame, its own group before the shared one."""
    own = items(dataset, FRAME_GROUPS[1])
    groups = own[frame : frame + 1] + items(dataset, FRAME_GROUPS[0])[:1]
    return [item for group in groups for item in items(group, keyword)]


@dataclass(frozen=True)
class Window:
    """Which values are black and white: a centre and a width, or a table of greys, of bits, from a first value on."""

    center: float = 0.0
    width: float = 0.0
    function: str = "LINEAR"
    first: int = 0
    bits: int = 0
    table: bytes = b""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Maps rescaled values to 8 bits, by the formulas of DICOM PS3.3 C.11.2.1."""
        if self.table:
            table = np.frombuffer(self.table, np.float32)
            index = np.rint(values.astype(np.float64) - self.first).clip(0, len(table) - 1).astype(np.int64)
            return _scale_bits(table[index], self.bits)
        if self.function == "SIGMOID":
            exponent = (-4 * (values.astype(np.float64) - self.center) / self.width).clip(-700, 700)
            return np.rint(255 / (1 + np.exp(exponent))).astype(np.uint8)
        exact = self.function == "LINEAR_EXACT" or self.width < 2
        middle, width = (self.center, self.width) if exact else (self.center - 0.5, self.width - 1)
        return apply_window(values, middle - width / 2, middle + width / 2)


@dataclass
class Pixels:
    """The decoded frames of a file, of shape `(frames, height, width)` or with three colours after them.

    Args:
        stored: As they are stored, or after a table of values; colours are RGB.
        bits: Number of bits of a sample.
        scales: Slope and intercept of each frame.
        windows: Of each frame.
        padding: Least and greatest stored value that is no image.
        inverted: Whether the least value is white.
        notes: What was not believed.
        lossy: Whether values are no longer exact.
    """

    stored: np.ndarray
    bits: int = 8
    scales: list[tuple[float, float]] = field(default_factory=list)
    windows: list[Window | None] = field(default_factory=list)
    padding: tuple[float, float] | None = None
    inverted: bool = False
    notes: list[str] = field(default_factory=list)
    lossy: bool = False

    def is_padding(self, stored: np.ndarray) -> np.ndarray:
        """Which of some stored values are no image, where the file has padding."""
        assert self.padding is not None
        return (stored >= self.padding[0]) & (stored <= self.padding[1])

    def rescaled(self) -> Iterator[np.ndarray]:
        """The values of each frame in the unit of the file."""
        return map(_rescale, self.stored, self.scales)


def decode(dataset: Dataset, name: str) -> np.ndarray:
    """The stored values, `(frames, height, width)` or `(frames, height, width, 3)`, of which colours are RGB.

    Raises:
        FileError: If no decoder is installed that reads them; the message names one.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise FileError(f"{name} is stored as {syntax.name}, for which there is no decoder; convert it.")
    if not decoder.is_available:
        raise FileError(
            f"{name} is stored as {syntax.name}, and no decoder for it is installed; pip install "
            "'pylibjpeg[all]' brings one."
        )
    if "PixelData" in dataset and not syntax.is_encapsulated and not dataset.get_item("PixelData").value:
        raise FileError(f"{name} has no pixels.")
    if syntax == RLELossless:  # the other decoder aborts on damaged files, and writes to the terminal
        dataset.pixel_array_options(decoding_plugin="pydicom")
    try:
        array = _decode_aligned(dataset)
    except BaseException as error:
        if isinstance(error, STOPS) or not syntax.is_encapsulated:
            raise
        tried = " and ".join(decoder.available_plugins)
        raise FileError(f"{name} has pixels stored as {syntax.name} that {tried} cannot decode.") from error
    samples = read_numbers(dataset, "SamplesPerPixel", 1) or (1.0,)
    flat = array.ndim == (2 if samples[0] == 1 else 3)
    return array[np.newaxis] if flat else array


def _decode_aligned(dataset: Dataset) -> np.ndarray:
    """The stored values, also where unused bits, and overlays in them, lie below the used ones (by `HighBit`).

    Bits above them are masked out by pydicom. A `HighBit` that the values disprove is not used.
    """
    numbers = [read_numbers(dataset, keyword, 1) for keyword in ("HighBit", "BitsStored", "BitsAllocated")]
    high, stored, allocated = (int(number[0]) if number else 0 for number in numbers)
    unused = high + 1 - stored
    if "PixelData" not in dataset or not 0 < unused < allocated - stored + 1:
        return dataset.pixel_array
    dataset.BitsStored = high + 1  # for pydicom
    array, dataset.BitsStored = dataset.pixel_array, stored
    half = 2 ** (stored - 1) if array.dtype.kind == "i" else 0
    fits = array.min() >= -half and array.max() < 2**stored - half
    return array if fits and (array & 2**unused - 1).any() else array >> unused


def is_lossy(dataset: Dataset) -> bool:
    """Whether the pixels were compressed with loss, as far as the file says. (`LossyImageCompression` may be of what a
    mask was drawn on.)"""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in (JPEG2000, JPEG2000MC):
        return not has_no_loss(dataset.PixelData, "JPEG2000")
    return syntax in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)


def find_mask(values: np.ndarray, lossy: bool) -> tuple[np.ndarray, str]:
    """The foreground of frames, `(frames, height, width)` or with three colours after them, that are masks."""
    brightest = values if values.ndim == 3 else values.max(axis=-1)
    return find_lossy(brightest, "DICOM", values) if lossy else find_labels(brightest)


def read_pixels(dataset: Dataset, name: str) -> Pixels:
    """Decodes a file's frames and reads how they are to be shown."""
    stored = decode(dataset, name)
    if read_text(dataset, "PhotometricInterpretation") == "PALETTE COLOR" and stored.ndim == 3:
        stored = np.asarray(apply_color_lut(stored, dataset))[..., :3]
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        return Pixels(_scale_bits(stored, bits if stored.max() > 255 or bits < 8 else 8))
    if stored.ndim == 4:
        return Pixels(stored, int(dataset.BitsStored))
    pixels = Pixels(stored, _bits(dataset, stored), inverted=_is_inverted(dataset))
    if stored.dtype.kind in "ui":
        _read_padding(dataset, pixels)
    _read_scales(dataset, pixels)
    for frame in range(len(stored)):
        places = (*frame_items(dataset, "FrameVOILUTSequence", frame), dataset)
        windows = (_read_window(place, pixels) for place in places)
        pixels.windows.append(next(filter(None, windows), None))
    return pixels


def _bits(dataset: Dataset, stored: np.ndarray) -> int:
    """Bits of the stored values; 16 also where fewer are said but values exceed them, or are negative."""
    bits = read_numbers(dataset, "BitsStored", 1)
    if bits is None or stored.dtype.kind != "u":
        return 16
    return int(bits[0]) if 1 <= bits[0] <= 8 and stored.max(initial=0) < 2 ** int(bits[0]) else 16


def _is_inverted(dataset: Dataset) -> bool:
    shape = read_text(dataset, "PresentationLUTShape")
    return read_text(dataset, "PhotometricInterpretation") == "MONOCHROME1" or shape == "INVERSE"


def _read_padding(dataset: Dataset, pixels: Pixels):
    ends = [read_numbers(dataset, f"PixelPadding{name}", 1) for name in ("Value", "RangeLimit")]
    if ends[0] is None:
        return
    values = [end[0] for end in ends if end is not None]
    if pixels.stored.dtype.kind == "i":  # which some files store as if it were unsigned
        modulus = 2.0 ** (8 * pixels.stored.dtype.itemsize)
        values = [value - modulus if value >= modulus / 2 else value for value in values]
    pixels.padding = min(values), max(values)
    if pixels.is_padding(pixels.stored).all():
        pixels.notes.append("All pixels are padding by what the file says, so its PixelPaddingValue is not used.")
        pixels.padding = None


def _read_scales(dataset: Dataset, pixels: Pixels):
    count = len(pixels.stored)
    pixels.scales = [(1.0, 0.0)] * count
    if items(dataset, "ModalityLUTSequence"):
        try:
            pixels.stored = apply_modality_lut(pixels.stored, dataset)
            pixels.bits, pixels.padding = 16, None
        except Exception:
            pixels.notes.append("The table of values (ModalityLUTSequence) cannot be used.")
        return
    for frame in range(count):
        for place in (*frame_items(dataset, "PixelValueTransformationSequence", frame), dataset):
            if not has_element(place, "RescaleSlope"):
                continue
            slope = read_numbers(place, "RescaleSlope", 1)
            intercept = read_numbers(place, "RescaleIntercept", 1) or (0.0,)
            if slope is None or slope[0] == 0:
                pixels.notes.append("A RescaleSlope that cannot be is not used.")
            else:
                pixels.scales[frame] = slope[0], intercept[0]
            break


def _read_window(place: Dataset, pixels: Pixels) -> Window | None:
    """The first table or window that can be."""
    for item in items(place, "VOILUTSequence"):
        try:
            return _read_table(item)
        except Exception:
            pixels.notes.append("A table of greys (VOILUTSequence) cannot be used.")
    if not has_element(place, "WindowCenter") and not has_element(place, "WindowWidth"):
        return None
    function = read_text(place, "VOILUTFunction").upper() or "LINEAR"
    if function not in WINDOW_FUNCTIONS:
        pixels.notes.append(f"The VOILUTFunction {function[:20]} is unknown, so the window is taken as linear.")
        function = "LINEAR"
    for center, width in zip(_read_list(place, "WindowCenter"), _read_list(place, "WindowWidth")):
        if np.isfinite([center, width]).all() and width > 0:
            return Window(center, width, function)
    pixels.notes.append("A window without a centre, or whose width is not above 0, is not used.")
    return None


def _read_list(place: Dataset, keyword: str) -> list[float]:
    try:
        value = place.get(keyword)
        values = value if isinstance(value, pydicom.multival.MultiValue | list) else [value]
        return [np.nan if item in (None, "") else float(item) for item in values]
    except Exception:
        return []


def _read_table(item: Dataset) -> Window:
    length, first, bits = (int(number) for number in item.LUTDescriptor)
    length = length or 2**16
    if not 8 <= bits <= 16:
        raise ValueError(f"a table has 8 to 16 bits, not {bits}")
    lookup = Dataset()
    lookup.set_original_encoding(*item.original_encoding)  # the order of bytes, where the table is words
    lookup.VOILUTSequence = [item]
    table = apply_voi_lut(np.arange(first, first + length, dtype=np.int32), lookup)
    return Window(first=first, bits=bits, table=table.astype(np.float32).tobytes())


def render(files: Sequence[Pixels]) -> tuple[np.ndarray, list[str]]:
    """Brings all frames of a stack to 8 bits, by one window.

    That is the file's own, if all frames have the same valid one and it shows something. Otherwise unsigned values of
    8 bits stay as they are stored, and deeper ones are windowed between percentiles (`find_window`), without padding.

    Returns:
        `(frames, height, width)`, or with three colours after them, and what was not believed.
    """
    notes = list(dict.fromkeys(note for file in files for note in file.notes))
    if files[0].stored.ndim == 4:
        return _render_colors(files), notes
    windows = [window for file in files for window in file.windows]
    shown = None
    if len(set(windows)) > 1:
        notes.append("The slices have no window in common; all are shown between the percentiles of the whole series.")
    elif windows[0] is not None:
        shown = np.stack([windows[0].apply(values) for file in files for values in file.rescaled()])
        if not _shows_something(shown, files):
            notes.append("The window shows nothing of the image, so it is not used.")
            shown = None
    if shown is None:
        shown = _render_without_window(files)
    start = 0
    for file in files:
        part = shown[start : start + len(file.stored)]
        if file.inverted:
            np.subtract(255, part, out=part)
        if file.padding:
            part[file.is_padding(file.stored)] = 0
        start += len(part)
    return shown, notes


def measure(file: Pixels) -> np.ndarray:
    """The rescaled values of a file's grey frames, float32, white the largest and padding no number."""
    values = np.stack([values.astype(np.float32) for values in file.rescaled()])
    if file.padding:
        values[file.is_padding(file.stored)] = np.nan
    return -values if file.inverted else values


def _render_colors(files: Sequence[Pixels]) -> np.ndarray:
    colors = np.concatenate([file.stored for file in files])
    return _scale_bits(colors, files[0].bits) if files[0].bits <= 8 else window_slices(colors)


def _scale_bits(values: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return values.clip(0, 255).astype(np.uint8)
    return np.rint(values * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _rescale(values: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    return values if scale == (1.0, 0.0) else values * np.float32(scale[0]) + np.float32(scale[1])


def _shows_something(shown: np.ndarray, files: Sequence[Pixels]) -> bool:
    """Whether there are greys; an image that has but two values itself needs none."""
    if ((shown > 0) & (shown < 255)).any():
        return True
    return len(np.unique(shown)) > 1 and all(len(np.unique(file.stored)) <= 2 for file in files)


def _render_without_window(files: Sequence[Pixels]) -> np.ndarray:
    scales = {scale for file in files for scale in file.scales}
    # One positive scale for all changes nothing between percentiles, nor need 8 bits be changed for it.
    common = len(scales) == 1
    if common and max(file.bits for file in files) <= 8:
        shown = np.concatenate([_scale_bits(file.stored, file.bits) for file in files])
    else:
        low, high = find_window(_sample(files, common))
        frames = (values for file in files for values in (file.stored if common else file.rescaled()))
        shown = np.stack([apply_window(values, low, high) for values in frames])
    return 255 - shown if common and next(iter(scales))[0] < 0 else shown


def _sample(files: Sequence[Pixels], common: bool) -> np.ndarray:
    """Values of all frames that are no padding, spread evenly."""
    total = sum(file.stored.size for file in files)
    step = -(-total // WINDOW_SAMPLE)
    step += 1 - step % 2
    parts = []
    for file in files:
        for frame, scale in zip(file.stored, file.scales):
            values = frame.reshape(-1)[::step]
            if file.padding:
                values = values[~file.is_padding(values)]
            parts.append(values if common else _rescale(values, scale))
    return np.concatenate(parts)
