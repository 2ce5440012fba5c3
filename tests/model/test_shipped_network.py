"""The shipped checkpoints see in the example images what they saw when they were made.

After a new checkpoint: PYTHONPATH=.:tests python tests/shipped_probabilities.py
"""

import json

import numpy as np
import pytest
from shipped_probabilities import FILE, list_networks, see


@pytest.mark.parametrize("name", list_networks())
def test_probabilities_are_those_of_the_day_it_was_made(name):
    seen, expected = see(list_networks()[name]), json.loads(FILE.read_text(encoding="utf-8"))[name]
    assert seen.keys() == expected.keys()
    for example, probabilities in seen.items():
        np.testing.assert_allclose(probabilities, expected[example], atol=1e-3, err_msg=example)
        assert np.ptp(probabilities) > 0.05  # not all the same
