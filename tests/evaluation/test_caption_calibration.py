import math

import pytest
import torch

from lvit_hf.evaluation.caption_calibration import Example, fit_weights, pair_captions
from lvit_hf.model.pipeline_lvit import EVIDENCE, compare_masks, score_evidence


def drawn_examples(weights: dict[str, float], count: int = 20_000) -> list[Example]:
    """Evidence by chance, of captions that are true with the probability that weights give it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, len(EVIDENCE), generator=generator) * torch.tensor([2.0, 0.1, 0.3, 0.05])
    rows = [dict(zip(EVIDENCE, row)) for row in values.tolist()]
    chances = torch.rand(count, generator=generator).tolist()
    return [
        Example(row, chance < score_evidence(row, weights), index % 2)
        for index, (row, chance) in enumerate(zip(rows, chances))
    ]


def test_the_weights_with_which_captions_were_drawn_are_found():
    weights = {"bias": -0.5, "caption": 0.8, "shift": -7.0, "support": 2.0, "doubt": -5.0}
    found = fit_weights(drawn_examples(weights))
    assert found.keys() == weights.keys()
    assert [found[name] for name in weights] == pytest.approx(list(weights.values()), rel=0.15)


def test_a_mask_that_does_not_move_is_no_evidence_of_a_shift():
    maps = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    same = compare_masks(maps, maps)
    assert same["shift"] == pytest.approx(0, abs=1e-6) and same["doubt"] == 0
    assert same["support"] == pytest.approx((maps.square().sum() / maps.sum()).item())


def test_what_a_caption_did_to_the_mask_is_told_by_the_definitions():
    before, after = torch.full((4, 4), 0.5), torch.full((4, 4), 0.5)
    after[:2], after[2:] = 0.9, 0.1
    moved = compare_masks(after, before)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert moved["shift"] == pytest.approx(math.log(2) - entropy, abs=1e-6)
    assert moved["doubt"] == pytest.approx(entropy - math.log(2), abs=1e-6)
    assert moved["support"] == pytest.approx(0.5)
    certain = compare_masks(torch.ones(4, 4), torch.zeros(4, 4))
    assert all(map(math.isfinite, certain.values())) and certain["support"] < 1e-3


def test_captions_that_read_the_same_are_no_pair():
    pairs = pair_captions(["a", "b", "a", "c"])
    assert {pair.row for pair in pairs if pair.is_true} == {pair.row for pair in pairs if not pair.is_true}
    texts = ["a", "b", "a", "c"]
    assert all((pair.text == texts[pair.row]) == pair.is_true for pair in pairs)
    assert pair_captions(["a", "a"]) == []
