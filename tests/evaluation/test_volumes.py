"""Figures of volumes against those that each volume has by itself."""

import json

import nibabel
import numpy as np
import pytest
import torch
from tiny_volumes import tiny_volume_model, tiny_volume_processor

from lvit_hf.data.volumes import Structure
from lvit_hf.evaluation.metrics import boundary_scores, overlap
from lvit_hf.evaluation.volumes import evaluate_volumes, render_volume_evaluation, write_volume_evaluation
from lvit_hf.model.segmenter_lvit import LViTSegmenter


SPACING = (1.5, 0.5, 3.0)
BOX, REST, ABSENT = STRUCTURES = [
    Structure("box", [1], ["one infected area"], ["upper area", "lower area"]),
    Structure("rest", [0, 2], ["two areas"]),
    Structure("absent", [], ["lung"]),
]


@pytest.fixture(scope="module")
def segmenter() -> LViTSegmenter:
    return LViTSegmenter(tiny_volume_model(text_fusion="cross_attention"), tiny_volume_processor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three volumes of noise with a box each; the third box is empty."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    for number in range(3):
        labels = np.zeros((8, 16, 8), np.uint8)
        labels[2 : 6 - 2 * number, 4:12, 1:6] = 1
        for name, array in (("images", rng.normal(100, 20, labels.shape).astype(np.float32)), ("labels", labels)):
            path = folder / "test" / name / f"{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0])), path)
    return folder


@pytest.fixture(scope="module")
def report(segmenter, folder) -> dict:
    return evaluate_volumes(segmenter, str(folder), STRUCTURES, "test", threshold=0.4, tolerance=2.5)


def mask(segmenter, folder, number: int, text: str) -> np.ndarray:
    volume = nibabel.load(folder / "test" / "images" / f"{number}.nii.gz")
    return segmenter.segment_volume(volume, text).probabilities > 0.4


def truth(folder, number: int, structure: Structure) -> np.ndarray:
    return np.isin(nibabel.load(folder / "test" / "labels" / f"{number}.nii.gz").dataobj, structure.labels)


@pytest.mark.parametrize(
    ("name", "structure", "texts"),
    [
        ("rest", REST, ["two areas"] * 3),
        ("box", BOX, ["one infected area"] * 3),
        ("box, paraphrased", BOX, ["upper area", "lower area", "upper area"]),
    ],
)
def test_figures_are_means_of_those_of_each_volume(segmenter, folder, report, name, structure, texts):
    """Of overlap and outlines where the structure is there: the third volume has no box."""
    rows, errors = [], []
    for number, text in enumerate(texts):
        pair = mask(segmenter, folder, number, text), truth(folder, number, structure)
        errors.append(abs(int(pair[0].sum()) - int(pair[1].sum())) * np.prod(SPACING))
        if pair[1].any():
            rows.append((overlap(*pair)["dice"], *boundary_scores(*map(torch.from_numpy, pair), 2.5, SPACING)))
    expected = dict(zip(("dice", "hd95", "nsd"), np.mean(rows, axis=0)))
    assert 0 < expected["dice"] < 1 and 0 < expected["nsd"] < 1 and len(rows) == (3 if structure == REST else 2)
    expected |= {"volume_error": np.mean(errors), "volumes": 3} | ({"empty": 0} if structure == BOX else {})
    assert report[name] == pytest.approx(expected)


def test_of_what_is_not_there_the_share_of_empty_masks_counts(segmenter, folder, report):
    masks = [mask(segmenter, folder, number, "lung") for number in range(3)]
    found = np.mean([each.sum() for each in masks]) * np.prod(SPACING)
    assert report["absent"] == pytest.approx({"empty": 0, "volume_error": found, "volumes": 3}) and found > 0
    strict = evaluate_volumes(segmenter, str(folder), [ABSENT], "test", threshold=1.0)
    assert strict == {"absent": {"empty": 1, "volume_error": 0, "volumes": 3}}


def test_the_mask_of_one_caption_is_compared_with_what_others_ask_for(segmenter, folder, report):
    assert report.keys() == {
        *("box", "box, paraphrased", "rest", "absent"),
        *("box, captioned rest", "box, captioned absent", "rest, captioned box", "rest, captioned absent"),
    }
    for name, structure, text in (
        ("box, captioned rest", BOX, "two areas"),
        ("rest, captioned absent", REST, "lung"),
    ):
        truths = [(number, truth(folder, number, structure)) for number in range(3)]
        dice = [overlap(mask(segmenter, folder, number, text), each)["dice"] for number, each in truths if each.any()]
        assert report[name] == pytest.approx({"dice": np.mean(dice), "volumes": len(dice)})


def test_some_volumes_are_spread_over_the_split_and_each_is_told(segmenter, folder):
    steps: list = []
    some = evaluate_volumes(
        segmenter, str(folder), [REST], "test", 2, lambda *step: steps.append(step), 0.4, tolerance=2.5
    )
    dice = [overlap(mask(segmenter, folder, n, "two areas"), truth(folder, n, REST))["dice"] for n in (0, 1)]
    assert some["rest"]["dice"] == pytest.approx(np.mean(dice)) and steps == [(1, 2), (2, 2)]
    usual, told = (
        evaluate_volumes(segmenter, str(folder), [REST], "test", 1, **settings)
        for settings in ({}, {"threshold": 0.5, "tolerance": 1})
    )
    assert usual == told and usual["rest"]["dice"] != some["rest"]["dice"]  # as the command says


def test_figures_are_written_and_rendered(report, tmp_path):
    for _ in range(2):  # the second time they are replaced
        write_volume_evaluation(tmp_path / "new" / "out", report)
    [path] = (tmp_path / "new" / "out").iterdir()
    assert json.loads(path.read_text(encoding="utf-8")) == report
    table, crossed = render_volume_evaluation(report).split("Dice with one structure")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {7} and [row[0] for row in rows[2:]] == [
        name for name in report if "captioned" not in name
    ]
    for name, dice, nsd, hd95, error, empty, volumes in rows[2:]:
        shown = {"dice": dice, "nsd": nsd, "empty": empty, "hd95": hd95}
        assert {key for key, cell in shown.items() if cell} == report[name].keys() - {"volume_error", "volumes"}
        for key in ("dice", "nsd", "empty"):
            assert not shown[key] or shown[key] == f"{100 * report[name][key]:.2f}"
        assert hd95 in ("", f"{report[name].get('hd95', 0):.2f}")
        assert (error, volumes) == (f"{report[name]['volume_error']:.0f}", str(report[name]["volumes"]))
    for name, row in report.items():
        assert (f"\n- {name}: {100 * row.get('dice', 0):.2f}\n" in crossed) == ("captioned" in name)
    assert "another's caption" not in render_volume_evaluation({"box": report["box"]})
