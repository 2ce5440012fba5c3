"""Loads checkpoints where `lvit_hf` cannot be imported, and writes down what came of it. Run by test_hub_loading.py.

Arguments: a folder with checkpoints (`full`, `half`, `sharded`), a repository that is in the cache of the Hub, and a
folder for the answers.
"""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class Refusal(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "lvit_hf":
            raise ModuleNotFoundError("lvit_hf is not installed here", name=fullname)


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal())

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoProcessor,
    pipeline,
)


TASK, TEXT = "text-guided-image-segmentation", "two infected areas, upper left lung"
CODE = {
    *(
        "caption_grammar_lvit.py",
        "caption_statements_lvit.py",
        "caption_words_lvit.py",
        "captions_lvit.py",
        "configuration_lvit.py",
    ),
    *("image_processing_lvit.py", "image_processing_volumes_lvit.py", "modeling_lvit.py", "pipeline_lvit.py"),
    *("processing_lvit.py", "segmenter_lvit.py", "sliding_window_lvit.py"),
}
TRUST = {"trust_remote_code": True}


def check_origin(obj):
    assert type(obj).__module__.startswith("transformers_modules."), type(obj).__module__


@torch.no_grad()
def answers(source: str | Path, image: Image.Image, **kwargs) -> dict[str, torch.Tensor]:
    """What a checkpoint answers by each way of loading it."""
    config = AutoConfig.from_pretrained(source, **TRUST)
    image_processor = AutoImageProcessor.from_pretrained(source, **TRUST)
    processor = AutoProcessor.from_pretrained(source, **TRUST)
    base_model = AutoModel.from_pretrained(source, **TRUST, **kwargs)
    model = AutoModelForImageSegmentation.from_pretrained(source, **TRUST, **kwargs)
    segmenter = pipeline(TASK, model=str(source), device_map=kwargs.get("device_map"), **TRUST)
    for loaded in (config, image_processor, processor, base_model, model, segmenter, segmenter.model):
        check_origin(loaded)
    inputs = processor(images=image, text=TEXT, return_tensors="pt")
    [segment] = segmenter(image, text=TEXT)
    return {
        "pixel_values": image_processor(image, return_tensors="pt")["pixel_values"],
        "last_hidden_state": base_model(**inputs).last_hidden_state,
        "logits": model(**inputs).logits,
        "mask": torch.tensor(list(segment["mask"].tobytes())),
        "score": torch.tensor(segment["score"]),
    }


def main(checkpoints: Path, repository: str, out: Path):
    try:
        import lvit_hf  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("lvit_hf can be imported")
    try:
        AutoConfig.from_pretrained(checkpoints / "full", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    else:
        raise AssertionError("a checkpoint's code ran without trust")

    image = Image.open(checkpoints / "image.png")
    save_file(answers(checkpoints / "full", image), out / "full.safetensors")
    save_file(answers(checkpoints / "half", image), out / "half.safetensors")
    save_file(answers(checkpoints / "sharded", image, device_map="auto"), out / "sharded.safetensors")
    save_file(answers(repository, image), out / "repository.safetensors")
    half = AutoModelForImageSegmentation.from_pretrained(checkpoints / "half", dtype=torch.bfloat16, **TRUST)
    assert half.dtype == torch.bfloat16

    for name, source in (("from_folder", checkpoints / "full"), ("from_repository", repository)):
        AutoModelForImageSegmentation.from_pretrained(source, **TRUST).save_pretrained(out / name)
        AutoProcessor.from_pretrained(source, **TRUST).save_pretrained(out / name)
        save_file(answers(out / name, image), out / f"{name}.safetensors")
    pipeline(TASK, model=repository, **TRUST).save_pretrained(out / "from_pipeline")
    save_file(answers(out / "from_pipeline", image), out / "from_pipeline.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
