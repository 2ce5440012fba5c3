import json
import shutil

import numpy as np
import pytest
import torch
from captioning import captioning_model
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from tiny_lvit import SIZE, tiny_model, tiny_processor

from lvit_hf import LViTConfig
from lvit_hf.captions import parse_caption, rewrite_caption
from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.inference.measurements import measure_mask
from lvit_hf.inference.segmenter import (
    PLACE_IN_TILES,
    TILE_OVERLAP,
    Segmenter,
    count_tiles,
    join_scopes,
    load_processor,
)
from lvit_hf.model.segmenter_lvit import VIEWS, Scope, Segmentation, flip, unflip


PLACED = "one infected area, upper left lung"
UNPLACED = "all infected areas"
NUCLEI = "The nuclei are evenly distributed."


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_segmentation(probabilities: list[list[float]]) -> Segmentation:
    array = np.array(probabilities, dtype=np.float32)
    return Segmentation(Image.new("RGB", array.shape[::-1], "gray"), array[np.newaxis], ("polyp",))


def measure(segmentation: Segmentation, threshold: float = 0.5, spacing: tuple[float, float] | None = None) -> dict:
    return measure_mask(segmentation.mask(threshold), segmentation.probabilities, spacing)


def test_probabilities_are_those_of_the_model_at_the_size_of_the_image(segmenter):
    model, processor = tiny_model(), tiny_processor()
    image = noise_image(50, 70)
    with torch.no_grad():
        outputs = model(**processor(images=image, text=PLACED, return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(outputs, [(70, 50)], return_segmentation_scores=True)
    result = segmenter.segment([image], [PLACED])[0]
    assert result.probabilities.shape == (70, 50)
    np.testing.assert_allclose(result.probabilities, expected[0].segmentation_scores[0], atol=1e-5)
    assert result.text_used


def test_images_of_several_sizes_in_one_batch_get_what_each_gets_alone(segmenter):
    images = [noise_image(40, 60, 1), noise_image(33, 35, 2), noise_image(90, 20, 3)]
    texts = [PLACED, None, "  "]
    together = segmenter.segment(images, texts, batch_size=2)
    for image, text, result in zip(images, texts, together):
        alone = segmenter.segment([image], [text])[0]
        np.testing.assert_allclose(result.probabilities, alone.probabilities, atol=1e-5)
    assert [result.text_used for result in together] == [True, False, False]


def test_reads_files_of_every_kind_upright_in_rgb(segmenter, tmp_path):
    deep = Image.fromarray(np.linspace(1000, 3000, 30 * 20).astype(np.uint16).reshape(20, 30))
    deep.save(tmp_path / "deep.png")
    rotated = Image.Exif()
    rotated[274] = 6
    noise_image(30, 20).save(tmp_path / "rotated.jpg", exif=rotated)
    image = segmenter.to_image(tmp_path / "deep.png")
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert np.asarray(image).min() == 0 and np.asarray(image).max() == 255
    assert segmenter.segment([str(tmp_path / "rotated.jpg")])[0].probabilities.shape == (30, 20)


def test_measures_the_mask():
    segmentation = make_segmentation([[0.9, 0.2, 0.1, 0.7], [0.2, 0.8, 0.1, 0.1]])
    measures = measure(segmentation)
    assert measures["area_pixels"] == 3
    assert measures["area_percent"] == pytest.approx(37.5)
    assert measures["components"] == 2  # pixels that touch at a corner hang together
    assert measures["mean_probability"] == pytest.approx(0.8)
    assert measure(segmentation, 0.85)["area_pixels"] == 1
    nothing = measure(segmentation, 0.95)
    assert (nothing["area_pixels"], nothing["area_percent"], nothing["components"]) == (0, 0, 0)
    assert nothing["mean_probability"] is None and nothing["largest_diameter"] is None


def test_measures_in_mm_where_the_spacing_is_known():
    """A bar of 10 x 2 pixels and a compact one, which has fewer pixels across."""
    probabilities = np.zeros((30, 30), dtype=np.float32)
    probabilities[3:13, 4:6] = probabilities[18:22, 10:16] = 1
    segmentation = make_segmentation(probabilities.tolist())
    assert measure(segmentation)["area_mm2"] is None
    assert measure(segmentation)["diameter_unit"] == "pixels"
    assert measure(segmentation)["largest_diameter"] == pytest.approx(np.hypot(10, 2), abs=0.5)
    measures = measure(segmentation, spacing=(0.5, 2))
    assert measures["area_mm2"] == pytest.approx(44)
    assert measures["diameter_unit"] == "mm"
    assert measures["largest_diameter"] == pytest.approx(np.hypot(2, 12), abs=1.1)


def test_objects_smaller_than_a_millimetre_have_their_own_diameter():
    mask = np.zeros((20, 20), bool)
    mask[3:7, 4:7], mask[15, 15] = True, True
    pixels, measures = (measure_mask(mask, mask.astype(float), spacing) for spacing in (None, (0.1, 0.1)))
    assert measures["largest_diameter"] == pytest.approx(pixels["largest_diameter"] / 10)


def test_overlay_changes_the_mask_and_nothing_else():
    probabilities = np.zeros((9, 12), dtype=np.float32)
    probabilities[2:7, 3:9] = 1
    segmentation = make_segmentation(probabilities.tolist())
    overlay = draw_overlay(segmentation.image, segmentation.mask())
    changed = (np.asarray(overlay) != np.asarray(segmentation.image)).any(-1)
    np.testing.assert_array_equal(changed, probabilities > 0.5)


def test_an_image_within_a_tile_is_segmented_as_it_is_told():
    segmenter = Segmenter(tiny_model(caption_families=["lung infection"]), tiny_processor())
    image, settings = noise_image(30, 20), {"side": "patient", "views": "mirror"}
    [whole] = segmenter.segment([image], [PLACED], **settings)
    [tiled] = segmenter.segment([image], [PLACED], tile_size=32, **settings)
    np.testing.assert_array_equal(tiled.probabilities, whole.probabilities)


def test_beyond_the_edge_of_an_image_a_tile_sees_more_of_the_same(segmenter):
    low, high = (Image.new("RGB", (60, height), (90, 120, 200)) for height in (10, 16))
    [result], [expected] = (segmenter.segment([image], tile_size=16) for image in (low, high))
    np.testing.assert_allclose(result.probabilities, expected.probabilities[3:13], atol=1e-5)


@pytest.mark.parametrize("views", [None, "mirror"])
def test_the_last_tile_is_the_last_of_all(segmenter, views):
    steps: list = []
    segmenter.segment([noise_image(70, 50)], tile_size=32, views=views, progress=lambda *step: steps.append(step))
    total = count_tiles((70, 50), 32) * (1 if views is None else 2)
    assert steps[-1] == (total, total) and {of for _, of in steps} == {total}


def test_a_few_strange_tiles_do_not_speak_for_an_image():
    scopes = [Scope(score >= 0.5, score, "nuclei", {"nuclei": score}) for score in (0.9, 0.2, 0.3, 0.1, 0.3)]
    joined = join_scopes([*scopes, None])
    assert joined is not None and joined.score == 0.3
    assert join_scopes([None]) is None


def test_a_folder_may_have_any_name(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "mine@home")
    assert Segmenter.from_pretrained(folder).segment([noise_image(20, 20)])


def test_what_a_single_tile_covers_is_its_own_segmentation(segmenter):
    image = noise_image(80, 60)
    tiled = segmenter.segment([image], tile_size=40)[0].probabilities
    first = segmenter.segment([image.crop((0, 0, 40, 40))])[0].probabilities
    last = segmenter.segment([image.crop((40, 20, 80, 60))])[0].probabilities
    assert tiled.shape == (60, 80)
    np.testing.assert_allclose(tiled[:20, :30], first[:20, :30], atol=1e-5)
    np.testing.assert_allclose(tiled[40:, 70:], last[20:, 30:], atol=1e-5)


@pytest.mark.parametrize("is_wide", [True, False])
def test_tiles_are_joined_without_a_seam(segmenter, is_wide):
    """Where one ends the other decides: its edge counts next to nothing beside what is nearer to a middle."""
    image = noise_image(70, 40) if is_wide else noise_image(40, 70)
    [joined] = segmenter.segment([image], tile_size=40)
    crops = [image.crop((at, 0, at + 40, 40) if is_wide else (0, at, 40, at + 40)) for at in (0, 30)]
    maps = [result.probabilities for result in (joined, *segmenter.segment(crops))]
    joined, first, second = ((values if is_wide else values.T)[15:25] for values in maps)  # far from corners
    for column, nearer, other in ((30, first[:, 30], second[:, 0]), (39, second[:, 9], first[:, 39])):
        differences = np.abs(nearer - other)
        assert differences.max() > 0.05
        assert (np.abs(joined[:, column] - nearer) <= 0.05 * differences + 1e-4).all()


@pytest.mark.parametrize("size", [(80, 60), (41, 40), (100, 20), (64, 64)])
def test_tiles_cover_images_of_any_shape_and_are_counted(segmenter, size):
    steps = []
    result = segmenter.segment(
        [noise_image(*size)], tile_size=40, batch_size=3, progress=lambda *step: steps.append(step)
    )
    assert result[0].probabilities.shape == size[::-1]
    assert result[0].probabilities.min() > 0 and result[0].probabilities.max() < 1
    total = count_tiles(size, 40)
    assert steps[-1] == (total, total)
    assert [finished for finished, _ in steps] == [min(3 * (n + 1), total) for n in range(len(steps))]


def test_tiles_overlap_by_a_quarter():
    assert TILE_OVERLAP == 0.25
    assert count_tiles((1000, 1000), 175) == 8 * 8


def test_tiles_get_the_caption_only_where_it_names_no_place(segmenter):
    image = noise_image(80, 60)
    texts = (None, UNPLACED, PLACED)
    without, unplaced, placed = (segmenter.segment([image], [text], tile_size=40)[0] for text in texts)
    assert unplaced.text_used
    assert np.abs(unplaced.probabilities - without.probabilities).max() > 1e-3
    assert not placed.text_used and placed.text == PLACED
    np.testing.assert_array_equal(placed.probabilities, without.probabilities)


@pytest.mark.parametrize("side", ["image", "patient"])
def test_why_tiles_get_no_caption_is_said_beside_what_was_understood_of_it(side):
    segmenter, image = Segmenter(captioning_model("lung infection", "nuclei"), tiny_processor()), noise_image(40, 40)
    for text in (PLACED, NUCLEI):
        [whole] = segmenter.segment([image], [text], side=side)
        [tiled] = segmenter.segment([image], [text], side=side, tile_size=30)
        assert tiled.reading.caption == whole.reading.caption and tiled.reading.side == whole.reading.side
        added = PLACE_IN_TILES if text == PLACED else ""
        assert tiled.reading.message == f"{whole.reading.message} {added}".strip()
        assert tiled.reading.text == (None if text == PLACED else whole.reading.text)
        assert tiled.text_used == (text == NUCLEI) and tiled.text == text
    [blank] = segmenter.segment([image], [""], tile_size=30)
    assert blank.text is None and not blank.text_used
    nonsense = "a photo of a dog"
    with pytest.raises(ValueError):
        segmenter.segment([image], [nonsense], tile_size=30, on_unknown="error")
    ignored, used = (
        segmenter.segment([image], [nonsense], tile_size=30, on_unknown=on)[0] for on in ("ignore", "use")
    )
    assert used.text_used and not ignored.text_used


def test_a_checkpoint_is_read_without_its_weights_too(checkpoint, tmp_path):
    config, processor = load_processor(checkpoint)
    assert config.to_dict() == LViTConfig.from_pretrained(checkpoint).to_dict()
    expected = Segmenter.from_pretrained(checkpoint).processor
    assert processor.image_processor.to_dict() == expected.image_processor.to_dict()
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model type 'lvit'"):
        load_processor(folder)


def test_a_setting_of_a_configuration_that_is_wrong_is_told(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_sizes": "large"}))
    for load in (Segmenter.from_pretrained, load_processor):
        with pytest.raises(
            ValueError, match=r"broken is not an LViT checkpoint \(a folder, or USER/NAME on the Hub\): ."
        ):
            load(folder)


def test_an_image_no_larger_than_a_tile_stays_whole_and_keeps_its_caption(segmenter):
    image = noise_image(40, 30)
    whole, tiled = segmenter.segment([image], [PLACED])[0], segmenter.segment([image], [PLACED], tile_size=40)[0]
    np.testing.assert_array_equal(whole.probabilities, tiled.probabilities)
    assert tiled.text_used


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"images": [noise_image(40, 40)], "tile_size": 8}, "at least 16 pixels"),
        ({"images": [noise_image(40, 40)], "texts": []}, "one caption for each image"),
        ({"images": [np.full((40, 40), np.nan)]}, "NaN"),
        ({"images": [np.zeros((0, 40), dtype=np.uint8)]}, "no pixels"),
    ],
)
def test_refuses_what_cannot_be_segmented(segmenter, arguments, message):
    with pytest.raises(ValueError, match=message):
        segmenter.segment(**arguments)


