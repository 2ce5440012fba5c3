import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_lvit import SIZE, tiny_model, tiny_processor

from lvit_hf.inference.segmenter import TILE_OVERLAP, Segmentation, Segmenter, count_tiles


PLACED = "one infected area, upper left lung"
UNPLACED = "all infected areas"


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_segmentation(probabilities: list[list[float]]) -> Segmentation:
    array = np.array(probabilities, dtype=np.float32)
    return Segmentation(Image.new("RGB", array.shape[::-1], "gray"), array, None, False)


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
    image = segmenter.to_rgb(tmp_path / "deep.png")
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert np.asarray(image).min() == 0 and np.asarray(image).max() == 255
    assert segmenter.segment([str(tmp_path / "rotated.jpg")])[0].probabilities.shape == (30, 20)


def test_measures_the_mask():
    segmentation = make_segmentation([[0.9, 0.2, 0.1, 0.7], [0.2, 0.8, 0.1, 0.1]])
    measures = segmentation.measure(0.5)
    assert measures["area_pixels"] == 3
    assert measures["area_percent"] == pytest.approx(37.5)
    assert measures["components"] == 2  # pixels that touch at a corner hang together
    assert measures["mean_probability"] == pytest.approx(0.8)
    assert segmentation.measure(0.85)["area_pixels"] == 1
    nothing = segmentation.measure(0.95)
    assert (nothing["area_pixels"], nothing["area_percent"], nothing["components"]) == (0, 0, 0)
    assert nothing["mean_probability"] is None and nothing["largest_diameter"] is None


def test_measures_in_mm_where_the_spacing_is_known():
    """A bar of 10 x 2 pixels and a compact one, which has fewer pixels across."""
    probabilities = np.zeros((30, 30), dtype=np.float32)
    probabilities[3:13, 4:6] = probabilities[18:22, 10:16] = 1
    segmentation = make_segmentation(probabilities.tolist())
    assert segmentation.measure()["area_mm2"] is None
    assert segmentation.measure()["diameter_unit"] == "pixels"
    assert segmentation.measure()["largest_diameter"] == pytest.approx(np.hypot(10, 2), abs=0.5)
    measures = segmentation.measure(spacing=(0.5, 2))
    assert measures["area_mm2"] == pytest.approx(44)
    assert measures["diameter_unit"] == "mm"
    assert measures["largest_diameter"] == pytest.approx(np.hypot(2, 12), abs=1.1)


def test_overlay_changes_the_mask_and_nothing_else():
    probabilities = np.zeros((9, 12), dtype=np.float32)
    probabilities[2:7, 3:9] = 1
    segmentation = make_segmentation(probabilities.tolist())
    changed = (np.asarray(segmentation.overlay()) != np.asarray(segmentation.image)).any(-1)
    np.testing.assert_array_equal(changed, probabilities > 0.5)


def test_what_a_single_tile_covers_is_its_own_segmentation(segmenter):
    image = noise_image(80, 60)
    tiled = segmenter.segment([image], tile_size=40)[0].probabilities
    first = segmenter.segment([image.crop((0, 0, 40, 40))])[0].probabilities
    last = segmenter.segment([image.crop((40, 20, 80, 60))])[0].probabilities
    assert tiled.shape == (60, 80)
    np.testing.assert_allclose(tiled[:20, :30], first[:20, :30], atol=1e-5)
    np.testing.assert_allclose(tiled[40:, 70:], last[20:, 30:], atol=1e-5)


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
    without, unplaced, placed = (segmenter.segment([image], [text], 40)[0] for text in (None, UNPLACED, PLACED))
    assert unplaced.text_used
    assert np.abs(unplaced.probabilities - without.probabilities).max() > 1e-3
    assert not placed.text_used and placed.text == PLACED
    np.testing.assert_array_equal(placed.probabilities, without.probabilities)


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
    with pytest.raises(ValueError, match="no such folder"):
        Segmenter.from_pretrained(tmp_path / "missing")
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


def test_refuses_a_model_with_several_labels():
    with pytest.raises(ValueError, match="one label"):
        Segmenter(tiny_model(num_labels=3), tiny_processor())


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
    assert segmenter.device.type == "cuda"
    assert np.abs(result.probabilities - expected.numpy()).mean() < 0.02
