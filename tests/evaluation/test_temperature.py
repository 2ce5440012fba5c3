import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_lvit import SIZE, tiny_model, tiny_processor
from transformers import pipeline
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf import LViTImageProcessor, LViTProcessor
from lvit_hf.evaluation.metrics import calibration_scores
from lvit_hf.evaluation.temperature import (
    Calibration,
    CalibrationSource,
    PixelSample,
    calibrate,
    fit_calibration,
    render_calibration,
    sample_pixels,
)
from lvit_hf.inference.segmenter import Segmenter


CAPTION = "one infected area, upper left lung"


def drawn_sample(temperature: float, bias: float, rows: int = 40) -> PixelSample:
    """Labels drawn with the probabilities that logits have at a temperature and a bias."""
    generator = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(rows, 2000, generator=generator)
    truth = Calibration(temperature, bias).scores(logits)
    return PixelSample(logits, torch.rand(truth.shape, generator=generator) < truth, torch.arange(rows))


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.5, -0.7), (0.5, 1.0)])
def test_the_calibration_with_which_labels_were_drawn_is_found(temperature, bias):
    found = fit_calibration([drawn_sample(temperature, bias)])
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.bias == pytest.approx(bias, abs=0.03)


def test_a_temperature_alone_leaves_masks_as_they_are():
    sample = drawn_sample(2.0, -0.5)
    found = fit_calibration([sample], fit_bias=False)
    assert found.bias == 0 and found.threshold == 0.5
    torch.testing.assert_close(found.scores(sample.logits) > 0.5, sample.logits > 0)
    shifted = fit_calibration([sample])
    assert ((shifted.scores(sample.logits) > shifted.threshold) == (sample.logits > 0)).float().mean() > 0.999


def test_a_temperature_alone_is_the_one_with_which_labels_were_drawn():
    assert fit_calibration([drawn_sample(2.0, 0.0)], fit_bias=False).temperature == pytest.approx(2, rel=0.03)


def test_data_sets_count_the_same_whatever_their_size():
    small, large = drawn_sample(1.0, -1.0, rows=20), drawn_sample(1.0, 1.0, rows=400)
    assert fit_calibration([small, large]).bias == pytest.approx(0, abs=0.1)


def test_masks_of_one_kind_are_refused():
    sample = drawn_sample(1.0, 0.0)
    empty = PixelSample(sample.logits, torch.zeros_like(sample.labels), sample.images)
    full = PixelSample(sample.logits, torch.ones_like(sample.labels), sample.images)
    for samples in ([empty], [full], [empty, empty], [full, full], []):
        with pytest.raises(ValueError, match="foreground and with background"):
            fit_calibration(samples)
    assert fit_calibration([sample, empty]).bias < 0 < fit_calibration([sample, full]).bias


def noise_images(count: int, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    """Noise whose masks are those of the tiny model at a threshold, so that its scores are far too high."""
    images = noise_images(6)
    results = Segmenter(tiny_model(), tiny_processor()).segment(images, [CAPTION] * 6)
    rows = {
        "image": images,
        "mask": [Image.fromarray(result.mask(0.9)).convert("L") for result in results],
        "text": [CAPTION] * 6,
        "id": [str(number) for number in range(6)],
    }
    features = {name: datasets.Image() if name in ("image", "mask") else datasets.Value("string") for name in rows}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_samples_are_the_logits_and_labels_of_the_network(data):
    segmenter = Segmenter(tiny_model(), tiny_processor())
    sample = sample_pixels(segmenter, CalibrationSource("noise", data), batch_size=4)
    assert sample.logits.shape == sample.labels.shape and sample.images.tolist() == list(range(6))
    inputs = tiny_processor()(images=data[5]["image"], text=CAPTION, return_tensors="pt")
    with torch.no_grad():
        expected = tiny_model()(**inputs).logits.flatten()
    nearest = (sample.logits[5][:, None] - expected).abs().min(1).values
    assert nearest.max() < 1e-4
    # The masks are those of the scores at 0.9, so most labels follow from the logits.
    agreement = (sample.labels == (sample.logits.sigmoid() > 0.9)).float().mean()
    assert agreement > 0.9


def test_tiles_are_sampled_without_captions_that_name_a_place(data):
    segmenter = Segmenter(tiny_model(), tiny_processor())
    tiled = sample_pixels(segmenter, CalibrationSource("noise", data, tile_size=20))
    assert tiled.images.tolist() == sorted([0, 1, 2, 3, 4, 5] * 4)
    silent = data.remove_columns("text").add_column("text", [""] * 6)
    torch.testing.assert_close(
        tiled.logits, sample_pixels(segmenter, CalibrationSource("noise", silent, tile_size=20)).logits
    )


def test_a_calibrated_checkpoint_scores_the_same_everywhere(data, tmp_path):
    segmenter = Segmenter(tiny_model(), tiny_processor())
    calibration, [figures] = calibrate(segmenter, [CalibrationSource("noise", data)])
    assert figures["ece_after"] < figures["ece_before"] / 2
    assert figures["brier_after"] < figures["brier_before"]
    tiny_model().save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    processor = LViTProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.temperature == pytest.approx(calibration.temperature)
    [image] = noise_images(1, SIZE)
    inputs = processor(images=image, text=CAPTION, return_tensors="pt")
    with torch.no_grad():
        outputs = tiny_model()(**inputs)
    expected = calibration.scores(outputs.logits[0])
    [result] = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
    torch.testing.assert_close(result.segmentation_scores, expected)
    torch.testing.assert_close(result.segmentation, (expected[0] > 0.5).long())
    segmented = Segmenter.from_pretrained(tmp_path).segment([image], [CAPTION])[0].probabilities
    torch.testing.assert_close(torch.from_numpy(segmented), expected[0], atol=1e-4, rtol=0)
    [segment] = pipeline("text-guided-image-segmentation", model=tmp_path, device="cpu")(
        image, text=CAPTION, threshold=0.2
    )
    assert segment["score"] == pytest.approx(expected[expected > 0.2].mean().item(), abs=1e-4)


def test_no_image_is_measured_with_numbers_that_were_fitted_on_it():
    """Masks of every second image are drawn far too large and the others' far too small, so that what is right for
    one half is wrong for the other: only an image's own fit would make its scores better."""
    segmenter = Segmenter(tiny_model(), tiny_processor())
    images = noise_images(8)
    masks = [
        Image.fromarray(result.mask((0.05, 0.95)[number % 2])).convert("L")
        for number, result in enumerate(segmenter.segment(images, [CAPTION] * 8))
    ]
    rows = {"image": images, "mask": masks, "text": [CAPTION] * 8}
    features = {name: datasets.Image() if name in ("image", "mask") else datasets.Value("string") for name in rows}
    source = CalibrationSource("noise", datasets.Dataset.from_dict(rows, features=datasets.Features(features)))
    sample = sample_pixels(segmenter, source)
    _, [figures] = calibrate(segmenter, [source])
    assert figures["brier_after"] > 1.2 * figures["brier_before"]
    errors = []
    for own, other in ((0, 1), (1, 0)):
        fitted = fit_calibration([sample.half(other)])
        errors.append((fitted.scores(sample.half(own).logits) - sample.half(own).labels.float()).square().mean())
    assert figures["brier_after"] == pytest.approx(float(sum(errors) / 2), rel=1e-4)


def test_several_classes_take_the_temperature(data):
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = type("Outputs", (), {"logits": logits})
    [result] = LViTImageProcessor(temperature=2.0).post_process_semantic_segmentation(
        outputs, return_segmentation_scores=True
    )
    torch.testing.assert_close(result.segmentation_scores, (logits[0] / 2).softmax(0))


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": float("inf")}, {"logit_bias": float("nan")}]
)
def test_a_calibration_that_is_none_is_refused(settings):
    with pytest.raises(ValueError, match="temperature must be positive"):
        LViTImageProcessor(**settings)


