"""Times LViT on every device there is, by each way to run it; see README.md beside this file.

python benchmarks/speed.py --reference CHECKOUT
python benchmarks/speed.py --devices cuda --tasks production
"""

import argparse
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lvit_hf import LViTConfig, LViTForImageSegmentation
from lvit_hf.inference.backends import CompiledNetwork, ExportedNetwork
from lvit_hf.model.modeling_lvit import dice_loss


PRODUCTION = Path(__file__).parents[1] / "checkpoints" / "lvit-small"
NUM_WORDS, TEXT_WIDTH = 10, 768
TOLERANCE = 1e-4
# The first runs compile, choose algorithms and make the optimizer's state; CUDA graphs are recorded by the third.
WARM_UPS = {"cpu": 1, "cuda": 3}

# Batch sizes of each task; the reference's recipes train with 2 (MoNuSeg) and 24 (QaTa-COV19).
BATCHES = {"forward": (1, 8, 32), "training step": (2, 8, 24), "production": (1, 8, 32, 128)}
IMAGE_SIZES = {"forward": 224, "training step": 224, "production": 160}

# What runs it, and the numbers it computes with. All but the first are ours.
PRECISIONS = {
    "reference": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "one CUDA graph": torch.bfloat16,
    "compiled": torch.bfloat16,
    "compiled, 32 at once": torch.bfloat16,
    "OpenVINO float32": torch.float32,
    "OpenVINO bfloat16": torch.bfloat16,
    "OpenVINO int8": torch.bfloat16,  # whose rate PyTorch's products of 8 bits have too
}
GRAPHS = ("compiled", "one CUDA graph")
OPENVINO = ("OpenVINO float32", "OpenVINO bfloat16", "OpenVINO int8")
EAGER = ("reference", "float32", "bfloat16")
VARIANTS = {
    ("cpu", "forward"): EAGER + OPENVINO,
    ("cpu", "training step"): EAGER,
    ("cpu", "production"): EAGER[1:] + OPENVINO,
    ("cuda", "forward"): EAGER + GRAPHS,
    ("cuda", "training step"): (*EAGER, "compiled"),
    ("cuda", "production"): (*EAGER[1:], *GRAPHS, "compiled, 32 at once"),
}

Run = Callable[[], Any]


