import io
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from deep_png import png_of_16_bits
from PIL import Image

from lvit_hf import LViTImageProcessor
from lvit_hf.model.image_processing_lvit import (
    apply_window,
    binarize_map,
    describe_error,
    find_foreground,
    find_window,
    open_image,
    pil_to_array,
)


RGB = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.full_like(GREY, 255)
ALPHA[:, :12] = 0  # the left half is transparent
ON_BLACK = RGB * (ALPHA > 0)[..., None]
GREY_ON_BLACK = GREY * (ALPHA > 0)
FULL = GREY // 128 * 255
SPARSE = GREY * (np.arange(480).reshape(20, 24) % 240 == 7)
PALETTE = [0, 0, 0, 200, 30, 10, 20, 220, 40]  # black, a red and a green
INDICES = GREY % 3
COLOURS = np.array(PALETTE, dtype=np.uint8).reshape(3, 3)[INDICES]
DEEP = np.linspace(0, 65535, 480).reshape(20, 24).astype(np.uint16)


@pytest.fixture
def processor() -> LViTImageProcessor:
    return LViTImageProcessor()


@pytest.fixture
def raw() -> LViTImageProcessor:
    """A processor that changes neither size nor range, so that its output is the 8-bit RGB image."""
    return LViTImageProcessor(do_resize=False, do_pad=False, do_rescale=False, do_normalize=False)


def to_rgb(processor: LViTImageProcessor, image) -> np.ndarray:
    return np.moveaxis(processor(image)["pixel_values"][0], 0, -1)


def three_channels(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def palette_image(transparency: int | None = None) -> Image.Image:
    image = Image.fromarray(INDICES)
    image.putpalette(PALETTE)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def window(array: np.ndarray) -> np.ndarray:
    low, high = np.percentile(array, (0.5, 99.5))
    return three_channels(np.rint(np.clip((array - low) / (high - low), 0, 1) * 255))


# Every kind of image


IMAGES = {
    "grey": (Image.fromarray(GREY), three_channels(GREY)),
    "RGB": (Image.fromarray(RGB), RGB),
    "RGBA": (Image.fromarray(np.dstack([RGB, ALPHA])), ON_BLACK),
    "LA": (Image.fromarray(np.dstack([GREY, ALPHA])), three_channels(GREY_ON_BLACK)),
    "palette": (palette_image(), COLOURS),
    "palette, transparent": (palette_image(1), COLOURS * (INDICES != 1)[..., None]),
    "1 bit": (Image.fromarray(GREY > 127), three_channels((GREY > 127) * 255)),
    "CMYK": (Image.new("CMYK", (24, 20), (0, 255, 255, 0)), np.full_like(RGB, [255, 0, 0])),
    "16 bits": (Image.fromarray(DEEP), window(DEEP)),
    "32 bits": (Image.fromarray(DEEP.astype(np.int32)), window(DEEP)),
    "float": (Image.fromarray(GREY.astype(np.float32) / 255), three_channels(GREY)),
    "array of height x width": (GREY, three_channels(GREY)),
    "array with channels last": (RGB, RGB),
    "array with channels first": (np.moveaxis(RGB, -1, 0), RGB),
    "array with one channel": (GREY[..., None], three_channels(GREY)),
    "array with opacity": (np.dstack([RGB, ALPHA]), ON_BLACK),
    "array of shares": (RGB / 255, RGB),
    "array of shares, many of them 1": (np.maximum(GREY, FULL) / 255, three_channels(np.maximum(GREY, FULL))),
    "array of shares, nearly all of them 0": (SPARSE / 255, three_channels(SPARSE)),
    "array of shares with opacity": (np.dstack([RGB, ALPHA]) / 255, ON_BLACK),
    "array of 8-bit floats": (RGB.astype(np.float64), RGB),
    "array of 8-bit floats up to 2": (INDICES * 1.0, three_channels(INDICES)),
    "array of 8-bit floats, many of them 255": (np.maximum(GREY, FULL) * 1.0, three_channels(np.maximum(GREY, FULL))),
    "array of 8-bit floats with opacity": (np.dstack([RGB, ALPHA]) * 1.0, ON_BLACK),
    "array of booleans": (GREY > 127, three_channels((GREY > 127) * 255)),
    "array of booleans with opacity": (np.dstack([RGB, ALPHA]) > 127, ((RGB > 127) & (ALPHA > 127)[..., None]) * 255),
    "array of 16 bits": (DEEP, window(DEEP)),
    "array of Hounsfield units": (DEEP / 16.0 - 1024, window(DEEP / 16.0 - 1024)),
    "tensor with channels first": (torch.from_numpy(RGB).movedim(-1, 0), RGB),
    "tensor with channels last": (torch.from_numpy(RGB), RGB),
    "tensor of height x width": (torch.from_numpy(GREY), three_channels(GREY)),
    "tensor in half precision": (torch.from_numpy(GREY > 127).bfloat16(), three_channels((GREY > 127) * 255)),
    "tensor that requires a gradient": (torch.from_numpy(RGB / 255).requires_grad_(), RGB),
}


@pytest.mark.parametrize(("image", "expected"), IMAGES.values(), ids=IMAGES)
def test_every_kind_of_image_becomes_8_bit_rgb(raw, image, expected, caplog):
    assert np.array_equal(to_rgb(raw, image), expected)
    assert not caplog.records  # nothing is left out


@pytest.mark.parametrize(
    "name", ["grey.png", "grey.tif", "grey.bmp", "deep.png", "deep.tif", "colour.png", "colour.webp"]
)
@pytest.mark.parametrize("as_text", [True, False])
def test_files_are_read_as_they_are(raw, tmp_path, name, as_text):
    kind, path = name.split(".")[0], tmp_path / name
    array = {"grey": GREY, "deep": DEEP, "colour": RGB}[kind]
    Image.fromarray(array).save(path, lossless=True)
    assert np.array_equal(to_rgb(raw, str(path) if as_text else path), to_rgb(raw, array))


def test_16_bit_images_are_windowed_and_not_clipped(raw):
    narrow = (DEEP // 64 + 20000).astype(np.uint16)  # 10 bits of contrast, far above 255
    values = to_rgb(raw, Image.fromarray(narrow))[..., 0]
    assert (values.min(), values.max()) == (0, 255)
    assert len(np.unique(values)) > 200
    assert (np.diff(values.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("orientation", "turned"), [(3, np.rot90(RGB, 2)), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB))]
)
def test_orientation_of_exif_is_applied(raw, tmp_path, orientation, turned):
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=image.getexif())
    assert np.array_equal(to_rgb(raw, tmp_path / "turned.png"), turned)
    assert np.array_equal(to_rgb(raw, Image.open(tmp_path / "turned.png")), turned)


