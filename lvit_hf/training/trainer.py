"""The Trainer: sources mixed by weight, averaged weights evaluated and saved, a teacher asked where there is one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..model.modeling_lvit import LViTForImageSegmentation, LViTModel
from .batches import MixtureSampler, augment


AVERAGE_FILE = "average.safetensors"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "word_ids")
MAX_KNOWN_CAPTIONS = 4096
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def checkpoint_folder(args: TrainingArguments, step: int) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


class WeightAverage(TrainerCallback):
    """Exponential moving average of weights and norm statistics, saved and resumed with each checkpoint."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)
        for average, current in zip(self.average.module.parameters(), model.parameters()):
            if not current.requires_grad:
                average.data = current.data

    def _update(self, averages: Tensors, currents: Tensors, count: torch.Tensor | int):
        # All of one kind and device; what is frozen, as a text tower is, is shared.
        pairs = [pair for pair in zip(averages, currents) if pair[0].data_ptr() != pair[1].data_ptr()]
        if pairs and pairs[0][0].is_floating_point():
            torch._foreach_lerp_([average for average, _ in pairs], [current for _, current in pairs], 1 - self.decay)
        else:
            for average, current in pairs:
                average.copy_(current)

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.average.to(args.device)
        self.average.n_averaged = self.average.n_averaged.cpu()  # is looked at in every step
        if state.global_step > 0:
            weights = load_file(checkpoint_folder(args, state.global_step) / AVERAGE_FILE)
            self.average.module.load_state_dict(weights)
            self.average.n_averaged += state.global_step

    def on_step_end(self, args, state, control, model, **kwargs):
        self.average.update_parameters(model)

    def save(self, checkpoint: Path):
        weights = {name: tensor.contiguous() for name, tensor in self.average.module.state_dict().items()}
        save_file(weights, checkpoint / AVERAGE_FILE)

    @contextmanager
    def applied_to(self, model: torch.nn.Module):
        """Puts the averaged weights into `model`, and the trained ones back at the end."""
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(trained)


class EarlyStopping(EarlyStoppingCallback):
    """Looks at the mean over sources alone."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if args.metric_for_best_model in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class CaptionVectors:
    """Word vectors of captions that were seen before: a frozen text tower gives the same ones each time."""

    def __init__(self):
        self.known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def replace(self, inputs: dict[str, Any], model: LViTModel) -> dict[str, Any]:
        """Puts `text_embeds` and `text_mask`, on the model's device, in the place of the ids of captions."""
        text = {name: inputs[name].cpu() for name in TEXT_INPUTS if name in inputs}
        keys = []
        for row, (ids, length) in enumerate(zip(text["input_ids"].tolist(), text["attention_mask"].sum(-1).tolist())):
            keys.append(tuple(ids[:length]))
            if keys[-1] not in self.known:
                # One by one, so that what else is in the batch does not matter, not even by rounding.
                caption = {name: ids[row : row + 1, :length].to(model.device) for name, ids in text.items()}
                self.known[keys[-1]] = model.get_text_embeds(**caption)
        embeds, masks = (torch.cat(vectors) for vectors in zip(*(self.known[key] for key in keys)))
        if len(self.known) > MAX_KNOWN_CAPTIONS:
            self.known.clear()
        others = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS}
        return {**others, "text_embeds": embeds, "text_mask": masks}


class LViTTrainer(Trainer):
    """Trainer that mixes sources by weight and evaluates averaged weights.

    Args:
        weights: Share of each source, relative to the others.
        average: What averages the weights; without it they are evaluated as they are.
        images_per_epoch: Number of draws of an epoch; as many as there are images without it.
        teacher: A network whose probabilities are mixed into the targets of the images that it is asked about.
        teacher_share: The share that they have.
    """

    def __init__(
        self,
        *args,
        weights: list[float],
        average: WeightAverage | None = None,
        images_per_epoch: int | None = None,
        teacher: LViTForImageSegmentation | None = None,
        teacher_share: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.weights = weights
        self.images_per_epoch = images_per_epoch
        self.average = average
        self.teacher = None if teacher is None else teacher.eval().to(self.args.device)
        self.teacher_share = teacher_share
        self.caption_vectors = CaptionVectors()
        if average is not None:
            self.add_callback(average)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        lengths = [len(source) for source in self.train_dataset.sources]
        return MixtureSampler(lengths, self.weights, self.args.seed, self.images_per_epoch)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        model = self.accelerator.unwrap_model(self.model).lvit
        if model.config.freeze_text_model:
            # Before the captions are on the device, or it would be waited for.
            inputs = self.caption_vectors.replace(inputs, model)
        inputs = super()._prepare_inputs(inputs)
        inputs = augment(inputs, self.processing_class) if "changes" in inputs else inputs
        return self._ask_teacher(self.teacher, **inputs) if self.teacher is not None and "taught" in inputs else inputs

    @torch.no_grad()
    def _ask_teacher(
        self, teacher: LViTForImageSegmentation, taught: torch.Tensor, labels: torch.Tensor, **inputs: torch.Tensor
    ) -> dict[str, Any]:
        """Mixes what the teacher makes of the images `taught` into their `labels`."""
        if taught.any():
            with self.compute_loss_context_manager():
                logits = teacher(**{name: values[taught] for name, values in inputs.items()}).logits
            labels[taught] = torch.lerp(labels[taught], logits[:, 0].float().sigmoid(), self.teacher_share)
        return {**inputs, "labels": labels}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        if self.average is not None and self.args.should_save:  # every process comes here, and one is to write
            self.average.save(Path(output_dir or self.args.output_dir))

    @contextmanager
    def evaluated_model(self) -> Iterator[LViTForImageSegmentation]:
        """The model as it is evaluated: in evaluation mode, with averaged weights where there are any."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        with self.average.applied_to(model) if self.average is not None else nullcontext():
            yield model.eval()
        model.train(was_training)

    def evaluation_loop(self, *args, **kwargs):
        with self.evaluated_model():
            return super().evaluation_loop(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Adds the mean over sources of the Dice per image, by which the best checkpoint is chosen."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dice = [value for name, value in metrics.items() if name.endswith("_dice") and "pooled" not in name]
        mean = {f"{metric_key_prefix}_mean_dice": float(np.mean(dice))}
        if eval_dataset is None:  # all sources, each of which transformers evaluates by itself
            self.log(mean)
            self.callback_handler.on_evaluate(self.args, self.state, self.control, mean)
        return {**metrics, **mean}
