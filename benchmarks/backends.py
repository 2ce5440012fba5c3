"""Processor time of a forward pass by each backend, one thread, in turns: other load of the machine hits all alike.

python benchmarks/backends.py lvit-small
python benchmarks/backends.py lvit-small --backends torch openvino-bf16 --data KVASIR
"""

import argparse
import statistics
import time

import torch

from lvit_hf.data.load import load_data, take_evenly
from lvit_hf.inference.segmenter import Segmenter


CAPTION = "two infected areas, lower left lung"


def time_in_turns(segmenters: dict[str, Segmenter], inputs: dict, repeats: int) -> dict[str, float]:
    """Median milliseconds of the processor for each backend."""
    times: dict[str, list[float]] = {name: [] for name in segmenters}
    with torch.inference_mode():
        for turn in range(-2, repeats):
            for name, segmenter in segmenters.items():
                start = time.process_time()
                segmenter.network(**inputs)
                if turn >= 0:
                    times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def largest_difference(segmenter: Segmenter, inputs: dict) -> float:
    """How far the logits are from PyTorch's, at most."""
    return (segmenter.network(**inputs).logits - segmenter.model(**inputs).logits).abs().max().item()


def compare_masks(segmenters: dict[str, Segmenter], data: str, count: int):
    """Prints the share of pixels, in percent, at which each backend's masks are not the first one's."""
    rows = take_evenly(load_data(data, "valid"), count)
    first, *others = (
        segmenter.segment(rows["image"], rows["text"], describe=False) for segmenter in segmenters.values()
    )
    for name, results in zip(list(segmenters)[1:], others):
        shares = [100 * (own.mask() != result.mask()).mean() for own, result in zip(first, results)]
        print(f"{name}: {statistics.mean(shares):.3f} % of an image's pixels differ, {max(shares):.2f} % at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="Folder of a checkpoint, with what lvit export wrote.")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backends", nargs="+", default=["torch", "openvino", "onnx"])
    parser.add_argument("--data", help="Compare masks of this data set's validation images, and time nothing.")
    parser.add_argument("--limit", type=int, default=16, help="Number of those images.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenters = {name: Segmenter.from_pretrained(arguments.checkpoint, name) for name in arguments.backends}
    if arguments.data is not None:
        return compare_masks(segmenters, arguments.data, arguments.limit)
    print("| text | images | " + " | ".join(f"{name}, ms" for name in segmenters) + " |")
    print("|---|---|" + "---|" * len(segmenters))
    processor = next(iter(segmenters.values())).processor
    differences = dict.fromkeys(segmenters, 0.0)
    for text in (None, CAPTION):
        for count in arguments.images:
            inputs = {"pixel_values": torch.rand(count, 3, arguments.size, arguments.size) * 2 - 1}
            if text is not None:
                inputs |= processor(text=[text] * count, return_tensors="pt")
            for name, segmenter in segmenters.items():
                differences[name] = max(differences[name], largest_difference(segmenter, inputs))
            times = time_in_turns(segmenters, inputs, arguments.repeats)
            print(f"| {text or 'none'} | {count} | " + " | ".join(f"{value:.0f}" for value in times.values()) + " |")
    print("Logits differ at most by " + ", ".join(f"{value:.1e} ({name})" for name, value in differences.items()))


if __name__ == "__main__":
    main()
