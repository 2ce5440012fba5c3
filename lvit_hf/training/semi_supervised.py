"""Semi-supervised training: exponential pseudo-label iteration (EPI) and the language-vision (LV) loss (paper, III-C).

Unlabelled images are trained on with soft pseudo-labels, which are refreshed while training goes on. The captions of
unlabelled images say where the mask must be: the LV loss pulls a prediction towards the mask that goes with the most
similar caption of a contrastive set.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import ConcatDataset, Sampler
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainingArguments

from ..model.modeling_lvit import LViTForImageSegmentation
from ..model.processing_lvit import LViTProcessor
from .augmentation import Augmentation, AugmentationConfig
from .batches import Collator, MixtureSampler, TrainingDataset
from .config import SemiSupervisedConfig
from .contrastive import ContrastiveSet, encode_captions, language_vision_loss, load_mask, sentence_embeds
from .pseudo_labels import PSEUDO_LABEL_FILE, PseudoLabels, UnlabelledRows
from .trainer import LViTTrainer, checkpoint_folder


logger = logging.getLogger(__name__)

# Number of labelled images by which the contrastive masks are checked.
NUM_CHECKED = 200


class SemiSupervisedDataset(TrainingDataset):
    """Labelled sources, then unlabelled ones; a row says which it is."""

    def __init__(
        self,
        labelled: Sequence,
        unlabelled: Sequence,
        augmentations: Sequence[AugmentationConfig],
        size: int,
        in_memory: Sequence[bool],
    ):
        hard, soft = ([Augmentation(config, size, is_soft) for config in augmentations] for is_soft in (False, True))
        # Pseudo-labels change, so their rows are made anew each time.
        super().__init__([*labelled, *unlabelled], [*hard, *soft], in_memory=[*in_memory, *[False] * len(unlabelled)])
        self.num_labelled_sources = len(labelled)

    def __getitem__(self, index: tuple[int, int, int]) -> dict:
        return {**super().__getitem__(index), "is_unlabelled": index[0] >= self.num_labelled_sources}


class FixedRatioSampler(Sampler):
    """Batches with the same number of labelled images; an epoch shows about as many others as there are.

    Args:
        labelled: Number of images of each labelled source.
        unlabelled: Number of images of each unlabelled source.
        weights: Share of each source, relative to the others.
        seed: With the epoch, determines all draws.
        batch_size: Number of images of a batch.
        num_labelled: Number of labelled ones among them.
    """

    def __init__(
        self,
        labelled: list[int],
        unlabelled: list[int],
        weights: list[float],
        seed: int,
        batch_size: int,
        num_labelled: int,
    ):
        self.batch_size = batch_size
        self.num_labelled = num_labelled
        self.num_batches = max(1, sum(unlabelled) // (batch_size - num_labelled))
        self.offset = len(labelled)
        self.labelled = MixtureSampler(labelled, weights, seed, self.num_batches * num_labelled)
        self.unlabelled = MixtureSampler(unlabelled, weights, seed + 1, len(self) - len(self.labelled))

    def set_epoch(self, epoch: int):
        self.labelled.set_epoch(epoch)
        self.unlabelled.set_epoch(epoch)

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        labelled, unlabelled = iter(self.labelled), iter(self.unlabelled)
        for position in range(len(self)):
            if position % self.batch_size < self.num_labelled:
                yield next(labelled)
            else:
                source, row, seed = next(unlabelled)
                yield self.offset + source, row, seed


class SemiSupervisedCollator(Collator):
    """Batches that also say which of their images have a caption and no mask."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        if "is_unlabelled" in rows[0]:
            # The null text of a caption that was dropped is no caption.
            batch["has_lv_loss"] = torch.tensor([row["is_unlabelled"] and bool(row["text"].strip()) for row in rows])
        return batch