def test_loads_a_saved_checkpoint(segmenter, checkpoint):
    image = noise_image(SIZE, SIZE)
    loaded = Segmenter.from_pretrained(checkpoint).segment([image], [PLACED])[0]
    np.testing.assert_allclose(loaded.probabilities, segmenter.segment([image], [PLACED])[0].probabilities, atol=1e-5)


def test_refuses_what_is_no_complete_checkpoint(checkpoint, tmp_path):
    for missing in (tmp_path / "missing", "lvit-smal"):  # and the Hub is not asked
        with pytest.raises(ValueError, match=f"There is no checkpoint {missing}. .* one of lvit-small, "):
            Segmenter.from_pretrained(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="config.json"):
        Segmenter.from_pretrained(tmp_path / "empty")
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model type 'lvit'"):
        Segmenter.from_pretrained(other)
    headless = shutil.copytree(checkpoint, tmp_path / "headless")
    weights = {
        key: value for key, value in load_file(headless / "model.safetensors").items() if "classifier" not in key
    }
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="2 tensors of the network are missing"):
        Segmenter.from_pretrained(headless)
    (headless / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="is not an LViT checkpoint"):
        Segmenter.from_pretrained(headless)


@pytest.mark.parametrize("tile_size", [None, 32])
def test_several_labels_have_a_mask_each_and_the_background_belongs_to_none(tile_size):
    names = {0: "background", 1: "left lung", 2: "right lung"}
    segmenter = Segmenter(tiny_model(id2label=names), tiny_processor())
    [result] = segmenter.segment([noise_image(50, 70)], tile_size=tile_size)
    masks = result.masks()
    assert list(masks) == list(names.values()) and result.scores.shape == (3, 70, 50)
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), 1)
    np.testing.assert_array_equal(result.mask(), masks["left lung"] | masks["right lung"])
    np.testing.assert_allclose(result.probabilities, 1 - result.scores[0], atol=1e-5)


