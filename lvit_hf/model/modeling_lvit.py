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
"""PyTorch LViT model (arXiv 2206.14718): a U-shaped CNN and a U-shaped ViT side by side, guided by a caption."""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AutoModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .captions_lvit import AGREEMENT, Caption, CaptionCheck, find_disagreements, render_caption
from .configuration_lvit import LViTConfig


@dataclass
class LViTModelOutput(ModelOutput):
    r"""
    Output of [`LViTModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, hidden_sizes[0], (depth,) height, width)`):
            Pixel features, the last of the convolutional decoder.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, num_text_vectors, text_hidden_size)`):
            The word vectors that the network took; the learned null text for rows without text.
        text_mask (`torch.LongTensor` of shape `(batch_size, num_text_vectors)`):
            1 where `text_embeds` holds a vector and 0 where it is padded.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, sum of hidden_sizes + hidden_sizes[-1])`):
            Mean over the image of each channel of the CNN's maps on the way down. The text has no part in it.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            Input and output of each transformer layer, first of the encoder and then of the decoder, each of shape
            `(batch_size, num_patches, hidden_size of the level)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
            Self-attention weights of each transformer layer, of shape
            `(batch_size, num_attention_heads, num_patches, num_patches)`.
    """

    last_hidden_state: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class LViTImageSegmentationOutput(ModelOutput):
    r"""
    Output of [`LViTForImageSegmentation`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` are given):
            Weighted sum of Dice loss and cross-entropy.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels, (depth,) height, width)`):
            Scores before the sigmoid (one label) or the softmax over labels (several). Where the model has a presence
            head, none is above the log-odds that there is anything to find.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, num_text_vectors, text_hidden_size)`):
            The word vectors that the network took; the learned null text for rows without text.
        text_mask (`torch.LongTensor` of shape `(batch_size, num_text_vectors)`):
            1 where `text_embeds` holds a vector and 0 where it is padded.
        captions (`LViTCaptionPredictionOutput`, *optional*, returned when `output_captions=True`):
            What the caption head reads off the same pass.
        scope (`torch.FloatTensor` of shape `(batch_size, number of scope_kinds)`, *optional*):
            How far each image is from the training images of each kind, where the model has a scope head: up to 1
            within the distance that all but a few of them keep.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            As in [`LViTModelOutput`].
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
            As in [`LViTModelOutput`].
        original_sizes, reshaped_input_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
            The sizes that were given, for [`LViTImageProcessor.post_process_semantic_segmentation`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    captions: "LViTCaptionPredictionOutput | None" = None
    scope: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    original_sizes: torch.Tensor | None = None
    reshaped_input_sizes: torch.Tensor | None = None


@dataclass
class LViTCaptionPredictionOutput(ModelOutput):
    r"""
    Output of [`LViTCaptionHead`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` are given):
            Negative log-likelihood of the true captions.
        logits (`torch.FloatTensor` of shape `(batch_size, config.num_captions)`):
            Score of each caption before the softmax over captions.
        value_probabilities (`torch.FloatTensor` of shape `(batch_size, config.num_caption_values)`):
            Probability in [0, 1] of each value of `config.caption_attributes`, the sum over captions that state it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    value_probabilities: torch.Tensor | None = None


def dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice of each image and class, averaged; one pixel is added, so that two empty masks agree.

    Args:
        probabilities: Values in [0, 1], of shape `(batch_size, num_classes, (depth,) height, width)`.
        labels: Hard or soft targets in [0, 1], of the same shape.
    """
    axes = tuple(range(2, labels.ndim))
    intersection = (probabilities * labels).sum(axes)
    total = probabilities.sum(axes) + labels.sum(axes)
    return 1 - ((2 * intersection + 1) / (total + 1)).mean()


def balanced_bce_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy averaged over foreground and over background, half each (as the reference does)."""
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    foreground = (loss * labels).sum() / labels.sum().clamp(min=1)
    background = (loss * (1 - labels)).sum() / (1 - labels).sum().clamp(min=1)
    return 0.5 * (foreground + background)


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, config: LViTConfig) -> torch.Tensor:
    """Dice loss and cross-entropy, weighted by `config.dice_loss_weight` (paper, equation 9).

    Args:
        logits: Scores of shape `(batch_size, num_labels, (depth,) height, width)`.
        labels: For one label, targets in [0, 1] (soft ones too) of shape `(batch_size, (depth,) height, width)`; for
            several, class indices of that shape.
        config: The model's configuration.

    Raises:
        ValueError: If `labels` do not have the shape of `logits`.
    """
    logits = logits.float()  # sums over pixels need more digits than half precision has
    if labels.shape != logits[:, 0].shape:
        raise ValueError(f"labels must have the shape {tuple(logits[:, 0].shape)}, got {tuple(labels.shape)}.")
    if config.num_labels == 1:
        targets = labels.unsqueeze(1).to(logits.dtype)
        bce = balanced_bce_loss if config.class_balanced_loss else nn.functional.binary_cross_entropy_with_logits
        cross_entropy, probabilities = bce(logits, targets), logits.sigmoid()
    else:
        targets = nn.functional.one_hot(labels.long(), config.num_labels).movedim(-1, 1).to(logits.dtype)
        cross_entropy, probabilities = nn.functional.cross_entropy(logits, labels.long()), logits.softmax(1)
    weight = config.dice_loss_weight
    return weight * dice_loss(probabilities, targets) + (1 - weight) * cross_entropy


INTERPOLATIONS = {2: "bilinear", 3: "trilinear"}


def layer_class(name: str, dims: int) -> Any:
    """PyTorch's layer for data of 1, 2 or 3 axes: "Conv", "BatchNorm", "MaxPool" and so on."""
    return getattr(nn, f"{name}{dims}d")


class LViTConvLayer(nn.Module):
    """Convolution, batch norm and ReLU on feature maps `(batch_size, channels, (depth,) height, width)`."""

    dims: int | None = None  # those of the configuration
    conv_classes: dict[int, Any] = {}  # by the number of dimensions, where it is not PyTorch's own
    activation_class: type[nn.Module] = nn.ReLU
    batch_norm_eps = 1e-5

    def __init__(self, config: LViTConfig, in_channels: int, out_channels: int, kernel_size: int = 3, **kwargs):
        super().__init__()
        dims = self.dims or config.spatial_dims
        conv = self.conv_classes.get(dims) or layer_class("Conv", dims)
        self.convolution = conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2, **kwargs)
        norm = nn.Identity if config.batch_norm_folded else layer_class("BatchNorm", dims)
        self.normalization = norm(out_channels, eps=self.batch_norm_eps)
        self.activation = self.activation_class(inplace=True)

    def fold_batch_norm(self):
        if not isinstance(self.normalization, nn.Identity):
            self.convolution = fuse_conv_bn_eval(self.convolution, self.normalization)
            self.normalization = nn.Identity()

    def forward(self, *hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(*hidden_states)))


class LViTSequenceConvLayer(LViTConvLayer):
    """Convolution, batch norm and ReLU on sequences `(batch_size, channels, length)`."""

    dims = 1


SENTENCE_WIDTH = 128
SENTENCE_MAPS = 16
WHITENING_FLOOR = 1e-3  # variance added to all, as a share of the largest, so that noise is not blown up


def pool_words(
    token_embeds: torch.Tensor, word_ids: torch.Tensor, num_words: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages the pieces of each word, then cuts or pads to `num_words`.

    Args:
        token_embeds: Vectors of the word pieces, of shape `(batch_size, sequence_length, hidden_size)`.
        word_ids: The word, counted from 1, of which each token is a piece, and 0 for tokens of no word, of shape
            `(batch_size, sequence_length)`.
        num_words: Number of words to return.

    Returns:
        The words' vectors, zeros where there is none, of shape `(batch_size, num_words, hidden_size)`, and a boolean
        mask of shape `(batch_size, num_words)`.
    """
    words = torch.arange(1, num_words + 1, device=word_ids.device)
    belongs = word_ids.unsqueeze(1) == words.unsqueeze(1)  # (batch_size, num_words, sequence_length)
    counts = belongs.sum(-1, keepdim=True)
    word_embeds = belongs.to(token_embeds.dtype) @ token_embeds / counts.clamp(min=1)
    return word_embeds, counts.squeeze(-1) > 0


class LViTTextProjection(nn.Module):
    """Convolutions along the words that narrow the text tower's width to each level's, widest first (paper, III-A)."""

    def __init__(self, config: LViTConfig):
        super().__init__()
        widths = [config.get_text_config().hidden_size, *reversed(config.hidden_sizes)]
        self.layers = nn.ModuleList(
            nn.Conv1d(wide, narrow, kernel_size=3, padding=1) for wide, narrow in zip(widths, widths[1:])
        )

    def forward(self, text_embeds: torch.Tensor, text_mask: torch.Tensor) -> list[torch.Tensor]:
        """Returns the text features of the levels, narrowest first, `(batch_size, num_text_vectors, width)` each."""
        mask = text_mask.unsqueeze(-1).to(text_embeds.dtype)
        features = []
        hidden_states = text_embeds.mT
        for layer in self.layers:
            hidden_states = layer(hidden_states)
            features.append(hidden_states.mT * mask)
        return features[::-1]


def resample_grid(
    hidden_states: torch.Tensor, stored_grid: tuple[int, ...], grid: Sequence[int], mode: str
) -> torch.Tensor:
    """Resamples vectors on a stored grid of patches, `(batch_size, patches, channels)`, to another grid."""
    if tuple(grid) == stored_grid:
        return hidden_states
    feature_map = hidden_states.mT.unflatten(-1, stored_grid)
    feature_map = nn.functional.interpolate(feature_map, size=tuple(grid), mode=mode)
    return feature_map.flatten(2).mT


class LViTPatchEmbeddings(nn.Module):
    """Patches of a feature map as vectors, with learned positions (paper, equation 3)."""

    def __init__(self, config: LViTConfig, hidden_size: int, patch_shape: tuple[int, ...]):
        super().__init__()
        self.grid = config.grid
        conv = layer_class("Conv", config.spatial_dims)
        self.projection = conv(hidden_size, hidden_size, kernel_size=patch_shape, stride=patch_shape)
        self.position_embeddings = nn.Parameter(torch.zeros(1, math.prod(config.grid), hidden_size))
        self.interpolation = "bicubic" if config.spatial_dims == 2 else "trilinear"
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        patches = self.projection(feature_map)
        positions = resample_grid(self.position_embeddings, self.grid, patches.shape[2:], self.interpolation)
        return self.dropout(patches.flatten(2).mT + positions)


class LViTTextMap(nn.Module):
    """The paper's text fusion: each patch takes its own learned mix of the word slots."""

    def __init__(self, config: LViTConfig):
        super().__init__()
        self.grid = config.grid
        self.interpolation = INTERPOLATIONS[config.spatial_dims]
        # The word slots are the channels of this convolution and the features of a word its axis.
        self.conv_layer = LViTSequenceConvLayer(config, config.num_text_vectors, math.prod(config.grid))

    def forward(self, text_features: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        return resample_grid(self.conv_layer(text_features), self.grid, grid, self.interpolation)


class LViTZeroLinear(nn.Linear):
    """A linear layer that adds nothing at first, so that a checkpoint without it goes on from where it was."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class LViTZeroConv2d(nn.Conv2d):
    """The same as a convolution."""

    reset_parameters = LViTZeroLinear.reset_parameters  # type: ignore[assignment]


class LViTSentenceMap(nn.Module):
    """Where a caption as a whole points: a few maps over the patches from the mean of its words, mixed for each level.

    A caption such as "lower left lung" is a strong prior of place, which attention to single words is slow to learn.
    Captions of one kind differ in few words, so that their means are almost equal; whitening spreads them.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, config: LViTConfig):
        super().__init__()
        width = config.get_text_config().hidden_size
        self.grid = config.grid
        self.interpolation = INTERPOLATIONS[config.spatial_dims]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitening", torch.zeros(width, SENTENCE_WIDTH))
        self.layer_norm = nn.LayerNorm(SENTENCE_WIDTH, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(SENTENCE_WIDTH, SENTENCE_WIDTH)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(SENTENCE_WIDTH, SENTENCE_MAPS * math.prod(config.grid))
        self.projections = nn.ModuleList(LViTZeroLinear(SENTENCE_MAPS, size) for size in config.hidden_sizes)
        self.pixel_projection = LViTZeroLinear(SENTENCE_MAPS, config.hidden_sizes[0])

    @torch.no_grad()
    def fit(self, text_embeds: torch.Tensor, text_mask: torch.Tensor):
        """Sets the whitening by the captions of a data set, before training.

        Args:
            text_embeds: Word vectors of distinct captions, of shape `(number of captions, number of vectors, width)`.
            text_mask: Which of them are words, of shape `(number of captions, number of vectors)`.
        """
        sentences = mean_of_words(text_embeds, text_mask).double()
        self.mean.copy_(sentences.mean(0))
        variances, directions = torch.linalg.eigh(torch.cov(sentences.T))  # the smallest variance first
        scale = (variances + WHITENING_FLOOR * variances[-1]).clamp(min=1e-12).rsqrt()
        largest = (directions * scale)[:, -SENTENCE_WIDTH:]
        self.whitening.zero_()
        self.whitening[:, : largest.shape[1]] = largest

    def forward(
        self, text_embeds: torch.Tensor, text_mask: torch.Tensor, grid: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What a caption adds to the patches of each level and to the pixel features.

        Returns:
            A list of `(batch_size, num_patches, width)`, narrowest level first, and a map of shape
            `(batch_size, hidden_sizes[0], *grid)`.
        """
        sentence = mean_of_words(text_embeds, text_mask) - self.mean
        with torch.autocast(sentence.device.type, enabled=False):  # small differences, which need all digits
            sentence = sentence @ self.whitening
        maps = self.fc2(self.activation(self.fc1(self.layer_norm(sentence)))).unflatten(-1, (-1, SENTENCE_MAPS))
        maps = resample_grid(maps, self.grid, grid, self.interpolation)
        return [projection(maps) for projection in self.projections], self.pixel_projection(maps).mT.unflatten(
            -1, grid
        )


def mean_of_words(text_embeds: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """Mean of each caption's word vectors, of shape `(batch_size, width)`."""
    mask = text_mask.unsqueeze(-1).to(text_embeds.dtype)
    return (text_embeds * mask).sum(1) / mask.sum(1).clamp(min=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
):
    attn_weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


class LViTAttention(nn.Module):
    """Multi-head attention, of the patches to themselves or to other vectors of the same width."""

    def __init__(self, config: LViTConfig, hidden_size: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def _split_heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        source = hidden_states if key_value_states is None else key_value_states
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            self._split_heads(self.q_proj(hidden_states)),
            self._split_heads(self.k_proj(source)),
            self._split_heads(self.v_proj(source)),
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )
        return self.o_proj(attn_output.flatten(-2)), attn_weights


class LViTSelfAttention(LViTAttention):
    """Attention of the patches to each other; a class of its own, since it is what `output_attentions` records."""


class LViTTextAttention(nn.Module):
    """Attention of the patches to the words, before which both are normalized."""

    def __init__(self, config: LViTConfig, hidden_size: int):
        super().__init__()
        self.layer_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.text_layer_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = LViTAttention(config, hidden_size)

    def forward(self, hidden_states: torch.Tensor, text_features: torch.Tensor, text_mask: torch.Tensor):
        minimum = torch.finfo(hidden_states.dtype).min
        attention_mask = torch.zeros_like(text_mask, dtype=hidden_states.dtype).masked_fill(~text_mask, minimum)
        return self.attention(
            self.layer_norm(hidden_states),
            key_value_states=self.text_layer_norm(text_features),
            attention_mask=attention_mask[:, None, None, :],
        )[0]


class LViTMLP(nn.Module):
    """Two linear layers, GELU and dropout after both."""

    def __init__(self, config: LViTConfig, hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, config.mlp_ratio * hidden_size)
        self.fc2 = nn.Linear(config.mlp_ratio * hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(self.fc1(hidden_states)))
        return self.dropout(self.activation(self.fc2(hidden_states)))


class LViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer, with attention to the words where `has_text` (paper, equations 1 and 2)."""

    def __init__(self, config: LViTConfig, hidden_size: int, has_text: bool = False):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = LViTSelfAttention(config, hidden_size)
        self.text_attention = LViTTextAttention(config, hidden_size) if has_text else None
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = LViTMLP(config, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        text_features: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        if self.text_attention is not None:
            hidden_states = hidden_states + self.text_attention(hidden_states, text_features, text_mask)
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class LViTEncoderLevel(nn.Module):
    """One level of the U-shaped ViT on the way down: patches of the CNN's map, joined with the level before."""

    def __init__(self, config: LViTConfig, level: int):
        super().__init__()
        width = config.hidden_sizes[level]
        has_text = config.text_fusion != "patch_map"
        self.embeddings = LViTPatchEmbeddings(config, width, config.patch_shapes[level])
        self.text_map = None if has_text or level > 0 else LViTTextMap(config)
        self.layers = nn.ModuleList(
            LViTLayer(config, width, has_text=has_text) for _ in range(config.num_hidden_layers)
        )
        self.reduction = LViTSequenceConvLayer(config, width, width // 2) if level > 0 else None

    def forward(
        self,
        feature_map: torch.Tensor,
        previous: torch.Tensor | None,
        text_features: torch.Tensor,
        text_mask: torch.Tensor,
        sentence_map: torch.Tensor | None,
        grid: tuple[int, ...],
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = self.embeddings(feature_map)
        if sentence_map is not None:
            hidden_states = hidden_states + sentence_map
        if self.text_map is not None:
            hidden_states = hidden_states + self.text_map(text_features, grid)
        for layer in self.layers:
            hidden_states = layer(hidden_states, text_features, text_mask, **kwargs)
        if self.reduction is None or previous is None:
            return hidden_states
        return torch.cat([self.reduction(hidden_states.mT).mT, previous], dim=-1)


class LViTDecoderLevel(nn.Module):
    """One level of the U-shaped ViT on the way up, to which the level below is added."""

    def __init__(self, config: LViTConfig, level: int):
        super().__init__()
        width = config.hidden_sizes[level]
        is_last = level == len(config.hidden_sizes) - 1
        self.layers = nn.ModuleList(LViTLayer(config, width) for _ in range(config.num_hidden_layers))
        self.reduction = None if is_last else LViTSequenceConvLayer(config, 2 * width, width)

    def forward(
        self, hidden_states: torch.Tensor, below: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        if self.reduction is None or below is None:
            return hidden_states
        return hidden_states + self.reduction(below.mT).mT


class LViTVisionTransformer(nn.Module):
    """The U-shaped ViT. Every level has the same grid of patches; only the width changes."""

    def __init__(self, config: LViTConfig):
        super().__init__()
        levels = range(len(config.hidden_sizes))
        self.encoder = nn.ModuleList(LViTEncoderLevel(config, level) for level in levels)
        self.decoder = nn.ModuleList(LViTDecoderLevel(config, level) for level in levels)

    def forward(
        self,
        feature_maps: list[torch.Tensor],
        text_features: list[torch.Tensor],
        text_mask: torch.Tensor,
        sentence_maps: Sequence[torch.Tensor | None],
        grid: tuple[int, ...],
        **kwargs: Unpack[TransformersKwargs],
    ) -> list[torch.Tensor]:
        """Returns each level's vectors, `(batch_size, num_patches, width)`, widest last."""
        encoded: list[torch.Tensor] = []
        previous = None
        for level, feature_map, features, sentence_map in zip(
            self.encoder, feature_maps, text_features, sentence_maps
        ):
            previous = level(feature_map, previous, features, text_mask, sentence_map, grid, **kwargs)
            encoded.append(previous)
        decoded: list[torch.Tensor] = []
        below = None
        for level, hidden_states in zip(reversed(self.decoder), reversed(encoded)):
            below = level(hidden_states, below, **kwargs)
            decoded.append(below)
        return decoded[::-1]


class LViTDownBlock(GradientCheckpointingLayer):
    """Max pooling and two convolution layers."""

    def __init__(self, config: LViTConfig, in_channels: int, out_channels: int, strides: tuple[int, ...]):
        super().__init__()
        self.pooling = layer_class("MaxPool", config.spatial_dims)(strides)
        self.layers = nn.Sequential(
            LViTConvLayer(config, in_channels, out_channels), LViTConvLayer(config, out_channels, out_channels)
        )

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.layers(self.pooling(feature_map))


BACKBONE_STEM_WIDTH = 32
# Kernel size, stride, expansion, width and number of the blocks of each stage (EfficientNet, arXiv 1905.11946; its
# authors' "lite" networks have no squeeze-and-excitation).
BACKBONE_STAGES: dict[str | None, tuple[tuple[int, int, int, int, int], ...]] = {
    "efficientnet_lite2": (
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 3),
        (5, 2, 6, 48, 3),
        (3, 2, 6, 88, 4),
        (5, 1, 6, 120, 4),
        (5, 2, 6, 208, 5),
        (3, 1, 6, 352, 1),
    )
}


class LViTBackboneConvLayer(LViTConvLayer):
    """Convolution, batch norm and ReLU6 as EfficientNet-Lite has them."""

    activation_class: type[nn.Module] = nn.ReLU6
    batch_norm_eps = 1e-3

    def __init__(self, config: LViTConfig, in_channels: int, out_channels: int, kernel_size: int, **kwargs):
        super().__init__(config, in_channels, out_channels, kernel_size, bias=config.batch_norm_folded, **kwargs)


class LViTBackboneLinearLayer(LViTBackboneConvLayer):
    """The same without an activation, which ends a block."""

    activation_class = nn.Identity


class LViTBackboneBlock(GradientCheckpointingLayer):
    """Inverted residual: a 1x1 convolution that widens, a depthwise one, and a 1x1 convolution that narrows."""

    def __init__(
        self, config: LViTConfig, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int
    ):
        super().__init__()
        width = in_channels * expansion
        layers = [
            LViTBackboneConvLayer(config, width, width, kernel_size, stride=stride, groups=width),
            LViTBackboneLinearLayer(config, width, out_channels, 1),
        ]
        if expansion > 1:
            layers.insert(0, LViTBackboneConvLayer(config, in_channels, width, 1))
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        output = self.layers(feature_map)
        return output + feature_map if self.has_shortcut else output


class LViTBackbone(nn.Module):
    """An EfficientNet-Lite, pretrained on other images, of whose maps each level of the CNN takes a mix."""

    def __init__(self, config: LViTConfig):
        super().__init__()
        stages = BACKBONE_STAGES[config.image_backbone]
        self.stem = LViTBackboneConvLayer(config, config.num_channels, BACKBONE_STEM_WIDTH, 3, stride=2)
        self.stages = nn.ModuleList()
        widths, width = [], BACKBONE_STEM_WIDTH
        for kernel_size, stride, expansion, out_channels, count in stages:
            if stride == 2:
                widths.append(width)
            first = LViTBackboneBlock(config, width, out_channels, kernel_size, stride, expansion)
            width = out_channels
            others = (LViTBackboneBlock(config, width, width, kernel_size, 1, expansion) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *others))
        self.strides = [stride for _, stride, *_ in stages]
        # The last stage has half the side of the deepest level, which takes it together with the one before.
        widths = [*widths[:-1], widths[-1] + width]
        targets = [*config.hidden_sizes[1:], config.hidden_sizes[-1]]
        self.projections = nn.ModuleList(LViTZeroConv2d(*pair, kernel_size=1) for pair in zip(widths, targets))

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Returns what is added to the map of each down block, of that map's shape."""
        hidden_states = self.stem(pixel_values)
        feature_maps = []
        for stride, stage in zip(self.strides, self.stages):
            if stride == 2:
                feature_maps.append(hidden_states)
            hidden_states = stage(hidden_states)
        deepest = nn.functional.interpolate(hidden_states, size=feature_maps[-1].shape[-2:], mode="bilinear")
        feature_maps[-1] = torch.cat([feature_maps[-1], deepest], dim=1)
        return [projection(feature_map) for projection, feature_map in zip(self.projections, feature_maps)]


class LViTConvEncoder(nn.Module):
    """The way down of the U-shaped CNN: a map a level and one below the last."""

    def __init__(self, config: LViTConfig):
        super().__init__()
        widths = [*config.hidden_sizes, config.hidden_sizes[-1]]
        self.stem = LViTConvLayer(config, config.num_channels, widths[0])
        self.blocks = nn.ModuleList(
            LViTDownBlock(config, *settings) for settings in zip(widths, widths[1:], config.level_strides)
        )
        self.backbone = LViTBackbone(config) if config.image_backbone is not None else None

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        feature_maps = [self.stem(pixel_values)]
        for block in self.blocks:
            feature_maps.append(block(feature_maps[-1]))
        if self.backbone is None:
            return feature_maps
        return [feature_maps[0], *map(torch.add, feature_maps[1:], self.backbone(pixel_values))]


def mean_channels(feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over the image of each channel of maps `(batch_size, channels, ...)`, side by side."""
    return torch.cat([feature_map.flatten(2).mean(-1) for feature_map in feature_maps], dim=-1)


class LViTReconstruction(nn.Module):
    """Adds a transformer level to the CNN's map of that level (paper, III-A)."""

    def __init__(self, config: LViTConfig, hidden_size: int, patch_shape: tuple[int, ...]):
        super().__init__()
        self.patch_shape = patch_shape
        self.conv_layer = LViTConvLayer(config, hidden_size, hidden_size, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor, feature_map: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        # A 1x1 convolution, its norm and ReLU commute with nearest upsampling, so they run on the small grid.
        patches = self.conv_layer(hidden_states.mT.unflatten(-1, grid))
        # Broadcasting over the pixels of a patch is nearest upsampling without the upsampled map.
        for axis, (size, patch) in enumerate(zip(grid, self.patch_shape)):
            feature_map = feature_map.unflatten(2 + 2 * axis, (size, patch))
            patches = patches.unsqueeze(3 + 2 * axis)
        pixels = feature_map + patches
        for axis in reversed(range(len(grid))):
            pixels = pixels.flatten(2 + 2 * axis, 3 + 2 * axis)
        return pixels


class LViTPixelAttention(nn.Module):
    """Pixel-level attention module, PLAM (paper, III-B): weighs each pixel by its mean and strongest channel."""

    def __init__(self, config: LViTConfig, hidden_size: int):
        super().__init__()
        conv = layer_class("Conv", config.spatial_dims)
        self.mean_projection = conv(hidden_size, hidden_size, kernel_size=1, bias=False)
        self.max_projection = conv(hidden_size, hidden_size, kernel_size=1, bias=False)
        self.fc1 = conv(3, 6, kernel_size=1)
        self.fc2 = conv(6, 1, kernel_size=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        average = self.mean_projection(feature_map).relu_().mean(1, keepdim=True)
        # The maximum of ReLUs is the ReLU of the maximum.
        maximum = self.max_projection(feature_map).amax(1, keepdim=True).relu()
        weights = self.fc1(torch.cat([average, maximum, average + maximum], dim=1))
        return self.fc2(weights.relu()) * feature_map


def upsampled_rows(stride: int, weight: torch.Tensor) -> torch.Tensor:
    """Which rows of a kernel of side 3 each row of the transposed kernel that it stands for is the sum of.

    It is made where the kernel is: from a list it would be copied to a GPU, which waits and fits into no CUDA graph.

    Args:
        stride: 1 or 2.
        weight: The kernel, for its device and type.

    Returns:
        Ones and zeros of shape `(2 + stride, 3)`, such as `[[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]]`.
    """
    steps = torch.arange(2 + stride, device=weight.device)
    offsets = steps[:, None] + steps[:3] - 2
    return ((offsets >= 0) & (offsets < stride)).to(weight.dtype)


def upsampled_kernel(weight: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """The transposed kernel that equals nearest upsampling by `strides` and then the kernel `weight` of side 3.

    Upsampling by 2 has 4 taps on an axis, 2 for each output pixel instead of 3, and the upsampled map is never made.
    """
    rows = [upsampled_rows(stride, weight) for stride in strides]
    taps = reduce(torch.kron, rows)
    return torch.einsum("oik,tk->iot", weight.flatten(2), taps).unflatten(-1, [len(row) for row in rows])


class LViTUpsamplingConv(nn.Module):
    """Convolution of a skip connection's map, concatenated with a map that is upsampled.

    A convolution of a concatenation is the sum of two, and the upsampled half is cheaper at its own size. It is mixed
    into the convolution, whose own forward pass reads its weights, so that offloaded ones are there.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    strides: tuple[int, ...]

    def forward(self, skip: torch.Tensor, feature_map: torch.Tensor) -> torch.Tensor:
        dims = len(self.strides)
        convolve = getattr(nn.functional, f"conv{dims}d")
        convolve_transposed = getattr(nn.functional, f"conv_transpose{dims}d")
        skip_weight, weight = self.weight.chunk(2, dim=1)
        hidden_states = convolve(skip, skip_weight, self.bias, padding=1)
        kernel = upsampled_kernel(weight, self.strides)
        hidden_states += convolve_transposed(feature_map, kernel, stride=self.strides, padding=1)
        return hidden_states


class LViTUpsamplingConv2d(LViTUpsamplingConv, nn.Conv2d):  # type: ignore[misc]
    """`LViTUpsamplingConv` on images."""


class LViTUpsamplingConv3d(LViTUpsamplingConv, nn.Conv3d):  # type: ignore[misc]
    """`LViTUpsamplingConv` on volumes."""


class LViTUpsamplingConvLayer(LViTConvLayer):
    """Upsampling convolution, batch norm and ReLU."""

    conv_classes = {2: LViTUpsamplingConv2d, 3: LViTUpsamplingConv3d}

    def __init__(self, config: LViTConfig, in_channels: int, out_channels: int, strides: tuple[int, ...]):
        super().__init__(config, in_channels, out_channels)
        self.convolution.strides = strides


class LViTUpBlock(GradientCheckpointingLayer):
    """Upsampling, joined with the skip connection's map, and two convolution layers."""

    def __init__(self, config: LViTConfig, in_channels: int, out_channels: int, strides: tuple[int, ...]):
        super().__init__()
        self.pixel_attention = LViTPixelAttention(config, in_channels)
        self.first_layer = LViTUpsamplingConvLayer(config, 2 * in_channels, out_channels, strides)
        self.second_layer = LViTConvLayer(config, out_channels, out_channels)

    def forward(self, feature_map: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.second_layer(self.first_layer(self.pixel_attention(skip), feature_map))


class LViTConvDecoder(nn.Module):
    """The way up of the U-shaped CNN."""

    def __init__(self, config: LViTConfig):
        super().__init__()
        widths = [config.hidden_sizes[0], *config.hidden_sizes]
        self.blocks = nn.ModuleList(
            LViTUpBlock(config, *settings)
            for settings in zip(widths[:0:-1], widths[-2::-1], reversed(config.level_strides))
        )

    def forward(self, feature_map: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        for block, skip in zip(self.blocks, reversed(skips)):
            feature_map = block(feature_map, skip)
        return feature_map


class LViTPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and the settings shared by all LViT models."""

    config: LViTConfig
    base_model_prefix = "lvit"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["LViTEncoderLevel", "LViTDecoderLevel", "LViTDownBlock", "LViTUpBlock"]
    # A variance may be more than half precision can hold.
    _keep_in_fp32_modules = ["normalization"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(LViTLayer, num_hidden_layers_key="num_transformer_layers"),
        "attentions": LViTSelfAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.reset_parameters()  # PyTorch's own scheme, which the U-Net is trained from
        else:
            super()._init_weights(module)
        if isinstance(module, LViTPatchEmbeddings):
            init.zeros_(module.position_embeddings)
        elif isinstance(module, LViTSentenceMap):
            init.zeros_(module.mean)
            init.zeros_(module.whitening)
        elif isinstance(module, LViTModel):
            init.normal_(module.null_text, std=0.02)
        elif isinstance(module, LViTCaptionHead):
            init.zeros_(module.bias)
            init.zeros_(module.states)
            init.ones_(module.shares)
        elif isinstance(module, LViTScopeHead):
            for name, buffer in module.named_buffers():
                is_zero = name in ("mean", "components", "color_mean", "color_precision")
                (init.zeros_ if is_zero else init.ones_)(buffer)
        elif isinstance(module, LViTPresenceHead):
            init.zeros_(module.mean)
            init.ones_(module.scale)
            init.zeros_(module.weight)
            init.constant_(module.bias, CERTAIN)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Loads a checkpoint as transformers does, in float32 unless `dtype` names another type.

        Half precision is a way to store the weights; most CPUs compute in it slowly or not at all.
        """
        if kwargs.get("dtype", kwargs.get("torch_dtype")) is None:
            kwargs["dtype"] = torch.float32
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with `output_loading_info`
        # transformers lets all weights learn that it has loaded, whatever `__init__` said.
        if model.config.freeze_text_model:
            getattr(model, "lvit", model).text_model.requires_grad_(False)  # type: ignore[union-attr]
        return loaded

    def __getstate__(self):
        """For pickle and copies: without the hooks that record hidden states, which the next call puts back."""
        for module in self.modules():
            for key, hook in list(module._forward_hooks.items()):
                if hook.__module__ == capture_outputs.__module__:
                    del module._forward_hooks[key]
            module.__dict__.pop("_output_capturing_hooks_installed", None)
        return super().__getstate__()

    def fold_batch_norms(self):
        """Folds every batch norm into its convolution, in place, for faster inference with the same outputs.

        Returns:
            The model itself, in evaluation mode. It can be saved and loaded, but training it further lacks the norms.
        """
        self.eval()
        for module in self.modules():
            if isinstance(module, LViTConvLayer):
                module.fold_batch_norm()
        self.config.batch_norm_folded = True
        return self


class LViTModel(LViTPreTrainedModel):
    """The LViT network without a head: pixel features from an image and a caption."""

    def __init__(self, config: LViTConfig):
        super().__init__(config)
        self.text_model = AutoModel.from_config(config.text_config, add_pooling_layer=False)
        self.null_text = nn.Parameter(torch.zeros(config.num_text_vectors, config.get_text_config().hidden_size))
        self.text_projection = LViTTextProjection(config)
        self.sentence_map = LViTSentenceMap(config) if config.text_fusion == "sentence_map" else None
        self.conv_encoder = LViTConvEncoder(config)
        self.vision_transformer = LViTVisionTransformer(config)
        self.reconstruction = nn.ModuleList(
            LViTReconstruction(config, *sizes) for sizes in zip(config.hidden_sizes, config.patch_shapes)
        )
        self.conv_decoder = LViTConvDecoder(config)
        self.text_model.requires_grad_(not config.freeze_text_model)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def train(self, mode: bool = True):
        """Sets training mode, in which a text tower without anything to train stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.text_model.parameters()):
            self.text_model.eval()
        return self

    def get_text_embeds(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes the whole caption, averages the pieces of each word and cuts or pads to `num_text_vectors`.

        Args:
            input_ids: Token ids of shape `(batch_size, sequence_length)`, with `[CLS]` and `[SEP]`.
            attention_mask: 1 for tokens and 0 for padding, of that shape.
            token_type_ids: Segment ids of that shape.
            word_ids: The word of each token, from 1, and 0 for tokens of no word, as [`LViTProcessor`] returns them.
                Without them every token but the first and the last is a word of its own.

        Returns:
            `text_embeds` of shape `(batch_size, num_text_vectors, text_hidden_size)` and a boolean `text_mask` of
            shape `(batch_size, num_text_vectors)`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if word_ids is None:
            positions = attention_mask.cumsum(-1) - 1  # 0 is [CLS], and the last is [SEP]
            inner = (attention_mask > 0) & (positions > 0) & (positions < positions[:, -1:])
            word_ids = positions * inner
        hidden_states = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        return pool_words(hidden_states, word_ids, self.config.num_text_vectors)

    def get_feature_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The maps of the CNN on the way down, in which the text has no part: they serve all captions of an image.

        Args:
            pixel_values: As in `forward`.

        Returns:
            A map for each level and one below the last, of shape `(batch_size, hidden_size, (depth,) height, width)`.
        """
        self._check_inputs(pixel_values, None)
        return self.conv_encoder(pixel_values)

    def _fit_text(self, text_embeds: torch.Tensor, text_mask: torch.Tensor | None):
        """Cuts or pads given vectors to `num_text_vectors`."""
        expected = (self.config.num_text_vectors, self.config.get_text_config().hidden_size)
        if text_embeds.ndim != 3 or text_embeds.shape[-1] != expected[-1]:
            raise ValueError(
                f"text_embeds must have the shape (batch_size, number of vectors, {expected[-1]}), "
                f"got {tuple(text_embeds.shape)}."
            )
        if text_mask is None:
            text_mask = text_embeds.new_ones(text_embeds.shape[:2], dtype=torch.bool)
        if text_mask.shape != text_embeds.shape[:2]:
            raise ValueError(
                f"text_mask must have the shape {tuple(text_embeds.shape[:2])}, got {tuple(text_mask.shape)}."
            )
        text_embeds, text_mask = text_embeds[:, : expected[0]], text_mask[:, : expected[0]].bool()
        missing = expected[0] - text_embeds.shape[1]
        text_embeds = nn.functional.pad(text_embeds * text_mask.unsqueeze(-1), (0, 0, 0, missing))
        return text_embeds, nn.functional.pad(text_mask, (0, missing))

    def _add_null_text(self, text_embeds: torch.Tensor, text_mask: torch.Tensor):
        """Puts the learned null text in the rows that have no vector."""
        has_text = text_mask.any(-1)
        text_embeds = torch.where(has_text[:, None, None], text_embeds.to(self.null_text.dtype), self.null_text)
        return text_embeds, text_mask | ~has_text[:, None]

    def _check_inputs(self, pixel_values: torch.Tensor, text: torch.Tensor | None):
        channels, divisors = self.config.num_channels, self.config.size_divisors
        axes = ("depth", "height", "width")[-len(divisors) :]
        if pixel_values.ndim != 2 + len(axes) or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values must have the shape (batch_size, {channels}, {', '.join(axes)}), "
                f"got {tuple(pixel_values.shape)}."
            )
        for axis, size, divisor in zip(axes, pixel_values.shape[2:], divisors):
            if size % divisor or not size:
                raise ValueError(
                    f"{axis.capitalize()} must be a positive multiple of {divisor}, got {size}. "
                    "The image processor resizes or pads to such a size."
                )
        if text is not None and text.shape[0] != pixel_values.shape[0]:
            raise ValueError(f"There must be one text for each image, got {len(text)} for {pixel_values.shape[0]}.")

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        feature_maps: Sequence[torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LViTModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, (depth,) height, width)`):
                Images or, with `spatial_dims=3`, volumes as the image processor returns them; their sides are
                multiples of `config.size_divisors`.
            input_ids, attention_mask, token_type_ids, word_ids (`torch.Tensor`, *optional*):
                Captions as [`LViTProcessor`] returns them, each of shape `(batch_size, sequence_length)`. A row
                without words, and a batch without captions, takes the learned null text.
            text_embeds (`torch.FloatTensor` of shape `(batch_size, number of vectors, text_hidden_size)`, *optional*):
                Word vectors instead of `input_ids`.
            text_mask (`torch.Tensor` of shape `(batch_size, number of vectors)`, *optional*):
                0 or `False` where `text_embeds` is padded.
            feature_maps (`list[torch.FloatTensor]`, *optional*):
                What `get_feature_maps` returned for `pixel_values`, not to compute it again.

        Raises:
            ValueError: If a shape does not fit; the message says what was given and what is expected.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are needed: LViT segments an image, with a caption or without one.")
        self._check_inputs(pixel_values, input_ids if text_embeds is None else text_embeds)
        # step 1: word vectors
        if text_embeds is not None:
            text_embeds, text_mask = self._fit_text(text_embeds, text_mask)
        elif input_ids is not None:
            text_embeds, text_mask = self.get_text_embeds(input_ids, attention_mask, token_type_ids, word_ids)
        else:
            text_embeds = self.null_text.expand(pixel_values.shape[0], -1, -1)
            text_mask = text_embeds.new_zeros(text_embeds.shape[:2], dtype=torch.bool)
        text_embeds, text_mask = self._add_null_text(text_embeds, text_mask)
        text_features = self.text_projection(text_embeds, text_mask)

        # step 2: both branches on the way down, and the transformer's way up
        *feature_maps, bottom = self.conv_encoder(pixel_values) if feature_maps is None else feature_maps
        grid = tuple(map(operator.floordiv, pixel_values.shape[2:], self.config.patch_shapes[0]))
        sentence_maps: Sequence[torch.Tensor | None] = [None] * len(feature_maps)
        pixel_map = None
        if self.sentence_map is not None:
            sentence_maps, pixel_map = self.sentence_map(text_embeds, text_mask, grid)
        levels = self.vision_transformer(feature_maps, text_features, text_mask, sentence_maps, grid, **kwargs)

        # step 3: the transformer's levels join the skip connections of the CNN's way up
        skips = [merge(*pair, grid) for merge, *pair in zip(self.reconstruction, levels, feature_maps)]
        pixels = self.conv_decoder(bottom, skips)
        if pixel_map is not None:
            mode = INTERPOLATIONS[self.config.spatial_dims]
            pixels = pixels + nn.functional.interpolate(pixel_map, size=pixels.shape[2:], mode=mode)
        return LViTModelOutput(
            last_hidden_state=pixels,
            text_embeds=text_embeds,
            text_mask=text_mask.long(),
            image_embeds=mean_channels([*feature_maps, bottom]),
        )


