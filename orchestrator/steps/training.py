"""transformers' Trainer as a trial needs it: one device, nothing reported, and checkpoints only where time is at stake.

A training that is killed goes on from its last checkpoint and ends in the same adapter, bit for bit. One that is to
stop early, as a rung of a search, leaves what the next rung goes on from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from orchestrator.steps.labels import divergence, file_of
from orchestrator.tasks.template import Encoded, collate

LOGGED_POINTS = 50  # of the training curve
CHECKPOINT_SECONDS = 300.0
RUNG = "rung"  # the folder in which a training that stopped early left its state

Labels = Mapping[str, tuple[Tensor, Tensor]]  # by a row's file: the teacher's likeliest tokens and their logs


@dataclass(frozen=True)
class Distillation:
    """What the teacher predicted, and how much that counts."""

    labels: Labels
    weight: float
    temperature: float


def arguments(
    folder: Path, examples: int, lr: float, epochs: float, batch: int, micro: int, warmup: float, seed: int
) -> TrainingArguments:
    """The Trainer's arguments: AdamW without weight decay, linear decay after warm-up, nothing reported."""
    steps = math.ceil(examples / batch) * epochs
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        num_train_epochs=epochs,
        learning_rate=lr,
        weight_decay=0.0,  # decay would also move the half of the adapter that has to stay
        warmup_steps=math.ceil(warmup * steps),
        lr_scheduler_type="linear",
        logging_steps=max(1, round(steps / LOGGED_POINTS)),
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a trial has one device; DataParallel would multiply the batch
    return arguments


class Training(Trainer):
    """A Trainer that also learns a teacher's predictions, where there are any."""

    def __init__(self, distillation: Distillation | None, pad: int, **options: Any) -> None:
        self._distillation = distillation
        super().__init__(data_collator=lambda rows: self._collated(rows, pad), **options)
        self.loss_is_scaled_for_ga = True  # by the answer tokens of the whole batch, ours as the model's own
        self.remove_callback(PrinterCallback)  # without a progress bar it prints each log line; the curve is kept

    def _collated(self, rows: list[Encoded], pad: int) -> dict[str, Any]:
        batch = collate(rows, pad)
        if self._distillation:
            batch["rows"] = [file_of(row.id) for row in rows]
        return batch

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint's adapter, without the base's embeddings, which PEFT would add."""
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The usual loss; of rows that the teacher has seen, a share is that of its predictions."""
        rows = inputs.pop("rows", None)
        if rows is None:
            return super().compute_loss(model, inputs, *args, **options)
        assert self._distillation
        labels, logits = inputs["labels"][:, 1:], model(**inputs, use_cache=False).logits[:, :-1]
        asked = labels != -100
        own = torch.nn.functional.cross_entropy(logits[asked].float(), labels[asked], reduction="none")
        owners = asked.nonzero()[:, 0]
        total = own.sum() * 0
        for place, row in enumerate(rows):
            part = own[owners == place]
            if found := self._distillation.labels.get(row):
                tokens, logs = (tensor.to(logits.device) for tensor in found)
                apart = divergence(logits[place][asked[place]], tokens, logs, self._distillation.temperature)
                part = (1 - self._distillation.weight) * part + self._distillation.weight * apart
            total = total + part.sum()
        return total / options["num_items_in_batch"]


@dataclass
class Watch(TrainerCallback):
    """Saves a checkpoint now and then, and ends the training at a step."""

    last: int | None = None  # the step to stop after
    every: float = CHECKPOINT_SECONDS

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Of every optimizer step."""
        control.should_training_stop = control.should_training_stop or state.global_step == self.last
        if state.global_step == self.last or time.monotonic() - self._saved >= self.every:
            control.should_save = control.should_log = True
            self._saved = time.monotonic()


def run(trainer: Training, last: int | None, partial: Path | None, before: Path | None) -> list[dict[str, float]]:
    """Train from the last checkpoint of this training, or of the rung before it; returns the training curve.

    A checkpoint at the step to stop after is of no use: the Trainer would go on beyond it.
    """
    checkpoint = get_last_checkpoint(str(partial)) if partial else None
    if checkpoint and int(checkpoint.rsplit("-", 1)[1]) == last:
        checkpoint = None
    if checkpoint is None and before is not None:
        checkpoint = get_last_checkpoint(str(before / RUNG))
    trainer.train(resume_from_checkpoint=checkpoint)
    return [point for point in trainer.state.log_history if "loss" in point]
