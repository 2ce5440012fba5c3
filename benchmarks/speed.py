"""Times LViT against a checkout of the reference implementation, see README.md beside this file."""

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

from lvit_hf import LViTConfig, LViTForImageSegmentation
from lvit_hf.model.modeling_lvit import dice_loss
from lvit_hf.training.conversion import convert_state_dict


IMAGE_SIZE, NUM_TEXT_VECTORS, TEXT_WIDTH = 224, 10, 768
BATCH_SIZES = (1, 2, 4)  # the reference trains on MoNuSeg with 2
TOLERANCE = 1e-4


class Probabilities(nn.Module):
    """Our network with the reference's signature: an image and word vectors in, probabilities out."""

    def __init__(self, network: LViTForImageSegmentation):
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixel_values, text_embeds=text_embeds).logits.sigmoid()


def build_reference(checkout: Path) -> nn.Module:
    """The reference's network, from its own code."""
    sys.path.insert(0, str(checkout))
    # Its one import from timm is of a layer that it never builds.
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = nn.Identity  # type: ignore[attr-defined]
    sys.modules.update({"timm": layers, "timm.models": layers, "timm.models.layers": layers})
    from nets.LViT import LViT  # type: ignore[import-not-found]

    return LViT(types.SimpleNamespace(base_channel=64))


def build_ours(checkout: Path) -> Probabilities:
    """Our network of the same widths, with next to no text tower, since both sides are given word vectors."""
    text_config = {"hidden_size": TEXT_WIDTH, "num_hidden_layers": 0, "vocab_size": 1}
    return Probabilities(LViTForImageSegmentation(LViTConfig(text_config=text_config)))


BUILDERS = {"reference": build_reference, "ours": build_ours}
# The reference trains with PyTorch's Adam as it is; ours with the Trainer's default.
OPTIMIZERS = {"reference": torch.optim.Adam, "ours": partial(torch.optim.AdamW, fused=True)}


def example_batch(batch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch_size)
    pixel_values = torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    text_embeds = torch.randn(batch_size, NUM_TEXT_VECTORS, TEXT_WIDTH, generator=generator)
    masks = (torch.rand(batch_size, 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator) > 0.5).float()
    return pixel_values, text_embeds, masks


def make_forward(side: str, model: nn.Module, batch_size: int) -> Callable[[], torch.Tensor]:
    """One prediction in evaluation mode; ours with what its documentation advises for inference."""
    pixel_values, text_embeds, _ = example_batch(batch_size)
    model.eval()
    if side == "ours":
        model.network.fold_batch_norms().to(memory_format=torch.channels_last)
    return torch.inference_mode()(lambda: model(pixel_values, text_embeds))


def make_training_step(side: str, model: nn.Module, batch_size: int, bf16: bool = False) -> Callable[[], torch.Tensor]:
    """One step of training: forward pass, Dice and cross-entropy, backward pass, and each side's own optimizer.

    Ours is in channels_last, as `lvit train` runs it, and in bfloat16 where its configuration says `bf16: true`.
    """
    pixel_values, text_embeds, masks = example_batch(batch_size)
    if side == "ours":
        model.to(memory_format=torch.channels_last)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16 and side == "ours")
    optimizer = OPTIMIZERS[side](parameter for parameter in model.train().parameters() if parameter.requires_grad)

    def step() -> torch.Tensor:
        with autocast:
            probabilities = model(pixel_values, text_embeds).float()
        loss = 0.5 * dice_loss(probabilities, masks) + 0.5 * nn.functional.binary_cross_entropy(probabilities, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


TASKS = {
    "forward": make_forward,
    "training step": make_training_step,
    "training step, ours in bfloat16": partial(make_training_step, bf16=True),
}


def check_same_function(checkout: Path):
    """Refuses to time two networks that do not compute the same from the same weights."""
    reference, ours = build_reference(checkout), build_ours(checkout)
    ours.network.load_state_dict(convert_state_dict(reference.state_dict()), strict=False)
    expected = make_forward("reference", reference, batch_size=1)()
    given = make_forward("ours", ours, batch_size=1)()
    difference = (expected - given).abs().max().item()
    if difference > TOLERANCE:
        raise SystemExit(f"The two networks differ by {difference:.1e}, which is more than {TOLERANCE}.")
    print(f"Largest difference between the two networks' probabilities: {difference:.1e}\n")


def time_alternately(runs: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each run; they take turns, so that a change of the machine's load meets both."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_resident_memory() -> int:
    """The most KiB that this process has held so far (`getrusage` would count its parent's too)."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def measure_memory(side: str, task: str, checkout: Path, batch_size: int, threads: int) -> float:
    """MiB by which this process grows at most, over what it holds before the network is built."""
    torch.set_num_threads(threads)
    before = peak_resident_memory()
    run = TASKS[task](side, BUILDERS[side](checkout), batch_size)
    for _ in range(2):  # Adam keeps its state from the first step on
        run()
    return (peak_resident_memory() - before) / 1024


def measure_memory_apart(*arguments) -> float:
    """The same in a process of its own, whose peak holds nothing else."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_memory, *arguments).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True, help="checkout of github.com/HUANGLIZI/LViT")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each network")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    check_same_function(arguments.reference)

    print("| task | batch | reference, ms | ours, ms | faster by | reference, MiB | ours, MiB | memory |")
    print("|---|---|---|---|---|---|---|---|")
    for task, make in TASKS.items():
        for batch_size in BATCH_SIZES:
            runs = {side: make(side, build(arguments.reference), batch_size) for side, build in BUILDERS.items()}
            seconds = time_alternately(runs, arguments.repeats)
            del runs
            memory = {
                side: measure_memory_apart(side, task, arguments.reference, batch_size, arguments.threads)
                for side in BUILDERS
            }
            print(
                f"| {task} | {batch_size} | {seconds['reference'] * 1000:.0f} | {seconds['ours'] * 1000:.0f} "
                f"| {seconds['reference'] / seconds['ours']:.2f}x | {memory['reference']:.0f} | {memory['ours']:.0f} "
                f"| {memory['ours'] / memory['reference']:.2f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
