import json
import shutil
import weakref
from dataclasses import asdict

import datasets
import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from PIL import Image
from squares import make_rows
from tiny_lvit import tiny_model
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.captions import parse_caption
from lvit_hf.data.load import load_data
from lvit_hf.evaluation import evaluate as evaluation
from lvit_hf.evaluation import report
from lvit_hf.evaluation.evaluate import (
    EvaluationSettings,
    TextModeMeasures,
    evaluate,
    make_results,
    record_results,
)
from lvit_hf.evaluation.metrics import (
    MeasureTable,
    OverlapMetrics,
    boundary_scores,
    interval,
    measure_image,
    resampling_weights,
    summarize,
)
from lvit_hf.inference.segmenter import Segmenter


CAPTIONS = ["one infected area, upper left lung", "two infected areas, lower right lung", "all infected areas"]


def noise_image(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def make_data(**columns) -> datasets.Dataset:
    """Six images of two sizes; the last has an empty mask."""
    sizes = [(40, 30), (36, 48)] * 3
    rows = {
        "image": [noise_image(*size, seed) for seed, size in enumerate(sizes)],
        "mask": [box_mask(*size, (5, 5, 12 + 4 * n, 20)) for n, size in enumerate(sizes[:5])]
        + [Image.new("L", (36, 48))],
        "text": CAPTIONS * 2,
        "id": [f"case-{number}" for number in range(6)],
        **columns,
    }
    features = {name: datasets.Image() if name in ("image", "mask") else datasets.Value("string") for name in rows}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    return make_data()


def tabulate(images: list[dict[str, torch.Tensor]]) -> MeasureTable:
    table = MeasureTable(len(images))
    for number, measured in enumerate(images):
        table.put(number, measured)
    return table


def random_measures(images: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(images, 16, 16, generator=generator)
    labels = torch.rand(images, 16, 16, generator=generator) > 0.6
    return tabulate([measure_image(*pair, threshold=0.5, tolerance=1) for pair in zip(maps, labels)])


@pytest.mark.parametrize("seed", range(4))
def test_boundary_scores_are_monais(seed):
    noise = torch.rand(2, 1, 1, 6, 8, generator=torch.Generator().manual_seed(seed))
    prediction, label = torch.nn.functional.interpolate(noise.flatten(0, 1), scale_factor=8, mode="bilinear") > 0.5
    hd95, nsd = boundary_scores(prediction[0], label[0], tolerance=1.5)
    pair, settings = (prediction[None], label[None]), {"include_background": True}
    assert hd95 == pytest.approx(compute_hausdorff_distance(*pair, percentile=95, **settings).item())
    assert nsd == pytest.approx(compute_surface_dice(*pair, class_thresholds=[1.5], **settings).item())


def test_boundary_scores_of_empty_masks_are_defined():
    empty, full = torch.zeros(30, 40, dtype=torch.bool), torch.zeros(30, 40, dtype=torch.bool)
    full[10:20, 10:20] = True
    assert boundary_scores(empty, empty, 2) == (0, 1)
    assert boundary_scores(empty, full, 2) == boundary_scores(full, empty, 2) == (50, 0)
    assert boundary_scores(full, full, 0) == (0, 1)


def test_outlines_as_far_apart_as_the_tolerance_agree():
    strip, longer = torch.zeros(2, 20, 40, dtype=torch.bool)
    strip[5:15, 5:20], longer[5:15, 5:22] = True, True
    assert boundary_scores(strip, longer, 2) == boundary_scores(longer, strip, 2) == (2, 1)
    assert boundary_scores(strip, longer, 1)[1] < 1
    longer[5:15, 22:35] = True
    assert boundary_scores(strip, longer, 2)[0] == boundary_scores(longer, strip, 2)[0] > 10


def test_an_interval_leaves_out_two_and_a_half_percent_at_each_end():
    shuffled = torch.randperm(1001, generator=torch.Generator().manual_seed(0)).double()
    assert interval(shuffled) == pytest.approx((25, 975))


def test_calibration_of_a_known_case():
    label = torch.zeros(10, 10, dtype=torch.bool)
    label[:3] = True
    certain, honest, wrong = label.float(), torch.full((10, 10), 0.3), torch.full((10, 10), 0.9)
    figures = {}
    for name, map_ in {"certain": certain, "honest": honest, "wrong": wrong}.items():
        figures[name] = summarize(tabulate([measure_image(map_, label, 0.5, 1)]))
    assert figures["certain"]["ece"] == figures["certain"]["brier"] == 0
    assert figures["honest"]["ece"].item() == pytest.approx(0, abs=1e-6)
    assert figures["honest"]["brier"].item() == pytest.approx(0.3 * 0.7)
    assert figures["wrong"]["ece"].item() == pytest.approx(0.6)


def test_figures_are_those_of_the_overlap_metrics(segmenter, data):
    measured = evaluate(segmenter, data, ["correct"], EvaluationSettings(size=24, threshold=0.4))["correct"]
    overlap = OverlapMetrics()
    for row in data:
        [result] = segmenter.segment([row["image"]], [row["text"]])
        prediction = evaluation.resize_probabilities(result.probabilities, 24) > 0.4
        overlap.update(prediction[None], evaluation.resize_mask(row["mask"], 24, official=False)[None])
    figures = summarize(measured.measures)
    for name, expected in overlap.compute().items():
        assert figures[name].item() == pytest.approx(expected, abs=1e-6)


def test_a_resample_is_the_set_of_images_it_counts():
    measures = random_measures()
    weights = resampling_weights(12)
    assert (weights.sum(1) == 12).all()
    drawn = torch.repeat_interleave(torch.arange(12), weights[7].long())
    expected = summarize({name: values[drawn] for name, values in measures.items()})
    for name, values in summarize(measures, weights).items():
        assert values[7].item() == pytest.approx(expected[name].item()), name


def test_intervals_hold_the_figure_and_shrink_with_more_images():
    measures = random_measures(12)
    many = {name: values.repeat(8, *[1] * (values.ndim - 1)) for name, values in measures.items()}
    widths = {}
    for images, sample in ((12, measures), (96, many)):
        low, high = interval(summarize(sample, resampling_weights(images))["dice"])
        assert low < summarize(sample)["dice"].item() < high
        widths[images] = high - low
    assert widths[96] < widths[12] / 2


@pytest.mark.parametrize("settings", [{"batch_size": 4}, {"size": 24, "official_masks": True}, {"tile_size": 24}])
def test_neither_batches_nor_other_captions_change_a_text_mode(segmenter, data, settings):
    together = evaluate(segmenter, data, evaluation.available_text_modes(data), EvaluationSettings(**settings))
    assert list(together) == ["correct", "none", "shuffled", "swapped", "absent"]
    for mode, measurement in together.items():
        alone = evaluate(segmenter, data, [mode], EvaluationSettings(**{**settings, "batch_size": 1}))[mode]
        torch.testing.assert_close(measurement.measures["dice"], alone.measures["dice"], atol=0.02, rtol=0)
        torch.testing.assert_close(
            measurement.measures["squared_error"], alone.measures["squared_error"], atol=1e-3, rtol=0
        )


def test_captions_reach_the_network_as_the_mode_says(segmenter, data):
    data = make_data(paraphrase=[f"{text} and all" for text in CAPTIONS * 2])
    measured = evaluate(segmenter, data, evaluation.available_text_modes(data), EvaluationSettings())
    texts = {mode: list(measurement.texts) for mode, measurement in measured.items()}
    assert texts["correct"] == CAPTIONS * 2
    assert texts["none"] == [None] * 6 and measured["none"].texts_read == 0
    assert texts["swapped"][:2] == ["one infected area, upper right lung", "two infected areas, lower left lung"]
    assert texts["paraphrase"][0].endswith("and all")
    errors = {mode: measurement.measures["squared_error"] for mode, measurement in measured.items()}
    for mode in ("none", "shuffled", "paraphrase"):
        assert not torch.equal(errors[mode], errors["correct"]), mode
    tiled = evaluate(segmenter, data, ["correct"], EvaluationSettings(tile_size=24))["correct"]
    assert tiled.texts_read == 2  # the other four name a place, which is not true of a tile


def test_of_what_is_not_there_the_right_mask_is_empty(segmenter):
    values = [0, 0, 255, 255, 255, 255]
    masks = [Image.new("L", image.size, value) for image, value in zip(make_data()["image"], values)]
    data = make_data(mask=masks)
    nothing, all_of_it = (
        make_results(
            evaluate(segmenter, data, ["none", "absent"], EvaluationSettings(threshold=threshold)),
            {"model": "tiny", "data": "noise", "split": "valid"},
            EvaluationSettings(threshold=threshold),
        )
        for threshold in (1.0, 0.0)
    )
    for (none, absent), empty in ((nothing, 1.0), (all_of_it, 0.0)):
        assert none["healthy_images"] == 2 and absent["healthy_images"] == 6
        assert none["healthy_found_empty"] == absent["dice"] == absent["healthy_found_empty"] == empty
        assert none["dice_without_healthy"] == 1 - empty and "dice_change" not in absent
    texts = evaluate(segmenter, data, ["absent"], EvaluationSettings())["absent"].texts
    assert len(set(texts)) > 1 and not any("infect" in text for text in texts)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shuffled_captions_are_each_of_another_image_and_the_same_each_time(count):
    captions = [str(number) for number in range(count)]
    shuffled = evaluation.shuffle_captions(captions)
    assert sorted(shuffled) == sorted(captions) and not any(map(str.__eq__, shuffled, captions))
    assert shuffled == evaluation.shuffle_captions(captions)
    neighbours = sum(abs(int(own) - int(other)) == 1 for own, other in zip(captions, shuffled))
    assert count < 50 or neighbours < 10  # which are often of one patient


def test_text_modes_without_a_meaning_are_left_out_or_refused(segmenter):
    data = make_data(text=["all infected areas"] * 6)
    assert evaluation.available_text_modes(data) == ["correct", "none", "shuffled", "absent"]
    with pytest.raises(ValueError, match="correct, none, shuffled, absent on this data set, not swapped"):
        evaluate(segmenter, data, ["correct", "swapped"], EvaluationSettings())


def test_a_mask_of_another_size_than_its_image_is_named(segmenter):
    data = make_data(mask=[Image.new("L", (40, 30))] * 6)
    with pytest.raises(ValueError, match="case-1 has 40 x 30 pixels and its image 36 x 48"):
        evaluate(segmenter, data, ["correct"], EvaluationSettings())
    assert evaluate(segmenter, data, ["correct"], EvaluationSettings(size=24))


def test_the_reference_rule_needs_a_size():
    with pytest.raises(ValueError, match="give a size"):
        EvaluationSettings(official_masks=True)


def test_results_compare_each_mode_with_the_correct_captions(segmenter, data):
    settings = EvaluationSettings()
    measured = evaluate(segmenter, data, ["correct", "none"], settings)
    correct, none = make_results(measured, {"model": "tiny", "data": "noise", "split": "valid"}, settings)
    assert (correct["model"], correct["data"], correct["split"], correct["images"]) == ("tiny", "noise", "valid", 6)
    assert none["dice_change"] == pytest.approx(none["dice"] - correct["dice"])
    low, high = none["dice_change_interval"]
    assert low <= none["dice_change"] <= high and "dice_change" not in correct
    assert json.loads(json.dumps(correct))["tolerance"] == settings.tolerance


def measured_of(**modes: dict[str, torch.Tensor]) -> dict[str, TextModeMeasures]:
    """What `evaluate` returns, with these measures."""
    return {mode: TextModeMeasures([None] * len(table["dice"]), 0, table) for mode, table in modes.items()}


def test_the_same_images_always_get_the_same_intervals():
    first, second = (make_results(measured_of(none=random_measures()), {}, EvaluationSettings()) for _ in range(2))
    assert first == second and len(set(map(tuple, first[0]["intervals"].values()))) > 4


@pytest.mark.parametrize("change", [0.0, -0.25])
def test_a_change_that_is_the_same_for_every_image_is_certain(change):
    """Both ways of captions are resampled together: what the images share does not widen the interval."""
    correct = random_measures()
    other = {**correct, "dice": correct["dice"] + change}
    [result, changed] = make_results(measured_of(correct=correct, none=other), {}, EvaluationSettings())
    low, high = result["intervals"]["dice"]
    assert high - low > 0.01
    assert changed["dice_change_interval"] == pytest.approx((change, change), abs=1e-9)


def test_an_interval_is_the_same_whatever_else_was_measured():
    """The figures of one way of captions do not hang on which others are asked for."""
    correct, other = random_measures(), {**random_measures(), "dice": random_measures()["dice"].flip(0)}
    together = make_results(measured_of(correct=correct, none=other), {}, EvaluationSettings())
    for mode, table, result in (("correct", correct, together[0]), ("none", other, together[1])):
        [alone] = make_results(measured_of(**{mode: table}), {}, EvaluationSettings())
        assert alone["intervals"] == result["intervals"]


def test_every_measure_is_that_of_its_own_image(segmenter, data):
    """The order of rows, batches and threads does not move a figure from one image to another."""
    together = evaluate(segmenter, data, ["correct", "none"], EvaluationSettings(batch_size=4))
    for number, row in enumerate(data):
        for mode, text in (("correct", row["text"]), ("none", None)):
            [result] = segmenter.segment([row["image"]], [text])
            label = evaluation.resize_mask(row["mask"], None, official=False)
            alone = measure_image(torch.from_numpy(result.probabilities), label, 0.5, 2.0)
            for name in ("total", "intersection", "squared_error"):
                value = together[mode].measures[name][number].item()
                assert value == pytest.approx(alone[name].item(), abs=2), (mode, number, name)


def test_no_tensors_pile_up_with_the_images(segmenter, monkeypatch):
    """Neither maps nor the many small tensors between them, which would keep the memory from being given back."""
    made, alive = [], []

    def measure(probabilities, *rest):
        measured = measure_image(probabilities, *rest)
        made.extend(weakref.ref(tensor) for tensor in (probabilities, *measured.values()))
        return measured

    monkeypatch.setattr(evaluation, "measure_image", measure)
    handle = segmenter.model.register_forward_hook(lambda *_: alive.append(sum(ref() is not None for ref in made)))
    try:
        measured = evaluate(segmenter, make_rows(96, seed=0), ["correct", "none"], EvaluationSettings(batch_size=4))
    finally:
        handle.remove()
    assert len(alive) == 48
    tensors = 1 + len(measured["none"].measures)  # of each image
    assert len(made) == 2 * 96 * tensors
    # Two batches wait to be measured, and a third one is handed in before any of them is taken.
    assert max(alive) <= 3 * 4 * tensors
    assert sum(ref() is not None for ref in made) == 0


def test_a_record_belongs_to_the_weights(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    first = {"data": "a", "split": "valid", "text": "correct", "images": 6, "size": None, "dice": 0.5}
    record_results(folder, [first, {**first, "text": "none"}])
    record_results(folder, [{**first, "dice": 0.6}])
    recorded = json.loads((folder / "evaluation.json").read_text())
    assert sorted((result["text"], result["dice"]) for result in recorded) == [("correct", 0.6), ("none", 0.5)]
    tiny_model(num_text_vectors=3).save_pretrained(folder)
    record_results(folder, [first])
    assert [result["text"] for result in json.loads((folder / "evaluation.json").read_text())] == ["correct"]
    (folder / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list"):
        record_results(folder, [first])


def test_results_of_other_data_or_settings_stay_and_those_of_another_processor_go(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")

    def recorded() -> list[float]:
        return [result["dice"] for result in json.loads((folder / "evaluation.json").read_text())]

    first = {**dict.fromkeys(evaluation.IDENTITY, 1), "dice": 0.0}
    for number, name in enumerate(evaluation.IDENTITY, 1):
        record_results(folder, [{**first, name: 2, "dice": float(number)}])
    assert recorded() == list(map(float, range(1, len(evaluation.IDENTITY) + 1)))
    assert {"data", "split", "text", "size", "threshold", "tile_size", "views"} < set(evaluation.IDENTITY)
    (folder / "notes.txt").write_text("mine")
    record_results(folder, [first])
    assert len(recorded()) == 1 + len(evaluation.IDENTITY) and recorded()[-1] == 0
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["temperature"] = 2.0
    (folder / "processor_config.json").write_text(json.dumps(processor))
    record_results(folder, [{**first, "dice": 0.5}])
    assert recorded() == [0.5]


def test_the_gallery_shows_no_image_twice():
    rows = report.gallery_rows(np.array([0.5, 0.1, 0.9, 0.4, 0.6, 0.2]))
    assert {title: indices.tolist() for title, indices in rows.items()} == {
        "best": [2, 4],
        "median": [3, 0],
        "worst": [1, 5],
    }


@pytest.fixture
def parquet(tmp_path, data):
    folder = tmp_path / "noise"
    folder.mkdir()
    data.to_parquet(folder / "valid-0.parquet")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_figures_tables_and_pictures(checkpoint, parquet, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "my-model.v2")
    out = tmp_path / "new" / "out"
    result = run("evaluate", model, parquet, "--out", out, "--name", "Noise $et", "--record", "--size", 24)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == [
        "dice.png",
        "evaluation.json",
        "evaluation.md",
        "gallery.png",
        "reliability.png",
    ]
    results = json.loads((out / "evaluation.json").read_text())
    assert [entry["text"] for entry in results] == ["correct", "none", "shuffled", "swapped", "absent"]
    assert {entry["model"] for entry in results} == {"my-model.v2"} and {entry["data"] for entry in results} == {
        "Noise $et"
    }
    table = (out / "evaluation.md").read_text()
    assert f"{100 * results[0]['dice']:.2f}" in table and "MONAI" in table and "2 pixels" in table
    assert table in result.stdout
    assert "compared at 24 x 24 pixels, threshold 0.5. Ground truth resized by area, cut at one half." in table
    assert len(json.loads((model / "evaluation.json").read_text())) == 5
    assert Segmenter.from_pretrained(model)
    for picture in out.glob("*.png"):
        assert min(Image.open(picture).size) > 300


def test_the_command_takes_some_images_and_one_way_of_captions(checkpoint, parquet, tmp_path):
    result = run("evaluate", checkpoint, parquet, "--out", tmp_path / "out", "--limit", 2, "--text", "none")
    assert result.exit_code == 0, result.output
    [figures] = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (figures["text"], figures["images"]) == ("none", 2)
    defaults = {name: value for name, value in asdict(EvaluationSettings()).items() if name != "batch_size"}
    assert {name: figures[name] for name in defaults} == defaults


def test_the_command_measures_as_it_is_told(checkpoint, parquet, tmp_path):
    options = ("--threshold", 0.3, "--tolerance", 0, "--views", "mirror", "--tile-size", 24, "--text", "correct")
    result = run("evaluate", checkpoint, parquet, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    settings = EvaluationSettings(24, threshold=0.3, tolerance=0, views="mirror")
    segmenter, rows = Segmenter.from_pretrained(checkpoint), load_data(str(parquet), "valid")
    expected = make_results(evaluate(segmenter, rows, ["correct"], settings), {}, settings)[0]
    [figures] = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {name: figures[name] for name in expected} == json.loads(json.dumps(expected))
    assert "compared at each image's own size, threshold 0.3." in result.stdout
    assert "Segmented in tiles of 24 pixels. Averaged over flips (mirror)." in result.stdout
    read = f"The network read {figures['texts_read']} of {figures['images']} captions"
    assert figures["texts_read"] < figures["images"] and read in (tmp_path / "out" / "evaluation.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "reversed"), "not reversed"),
        (("--structures", "config.yaml"), "--structures is for volumes"),
        (("--split", "test"), "has no split test"),
        (("--official-masks",), "give a size"),
        (("--record", "--limit", 2), "--record needs all images"),
    ],
)
def test_the_command_says_what_is_wrong(checkpoint, parquet, arguments, message):
    result = run("evaluate", checkpoint, parquet, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.output


def test_a_mask_is_resized_by_area_and_by_the_reference_wherever_it_touches():
    values = np.random.default_rng(0).random((24, 36)) > 0.55
    mask = Image.fromarray(values)
    blocks = values.reshape(12, 2, 12, 3).mean((1, 3))
    np.testing.assert_array_equal(evaluation.resize_mask(mask, 12, official=False), blocks > 0.5)
    np.testing.assert_array_equal(evaluation.resize_mask(mask, None, official=False), values)
    point = np.zeros((24, 24), bool)
    point[9, 14] = True
    grown = evaluation.resize_mask(Image.fromarray(point), 48, official=True)
    assert grown[18:20, 28:30].all() and grown[17:21, 27:31].all() and grown.sum() == 16
    assert evaluation.resize_mask(Image.fromarray(point), 48, official=False).sum() == 4


def test_probabilities_are_resized_by_their_mean():
    values = np.random.default_rng(0).random((24, 24)).astype(np.float32)
    assert torch.equal(evaluation.resize_probabilities(values, 24), torch.from_numpy(values))
    assert torch.equal(evaluation.resize_probabilities(values[:20], None), torch.from_numpy(values[:20]))
    small = evaluation.resize_probabilities(values, 8)
    assert small.shape == (8, 8) and small.mean().item() == pytest.approx(values.mean(), abs=0.02)
    smooth = np.linspace(0, 1, 24, dtype=np.float32)[None].repeat(24, 0)
    np.testing.assert_allclose(
        evaluation.resize_probabilities(smooth, 12)[3, 1:-1], smooth[0].reshape(12, 2).mean(1)[1:-1], atol=0.01
    )


def test_what_is_asked_for_as_absent_is_of_another_family_and_of_every_one_by_turns():
    own = {parse_caption(text).family: text for text in evaluation.ABSENT_CAPTIONS.values()}
    assert own == evaluation.ABSENT_CAPTIONS and len(own) > 3
    for family, text in {**own, None: "zzz"}.items():
        asked = [parse_caption(other).family for other in evaluation.ask_for_absent([text] * 12)]
        assert set(asked) == own.keys() - {family} and asked[0] != asked[1]