# Flips of the image


@pytest.mark.parametrize("flips", VIEWS["all"])
def test_flips_are_undone_and_are_those_of_the_caption(flips):
    array = np.arange(12).reshape(3, 4)
    flipped = flip(array, flips)
    assert not np.array_equal(flipped, array)
    np.testing.assert_array_equal(unflip(flipped, flips), array)
    quadrants = np.array([["top left", "top right"], ["bottom left", "bottom right"]])
    for place in quadrants.flat:
        caption = rewrite_caption(f"One small colonic polyp on the {place}.", *flips)
        row, column = np.argwhere(flip(quadrants, flips) == place)[0]
        assert caption == f"One small colonic polyp on the {quadrants[row, column]}."


@pytest.mark.parametrize("tile_size", [None, 32])
def test_an_image_and_its_mirror_image_get_the_same_mask(segmenter, tile_size):
    image = noise_image(60, 40)
    settings = {"tile_size": tile_size, "views": "mirror"}
    [result] = segmenter.segment([image], [PLACED], **settings)
    mirrored_caption = rewrite_caption(PLACED, flip_horizontal=True)
    [mirrored] = segmenter.segment([ImageOps.mirror(image)], [mirrored_caption], **settings)
    assert mirrored_caption != PLACED and result.text == PLACED and result.image.size == image.size
    np.testing.assert_allclose(mirrored.probabilities[:, ::-1], result.probabilities, atol=1e-5)
    assert np.ptp(result.probabilities) > 1e-3