def test_the_command_calibrates_a_checkpoint_in_place(data, tmp_path):
    model, folder = tmp_path / "model", tmp_path / "noise"
    tiny_model().save_pretrained(model)
    tiny_processor().save_pretrained(model)
    folder.mkdir()
    data.to_parquet(folder / "valid-0.parquet")
    result = CliRunner().invoke(app, ["calibrate", str(model), str(folder), f"{folder}:20", "--no-bias"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("| noise | 6 |") == 2 and "The threshold 0.500" in result.stdout
    settings = json.loads((model / "processor_config.json").read_text())["image_processor"]
    sources = [CalibrationSource("noise", data, tile_size) for tile_size in (None, 20)]
    fitted, _ = calibrate(Segmenter(tiny_model(), tiny_processor()), sources, False, batch_size=16)
    assert settings["temperature"] == pytest.approx(fitted.temperature, rel=1e-3)
    assert settings["temperature"] != 1 and settings["logit_bias"] == 0
    result = CliRunner().invoke(app, ["calibrate", str(model), str(folder), "--limit", "2", "--split", "test"])
    assert result.exit_code == 1 and "has no split test" in result.stderr


def test_what_fits_into_a_tile_stays_whole_and_the_same_pixels_are_drawn_each_time(data):
    segmenter = Segmenter(tiny_model(), tiny_processor())
    whole, fitting = (
        sample_pixels(segmenter, CalibrationSource("noise", data, tile_size), batch_size=4) for tile_size in (None, 40)
    )
    assert whole.images.tolist() == fitting.images.tolist() == list(range(6))
    assert torch.equal(whole.logits, fitting.logits) and torch.equal(whole.labels, fitting.labels)
    assert len(whole.logits[0].unique()) > 500  # of the image's 1024 pixels


def test_figures_before_are_those_of_the_scores_as_they_were(data):
    segmenter = Segmenter(tiny_model(), tiny_processor())
    source = CalibrationSource("noise", data)
    sample = sample_pixels(segmenter, source)
    calibration, [figures] = calibrate(segmenter, [source])
    before = calibration_scores(sample.logits.sigmoid(), sample.labels)
    assert (figures["ece_before"], figures["brier_before"]) == pytest.approx(before)
    assert (figures["data"], figures["images"]) == ("noise", 6)
    text = render_calibration(calibration, [figures])
    threshold = torch.tensor(calibration.bias).sigmoid()
    assert f"Temperature {calibration.temperature:.3f}, bias {calibration.bias:.3f}" in text
    assert f"The threshold {threshold:.3f} gives" in text
    numbers = [figures[name] for name in ("ece_before", "ece_after", "brier_before", "brier_after")]
    assert f"| noise | 6 | {' | '.join(f'{number:.4f}' for number in numbers)} |" in text


def test_one_image_is_too_few(data):
    with pytest.raises(ValueError, match="noise has fewer than two images"):
        calibrate(Segmenter(tiny_model(), tiny_processor()), [CalibrationSource("noise", data.select([0]))])
