"""Batch norms whose statistics are those of the whole batch when it is spread over several processes."""

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce

from ..model.modeling_lvit import LViTConvLayer


class SyncBatchNorm(nn.BatchNorm1d):
    """Batch norm over all processes, each with a part of the batch of the same size.

    As `torch.nn.SyncBatchNorm`, which runs on accelerators only; this one also runs on CPUs. Takes
    `(batch_size, channels, ...)`.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def _check_input_dim(self, input: torch.Tensor):
        pass  # sequences and images alike

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.ndim)], (-1, *[1] * (input.ndim - 2))
        world_size = torch.distributed.get_world_size()
        values = input.float()  # statistics in half precision would be too coarse
        mean = all_reduce(values.mean(dims)) / world_size
        centered = values - mean.view(shape)
        variance = all_reduce(centered.square().mean(dims)) / world_size
        self._update_running_statistics(mean, variance, world_size * input[:, 0].numel())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor, count: int):
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def synchronize_batch_norms(model: nn.Module):
    """Replaces the batch norms of a network, in place; the names of its weights stay the same."""
    for layer in model.modules():
        if isinstance(layer, LViTConvLayer):
            norm = SyncBatchNorm(layer.convolution.out_channels, eps=layer.batch_norm_eps)
            norm.load_state_dict(layer.normalization.state_dict())
            layer.normalization = norm
