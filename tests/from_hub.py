"""Loads a model of the Hub where `lvit_hf` cannot be imported, and writes down what it answers.

Arguments: the repository, a revision of it, an image and the file for the answers.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageSegmentation, AutoProcessor, pipeline


sys.path.append(str(Path(__file__).parent))
from without_package import TASK, TEXT, Refusal, check_origin  # noqa: E402


@torch.no_grad()
def main(repository: str, revision: str, image: Image.Image, out: Path):
    source = {"revision": revision, "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(repository, **source)
    model = AutoModelForImageSegmentation.from_pretrained(repository, **source)
    segmenter = pipeline(TASK, model=repository, device="cpu", **source)
    for loaded in (processor, model, segmenter, segmenter.model):
        check_origin(loaded)
    logits = model(**processor(images=image, text=TEXT, return_tensors="pt")).logits
    [segment] = segmenter(image, text=TEXT)
    save_file({"logits": logits, "mask": torch.tensor(list(segment["mask"].tobytes()))}, out)


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal())
    main(sys.argv[1], sys.argv[2], Image.open(sys.argv[3]), Path(sys.argv[4]))
