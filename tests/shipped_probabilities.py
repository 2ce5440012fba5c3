"""What the shipped checkpoints see in the example images; run as a script, it notes it for new checkpoints."""

import json
from pathlib import Path

import torch
from PIL import Image
from rule_made import FIXTURES
from torch.nn.functional import adaptive_avg_pool2d

from lvit_hf import LViTConfig, LViTForImageSegmentation, LViTProcessor
from lvit_hf.io.checkpoints import EXAMPLES_FOLDER, list_shipped


FILE = FIXTURES / "shipped_probabilities.json"
EXAMPLES = {
    "chest-xray.jpg": "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung.",
    "slide-he.jpg": "The nuclei are evenly distributed.",
}


def list_networks() -> dict[str, Path]:
    """The shipped networks that see images; those of volumes have tests of their own."""
    return {name: path for name, path in list_shipped().items() if LViTConfig.from_pretrained(path).spatial_dims == 2}


@torch.no_grad()
def see(checkpoint: Path) -> dict[str, list[list[float]]]:
    """Probabilities of both examples, with a caption and without, averaged over 8 x 8 squares."""
    model = LViTForImageSegmentation.from_pretrained(checkpoint).eval()
    processor = LViTProcessor.from_pretrained(checkpoint)
    seen = {}
    for name, caption in EXAMPLES.items():
        image = Image.open(EXAMPLES_FOLDER / name).convert("RGB")
        for text in (caption, ""):
            inputs = processor(images=image, text=text, return_tensors="pt")
            probabilities = adaptive_avg_pool2d(model(**inputs).logits.sigmoid(), 8)[0, 0]
            seen[f"{name}, {text or 'no caption'}"] = [
                [round(value, 4) for value in row] for row in probabilities.tolist()
            ]
    return seen


if __name__ == "__main__":
    found = {name: see(folder) for name, folder in list_networks().items()}
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")