CAPTION_GRID_SIZE = 7
CAPTION_DROPOUT = 0.3

# No caption is held to be less likely.
TINY = 1e-6


def caption_features(outputs: Any, config: LViTConfig) -> torch.Tensor:
    """What a caption head reads of images: the deepest patches of the ViT's encoder and the pixel features.

    Args:
        outputs: What [`LViTModel`] returned, with hidden states, for images without text; with text, a caption could
            be read off it.
        config: The network's configuration.

    Returns:
        Features pooled to one grid, of shape `(batch_size, hidden_sizes[-1] + 2 * hidden_sizes[0], (7,) 7, 7)`.
    """
    pixels = outputs.last_hidden_state
    grid = tuple(map(operator.floordiv, pixels.shape[2:], config.patch_shapes[0]))
    patches = outputs.hidden_states[len(config.hidden_sizes) * config.num_hidden_layers].mT.unflatten(-1, grid)
    average, maximum = (
        layer_class(name, config.spatial_dims)(CAPTION_GRID_SIZE) for name in ("AdaptiveAvgPool", "AdaptiveMaxPool")
    )
    return torch.cat([average(patches), average(pixels), maximum(pixels)], dim=1)


class LViTCaptionHead(nn.Module):
    """Scores `config.num_captions` captions by what an image says of each attribute.

    A caption's score is the sum of its values' scores, one classifier for each attribute, and of its own bias, which
    learns what values go together. What each caption states, and how frequent it is, is stored with the weights:

    - `states`, booleans of shape `(num_captions, config.num_caption_values)`;
    - `shares`, of shape `(num_captions,)`: the share of the training images of which a caption is true.
    """

    states: torch.Tensor
    shares: torch.Tensor

    def __init__(self, config: LViTConfig):
        super().__init__()
        self.attributes = config.caption_attributes
        width = config.hidden_sizes[-1] // 4
        self.projection = LViTConvLayer(config, config.hidden_sizes[-1] + 2 * config.hidden_sizes[0], width, 1)
        self.layer = LViTConvLayer(config, width, width)
        self.dropout = nn.Dropout(CAPTION_DROPOUT)
        self.classifiers = nn.ModuleList(
            nn.Linear(width * CAPTION_GRID_SIZE**config.spatial_dims, len(attribute["values"]))
            for attribute in self.attributes
        )
        self.bias = nn.Parameter(torch.zeros(config.num_captions))
        self.register_buffer("states", torch.zeros(config.num_captions, config.num_caption_values, dtype=torch.bool))
        self.register_buffer("shares", torch.ones(config.num_captions))

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> LViTCaptionPredictionOutput:
        """Scores captions.

        Args:
            features: As `caption_features` returns them.
            labels: 1 for each caption that is true of the image and 0 for the others, of shape
                `(batch_size, num_captions)`. An image of which none is known to be true has no part in the loss.
        """
        hidden_states = self.dropout(self.layer(self.projection(features))).flatten(1)
        scores = torch.cat([classifier(hidden_states) for classifier in self.classifiers], dim=-1)
        states = self.states.to(scores.dtype)
        logits = scores @ states.mT + self.bias
        return LViTCaptionPredictionOutput(
            loss=None if labels is None else caption_loss(logits, labels.to(logits.device)),
            logits=logits,
            value_probabilities=logits.softmax(-1) @ states,
        )

    @cached_property
    def captions(self) -> list[Caption]:
        """What each caption states, in the order of `states`."""
        return [self._read_states(row) for row in self.states.tolist()]

    def _read_states(self, row: list[bool]) -> Caption:
        flags = iter(row)
        stated = [tuple(name for name in attribute["values"] if next(flags)) for attribute in self.attributes]
        family = next((attribute["family"] for attribute, values in zip(self.attributes, stated) if values), "")
        finding = {
            attribute["name"]: values if attribute["multiple"] else values[0]
            for attribute, values in zip(self.attributes, stated)
            if attribute["family"] == family and (values or attribute["multiple"])
        }
        return Caption(family, (finding,))

    def match(self, caption: Caption) -> torch.Tensor:
        """Which captions state all that a caption states of one of its objects: booleans `(num_captions,)`."""
        return torch.tensor(
            [caption.family == other.family and caption.agrees_with(other.findings[0]) for other in self.captions]
        )

    def decode(
        self,
        outputs: LViTCaptionPredictionOutput,
        num_captions: int = 1,
        presences: Sequence[float] | None = None,
    ) -> list[dict]:
        """Puts an output into words.

        Args:
            outputs: What the head returned.
            num_captions: How many captions to name, at most.
            presences: Probability in [0, 1] that each image shows anything: the largest of its pixels' without a
                caption. The head itself was trained on images that show something; of one whose mask is empty, the
                first caption says that.

        Returns:
            For each image a dictionary:

            - **captions** (`list[dict]`) -- the likeliest first, with `text` and `probability` in [0, 1].
            - **families** (`dict[str, float]`) -- the probability of each family of captions.
            - **attributes** (`list[dict]`) -- `family`, `name` and `values`, a dictionary from each value to its
              probability.
            - **probabilities** (`list[float]`, one for each of the head's captions) -- of every caption, if there is
              something to find.
            - **absence** (`float`) -- probability in [0, 1] that there is nothing to find; 0 without `presences`.
        """
        *_, logits, value_probabilities = outputs.to_tuple()
        presences = [1.0] * len(logits) if presences is None else presences
        return [self._describe(*row, num_captions) for row in zip(logits.softmax(-1), value_probabilities, presences)]

    def _describe(
        self, probabilities: torch.Tensor, value_probabilities: torch.Tensor, presence: float, num_captions: int
    ) -> dict[str, Any]:
        """See `decode`."""
        sizes = [len(attribute["values"]) for attribute in self.attributes]
        families = [caption.family for caption in self.captions]
        of_families = {
            name: probabilities[[family == name for family in families]].sum().item()
            for name in dict.fromkeys(families)
        }
        best = probabilities.topk(min(num_captions, len(probabilities)))
        captions = [
            {"text": render_caption(self.captions[index]), "probability": probability * presence}
            for index, probability in zip(best.indices.tolist(), best.values.tolist())
        ]
        absence = 1 - presence
        if absence >= AGREEMENT:  # else the mask shows something
            nothing = Caption(max(of_families, key=of_families.__getitem__), (), absent=({},))
            captions.insert(0, {"text": render_caption(nothing), "probability": absence})
        return {
            "captions": captions[:num_captions],
            "families": of_families,
            "attributes": [
                {
                    "family": attribute["family"],
                    "name": attribute["name"],
                    "values": dict(zip(attribute["values"], values.tolist())),
                }
                for attribute, values in zip(self.attributes, value_probabilities.split(sizes))
            ],
            "probabilities": probabilities.tolist(),
            "absence": absence,
        }

    def check(self, caption: Caption, described: dict[str, Any], mask_agreement: float | None = None) -> CaptionCheck:
        """Compares what a caption states with what its image shows.

        The odds of the score are those by which the caption's statements are likelier for the image than for any of
        the training images. Of a caption by which there is nothing, the score is the image's `absence`.

        Args:
            caption: What the caption states.
            described: What the image shows, as `decode` returns it.
            mask_agreement: See `CaptionCheck`.
        """
        disagreements = find_disagreements(caption, described)
        if caption.is_absent:
            return CaptionCheck(described["absence"], disagreements, mask_agreement)
        matches = self.match(caption)
        probability = sum(itertools.compress(described["probabilities"], matches))
        odds = max(probability, TINY) / (sum(itertools.compress(self.shares.tolist(), matches)) or 1.0)
        return CaptionCheck((1 - described["absence"]) * odds / (1 + odds), disagreements, mask_agreement)


