"""Training of the caption head, on features that the frozen network computes once and keeps on disk."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import ConcatDataset, Dataset
from tqdm import tqdm
from transformers import Trainer, TrainingArguments, set_seed

from ..data.load import load_data, take_evenly
from ..evaluation.captions import CaptionLabels, measure_captions
from ..evaluation.evaluate import digest_checkpoint
from ..io.hub import local_folder
from ..model.modeling_lvit import LViTCaptionHead, LViTForImageSegmentation, caption_features
from ..model.processing_lvit import LViTProcessor
from ..model.saving import save_half_precision
from .augmentation import Augmentation, AugmentationConfig
from .caption_labels import NO_CAPTIONS, add_caption_head, set_shares, used_families
from .config import SourceConfig, read_config


FEATURES_FOLDER = "features"
FIGURES_FILE = "captions.json"
BATCH_SIZE = 32


class FeatureDataset(Dataset):
    """Features of images, `(number of images, channels, 7, 7)`, and for each which captions are true."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"features": self.features[index].float(), "labels": self.labels[index].float()}


class FeatureExtractor:
    """Computes what the caption head reads, once for each image, and finds it again in later runs.

    Args:
        checkpoint: Folder of the checkpoint.
        cache: Folder for the features.
    """

    def __init__(self, checkpoint: Path, cache: Path):
        self.model = LViTForImageSegmentation.from_pretrained(checkpoint, use_safetensors=True, **NO_CAPTIONS).eval()
        self.processor = LViTProcessor.from_pretrained(checkpoint)
        self.digest = digest_checkpoint(checkpoint)
        self.cache = cache

    def extract(self, source: SourceConfig, split: str, views: int, limit: int | None) -> tuple[torch.Tensor, list]:
        """Returns features, half precision, and captions of each image as it is, and of `views - 1` augmented ones."""
        told = [self.digest, asdict(source), split, views, limit]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        path = self.cache / f"{source.name}-{split}.safetensors"
        if path.exists():
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            if metadata["digest"] == digest:
                return load_file(path)["features"], json.loads(metadata["texts"])
        features, texts = self._compute(source, split, views, limit)
        self.cache.mkdir(parents=True, exist_ok=True)
        save_file({"features": features}, path, metadata={"digest": digest, "texts": json.dumps(texts)})
        return features, texts

    @torch.inference_mode()
    def _compute(self, source: SourceConfig, split: str, views: int, limit: int | None) -> tuple[torch.Tensor, list]:
        rows = take_evenly(load_data(source.path, split), limit)
        # A view without its caption would teach nothing.
        augmentation = replace(AugmentationConfig(**source.augmentation), text_dropout=0.0)
        augment = Augmentation(augmentation, self.processor.image_processor.size["height"])
        features: list[torch.Tensor] = []
        texts: list[str] = []
        bar = tqdm(range(0, len(rows), BATCH_SIZE), desc=f"{source.name}, {split}", unit="batch", disable=None)
        for start in bar:
            batch = rows[start : start + BATCH_SIZE]
            images, captions = [image.convert("RGB") for image in batch["image"]], list(batch["text"])
            for view in range(views):
                if view > 0:
                    triples = enumerate(zip(batch["image"], batch["mask"], batch["text"]))
                    samples = [augment(*triple, views * (start + row) + view) for row, triple in triples]
                    images, captions = [item["image"] for item in samples], [item["text"] for item in samples]
                pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
                outputs = self.model.lvit(pixel_values=pixel_values, output_hidden_states=True)
                features.append(caption_features(outputs, self.model.config).half())
                texts += captions
        return torch.cat(features), texts


def train_captions(
    config_path: str | Path, overrides: list[str] | None = None, views: int = 2, limit: int | None = None
) -> Path:
    """Trains a caption head for a checkpoint and saves the checkpoint with it.

    Args:
        config_path: A YAML file as `lvit train` reads, with `model.checkpoint`. Its sources decide which families of
            captions the head knows.
        overrides: `section.key=value` strings that replace values of the file.
        views: How often each training image is seen, the first time as it is.
        limit: Number of images of each split of each source, spread evenly; all without it.

    Returns:
        The folder of the saved model, `best` in the output folder, in which `captions.json` has the figures.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If the configuration is wrong or no caption of the training images is understood.
    """
    config = read_config(config_path, overrides)
    if config.model.checkpoint is None:
        raise ValueError("A caption head is trained for a checkpoint: name it as model.checkpoint.")
    if config.stages:
        raise ValueError("A caption head is trained in one stage: leave out stages.")
    # Before anything is computed, which takes long.
    families = used_families([text for source in config.sources for text in load_data(source.path, "train")["text"]])
    arguments = TrainingArguments(**{**TRAINING_DEFAULTS, **config.training})
    set_seed(arguments.seed)
    output = Path(arguments.output_dir)
    extractor = FeatureExtractor(local_folder(config.model.checkpoint), output / FEATURES_FOLDER)
    extracted = {
        split: [extractor.extract(source, split, views if split == "train" else 1, limit) for source in config.sources]
        for split in ("train", "valid")
    }
    model = extractor.model
    add_caption_head(model, families)
    labels = CaptionLabels(model.caption_head)
    set_shares(model.caption_head, torch.stack([labels(text) for _, texts in extracted["train"] for text in texts]))
    data: dict[str, Dataset] = {
        split: ConcatDataset(
            FeatureDataset(features, torch.stack([labels(text) for text in texts])) for features, texts in sources
        )
        for split, sources in extracted.items()
    }
    trainer = Trainer(
        model=model.caption_head, args=arguments, train_dataset=data["train"], eval_dataset=data["valid"]
    )
    trainer.train()
    model.caption_head.cpu().eval()
    figures = {
        source.name: measure_captions(*predict(model.caption_head, features), texts, model.caption_head)
        for source, (features, texts) in zip(config.sources, extracted["valid"])
    }
    best = output / "best"
    save_half_precision(model, extractor.processor, best)
    (best / FIGURES_FILE).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return best


TRAINING_DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "prediction_loss_only": True,
}


@torch.inference_mode()
def predict(head: LViTCaptionHead, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The head's `logits` and `value_probabilities` for features of any number of images."""
    outputs = [head(batch.float()).to_tuple() for batch in features.split(BATCH_SIZE)]
    logits, value_probabilities = (torch.cat(parts) for parts in zip(*outputs))
    return logits, value_probabilities
