from pathlib import Path

import pytest
import torch
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf.inference.segmenter import Segmenter


# Models of the tests are too small to share out; threads that wait for busy cores make them a hundred times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The folder of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny_model(), tiny_processor())