def caption_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood that one of an image's true captions is chosen, averaged over images that have any.

    Args:
        logits: Scores of shape `(batch_size, num_captions)`.
        labels: 1 for each caption that is true of the image, of that shape.
    """
    is_true = labels > 0
    known = is_true.any(-1)
    true_logits = logits.masked_fill(~is_true, torch.finfo(logits.dtype).min)
    losses = logits.logsumexp(-1) - true_logits.logsumexp(-1)
    return (losses * known).sum() / known.sum().clamp(min=1)


SCOPE_COMPONENTS = 32
# Keeps directions in which training images hardly differ from deciding alone.
SCOPE_FLOOR = 0.1
# The same for colours, in squares of the network's range; and the least limit, in standard deviations.
COLOR_FLOOR, COLOR_LIMIT = 0.01, 2.0


def mean_colors(pixel_values: torch.Tensor) -> torch.Tensor:
    """How far neighbouring channels are apart, a mean over the image, of shape `(batch_size, channels - 1)`."""
    return pixel_values.float().diff(dim=1).abs().flatten(2).mean(-1)


class LViTScopeHead(nn.Module):
    """How far an image is from the training images of each kind, by the means of the CNN's channels.

    The distance is Mahalanobis' (arXiv 1807.03888). Each kind has its own covariance, of `SCOPE_COMPONENTS`
    directions and one variance for all others, as probabilistic principal components have it. `limits` holds the
    distance within which most validation images of each kind are. The colours of an image (see `mean_colors`) have a
    distance and limits of their own, and the larger share counts: grey gravel has the texture of stained nuclei.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    components: torch.Tensor
    variances: torch.Tensor
    rest: torch.Tensor
    limits: torch.Tensor
    color_mean: torch.Tensor
    color_precision: torch.Tensor
    color_limits: torch.Tensor

    def __init__(self, config: LViTConfig):
        super().__init__()
        kinds, width = len(config.scope_kinds), sum(config.hidden_sizes) + config.hidden_sizes[-1]
        colors = config.num_channels - 1
        count = min(SCOPE_COMPONENTS, width - 1)
        self.register_buffer("mean", torch.zeros(kinds, width))
        self.register_buffer("scale", torch.ones(kinds, width))
        self.register_buffer("components", torch.zeros(kinds, width, count))
        self.register_buffer("variances", torch.ones(kinds, count))
        self.register_buffer("rest", torch.ones(kinds))
        self.register_buffer("limits", torch.ones(kinds))
        self.register_buffer("color_mean", torch.zeros(kinds, colors))
        self.register_buffer("color_precision", torch.zeros(kinds, colors, colors))
        self.register_buffer("color_limits", torch.ones(kinds))

    @torch.no_grad()
    def fit_colors(self, kind: int, train: torch.Tensor, valid: torch.Tensor, share: float, margin: float):
        """Sets what is known of a kind's colours, in place: as `fit`, with `mean_colors` in place of embeddings."""
        self.color_mean[kind] = train.mean(0)
        floor = COLOR_FLOOR * torch.eye(train.shape[1])
        self.color_precision[kind] = torch.linalg.inv(torch.cov(train.T).view(floor.shape) + floor)
        distance = self._color_distances(valid)[:, kind].quantile(share)
        self.color_limits[kind] = (margin * distance).clamp(min=COLOR_LIMIT)

    @torch.no_grad()
    def fit(self, kind: int, train: torch.Tensor, valid: torch.Tensor, share: float, margin: float):
        """Sets what is known of a kind's maps, in place.

        Args:
            kind: Its number.
            train: `image_embeds` of training images of that kind, at least two.
            valid: `image_embeds` of its validation images.
            share: Share of the validation images within the limit, if its `margin` were 1.
            margin: How much farther an image in scope may be.
        """
        std, self.mean[kind] = torch.std_mean(train.float(), dim=0)
        self.scale[kind] = std + 1e-3
        centered = (train.float() - self.mean[kind]) / self.scale[kind]
        _, singular_values, directions = torch.linalg.svd(centered / len(train) ** 0.5, full_matrices=False)
        count = self.variances.shape[1]  # of few images there are fewer
        variances = nn.functional.pad(singular_values.square(), (0, count))
        directions = nn.functional.pad(directions, (0, 0, 0, count))
        self.variances[kind], self.components[kind] = variances[:count], directions[:count].mT
        self.rest[kind] = variances[count:].sum() / (self.mean.shape[1] - count)
        self.limits[kind] = margin * self._distances(valid)[:, kind].quantile(share)

    def _distances(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Of shape `(batch_size, number of kinds)`."""
        # In float32 also where the model was brought to half precision, and under autocast, which rounds products of
        # matrices only.
        centered = (image_embeds.float().unsqueeze(1) - self.mean.float()) / self.scale.float()
        along = (centered.unsqueeze(-1) * self.components.float()).sum(-2).square()
        beside = (centered.square().sum(-1) - along.sum(-1)).clamp(min=0)
        squares = (along / (self.variances.float() + SCOPE_FLOOR)).sum(-1)
        squares = squares + beside / (self.rest.float() + SCOPE_FLOOR)
        return squares.sqrt()

    def _color_distances(self, colors: torch.Tensor) -> torch.Tensor:
        """Of shape `(batch_size, number of kinds)`."""
        centered = colors.float().unsqueeze(1) - self.color_mean.float()
        products = (self.color_precision.float() * centered.unsqueeze(-1)).sum(-2)
        return (products * centered).sum(-1).clamp(min=0).sqrt()

    def forward(self, image_embeds: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        """Distances as shares of the limits, of shape `(batch_size, number of kinds)`.

        Args:
            image_embeds: See `LViTModelOutput`.
            colors: `mean_colors` of the images.
        """
        maps = self._distances(image_embeds) / self.limits
        return torch.maximum(maps, self._color_distances(colors) / self.color_limits)


# Log-odds of what is not in doubt.
CERTAIN = 1e4


def presence_features(outputs: Any) -> torch.Tensor:
    """What a presence head reads: the CNN's way down, in which the text has no part, and the pixel features.

    Args:
        outputs: What [`LViTModel`] returned.

    Returns:
        `image_embeds`, and the mean and the maximum of each pixel feature, side by side, of shape
        `(batch_size, sum of hidden_sizes + hidden_sizes[-1] + 2 * hidden_sizes[0])`.
    """
    pixels = outputs.last_hidden_state
    return torch.cat([outputs.image_embeds, mean_channels([pixels]), pixels.flatten(2).amax(-1)], dim=-1)


class LViTPresenceHead(nn.Module):
    """Whether there is anything to find: a logistic regression on standardized `presence_features`.

    Until it is fitted it says yes, whatever the image.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: LViTConfig):
        super().__init__()
        width = sum(config.hidden_sizes) + config.hidden_sizes[-1] + 2 * config.hidden_sizes[0]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("weight", torch.zeros(width))
        self.register_buffer("bias", torch.tensor(CERTAIN))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The log-odds that there is something to find, float32 of shape `(batch_size,)`."""
        standardized = (features.float() - self.mean.float()) / self.scale.float()
        return (standardized * self.weight.float()).sum(-1) + self.bias.float()


class LViTForImageSegmentation(LViTPreTrainedModel):
    """LViT with a pixel classifier: one mask (sigmoid) or several classes (softmax) from an image and a caption."""

    # They divide by deviations.
    _keep_in_fp32_modules = [*LViTPreTrainedModel._keep_in_fp32_modules, "scope_head", "presence_head"]

    def __init__(self, config: LViTConfig):
        super().__init__(config)
        self.lvit = LViTModel(config)
        conv = layer_class("Conv", config.spatial_dims)
        self.classifier = conv(config.hidden_sizes[0], config.num_labels, kernel_size=1)
        # Trained apart, on features of the finished network.
        self.caption_head = LViTCaptionHead(config).requires_grad_(False) if config.num_captions else None
        self.scope_head = LViTScopeHead(config) if config.scope_kinds else None
        self.presence_head = LViTPresenceHead(config) if config.presence_head else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        word_ids: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        feature_maps: Sequence[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        output_captions: bool = False,
        original_sizes: torch.Tensor | None = None,
        reshaped_input_sizes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LViTImageSegmentationOutput:
        r"""
        Args:
            pixel_values, input_ids, attention_mask, token_type_ids, word_ids, text_embeds, text_mask, feature_maps:
                As in [`LViTModel.forward`].
            labels (`torch.Tensor` of shape `(batch_size, (depth,) height, width)`, *optional*):
                With one label, the probability of foreground in [0, 1] (soft labels too); with several, class indices.
            output_captions (`bool`, *optional*, defaults to `False`):
                Whether to return what the caption head says, which is of use for rows without text.
            original_sizes, reshaped_input_sizes (`torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                Heights and widths as [`LViTImageProcessor`] returns them; handed on with the outputs.

        Raises:
            ValueError: If a shape does not fit, the message says what was given and what is expected; or if captions
                are asked of a checkpoint without a caption head.

        Example:

        ```python
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageSegmentation, AutoProcessor

        >>> model = AutoModelForImageSegmentation.from_pretrained("checkpoints/lvit-small", trust_remote_code=True)
        >>> processor = AutoProcessor.from_pretrained("checkpoints/lvit-small", trust_remote_code=True)
        >>> image = Image.open("examples/chest-xray.jpg")
        >>> inputs = processor(images=image, text="one infected area, lower left lung", return_tensors="pt")
        >>> outputs = model(**inputs)
        >>> mask = processor.post_process_semantic_segmentation(outputs, target_sizes=inputs["original_sizes"])[0]
        ```
        """
        if output_captions:
            kwargs["output_hidden_states"] = True
        outputs = self.lvit(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            word_ids=word_ids,
            text_embeds=text_embeds,
            text_mask=text_mask,
            feature_maps=feature_maps,
            **kwargs,
        )
        logits = self.classifier(outputs.last_hidden_state)
        if self.presence_head is not None:
            # No pixel is likelier to belong to something than there is to be something.
            presence = self.presence_head(presence_features(outputs)).to(logits.dtype)
            logits = torch.minimum(logits, presence.view(-1, *[1] * (logits.ndim - 1)))
        captions = self._predict_captions(outputs) if output_captions else None
        scope = None
        if self.scope_head is not None:
            scope = self.scope_head(outputs.image_embeds, mean_colors(pixel_values))  # type: ignore[arg-type]
        loss = None
        if labels is not None:
            loss = segmentation_loss(logits, labels.to(logits.device), self.config)
        return LViTImageSegmentationOutput(
            loss=loss,
            logits=logits,
            text_embeds=outputs.text_embeds,
            text_mask=outputs.text_mask,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            captions=captions,
            scope=scope,
            original_sizes=original_sizes,
            reshaped_input_sizes=reshaped_input_sizes,
        )

    def _predict_captions(self, outputs: Any) -> LViTCaptionPredictionOutput:
        if self.caption_head is None:
            raise ValueError("This checkpoint has no caption head; lvit train-captions adds one.")
        return self.caption_head(caption_features(outputs, self.config))


__all__ = ["LViTForImageSegmentation", "LViTModel", "LViTPreTrainedModel"]