@pytest.mark.parametrize("name", ["frames.tif", "frames.gif"])
def test_first_of_several_frames_is_taken_with_a_warning(raw, tmp_path, caplog, name):
    frames = [Image.new("L", (24, 20), grey) for grey in (10, 200, 90)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    image = Image.open(tmp_path / name)
    image.seek(2)
    assert (to_rgb(raw, image) == 10).all()
    assert "3 frames; the first one is used" in caplog.text


def test_many_images(processor):
    images = [Image.fromarray(RGB), GREY, torch.from_numpy(RGB)]
    batch = processor(images, return_tensors="pt")["pixel_values"]
    assert batch.shape == (3, 3, 224, 224)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() < batch.max() <= 1
    for pixel_values, image in zip(batch, images):
        assert torch.equal(pixel_values, processor(image, return_tensors="pt")["pixel_values"][0])
    for stacked in (
        torch.from_numpy(np.stack([RGB, RGB])),
        [np.stack([RGB, RGB])],
        [[RGB], [RGB]],
        iter([[RGB, RGB]]),
    ):
        assert torch.equal(processor(stacked, return_tensors="pt")["pixel_values"], batch[[0, 0]])


def test_mode_of_the_reference():
    reference = LViTImageProcessor(
        do_flip_channel_order=True, image_mean=[0.0] * 3, image_std=[1.0] * 3, do_resize=False
    )
    pixel_values = reference(RGB, do_pad=False)["pixel_values"][0]
    np.testing.assert_allclose(pixel_values, np.moveaxis(RGB[..., ::-1], -1, 0) / 255, atol=1e-6)


# Masks


MASKS = {
    "8 bits": (GREY > 127) * np.uint8(255),
    "0 and 1": (GREY > 127).astype(np.uint8),
    "booleans": GREY > 127,
    "floats": (GREY > 127) * 0.9,
    "16 bits": (GREY > 127) * np.uint16(65535),
    "compressed": GREY,
    "one channel": GREY[..., None],
    "tensor": torch.from_numpy(GREY > 127),
    "PIL": Image.fromarray(GREY),
    "1 bit": Image.fromarray(GREY > 127),
    "drawn in blue": Image.fromarray(np.dstack([GREY * 0, GREY * 0, GREY])),
    "palette of greys": Image.fromarray(GREY).quantize(256, dither=Image.Dither.NONE),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_every_kind_of_mask_is_cut_at_half(raw, mask):
    [labels] = raw(RGB, segmentation_maps=mask)["labels"]
    assert labels.dtype == np.int64
    assert np.array_equal(labels, GREY > 127)


def test_masks_are_resized_by_the_nearest_pixel(processor):
    mask = np.zeros((20, 24), dtype=np.uint8)
    mask[:10] = 255
    labels = processor(RGB, segmentation_maps=mask, return_tensors="pt")["labels"]
    assert labels.shape == (1, 224, 224)
    assert labels[0, :112].all()
    assert not labels[0, 112:].any()


@pytest.mark.parametrize("classes", [INDICES, torch.from_numpy(INDICES), palette_image()])
def test_class_indices(processor, classes):
    inputs = processor(RGB, segmentation_maps=classes, do_binarize_maps=False, return_tensors="pt")
    expected = Image.fromarray(INDICES).resize((224, 224), Image.Resampling.NEAREST)
    assert np.array_equal(inputs["labels"][0], expected)


@pytest.mark.parametrize("value", [300, -100, -1, 256, 0.5, np.nan, np.inf])
def test_class_indices_that_are_none_are_refused(processor, value):
    classes = np.where(INDICES == 2, np.asarray(value), INDICES)
    with pytest.raises(ValueError, match=f"whole numbers from 0 to 255, got {value:g}"):
        processor(RGB, segmentation_maps=classes, do_binarize_maps=False)


def test_labels_are_foreground_and_the_user_is_told(raw, caplog):
    [labels] = raw(RGB, segmentation_maps=INDICES)["labels"]
    assert np.array_equal(labels, INDICES > 0)
    assert "every value but 0: 1, 2" in caplog.text and "set do_binarize_maps=False" in caplog.text


# What is foreground, however a mask is stored.

DISK = (np.hypot(*np.mgrid[-20:20, -24:24]) < 13).astype(np.uint8)
PARTS = DISK * np.where(np.arange(48) < 24, 2, 1).astype(np.uint8)  # the left half is 2


SMOOTH = np.asarray(Image.fromarray(DISK * 255).resize((480, 400), 2).resize((48, 40), 4))


def saved(array: np.ndarray, kind: str, **options) -> io.BytesIO:
    content = io.BytesIO()
    Image.fromarray(array).save(content, kind, **options)
    return content


def opened(mask) -> Image.Image | np.ndarray:
    return open_image(mask) if isinstance(mask, io.BytesIO) else mask


def in_color(color: tuple[int, ...], background: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    return np.where(DISK[..., None] > 0, np.uint8(color), np.uint8(background[: len(color)] or color))


def with_line(array: np.ndarray, value: int | tuple[int, ...]) -> np.ndarray:
    """With a line of one pixel beside the disk."""
    array = array.copy()
    array[:, 5] = value
    return array


def with_palette(indices: np.ndarray, palette: list[int]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(palette + [0] * (768 - len(palette)))
    return image


STORED = {
    "white": DISK * np.uint8(255),
    "1 bit": Image.fromarray(DISK > 0),
    "0 and 1": DISK,
    "one dark grey": DISK * np.uint8(38),
    "labels": PARTS,
    "labels, 16 bits": PARTS.astype(np.uint16) * 500,
    "labels, 32 bits": PARTS.astype(np.int32),
    "labels, far apart": np.where(PARTS == 2, 1000, PARTS.astype(np.int16)),
    "labels as floats": PARTS.astype(np.float32),
    "white, 16 bits": DISK.astype(np.uint16) * 65535,
    "one value, 16 bits": DISK.astype(np.uint16),
    "probabilities": 0.1 + 0.8 * DISK,
    "probabilities, none beside the object": np.where(DISK, 0.9, np.nan),
    "probabilities up to 1": 0.1 + 0.9 * DISK,
    "probabilities, one half beside the object": 0.5 + 0.4 * DISK,
    "one half": 0.5 * DISK,
    "8 bits as floats": DISK * 255.0,
    "red": in_color((255, 0, 0)),
    "blue": in_color((0, 0, 255)),
    "red, with a dark line": with_line(in_color((255, 0, 0)), (60, 0, 0)),
    "white, with a dark line": with_line(DISK * np.uint8(255), 60),
    "dark green": in_color((0, 64, 0)),
    "classes in colours": np.where((PARTS == 2)[..., None], np.uint8((64, 0, 0)), in_color((0, 128, 0))),
    "red, opaque": np.dstack([in_color((255, 0, 0)), np.full_like(DISK, 255)]),
    "grey, opaque": Image.merge("LA", [Image.fromarray(DISK * 255), Image.new("L", (48, 40), 255)]),
    "opacity alone": np.dstack([np.full((40, 48, 3), 255, np.uint8), DISK * 255]),
    "half transparent red": np.dstack([in_color((255, 0, 0)), DISK * 120]),
    "palette, dark red": with_palette(DISK, [0, 0, 0, 128, 0, 0]),
    "palette, dark": with_palette(DISK, [0, 0, 0, 60, 0, 0]),
    "palette of classes": with_palette(PARTS, [0, 0, 0, 128, 0, 0, 0, 60, 0]),
    "palette, index 0 transparent": saved(DISK, "png", transparency=0),
    "JPEG": saved(DISK * 255, "jpeg", quality=75),
    "WebP": saved(DISK * 255, "webp", quality=75),
    "WebP without loss, labels": saved(DISK * 2, "webp", lossless=True),
    "AVIF": saved(DISK * 255, "avif", quality=75),
    "JPEG 2000": saved(DISK * 255, "jpeg2000", irreversible=True),
    "JPEG 2000, 16 bits": saved(DISK.astype(np.uint16) * 65000, "jpeg2000", irreversible=True),
    "JPEG 2000 without loss, labels": saved(DISK * 2, "jpeg2000", irreversible=False),
    "JPEG 2000 without boxes or loss, labels": saved(DISK * 2, "jpeg2000", irreversible=False, no_jp2=True),
    "JPEG, red": saved(in_color((255, 0, 0)), "jpeg", quality=75, subsampling=0),
    "JPEG stored as PNG": np.asarray(Image.open(saved(DISK * 255, "jpeg", quality=100))),
    "traces of JPEG that fill areas": np.where(np.arange(48) < 24, 245 * DISK + 5, 255 * DISK).astype(np.uint8),
    "with smooth edges": SMOOTH,
    "with smooth edges, 16 bits": SMOOTH * np.uint16(257),
}


@pytest.mark.parametrize("mask", STORED.values(), ids=STORED)
def test_one_foreground_however_a_mask_is_stored(raw, mask):
    np.testing.assert_array_equal(binarize_map(opened(mask)), DISK > 0)
    [labels] = raw(np.zeros((40, 48), np.uint8), segmentation_maps=mask)["labels"]
    np.testing.assert_array_equal(labels, DISK)


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (DISK * np.uint8(255), "the value 255"),
        (DISK, "the value 1"),
        (0.9 * DISK, "the value 0.9"),
        (0 * DISK, "nothing: all values are 0"),
        (DISK > 0, "what is true"),
        (0.1 + 0.8 * DISK, "values above 0.5"),
        (SMOOTH, "values above 127.5"),
        (SMOOTH * np.uint16(257), "values above 32767.5"),
        (saved(DISK * 255, "jpeg"), "values above 127.5"),
        (in_color((0, 64, 0)), "every colour but black"),
        (PARTS * np.int32(40), "every value but 0: 40, 80"),
    ],
)
def test_what_was_taken_for_foreground_is_said(mask, rule):
    assert find_foreground(opened(mask))[1] == rule


def test_all_or_nothing():
    assert find_foreground(np.ones((4, 5), np.int16))[0].all()
    assert find_foreground(np.full((4, 5), 255, np.uint8))[0].all()
    assert find_foreground(np.full((4, 5, 3), (255, 0, 0), np.uint8))[0].all()
    assert find_foreground(opened(saved(np.full((40, 50, 3), (255, 10, 0), np.uint8), "jpeg", quality=50)))[0].all()
    assert find_foreground(np.random.default_rng(0).random((9, 9)) * 0.4 + 0.6)[0].all()  # probabilities
    assert not find_foreground(np.zeros((4, 5), np.uint8))[0].any()
    assert not find_foreground(opened(saved(np.zeros((40, 50), np.uint8), "jpeg")))[0].any()
    assert not find_foreground(np.random.default_rng(0).random((9, 9)) * 0.4)[0].any()  # probabilities


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535), 1.0])
def test_colours_that_differ_by_an_eighth_are_two(white):
    for share, is_one in ((0.12, True), (0.13, False)):
        colors = np.full((40, 48, 3), (1, 0, 0)) * white
        colors[DISK > 0, 1] = share * white
        if is_one:
            assert find_foreground(colors)[0].all()
        else:
            with pytest.raises(ValueError, match="Make that one black"):
                find_foreground(colors)


