import re
from ast import literal_eval

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_lvit import tiny_config
from transformers.image_utils import PILImageResampling

from lvit_hf import LViTConfig, LViTImageProcessor, LViTVolumeProcessor


ATTRIBUTE = {"family": "polyp", "name": "size", "values": ["small"], "multiple": False}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_sizes": [8, 24]}, "must double"),
        ({"hidden_sizes": [8, 16, 32]}, "one entry a level"),
        ({"hidden_sizes": [8], "patch_sizes": [4]}, "at least two levels"),
        ({"hidden_sizes": [0, 0]}, "must be positive"),
        ({"hidden_sizes": [8.0, 16.0]}, "hidden_sizes"),
        ({"patch_sizes": [4, 3]}, "must halve"),
        ({"patch_sizes": [1, 0]}, "must halve"),
        ({"image_size": 30}, "multiple of 4"),
        ({"image_size": 0}, "positive"),
        ({"image_size": "32"}, "expected int"),
        ({"num_attention_heads": 3}, r"multiple of num_attention_heads \(3\)"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"num_text_vectors": 0}, "num_text_vectors must be at least 1"),
        ({"num_channels": 0}, "num_channels must be at least 1"),
        ({"num_labels": 0}, "num_labels must be at least 1"),
        ({"hidden_dropout_prob": 1.5}, "between 0 and 1"),
        ({"dice_loss_weight": -0.1}, "between 0 and 1"),
        ({"text_fusion": "sum"}, "patch_map.*cross_attention"),
        ({"image_backbone": "resnet"}, "efficientnet_lite2.*resnet"),
        ({"image_backbone": "efficientnet_lite2"}, "four levels"),
        (
            {"caption_attributes": [{"family": "polyp", "name": "size", "values": [], "multiple": False}]},
            "at least one value",
        ),
        (
            {
                "hidden_sizes": [8, 16, 32, 64],
                "patch_sizes": [16, 8, 4, 2],
                "image_backbone": "efficientnet_lite2",
                "pool_strides": [[2, 2]] * 4,
            },
            "without pool_strides",
        ),
        ({"pool_strides": [[2, 2]]}, "pool_strides must have 2 entries"),
        ({"pool_strides": [[2, 2, 2], [2, 2, 2]]}, "each of 2 numbers"),
        ({"pool_strides": [[2, 2], [2, 3]]}, "1 or 2"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
        ({"image_size": [32, 32, 32]}, "image_size"),
        ({"num_captions": 3}, "captions and attributes"),
        ({"num_captions": -1}, "captions and attributes"),
        ({"presence_head": True, "num_labels": 2}, "presence head goes with one label"),
        ({"text_config": {"model_type": "gpt2"}}, "must be a BERT.*gpt2"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_reason(settings, reason):
    with pytest.raises(StrictDataclassError, match=reason):
        tiny_config(**settings)


def test_defaults_are_the_papers():
    config = LViTConfig()
    assert (config.hidden_sizes, config.patch_sizes) == ([64, 128, 256, 512], [16, 8, 4, 2])
    assert (config.num_text_vectors, config.text_config.hidden_size, config.text_config.num_hidden_layers) == (
        10,
        768,
        12,
    )
    assert (config.size_divisor, config.grid, config.num_transformer_layers) == (16, (14, 14), 8)
    assert config.freeze_text_model


def test_sides_are_multiples_of_what_every_level_halves():
    """Patches of one pixel in the deepest level leave its grid twice as fine as its maps."""
    levels = {"hidden_sizes": [8, 16, 32, 64], "patch_sizes": [8, 4, 2, 1]}
    assert tiny_config(**levels).size_divisor == 16
    with pytest.raises(StrictDataclassError, match="multiple of 16"):
        tiny_config(**levels, image_size=24)
    large = {"hidden_sizes": [8, 16], "patch_sizes": [8, 4]}
    assert tiny_config(**large, image_size=24).size_divisor == 8  # and larger ones fill whole patches
    with pytest.raises(StrictDataclassError, match="multiple of 8"):
        tiny_config(**large, image_size=28)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({}, {0: "foreground"}),
        ({"num_labels": 2}, {0: "LABEL_0", 1: "LABEL_1"}),
        ({"id2label": {0: "polyp"}}, {0: "polyp"}),
        ({"id2label": {0: "background", 1: "polyp", 2: "tool"}}, {0: "background", 1: "polyp", 2: "tool"}),
    ],
)
def test_labels_survive_saving(settings, labels, tmp_path):
    tiny_config(**settings).save_pretrained(tmp_path)
    config = LViTConfig.from_pretrained(tmp_path)
    assert config.id2label == labels
    assert config.label2id == {name: index for index, name in labels.items()}
    assert config.num_labels == len(labels)


def test_all_settings_survive_saving(tmp_path):
    config = tiny_config(
        hidden_sizes=[8, 16, 32],
        patch_sizes=[8, 4, 2],
        num_channels=1,
        num_text_vectors=4,
        text_fusion="cross_attention",
        freeze_text_model=False,
        class_balanced_loss=True,
    )
    config.save_pretrained(tmp_path)
    assert LViTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("kind", [LViTConfig, LViTImageProcessor, LViTVolumeProcessor])
def test_what_the_docstring_calls_a_default_is_one(kind):
    documented = re.findall(
        r"^ +([\w, ]+) \([^\n]*\*optional\*, defaults to `?([^\n]+?)`?\):", kind.__doc__, re.MULTILINE
    )
    made, named = kind(), {"1/255": 1 / 255, "BILINEAR": PILImageResampling.BILINEAR}
    assert len(documented) > 5
    for names, text in documented:
        default = named[text] if text in named else literal_eval(text)
        for value in (getattr(made, name) for name in names.split(", ")):
            if isinstance(default, dict):
                assert dict(value) == default, names
            else:  # a number may be that of each channel
                np.testing.assert_array_equal(*np.broadcast_arrays(value, default), names)
