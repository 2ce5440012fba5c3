"""The Trainer: sources mixed by weight, averaged weights evaluated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .modeling_lvit import LViTForImageSegmentation
from .training_data import MixtureSampler


AVERAGE_FILE = "average.safetensors"
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def checkpoint_folder(args: TrainingArguments, step: int) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


class WeightAverage(TrainerCallback):
    """Exponential moving average of weights and norm statistics, saved and resumed with each checkpoint."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)

    def _update(self, averages: Tensors, currents: Tensors, count: torch.Tensor | int):
        for average, current in zip(averages, currents):
            if average.is_floating_point():
                average.lerp_(current, 1 - self.decay)
            else:
                average.copy_(current)

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.average.to(args.device)
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


class LViTTrainer(Trainer):
    """Trainer that mixes sources by weight and evaluates averaged weights."""

    def __init__(self, *args, weights: list[float], average: WeightAverage | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights = weights
        self.average = average
        if average is not None:
            self.add_callback(average)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        lengths = [len(source) for source in self.train_dataset.sources]
        return MixtureSampler(lengths, self.weights, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        if self.average is not None:
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
        return {**metrics, f"{metric_key_prefix}_mean_dice": float(np.mean(dice))}