UNKNOWN = {
    "labels beside white": (np.where(PARTS == 2, 255, PARTS).astype(np.uint8), "areas of the values 1, 255"),
    "labels beside greys": (np.select([PARTS == 2, PARTS == 1, np.arange(48) < 9], [1, 255, 180]), "areas of the val"),
    "greys of which one is dark": (np.select([PARTS == 2, PARTS == 1, np.arange(48) < 9], [60, 255, 240]), "areas of"),
    "labels without a background": (PARTS + np.uint8(1), "save 0|areas of the values|Save 0"),
    "two labels without a background": (DISK + np.uint8(1), "Save 0"),
    "colours without a background": (in_color((10, 0, 0), (0, 20, 0)), "black"),
    "bright colours without a background": (in_color((0, 255, 0), (255, 0, 0)), "black"),
    "red on white": (in_color((255, 0, 0), (255, 255, 255)), "black"),
    "red on grey": (in_color((255, 0, 0), (204, 204, 204)), "black"),
    "16 bits of red on white": (in_color((255, 0, 0), (255, 255, 255)).astype(np.uint16) * 257, "black"),
    "JPEG of red on white": (saved(in_color((255, 0, 0), (255, 255, 255)), "jpeg"), "black"),
    "JPEG of red on white, hardly compressed": (
        saved(in_color((255, 0, 0), (255, 255, 255)), "jpeg", quality=100, subsampling=0),
        "black",
    ),
    "a palette that begins with white": (with_palette(DISK, [255, 255, 255, 255, 0, 0]), "black"),
    "bright greys without a background": (np.where(DISK, 255, 180).astype(np.uint8), "black"),
    "one layer for each class": (np.stack([1 - DISK, DISK, 0 * DISK], -1), "black"),
    "one layer of floats for each class": (np.stack([1 - DISK, DISK, 0 * DISK], -1) * 1.0, "black"),
    "one layer of booleans for each class": (np.stack([DISK == 0, DISK > 0, DISK > 1], -1), "black"),
    "an infinite value": (np.where(np.arange(48) == 0, np.inf, DISK * 0.9), "infinite"),
    "negative values": (DISK * -1.0, "negative"),
    "a dark picture": (
        np.random.default_rng(0).integers(0, 50, (40, 48)).astype(np.uint8) * 2,
        "dark",
    ),
    "measured values": (np.random.default_rng(0).random((40, 48)) * 90, "neither a probability"),
    "opacity of black": (Image.fromarray(np.dstack([np.zeros((40, 48, 3), np.uint8), DISK * 255])), "opacity"),
    "a black palette": (with_palette(DISK, []), "palette"),
    "JPEG of labels": (saved(DISK * 3, "jpeg"), "this JPEG mask is .*does not keep labels"),
    "WebP of labels": (saved(DISK * 3, "webp", quality=50), "this WEBP mask is .*does not keep labels"),
    "AVIF of labels": (saved(DISK * 90, "avif", quality=50), "this AVIF mask is .*does not keep labels"),
    "JPEG 2000 of labels": (
        saved(DISK * 3, "jpeg2000", irreversible=True),
        "this JPEG2000 mask is .*does not keep labels",
    ),
    "JPEG 2000 of labels without boxes": (
        saved(DISK * 100, "jpeg2000", irreversible=True, no_jp2=True),
        "this JPEG2000 mask is .*does not keep labels",
    ),
    "TIFF of labels by JPEG": (
        saved(DISK * 60, "tiff", compression="jpeg"),
        "this TIFF mask is .*does not keep labels",
    ),
}