# Captions that are written, and captions that are judged


@pytest.fixture(scope="module")
def writer() -> Segmenter:
    return Segmenter(captioning_model("lung infection", "polyp"), tiny_processor())


def test_maps_of_an_image_are_made_once_for_the_masks_with_and_without_its_caption(writer):
    runs = []
    hook = writer.model.lvit.conv_encoder.register_forward_hook(lambda *_: runs.append(1))
    images = [noise_image(40, 30), noise_image(32, 32, 1), noise_image(30, 40, 2)]
    texts = [PLACED, None, UNPLACED]
    together = writer.segment(images, texts)
    assert len(runs) == 1
    hook.remove()
    for image, text, result in zip(images, texts, together):
        [alone], [null] = writer.segment([image], [text], describe=False), writer.segment([image])
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-5)
        if text is not None:
            np.testing.assert_allclose(result.null_scores, null.scores, atol=1e-5)


def test_an_image_without_a_caption_gets_the_mask_of_the_null_text_and_a_caption_beside_it(writer):
    images = [noise_image(60, 40, seed) for seed in (1, 2)]
    described = writer.segment(images)
    plain = writer.segment(images, describe=False)
    for result, other in zip(described, plain):
        np.testing.assert_allclose(result.scores, other.scores, atol=1e-6)
        assert (result.text, result.text_used, result.check) == (None, False, None)
        assert parse_caption(result.written_caption).family in ("lung infection", "polyp")
        probabilities = [caption["probability"] for caption in result.described["captions"]]
        assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
        assert other.written_caption is None
    assert described[0].described["probabilities"] != described[1].described["probabilities"]