class Reference(nn.Module):
    """The reference's network, from its own code, with the names of our arguments."""

    def __init__(self, checkout: Path):
        super().__init__()
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        # Its one import from timm is of a layer that it never builds.
        layers = types.ModuleType("timm.models.layers")
        layers.DropPath = nn.Identity  # type: ignore[attr-defined]
        sys.modules.update({"timm": layers, "timm.models": layers, "timm.models.layers": layers})
        from nets.LViT import LViT  # type: ignore[import-not-found]

        self.network = LViT(types.SimpleNamespace(base_channel=64))

    def forward(self, pixel_values: torch.Tensor, text_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
        """Probabilities."""
        return self.network(pixel_values, text_embeds)


def build_ours() -> LViTForImageSegmentation:
    """Our network of the paper's widths, with next to no text tower, as the reference is given word vectors."""
    text_config = {"hidden_size": TEXT_WIDTH, "num_hidden_layers": 0, "vocab_size": 1}
    return LViTForImageSegmentation(LViTConfig(text_config=text_config))


def build_production() -> LViTForImageSegmentation:
    """The shipped network; for its speed any weights will do."""
    return LViTForImageSegmentation(LViTConfig.from_pretrained(PRODUCTION))


def build_network(task: str) -> LViTForImageSegmentation:
    return build_production() if task == "production" else build_ours()


def take_inputs(task: str, batch_size: int, device: str) -> dict[str, Any]:
    """Images of noise, with a caption of ten words each; the production network describes images without any.

    What takes word vectors, as the reference does, is given these beside the tokens.
    """
    size = IMAGE_SIZES[task]
    inputs = {"pixel_values": torch.rand(batch_size, 3, size, size, device=device) * 2 - 1}
    if task == "production":
        return inputs | {"output_captions": True}
    word_ids = torch.arange(1, NUM_WORDS + 1, device=device).expand(batch_size, -1)
    tokens = {"input_ids": torch.zeros_like(word_ids), "attention_mask": torch.ones_like(word_ids)}
    text_embeds = torch.ones(batch_size, NUM_WORDS, TEXT_WIDTH, device=device)
    return inputs | tokens | {"word_ids": word_ids, "text_embeds": text_embeds}


@dataclass(frozen=True)
class Subject:
    """What is timed.

    Args:
        task: One of `BATCHES`.
        variant: One of `PRECISIONS`.
        device: `"cpu"` or `"cuda"`.
        reference: Checkout of the reference implementation.
        exported: Folder with the networks that were exported for OpenVINO.
    """

    task: str
    variant: str
    device: str
    reference: Path | None
    exported: Path

    @property
    def precision(self) -> torch.dtype:
        return PRECISIONS[self.variant]

    @property
    def is_compiled(self) -> bool:
        return self.variant.startswith("compiled")

    @property
    def counted(self) -> "Subject":
        """The same network with the same numbers, run eagerly on a CPU."""
        eager = "bfloat16" if self.precision == torch.bfloat16 else "float32"
        variant = self.variant if self.variant == "reference" else eager
        return replace(self, variant=variant, device="cpu")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def build(self) -> nn.Module:
        """The network itself, in training mode."""
        if self.reference is not None and self.variant == "reference":
            return Reference(self.reference).to(self.device)
        return build_network(self.task).to(self.device, memory_format=torch.channels_last).train()

    def prepare(self) -> Callable[[int], Run]:
        """From a batch size to what runs one pass or step."""
        network: Any = self.build()
        if self.task == "training step":
            return partial(make_step, self, network, make_optimizer(self, network))
        network.eval()
        if self.variant != "reference":
            network.fold_batch_norms()
        if self.is_compiled:
            network = CompiledNetwork(network, 32) if self.variant.endswith("32 at once") else CompiledNetwork(network)
        elif self.variant.startswith("OpenVINO"):
            network = load_openvino(self, network.config)
        make = partial(make_forward, self, network)
        return make if self.variant != "one CUDA graph" else lambda batch_size: record(make(batch_size))


def load_openvino(subject: Subject, config: LViTConfig) -> ExportedNetwork:
    from transformers.exporters.base import ExportedModel

    hint = "bf16" if subject.variant.endswith("bfloat16") else "f32"
    hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    folder = "openvino-int8" if subject.variant.endswith("int8") else "openvino"
    exported = ExportedModel.from_pretrained(subject.exported, subfolder=folder, device="cpu", config=hints)
    return ExportedNetwork(exported.runners, config, "openvino")


def make_forward(
    subject: Subject, network: Callable[..., Any], batch_size: int, mode: Callable = torch.inference_mode
) -> Run:
    """One prediction."""
    inputs = take_inputs(subject.task, batch_size, subject.device)

    def run() -> Any:
        with mode(), subject.autocast():
            return network(**inputs)

    return run


def record(run: Run) -> Run:
    """The same as one CUDA graph: what the GPU needs if starting the kernels costs nothing."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS["cuda"]):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def make_optimizer(subject: Subject, network: nn.Module) -> torch.optim.Optimizer:
    """The reference trains with PyTorch's Adam as it is; ours with the Trainer's default."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trained) if subject.variant == "reference" else torch.optim.AdamW(trained, fused=True)


def make_step(subject: Subject, network: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> Run:
    """One step of training: forward pass, Dice and cross-entropy, backward pass and the optimizer."""
    inputs = take_inputs(subject.task, batch_size, subject.device)
    size = IMAGE_SIZES[subject.task]
    masks = (torch.rand(batch_size, 1, size, size, device=subject.device) > 0.5).float()
    call: Callable[..., Any] = network
    if subject.is_compiled:
        with torch.no_grad():
            network(**take_inputs(subject.task, 1, subject.device))  # puts hooks into it, or it would compile twice
        call = torch.compile(network, dynamic=False)

    def run():
        with subject.autocast():
            outputs = call(**inputs)
        probabilities = outputs if subject.variant == "reference" else outputs.logits.float().sigmoid()
        loss = 0.5 * dice_loss(probabilities, masks) + 0.5 * nn.functional.binary_cross_entropy(probabilities, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def read_clock(device: str) -> float:
    """Seconds: on a CPU those that it worked for this process, whatever else it does."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def time_in_turns(runs: dict[str, Run], device: str, repeats: int) -> dict[str, float]:
    """Median seconds of each run; they take turns, so that a change of the machine's load meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-WARM_UPS[device], repeats):
        for name, run in runs.items():
            start = read_clock(device)
            run()
            if turn >= 0:
                seconds[name].append(read_clock(device) - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Work(TorchDispatchMode):
    """Counts what convolutions and products of matrices do: operations, and bytes of what they read and write."""

    def __init__(self):
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
            tensors = filter(torch.is_tensor, tree_leaves((args, out)))
            self.bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        return out


@cache
def trace_work(subject: Subject) -> list[tuple[int, int]]:
    """Operations and bytes of a batch of one and of two, counted on tensors without values."""
    network: Any = subject.build()
    counts = []
    with FakeTensorMode() as mode:
        network._apply(mode.from_tensor)
        if subject.variant != "reference":
            network.set_attn_implementation("eager")  # as products of matrices
        if subject.task == "training step":
            make = partial(make_step, subject, network, torch.optim.SGD(network.parameters()))
        else:
            # In inference mode operations come as they were called.
            make = partial(make_forward, subject, network.eval(), mode=torch.no_grad)
        for batch_size in (1, 2):
            run = make(batch_size)
            with Work() as work:
                run()
            counts.append((work.operations, work.bytes))
    return counts


def count_work(subject: Subject, batch_size: int) -> tuple[int, int]:
    """The same of any batch: what one image more adds is the same for each."""
    operations, size = (one + (batch_size - 1) * (two - one) for one, two in zip(*trace_work(subject)))
    return operations, size


@cache
def measure_rate(device: str, precision: torch.dtype) -> float:
    """Operations a second of a large product of matrices; on a GPU float32 is TF32, in which cuDNN convolves."""
    torch.backends.cuda.matmul.allow_tf32 = True
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(precision) for _ in range(2))
    seconds = time_in_turns({"": lambda: left @ right}, device, repeats=10)[""]
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * size**3 / seconds


@cache
def measure_bandwidth(device: str) -> float:
    """Bytes a second that a copy within the device's memory reads and writes."""
    source = torch.zeros(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * len(source) / time_in_turns({"": lambda: target.copy_(source)}, device, repeats=10)[""]


def peak_resident_memory() -> int:
    """The most KiB that this process has held so far (`getrusage` would count its parent's too)."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def measure_memory(subject: Subject, batch_size: int, threads: int) -> float:
    """MiB by which this process grows at most, over what it holds before the network is built."""
    torch.set_num_threads(threads)
    before = peak_resident_memory()
    run = subject.prepare()(batch_size)
    for _ in range(2):  # Adam keeps its state from the first step on
        run()
    return (peak_resident_memory() - before) / 1024


def measure_memory_apart(*arguments) -> float:
    """The same in a process of its own, whose peak holds nothing else."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_memory, *arguments).result()


@dataclass(frozen=True)
class Row:
    """A line of the table: seconds before the first run ends and of a run, and MiB."""

    subject: Subject
    batch_size: int
    ready: float
    seconds: float
    memory: float

    def format(self, baseline: float) -> str:
        """The line as Markdown; `baseline` are the seconds of the first way to run the same."""
        subject = self.subject
        operations, size = count_work(subject.counted, self.batch_size)
        cells = (
            subject.device,
            subject.task,
            str(self.batch_size),
            subject.variant,
            f"{1000 * self.seconds:.1f}",
            f"{self.batch_size / self.seconds:.1f}",
            f"{baseline / self.seconds:.2f}x",
            f"{self.memory:.0f}",
            f"{operations / self.seconds / measure_rate(subject.device, subject.precision):.0%}",
            f"{size / self.seconds / measure_bandwidth(subject.device):.0%}",
            f"{self.ready:.0f}",
        )
        return f"| {' | '.join(cells)} |"


HEADER = """\
| device | task | batch | run by | ms | images/s | faster by | MiB | of the rate | of the bandwidth | ready after, s |
|---|---|---|---|---|---|---|---|---|---|---|"""


def time_on_cpu(subjects: list[Subject], batches: Sequence[int], repeats: int) -> Iterator[Row]:
    """All in turns."""
    prepared, ready = {}, {}
    for subject in subjects:
        start = read_clock("cpu")
        prepared[subject.variant] = subject.prepare()
        ready[subject.variant] = read_clock("cpu") - start
    for batch_size in batches:
        runs = {variant: prepare(batch_size) for variant, prepare in prepared.items()}
        seconds = time_in_turns(runs, "cpu", repeats)
        for subject in subjects:
            memory = measure_memory_apart(subject, batch_size, torch.get_num_threads())
            yield Row(subject, batch_size, ready[subject.variant], seconds[subject.variant], memory)


def time_on_gpu(subjects: list[Subject], batches: Sequence[int], repeats: int) -> Iterator[Row]:
    """One after the other, so that no network shares the memory by which another is measured."""
    for subject in subjects:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        start = read_clock("cuda")
        prepare = subject.prepare()
        # A step would be compiled anew for each size.
        for batch_size in batches[-1:] if subject.task == "training step" and subject.is_compiled else batches:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            run = prepare(batch_size)
            run()
            ready = read_clock("cuda") - start
            seconds = time_in_turns({"": run}, "cuda", repeats)[""]
            yield Row(subject, batch_size, ready, seconds, (torch.cuda.max_memory_reserved() - before) / 2**20)
            start = read_clock("cuda")
        del prepare, run


def print_rows(rows: Iterator[Row]):
    baselines: dict[int, float] = {}
    for row in rows:
        baseline = baselines.setdefault(row.batch_size, row.seconds)
        print(row.format(baseline), flush=True)


@torch.inference_mode()
def check_same_function(checkout: Path):
    """Refuses to time two networks that do not compute the same from the same weights."""
    from lvit_hf.training.conversion import convert_state_dict

    reference, ours = Reference(checkout).eval(), build_ours().eval()
    ours.load_state_dict(convert_state_dict(reference.network.state_dict()), strict=False)
    inputs = take_inputs("forward", 1, "cpu")
    expected, given = reference(**inputs), ours(**inputs).logits.sigmoid()
    difference = (expected - given).abs().max().item()
    if difference > TOLERANCE:
        raise SystemExit(f"The two networks differ by {difference:.1e}, which is more than {TOLERANCE}.")
    print(f"Largest difference between the two networks' probabilities: {difference:.1e}\n")


def export_for_openvino(task: str, variants: list[str], folder: Path):
    from lvit_hf.publishing.export import TOKEN_INPUTS, export_network

    # Ranges of noise do for the speed.
    sample = dict.fromkeys(TOKEN_INPUTS, torch.ones(1, 2, dtype=torch.long)) | take_inputs(task, 1, "cpu")
    sample = {name: sample[name].numpy() for name in ("pixel_values", *TOKEN_INPUTS)}
    for samples, names in (((), OPENVINO[:2]), ((sample,), OPENVINO[2:])):
        if set(names) & set(variants):
            export_network(build_network(task), folder, "openvino", samples=samples)


def describe_limits(device: str) -> str:
    rates = ", ".join(
        f"{measure_rate(device, precision) / 1e12:.3g} TFLOP/s in {str(precision).removeprefix('torch.')}"
        for precision in (torch.float32, torch.bfloat16)
    )
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
    bandwidth = f"copies {measure_bandwidth(device) / 1e9:.3g} GB/s"
    return f"{name}; PyTorch {torch.__version__}; products of matrices {rates}; {bandwidth}"


def is_there(variant: str, reference: Path | None) -> bool:
    if variant == "reference":
        return reference is not None
    return not variant.startswith("OpenVINO") or find_spec("openvino") is not None


def main():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="checkout of github.com/HUANGLIZI/LViT")
    parser.add_argument("--devices", nargs="+", default=devices, choices=["cpu", "cuda"])
    parser.add_argument("--tasks", nargs="+", default=[*BATCHES], choices=BATCHES)
    parser.add_argument("--run-by", nargs="+", default=[*PRECISIONS], choices=PRECISIONS)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes, where not those of each task")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.reference is not None:
        check_same_function(arguments.reference)
    for device in arguments.devices:
        print(f"{describe_limits(device)}\n\n{HEADER}", flush=True)
        for task in arguments.tasks:
            with tempfile.TemporaryDirectory() as folder:
                variants = [name for name in VARIANTS[device, task] if name in arguments.run_by]
                variants = [name for name in variants if is_there(name, arguments.reference)]
                export_for_openvino(task, variants, Path(folder))
                subjects = [Subject(task, name, device, arguments.reference, Path(folder)) for name in variants]
                time_all = time_on_cpu if device == "cpu" else time_on_gpu
                print_rows(time_all(subjects, arguments.batches or BATCHES[task], arguments.repeats))
        print()


if __name__ == "__main__":
    main()