@pytest.mark.parametrize(("mask", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_mask_that_can_mean_two_things_is_refused_with_a_way_out(mask, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        find_foreground(opened(mask))
    assert "ave" in str(caught.value) or "Make" in str(caught.value)


def in_squares(values: np.ndarray) -> np.ndarray:
    """One square of four pixels for each of several values or colours, beside a black one."""
    squares = np.concatenate([0 * values[:1], values]).astype(np.uint8)
    return squares.repeat(4, 0)[None].repeat(4, 0)


@pytest.mark.parametrize("step", [1, 3])
def test_labels_are_fewer_than_sixteen_or_all_from_1_on(step):
    for count in (15, 16, 20):
        mask = in_squares(np.arange(step, (count + 1) * step, step))
        if count > 15 and step > 1:
            with pytest.raises(ValueError, match=f"value of the mask is {count * step}, and there are {count} of"):
                find_foreground(mask)
        else:
            foreground, rule = find_foreground(mask)
            np.testing.assert_array_equal(foreground, mask > 0)
            shown = ", ".join(f"{label}" for label in range(step, count * step + 1, step)[:16])
            assert rule == f"every value but 0: {shown}" + (", ..." if count > 16 else "")


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_up_to_sixteen_colours_are_classes_whatever_channels_they_differ_in(channel):
    for count in (2, 15, 16):
        colors = np.zeros((count, 3))
        colors[:, channel] = np.arange(1, 1 + count)
        colors[-1, channel - 1] = 255
        mask = in_squares(colors)
        foreground, _ = find_foreground(mask)
        expected = mask.any(-1) if count < 16 else mask.max(-1) > 127  # with black there are 17
        np.testing.assert_array_equal(foreground, expected)


# The window of deep images


def test_outliers_do_not_decide_what_floats_mean(raw):
    image = GREY.astype(np.float32) / 255 * 0.9
    expected = to_rgb(raw, image)
    for outlier in (1.0001, 1.01, 5, 1e6, -0.001, -5):
        changed = image.copy()
        changed[0, 0] = outlier
        difference = np.abs(to_rgb(raw, changed).astype(int) - expected)
        assert np.count_nonzero(difference[1:]) == 0, outlier


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.7, 12, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measured_values_fill_the_range_in_every_unit(raw, unit, dtype):
    values = np.random.default_rng(0).normal(5, 1, (64, 64)) / 5 * unit
    shown = to_rgb(raw, values.astype(dtype))
    assert len(np.unique(shown)) > 150


@pytest.mark.parametrize("border", [-3024, 0, 60000])
@pytest.mark.parametrize("share", [0.06, 0.5, 0.99])
def test_a_border_is_left_out_of_the_window(border, share):
    image = np.random.default_rng(0).normal(1000, 100, 20000)
    values = np.concatenate([image, np.full(int(len(image) * share / (1 - share)), border)])
    np.testing.assert_allclose(find_window(values), find_window(image), rtol=1e-6)


def test_drawings_keep_all_their_values():
    assert find_window(np.repeat([-1000, 40, 1000], 50)) == (-1000, 1000)
    assert find_window(np.full(9, 7.0)) == (7, 7)
    one = np.zeros((30, 30))
    one[4, 5] = 3
    assert find_window(one) == (0, 3)
    assert find_window(np.full(9, np.nan)) == (0, 1)
    assert not apply_window(np.full(9, 7.0), 7, 7).any()


def test_a_value_of_a_twentieth_is_left_out_where_sixty_four_are_others():
    for count, zeros, is_left_out in ((95, 5, True), (96, 4, False), (64, 60, True), (63, 60, False)):
        image = np.arange(1000, 1000 + count)
        low, _ = find_window(np.concatenate([np.zeros(zeros, int), image]))
        assert (low == find_window(image)[0]) == is_left_out, (count, zeros)


@pytest.mark.parametrize("period", [2, 3, 4])
def test_the_window_of_very_many_values_is_found_from_a_part_of_every_kind(period):
    values = np.random.default_rng(0).integers(0, 1000, 100_000).astype(np.int16)
    values = np.tile(values, 61)
    values[period - 1 :: period] += 3000
    low, high = find_window(values)
    assert 0 <= low < 50 and 3900 < high < 4000


TWELVE_BITS = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
OPAQUE = np.full_like(TWELVE_BITS, 65535)
DEEP_PNG = {
    "grey": (TWELVE_BITS, 0),
    "grey, a transparent value": (TWELVE_BITS, 0, (b"tRNS", b"\xff\xff")),
    "grey with opacity": (np.stack([TWELVE_BITS, OPAQUE], -1), 4),
    "colour": (np.stack([TWELVE_BITS] * 3, -1), 2),
    "colour with opacity": (np.stack([TWELVE_BITS] * 3 + [OPAQUE], -1), 6),
}


@pytest.mark.parametrize("arguments", DEEP_PNG.values(), ids=DEEP_PNG)
def test_16_bits_keep_their_depth_in_every_mode(raw, tmp_path, arguments):
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(*arguments))
    colors = np.repeat(TWELVE_BITS[..., None], 3, axis=-1)
    expected = to_rgb(raw, colors if arguments[1] in (2, 6) else TWELVE_BITS)
    np.testing.assert_array_equal(to_rgb(raw, tmp_path / "deep.png"), expected)
    assert len(np.unique(expected)) == 256


@pytest.mark.parametrize("color_type", [4, 6])
def test_16_bits_are_put_on_black_by_their_opacity(tmp_path, color_type):
    channels = 1 if color_type == 4 else 3
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, channels + 1)).astype(np.uint16)
    pixels[:, :9, -1], pixels[:, 9:12, -1] = 65535, 0
    (tmp_path / "deep.png").write_bytes(png_of_16_bits(pixels, color_type))
    expected = np.rint(pixels[..., :-1].astype(float) * pixels[..., -1:] / 65535)
    for file in (tmp_path / "deep.png", io.BytesIO((tmp_path / "deep.png").read_bytes())):
        np.testing.assert_array_equal(pil_to_array(open_image(file)), expected.squeeze())


