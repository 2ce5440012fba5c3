from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lvit_hf import LViTImageProcessor


RGB = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.full_like(GREY, 255)
ALPHA[:, :12] = 0  # the left half is transparent
ON_BLACK = RGB * (ALPHA > 0)[..., None]
GREY_ON_BLACK = GREY * (ALPHA > 0)
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
    "array of 8-bit floats": (RGB.astype(np.float64), RGB),
    "array of booleans": (GREY > 127, three_channels((GREY > 127) * 255)),
    "array of 16 bits": (DEEP, window(DEEP)),
    "array of Hounsfield units": (DEEP / 16.0 - 1024, window(DEEP / 16.0 - 1024)),
    "tensor with channels first": (torch.from_numpy(RGB).movedim(-1, 0), RGB),
    "tensor with channels last": (torch.from_numpy(RGB), RGB),
    "tensor of height x width": (torch.from_numpy(GREY), three_channels(GREY)),
    "tensor in half precision": (torch.from_numpy(GREY > 127).bfloat16(), three_channels((GREY > 127) * 255)),
    "tensor that requires a gradient": (torch.from_numpy(RGB / 255).requires_grad_(), RGB),
}


@pytest.mark.parametrize(("image", "expected"), IMAGES.values(), ids=IMAGES)
def test_every_kind_of_image_becomes_8_bit_rgb(raw, image, expected):
    assert np.array_equal(to_rgb(raw, image), expected)


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
    stacked = processor(torch.from_numpy(np.stack([RGB, RGB])), return_tensors="pt")["pixel_values"]
    assert torch.equal(stacked, batch[[0, 0]])


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


def test_masks_that_look_like_class_indices_are_warned_of(processor, caplog):
    [labels] = processor(RGB, segmentation_maps=INDICES)["labels"]
    assert not labels.any()
    assert "set do_binarize_maps=False" in caplog.text


def test_many_masks(processor):
    masks = torch.rand(3, 20, 24, generator=torch.manual_seed(0))
    labels = processor([RGB] * 3, segmentation_maps=masks, return_tensors="pt")["labels"]
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
    ],
)
def test_settings_of_masks_that_make_no_sense_are_refused(processor, settings, reason):
    with pytest.raises(ValueError, match=reason):
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.zeros(2, 1, 32, 32)), **settings)


def test_maps_of_images_that_were_not_resized_are_not_enlarged():
    processor = LViTImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"target size \(40, 50\) for a map of \(32, 32\)"):
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.zeros(1, 1, 32, 32)), [(40, 50)])


# Broken and absurd images


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ([], "at least one image"),
        (np.zeros((0, 5)), r"no pixels: its shape is \(0, 5\)"),
        (Image.new("L", (0, 5)), "no pixels"),
        (np.full((5, 5), np.nan), "NaN or infinite"),
        (torch.full((3, 5, 5), torch.inf), "NaN or infinite"),
        (np.zeros((5, 5), dtype=complex), "complex128"),
        (np.array([["a"]], dtype=object), "object"),
        (np.zeros((40, 50, 2), dtype=np.uint8), "1, 3 or 4 channels"),
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