class RefreshPseudoLabels(TrainerCallback):
    """Makes the pseudo-labels at the start of a run and refreshes them on schedule."""

    def __init__(self, trainer: "SemiSupervisedTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.prepare_contrastive_set()
        if state.global_step:
            self.trainer.restore_pseudo_labels(state.global_step)
        else:
            self.trainer.refresh_pseudo_labels(momentum=0.0)

    def on_step_end(self, args, state, control, train_dataloader, **kwargs):
        settings = self.trainer.settings
        steps_of_an_epoch = max(1, len(train_dataloader) // args.gradient_accumulation_steps)
        steps = settings.refresh_steps or steps_of_an_epoch
        if state.global_step % steps == 0 and state.global_step < state.max_steps:
            self.trainer.refresh_pseudo_labels(momentum=settings.beta**steps)


class SemiSupervisedTrainer(LViTTrainer):
    """Trainer with pseudo-labels and the LV loss for unlabelled images.

    Args:
        settings: The `semi_supervised` section of the configuration.
        pseudo_labels: The pseudo-labels.
        labelled: Rows with masks.
        unlabelled: Rows in the order of `pseudo_labels`.
        captions: The distinct captions of unlabelled rows.
        contrastive_set: Captions and masks of the LV loss.
    """

    def __init__(
        self,
        *args,
        settings: SemiSupervisedConfig,
        pseudo_labels: PseudoLabels,
        labelled: ConcatDataset,
        unlabelled: ConcatDataset,
        captions: list[str],
        contrastive_set: ContrastiveSet,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.pseudo_labels = pseudo_labels
        self.labelled = labelled
        self.unlabelled = unlabelled
        self.captions = captions
        self.contrastive_set = contrastive_set
        self.add_callback(RefreshPseudoLabels(self))

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        lengths = [len(source) for source in self.train_dataset.sources]
        split = self.train_dataset.num_labelled_sources
        batch_size = self.args.train_batch_size
        num_labelled = round(batch_size * self.settings.labelled_share)
        if not 0 < num_labelled < batch_size:
            raise ValueError(
                f"semi_supervised.labelled_share makes {num_labelled} of {batch_size} images of a batch labelled: "
                "a larger training.per_device_train_batch_size has room for both kinds."
            )
        return FixedRatioSampler(
            lengths[:split], lengths[split:], self.weights, self.args.seed, batch_size, num_labelled
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        has_lv_loss = inputs.pop("has_lv_loss", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if has_lv_loss is not None and has_lv_loss.any() and self.settings.lv_weight:
            loss = loss + self.settings.lv_weight * self._language_vision_loss(outputs, has_lv_loss)
        return (loss, outputs) if return_outputs else loss

    def _language_vision_loss(self, outputs, rows: torch.Tensor) -> torch.Tensor:
        embeds = sentence_embeds(outputs.text_embeds[rows], outputs.text_mask[rows])
        _, masks = self.contrastive_set.nearest(embeds)
        return language_vision_loss(outputs.logits[rows, 0].sigmoid(), masks)

    def prepare_contrastive_set(self):
        """Encodes the contrastive captions, and warns where they do not fit the data."""
        model = self.accelerator.unwrap_model(self.model)
        self.contrastive_set.encode(model, self.processing_class)
        if self.captions:
            self._check_masks(model)
            self._check_captions(model)
        else:
            logger.warning("No unlabelled image has a caption, so there is no LV loss.")

    def _check_masks(self, model: LViTForImageSegmentation):
        rows = [
            self.labelled[index] for index in range(0, len(self.labelled), max(1, len(self.labelled) // NUM_CHECKED))
        ]
        masks = np.stack([load_mask(row["mask"], self.contrastive_set.masks.shape[-1]) for row in rows])
        embeds = encode_captions([row["text"] for row in rows], model, self.processing_class)
        right, chance = self.contrastive_set.agreement(embeds, torch.from_numpy(masks).to(embeds.device))
        if right <= chance:
            logger.warning(
                f"The contrastive masks of their own captions agree less with labelled masks (cosine {right:.2f}) "
                f"than those of other images' captions ({chance:.2f}): the LV loss will mislead."
            )

    def _check_captions(self, model: LViTForImageSegmentation):
        similarity, _ = self.contrastive_set.nearest(encode_captions(self.captions, model, self.processing_class))
        far = [caption for caption, value in zip(self.captions, similarity) if value < self.settings.min_similarity]
        if far:
            logger.warning(
                f"{len(far)} of {len(self.captions)} captions have no contrastive caption with a similarity of at "
                f"least {self.settings.min_similarity}, the first is {far[0]!r}: the LV loss tells little about their "
                "images."
            )

    def restore_pseudo_labels(self, step: int):
        if self.is_world_process_zero():
            self.pseudo_labels.restore(checkpoint_folder(self.args, step))
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.pseudo_labels.save(Path(output_dir or self.args.output_dir))

    def refresh_pseudo_labels(self, momentum: float):
        """Predicts all unlabelled images, each process its share, and mixes the predictions into the labels."""
        if self.is_world_process_zero():
            self.pseudo_labels.prepare()
        self.accelerator.wait_for_everyone()
        mine = range(self.args.process_index, len(self.unlabelled), self.args.world_size)
        step = self.args.eval_batch_size
        with self.evaluated_model() as model:
            for start in tqdm(range(0, len(mine), step), desc="Pseudo-labels", disable=self.args.disable_tqdm):
                indices = mine[start : start + step]
                rows = [self.unlabelled[index] for index in indices]
                self.pseudo_labels.refresh(indices, self.predict_rows(model, rows), momentum)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.pseudo_labels.commit()
        self.accelerator.wait_for_everyone()

    @torch.inference_mode()
    def predict_rows(self, model: LViTForImageSegmentation, rows: list[dict]) -> np.ndarray:
        """What goes into pseudo-labels: probabilities of whole images with their captions, at the network's size."""
        images, text = ([row[key] for row in rows] for key in ("image", "text"))
        inputs = self._prepare_inputs(dict(self.processing_class(images=images, text=text, return_tensors="pt")))
        return model(**inputs).logits[:, 0].float().sigmoid().cpu().numpy()


def make_semi_supervised_trainer(
    settings: SemiSupervisedConfig,
    labelled: Sequence,
    unlabelled: Sequence[datasets.Dataset],
    augmentations: Sequence[AugmentationConfig],
    in_memory: Sequence[bool],
    processing_class: LViTProcessor,
    args: TrainingArguments,
    **kwargs,
) -> SemiSupervisedTrainer:
    """Puts together the labelled and the unlabelled part of each source."""
    size = processing_class.image_processor.size["height"]
    *offsets, total = np.cumsum([0, *map(len, unlabelled)]).tolist()
    pseudo_labels = PseudoLabels(Path(args.output_dir) / PSEUDO_LABEL_FILE, (total, size, size))
    unlabelled_rows = [UnlabelledRows(rows, pseudo_labels, offset) for rows, offset in zip(unlabelled, offsets)]
    if settings.contrastive is None:
        contrastive_set = ContrastiveSet.from_labelled(chain.from_iterable(labelled), size)
    else:
        contrastive_set = ContrastiveSet.from_folder(Path(settings.contrastive), size)
    return SemiSupervisedTrainer(
        args=args,
        settings=settings,
        train_dataset=SemiSupervisedDataset(labelled, unlabelled_rows, augmentations, size, in_memory),
        data_collator=SemiSupervisedCollator(processing_class),
        processing_class=processing_class,
        pseudo_labels=pseudo_labels,
        labelled=ConcatDataset(labelled),
        unlabelled=ConcatDataset([rows.rows for rows in unlabelled_rows]),
        captions=sorted({text for rows in unlabelled for text in rows["text"] if text.strip()}),
        contrastive_set=contrastive_set,
        **kwargs,
    )