def test_a_transparent_value_of_16_bits_is_as_dark_as_the_darkest(tmp_path):
    content = png_of_16_bits(TWELVE_BITS + np.uint16(5), 0, (b"tRNS", (0x805).to_bytes(2, "big")))
    (tmp_path / "deep.png").write_bytes(content)
    shown = pil_to_array(open_image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(shown, np.where(TWELVE_BITS == 0x800, 5, TWELVE_BITS + 5))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_read_from_every_tiff(tmp_path, order, compression, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, channels)).astype(np.uint16)
    options = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", byteorder=order, compression=compression, **options
    )
    expected = pixels if channels == 3 else np.rint(pixels[..., :3].astype(float) * pixels[..., 3:] / 65535)
    np.testing.assert_array_equal(pil_to_array(open_image(tmp_path / "a.tif")), expected)


def test_colours_of_16_bits_keep_their_hue_and_orientation(raw, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 24, 3)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = png_of_16_bits(pixels, 2, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    (tmp_path / "turned.png").write_bytes(content)
    expected = np.rot90(pixels, -1)
    low, high = np.percentile(pixels, (0.5, 99.5))
    shown = to_rgb(raw, tmp_path / "turned.png")
    np.testing.assert_array_equal(shown, np.rint(((expected - low) / (high - low)).clip(0, 1) * 255))


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tif"])
@pytest.mark.parametrize("block", [b"junkjunk", b"Exif\0\0junkjunk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0"])
def test_a_damaged_exif_block_does_not_keep_sound_pixels_from_being_read(raw, tmp_path, suffix, block):
    path = tmp_path / f"damaged.{suffix}"
    Image.fromarray(RGB).save(path, **({} if suffix == "tif" else {"exif": block}))
    assert to_rgb(raw, path).shape == (20, 24, 3)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (1, 3000, 3), (1, 3000, 4), (40, 5000, 3)])
