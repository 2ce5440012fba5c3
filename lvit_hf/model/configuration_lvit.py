# Copyright 2026 The lvit_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""LViT model configuration."""

import math
import operator
import os
from copy import deepcopy
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import cached_file


TEXT_FUSIONS = ("patch_map", "cross_attention", "sentence_map")
IMAGE_BACKBONES = (None, "efficientnet_lite2")

TASK = "text-guided-image-segmentation"

# The code that every checkpoint carries, flat beside its weights.
CODE_FILES = (
    "caption_grammar_lvit.py",
    "caption_statements_lvit.py",
    "caption_words_lvit.py",
    "captions_lvit.py",
    "configuration_lvit.py",
    "image_processing_lvit.py",
    "image_processing_volumes_lvit.py",
    "modeling_lvit.py",
    "pipeline_lvit.py",
    "processing_lvit.py",
    "segmenter_lvit.py",
    "sliding_window_lvit.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_lvit.LViTConfig",
    "AutoModel": "modeling_lvit.LViTModel",
    "AutoModelForImageSegmentation": "modeling_lvit.LViTForImageSegmentation",
}
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_lvit.LViTPipeline", "pt": ["AutoModelForImageSegmentation"]}}


@strict
class LViTConfig(PreTrainedConfig):
    r"""
    Configuration of an LViT model (Li et al., "LViT: Language meets Vision Transformer in Medical Image Segmentation",
    arXiv 2206.14718). The defaults give the paper's LViT-T with a BERT-base text tower.

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the text tower, a BERT. `num_hidden_layers=0` keeps its embedding table alone (the paper's
            "BERT-Embed"); 12 layers is what the reference implementation used.
        spatial_dims (`int`, *optional*, defaults to 2):
            2 for images and 3 for volumes, which the paper names as its future work.
        num_channels (`int`, *optional*, defaults to 3):
            Number of image channels.
        image_size (`int` or `list[int]`, *optional*, defaults to 224):
            Side in pixels of the square image, or size (depth, height, width) of the volume, for which position
            embeddings and text maps are stored. Images of other sizes are accepted: both are resampled.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 256, 512]`):
            Channels of each level, shared by the convolutional and the transformer branch. Each level doubles the one
            before, because a transformer level concatenates the level before with its own half.
        patch_sizes (`list[int]`, *optional*, defaults to `[16, 8, 4, 2]`):
            Side of the patches of each level. Each level halves the one before, so that all levels share one grid.
        pool_strides (`list[list[int]]`, *optional*):
            For each level the factor, 1 or 2, by which each axis is pooled below it; 2 everywhere without it. Volumes
            of thick slices are pooled less along their depth, where their patches are then smaller.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Transformer layers in each level of the encoder and of the decoder ("LViT-T" has 1).
        num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads of each transformer layer.
        mlp_ratio (`int`, *optional*, defaults to 4):
            Width of a transformer layer's MLP, in units of the level's width.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout on patch embeddings and after both linear layers of each MLP.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout on attention weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer norms.
        num_text_vectors (`int`, *optional*, defaults to 10):
            Number of word vectors that the network takes; a caption's vectors are cut or padded to it.
        text_fusion (`str`, *optional*, defaults to `"patch_map"`):
            How language enters. `"patch_map"` is the paper's: a learned map from word slots to patches, added to the
            first level. `"cross_attention"` lets the patches of every encoder level attend to the words instead, and
            `"sentence_map"` adds to that, in every encoder level, a map of where the caption as a whole points.
        image_backbone (`str`, *optional*):
            A network that has been trained on other images, beside the CNN's encoder, to whose maps its own are
            added: `"efficientnet_lite2"`, or none as in the paper. It needs four levels.
        freeze_text_model (`bool`, *optional*, defaults to `True`):
            Whether the text tower stays as it is during training.
        dice_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the Dice loss; cross-entropy has the rest (paper, equation 9).
        class_balanced_loss (`bool`, *optional*, defaults to `False`):
            Whether binary cross-entropy averages foreground and background separately, as the reference does.
        caption_families (`list[str]`, *optional*, defaults to `[]`):
            Names of the families of captions that the model was trained with. A caption of another family is not
            used. Without families every caption is used, and none can be judged.
        caption_attributes (`list[dict]`, *optional*, defaults to `[]`):
            What the model can say of an image without a caption: attributes, each with `family` and `name`, a list of
            `values`, and `multiple`, whether several of them may hold at once. All attributes' values together are
            counted from 0.
        num_captions (`int`, *optional*, defaults to 0):
            Number of captions among which the model chooses. With captions the model has a caption head, in whose
            weights it is stored what each of them states.
        scope_kinds (`list[str]`, *optional*, defaults to `[]`):
            Kinds of images that the model was trained on. With kinds the model has a scope head, which says how far
            an image is from those of each kind.
        presence_head (`bool`, *optional*, defaults to `False`):
            Whether a model of one label has a presence head, which says whether there is anything to find and bounds
            the probability of every pixel by that. It belongs to certain weights: training further starts without it.
        batch_norm_folded (`bool`, *optional*, defaults to `False`):
            Whether batch norms have been folded into their convolutions. Set by
            [`LViTPreTrainedModel.fold_batch_norms`].

    Raises:
        StrictDataclassFieldValidationError: If a field has the wrong type.
        StrictDataclassClassValidationError: If fields do not fit each other; the message says which and why.

    Example:

    ```python
    >>> from lvit_hf import LViTConfig, LViTForImageSegmentation

    >>> configuration = LViTConfig(hidden_sizes=[32, 64, 128, 256], text_config={"num_hidden_layers": 0})
    >>> model = LViTForImageSegmentation(configuration)
    ```
    """

    model_type = "lvit"
    keys_to_ignore_at_inference = [
        "text_embeds",
        "text_mask",
        "image_embeds",
        "hidden_states",
        "attentions",
        "scope",
        "original_sizes",
        "reshaped_input_sizes",
    ]
    sub_configs_defaults = {"text_config": SubConfigSpec(AutoConfig, model_type="bert")}

    text_config: dict | PreTrainedConfig | None = None
    spatial_dims: int = 2
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = 224
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    patch_sizes: list[int] | tuple[int, ...] = (16, 8, 4, 2)
    pool_strides: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    num_hidden_layers: int = 1
    num_attention_heads: int = 8
    mlp_ratio: int = 4
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-5
    num_text_vectors: int = 10
    text_fusion: str = "patch_map"
    image_backbone: str | None = None
    freeze_text_model: bool = True
    dice_loss_weight: float | int = 0.5
    class_balanced_loss: bool = False
    caption_attributes: list[dict] | tuple[dict, ...] = ()
    caption_families: list[str] | tuple[str, ...] = ()
    num_captions: int = 0
    scope_kinds: list[str] | tuple[str, ...] = ()
    presence_head: bool = False
    batch_norm_folded: bool = False

    def __post_init__(self, **kwargs):
        if self.id2label is None and kwargs.get("num_labels", 1) == 1:
            self.id2label: dict[int, str] = {0: "foreground"}
        if TASK in PIPELINE_REGISTRY.supported_tasks:
            kwargs.pop("custom_pipelines", None)  # the installed package's pipeline, which asks for no trust
        self.hidden_sizes, self.patch_sizes = list(self.hidden_sizes), list(self.patch_sizes)
        self.caption_attributes, self.caption_families = list(self.caption_attributes), list(self.caption_families)
        self.scope_kinds = list(self.scope_kinds)
        super().__post_init__(**kwargs)
        self.label2id = {label: index for index, label in self.id2label.items()}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Saves the configuration with the code that it names. Code that was not loaded comes from the checkpoint."""
        super().save_pretrained(save_directory, **kwargs)
        for name in CODE_FILES:
            source, target = Path(__file__).with_name(name), Path(save_directory, name)
            if not source.exists() and not target.exists():
                source = Path(cached_file(self.name_or_path, name))
            if source.exists():
                target.write_bytes(source.read_bytes())

    def to_dict(self) -> dict:
        """Names the checkpoint's own code, also where the configuration was loaded from another checkpoint."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP), "custom_pipelines": deepcopy(CUSTOM_PIPELINES)}

    def to_diff_dict(self) -> dict:
        """Always keeps the labels: transformers drops its own default of two, which would come back as one."""
        return {**super().to_diff_dict(), "id2label": self.id2label, "label2id": self.label2id}

    @property
    def level_strides(self) -> list[tuple[int, ...]]:
        """Factors by which each axis is pooled below each level."""
        if self.pool_strides is None:
            return [(2,) * self.spatial_dims] * len(self.hidden_sizes)
        return [tuple(strides) for strides in self.pool_strides]

    @property
    def patch_shapes(self) -> list[tuple[int, ...]]:
        """Sides of the patches of each level: those of the deepest are equal, and grow by the strides above it."""
        shapes = [(self.patch_sizes[-1],) * self.spatial_dims]
        for strides in reversed(self.level_strides[:-1]):
            shapes.insert(0, tuple(map(operator.mul, shapes[0], strides)))
        return shapes

    @property
    def size_divisors(self) -> tuple[int, ...]:
        """Numbers of pixels of which the sides of an image must be multiples."""
        pooled = map(math.prod, zip(*self.level_strides))
        return tuple(map(math.lcm, self.patch_shapes[0], pooled))

    @property
    def size_divisor(self) -> int:
        """Number of pixels that serves as divisor for every side of an image."""
        return math.lcm(*self.size_divisors)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`image_size` along each axis."""
        if isinstance(self.image_size, int):
            return (self.image_size,) * self.spatial_dims
        return tuple(self.image_size)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of patches along each axis of an image of `image_size`."""
        return tuple(map(operator.floordiv, self.image_shape, self.patch_shapes[0]))

    @property
    def num_caption_values(self) -> int:
        """Number of values of all caption attributes together."""
        return sum(len(attribute["values"]) for attribute in self.caption_attributes)

    @property
    def num_transformer_layers(self) -> int:
        """Number of transformer layers in all levels of the encoder and the decoder."""
        return 2 * len(self.hidden_sizes) * self.num_hidden_layers

    def validate_architecture(self):
        """Refuses fields that do not fit each other (called by `@strict`)."""
        self._validate_levels()
        self._validate_axes()
        self._validate_ranges()
        self._validate_heads()
        if self.hidden_sizes[0] % self.num_attention_heads:
            raise ValueError(
                f"Every width in hidden_sizes ({self.hidden_sizes}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        text_model_type = self.get_text_config().model_type
        if text_model_type != "bert":
            raise ValueError(f"The text tower must be a BERT, got text_config of type {text_model_type!r}.")
        if self.text_fusion not in TEXT_FUSIONS:
            raise ValueError(f"text_fusion must be one of {TEXT_FUSIONS}, got {self.text_fusion!r}.")
        if self.image_backbone not in IMAGE_BACKBONES:
            raise ValueError(f"image_backbone must be one of {IMAGE_BACKBONES}, got {self.image_backbone!r}.")
        if self.image_backbone is not None and (len(self.hidden_sizes) != 4 or self.spatial_dims != 2):
            raise ValueError(
                f"An image_backbone needs two dimensions and four levels, got spatial_dims {self.spatial_dims} and "
                f"hidden_sizes {self.hidden_sizes}."
            )
        if self.image_backbone is not None and self.pool_strides is not None:
            raise ValueError("An image_backbone halves every side, so it goes without pool_strides.")

    def _validate_levels(self):
        if len(self.hidden_sizes) < 2 or len(self.hidden_sizes) != len(self.patch_sizes):
            raise ValueError(
                f"hidden_sizes ({self.hidden_sizes}) and patch_sizes ({self.patch_sizes}) must have one entry a level "
                "and at least two levels."
            )
        if self.hidden_sizes[0] < 1:
            raise ValueError(f"hidden_sizes must be positive, got {self.hidden_sizes}.")
        for level, (width, patch) in enumerate(zip(self.hidden_sizes, self.patch_sizes)):
            if width != self.hidden_sizes[0] * 2**level:
                raise ValueError(f"hidden_sizes must double at every level, got {self.hidden_sizes}.")
            if patch * 2**level != self.patch_sizes[0] or patch < 1:
                raise ValueError(
                    f"patch_sizes must halve at every level: all levels share one grid. Got {self.patch_sizes}."
                )

    def _validate_axes(self):
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {self.spatial_dims}.")
        if self.pool_strides is not None:
            lengths = {len(strides) for strides in self.pool_strides}
            values = {stride for strides in self.pool_strides for stride in strides}
            if len(self.pool_strides) != len(self.hidden_sizes) or lengths != {self.spatial_dims} or values - {1, 2}:
                raise ValueError(
                    f"pool_strides must have {len(self.hidden_sizes)} entries, each of {self.spatial_dims} numbers "
                    f"that are 1 or 2, got {self.pool_strides}."
                )
        shape, divisors = self.image_shape, self.size_divisors
        if len(shape) != len(divisors) or any(side <= 0 or side % divisor for side, divisor in zip(shape, divisors)):
            expected = divisors[0] if len(set(divisors)) == 1 else divisors
            raise ValueError(f"image_size ({self.image_size}) must be a positive multiple of {expected}.")

    def _validate_heads(self):
        for attribute in self.caption_attributes:
            if attribute.keys() != {"family", "name", "values", "multiple"}:
                raise ValueError(f"A caption attribute has a family, name, values and multiple, got {attribute}.")
            if not attribute["values"]:
                raise ValueError(f"A caption attribute has at least one value, got {attribute}.")
        if self.num_captions < 0 or bool(self.num_captions) != bool(self.num_caption_values):
            raise ValueError(
                f"A caption head needs captions and attributes of which they state values, got num_captions "
                f"{self.num_captions} and {self.num_caption_values} values."
            )
        if self.presence_head and self.num_labels > 1:
            raise ValueError(f"A presence head goes with one label, got num_labels {self.num_labels}.")

    def _validate_ranges(self):
        positive = (
            "num_channels",
            "num_labels",
            "num_hidden_layers",
            "num_attention_heads",
            "mlp_ratio",
            "num_text_vectors",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dice_loss_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")


__all__ = ["LViTConfig"]