def test_a_given_caption_is_judged_and_what_it_changed_is_said(writer):
    image = noise_image(60, 40)
    [result] = writer.segment([image], [PLACED])
    [without] = writer.segment([image])
    np.testing.assert_allclose(result.null_probabilities, without.probabilities, atol=1e-6)
    assert np.abs(result.probabilities - without.probabilities).max() > 1e-3
    both = (result.probabilities * without.probabilities).sum()
    squares = (result.probabilities**2).sum() + (without.probabilities**2).sum()
    assert result.check.mask_agreement == pytest.approx(2 * both / squares, abs=1e-5) and 0 < result.check.score < 1
    assert result.written_caption == without.written_caption


def test_rows_with_and_without_captions_share_a_batch(writer):
    images = [noise_image(60, 40, seed) for seed in (1, 2, 3)]
    texts = [None, PLACED, None]
    together = writer.segment(images, texts)
    for image, text, result in zip(images, texts, together):
        [alone] = writer.segment([image], [text])
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-5)
        assert (result.text, result.text_used) == (text, text is not None)


def test_a_caption_that_is_not_understood_is_not_used(writer):
    image, nonsense = noise_image(60, 40), "a photo of a dog"
    [without] = writer.segment([image])
    for text in (nonsense, "The nuclei are evenly distributed."):  # of no kind of image, and of another
        [result] = writer.segment([image], [text])
        np.testing.assert_allclose(result.scores, without.scores, atol=1e-6)
        assert result.text == text and not result.text_used and result.check is None
        assert not result.reading.understood
        with pytest.raises(ValueError):
            writer.segment([image], [text], on_unknown="error")
    [used] = writer.segment([image], [nonsense], on_unknown="use")
    assert used.text_used and np.abs(used.scores - without.scores).max() > 1e-3
    with pytest.raises(ValueError, match="ignore, use, error"):
        writer.segment([image], [nonsense], on_unknown="whatever")


def test_tiles_are_not_described(writer):
    [result] = writer.segment([noise_image(60, 40)], tile_size=32)
    assert result.described is None and result.text is None


def test_the_mask_is_named_after_what_it_shows(writer, segmenter):
    image = noise_image(60, 40)
    [lung], [polyp] = (writer.segment([image], [text]) for text in (PLACED, "One small colonic polyp on the left."))
    assert (lung.labels, polyp.labels) == (("infection",), ("polyp",))
    [silent] = writer.segment([image])
    family = max(silent.described["families"], key=silent.described["families"].get)
    assert silent.labels == ({"lung infection": "infection"}.get(family, family),)
    assert segmenter.segment([image])[0].labels == ("foreground",)  # the configuration says no more


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_agrees_with_float32():
    segmenter = Segmenter(tiny_model(), tiny_processor())
    image = noise_image(50, 70)
    model, processor = tiny_model(), tiny_processor()
    with torch.no_grad():
        logits = model(**processor(images=image, text=PLACED, return_tensors="pt")).logits
    expected = torch.nn.functional.interpolate(logits.sigmoid(), size=(70, 50), mode="bilinear", antialias=True)[0, 0]
    result = segmenter.segment([image], [PLACED])[0]
    assert segmenter.model.device.type == "cuda"
    assert np.abs(result.probabilities - expected.numpy()).mean() < 0.02