def test_thin_images_are_read_whichever_way_they_come(processor, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(pixels, return_tensors="pt")["pixel_values"], expected)
    outputs = outputs_of(np.zeros((1, 1, 224, 224)))
    [mask] = processor.post_process_semantic_segmentation(outputs, [shape[:2]])
    assert mask.shape == shape[:2]


def test_many_masks(processor):
    masks = torch.rand(3, 20, 24, generator=torch.manual_seed(0))
    labels = processor([RGB] * 3, segmentation_maps=masks, return_tensors="pt")["labels"]
    for form in (masks[:, None], masks[..., None], masks[:, None].numpy(), list(masks)):
        assert torch.equal(processor([RGB] * 3, segmentation_maps=form, return_tensors="pt")["labels"], labels)
    for label, mask in zip(labels, masks):
        assert torch.equal(label, processor(RGB, segmentation_maps=mask, return_tensors="pt")["labels"][0])


# Back to the image's size


def outputs_of(probabilities) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.as_tensor(np.asarray(probabilities), dtype=torch.float32).logit(1e-6))


def test_images_that_are_not_resized_are_padded_and_cropped_back():
    processor = LViTImageProcessor(do_resize=False)
    mask = np.ones((37, 50), dtype=bool)
    inputs = processor(np.full((37, 50, 3), 255, dtype=np.uint8), segmentation_maps=mask, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 48, 64)
    inside = torch.zeros(48, 64, dtype=torch.bool)
    inside[:37, :50] = True
    assert (inputs["pixel_values"][0, :, inside] == 1).all()
    assert (inputs["pixel_values"][0, :, ~inside] == -1).all()
    assert torch.equal(inputs["labels"][0], inside.long())
    probabilities = np.random.default_rng(0).random((1, 1, 48, 64))
    [result] = processor.post_process_semantic_segmentation(
        outputs_of(probabilities), [(37, 50)], return_segmentation_scores=True
    )
    np.testing.assert_allclose(result.segmentation_scores, probabilities[0, :, :37, :50], atol=1e-5)
    assert np.array_equal(result.segmentation, probabilities[0, 0, :37, :50] > 0.5)


