"""Which parts of a network learn: some stay as they are, or all but low-rank adapters (LoRA)."""

from collections.abc import Sequence

from torch import nn

from ..model.modeling_lvit import LViTForImageSegmentation


# The linear layers of the vision transformer.
ADAPTED = r".*vision_transformer\..*\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"
NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def limit_training(
    model: LViTForImageSegmentation, freeze: Sequence[str], lora_rank: int | None = None, freeze_norms: bool = False
):
    """Freezes parts of a network, or puts adapters into it and freezes all else but the pixel classifier, in place.

    Args:
        model: The network.
        freeze: Names of parts, as `model.freeze` of a configuration has them.
        lora_rank: Rank of the adapters; none without it.
        freeze_norms: Whether the statistics of batch norms stay as they are.

    Raises:
        ImportError: If adapters are asked for and peft is not installed.
        ValueError: If the network has no such part.
    """
    if lora_rank is not None:
        from peft import LoraConfig, inject_adapter_in_model

        settings = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=ADAPTED)
        inject_adapter_in_model(settings, model)  # which freezes all else
        model.classifier.requires_grad_(True)
    if lora_rank is not None or freeze_norms:
        for norm in [module for module in model.modules() if isinstance(module, NORMS)]:
            _keep_evaluated(norm)
    for name in freeze:
        try:
            part = model.lvit.get_submodule(name)
        except AttributeError:
            parts = ", ".join(part for part, _ in model.lvit.named_children())
            raise ValueError(f"model.freeze: the network has no part {name}; it has {parts}, and parts of these.")
        _keep_evaluated(part.requires_grad_(False))


def _keep_evaluated(part: nn.Module):
    part.eval()
    # The Trainer sets training mode at every step, in which batch norms would follow the data.
    part.train = lambda mode=True: part  # type: ignore[method-assign]


def merge_adapters(model: nn.Module):
    """Adds adapters to the weights of the layers that they are in, in place."""
    adapters = [(name, module) for name, module in model.named_modules() if hasattr(module, "get_base_layer")]
    for name, adapter in adapters:
        adapter.merge()
        model.set_submodule(name, adapter.get_base_layer())