def test_padding_of_resized_images_is_cut_off():
    processor = LViTImageProcessor(size={"height": 40, "width": 40})
    assert processor(RGB, return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)
    probabilities = np.ones((1, 1, 48, 48))
    probabilities[..., 20:40] = 0  # the right half of the 40 pixels that were the image
    [mask] = processor.post_process_semantic_segmentation(outputs_of(probabilities), [(80, 120)])
    assert mask[:, :60].all()
    assert not mask[:, 60:].any()


def dice(mask: torch.Tensor, target: torch.Tensor) -> float:
    return (2 * (mask * target).sum() / (mask.sum() + target.sum())).item()


def test_probabilities_are_upsampled_and_not_masks(processor):
    rows, columns = torch.meshgrid(torch.arange(1120), torch.arange(1120), indexing="ij")
    target = ((rows - 500) ** 2 + (columns - 600) ** 2 < 61**2).long()
    soft = torch.nn.functional.avg_pool2d(target[None, None].float(), 5)
    [mask] = processor.post_process_semantic_segmentation(outputs_of(soft), [(1120, 1120)])
    hard = (soft[0, 0] > 0.5).long().repeat_interleave(5, 0).repeat_interleave(5, 1)
    assert dice(mask, target) > 0.99
    assert dice(mask, target) > dice(hard, target)


def test_what_shrinks_is_averaged(processor):
    """Of four columns one is white: that is a quarter, whichever of them it is."""
    for white in range(4):
        stripes = np.broadcast_to(np.arange(224) % 4 == white, (1, 1, 224, 224))
        [result] = processor.post_process_semantic_segmentation(
            outputs_of(stripes), [(56, 56)], return_segmentation_scores=True
        )
        np.testing.assert_allclose(result.segmentation_scores[0, :, 2:-2], 0.25, atol=0.01)


def test_threshold(processor):
    outputs = outputs_of([[[[0.2, 0.4], [0.6, 0.8]]]])
    for threshold, count in ((0, 4), (0.3, 3), (0.5, 2), (0.7, 1), (1, 0)):
        [mask] = processor.post_process_semantic_segmentation(outputs, threshold=threshold)
        assert mask.sum() == count


def test_several_labels(processor):
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 2, :2] = 5
    logits[:, 1, 2:] = 5
    sizes = torch.tensor([[8, 8], [4, 12]])
    results = processor.post_process_semantic_segmentation(
        SimpleNamespace(logits=logits), sizes, return_segmentation_scores=True
    )
    for result, (height, width) in zip(results, sizes.tolist()):
        assert result.segmentation_scores.shape == (3, height, width)
        torch.testing.assert_close(result.segmentation_scores.sum(0), torch.ones(height, width))
        assert (result.segmentation[: height // 2] == 2).all()
        assert (result.segmentation[height // 2 :] == 1).all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"target_sizes": [(40, 50)]}, "one target size for each image, got 1/2"),
        ({"target_sizes": (40, 50)}, "pair .*got 40"),
        ({"target_sizes": [(3, 40, 50)] * 2}, "pair"),
        ({"target_sizes": [(0, 50)] * 2}, "must be positive"),
        ({"threshold": 127}, "between 0 and 1, got 127"),
        ({"threshold": None}, "between 0 and 1, got None"),
        ({"threshold": "0.5"}, "between 0 and 1, got '0.5'"),
    ],
)
def test_settings_of_masks_that_make_no_sense_are_refused(processor, settings, reason):
    with pytest.raises(ValueError, match=reason):
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.zeros(2, 1, 32, 32)), **settings)


def test_maps_of_images_that_were_not_resized_are_not_enlarged():
    processor = LViTImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"target size \(40, 50\) for a map of \(32, 32\)"):
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.zeros(1, 1, 32, 32)), [(40, 50)])
    [mask] = processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.ones(1, 1, 32, 32)), [(32, 32)])
    assert mask.shape == (32, 32) and mask.all()


# Broken and absurd images


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ([], "at least one image"),
        (None, "image must be a PIL image.*NoneType"),
        ([RGB, None], "image must be a PIL image.*NoneType"),
        ([[0.5, 1.0]], "image must be a PIL image.*float"),
        (np.zeros((0, 5)), r"no pixels: its shape is \(0, 5\)"),
        (Image.new("L", (0, 5)), "no pixels"),
        (np.full((5, 5), np.nan), "NaN or infinite"),
        (torch.full((3, 5, 5), torch.inf), "NaN or infinite"),
        (np.zeros((5, 5), dtype=complex), "complex128"),
        (np.array([["a"]], dtype=object), "object"),
        (np.zeros((40, 50, 2), dtype=np.uint8), "1, 3 or 4 channels"),
        (np.zeros(5), r"2 or 3 dimensions, got the shape \(5,\)"),
        ([np.zeros(5), np.zeros(7)], r"2 or 3 dimensions, got the shape \(5,\)"),
        (np.zeros((1, 1, 3, 5, 5)), r"2 or 3 dimensions, got the shape \(1, 1, 3, 5, 5\)"),
        ([[], []], "at least one image"),
    ],
)
def test_absurd_images_are_refused_with_the_reason(processor, image, reason):
    with pytest.raises(ValueError, match=reason):
        processor(image)


@pytest.fixture
def png(tmp_path) -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "whole.png")
    return (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda png: png[:1000], "broken image file"),
        (lambda png: png[:200] + b"garbage" * 20 + png[340:], "broken image file"),
        (lambda png: b"These are words.", "not an image in a format that Pillow reads"),
        (lambda png: b"", "not an image in a format that Pillow reads"),
    ],
    ids=["truncated", "overwritten", "text", "empty"],
)
def test_broken_files_are_refused_with_their_name(processor, tmp_path, png, content, reason):
    path = tmp_path / "broken.png"
    path.write_bytes(content(png))
    with pytest.raises(ValueError, match=f"broken.png is .*{reason}"):
        processor(path)


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError("it ends\ntoo soon"), "it ends"), (IndexError(), "IndexError"), (ValueError(" "), "ValueError")],
)
def test_of_an_error_the_first_line_is_said_or_its_kind(error, words):
    assert describe_error(error) == words


def test_broken_images_that_pillow_opened_are_refused(processor, tmp_path, png):
    path = tmp_path / "broken.png"
    path.write_bytes(png[:1000])
    with Image.open(path) as image, pytest.raises(ValueError, match="The image is broken"):
        processor(image)


def test_missing_files_are_named(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.png"):
        processor(tmp_path / "missing.png")


def test_decompression_bombs_are_refused(processor, tmp_path, png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ValueError, match="whole.png is too large"):
        processor(tmp_path / "whole.png")


def test_images_and_masks_must_be_as_many(processor):
    with pytest.raises(ValueError, match="one segmentation map for each image, got 1/2"):
        processor([RGB, RGB], segmentation_maps=[GREY])


def test_images_of_different_sizes_need_resizing_to_be_stacked(processor):
    images = [RGB, np.zeros((70, 24, 3), dtype=np.uint8)]
    with pytest.raises(ValueError, match=r"got \[\(32, 32\), \(80, 32\)\].*do_resize=True"):
        processor(images, do_resize=False, return_tensors="pt")
    assert [array.shape for array in processor(images, do_resize=False)["pixel_values"]] == [(3, 32, 32), (3, 80, 32)]


def test_sizes_that_cannot_be_undone_are_refused(processor):
    with pytest.raises(ValueError, match="must give height and width"):
        processor(RGB, size={"shortest_edge": 64})


def test_settings_survive_saving(tmp_path):
    processor = LViTImageProcessor(
        size={"height": 96, "width": 64},
        image_mean=[0.1, 0.2, 0.3],
        do_flip_channel_order=True,
        do_binarize_maps=False,
    )
    processor.save_pretrained(tmp_path)
    reloaded = LViTImageProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == processor.to_dict()
    inputs, expected = (p(RGB, segmentation_maps=INDICES, return_tensors="pt") for p in (reloaded, processor))
    assert all(torch.equal(inputs[name], expected[name]) for name in ("pixel_values", "labels"))
