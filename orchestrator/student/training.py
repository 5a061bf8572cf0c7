"""transformers' Trainer as a trial needs it: nothing reported, and checkpoints only where time is at stake.

A training that is killed goes on from its last whole checkpoint and ends in the same adapter, bit for bit. One that is
to stop early, as a rung of a search, leaves what the next rung goes on from.

Its ranks are those of torch's process group, where there is one (`cluster/groups.py`), each with one device. How many
there are changes no number but by rounding, dropout aside, which each of them draws for itself.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from orchestrator.cluster.ranks import Member
from orchestrator.errors import UserError
from orchestrator.models.freed import trim
from orchestrator.models.watching import outputs_of
from orchestrator.tasks.template import Encoded, collate, labelled
from orchestrator.teacher.checkpoints import agreed
from orchestrator.transfer.sensitivity import widened

LOGGED_POINTS = 50  # of the training curve
CHECKPOINT_SECONDS = 300.0
RUNG = "rung"  # the folder in which a training that stopped early left its state
ADAPTER, STATE = "adapter_model.safetensors", "trainer_state.json"
ZIPPED = ("optimizer.pt", "scheduler.pt")  # as torch.save writes
RANDOM = "rng_state*.pth"  # the same, of each rank

Loss = Callable[[Tensor, Tensor, Any, Tensor | None], Tensor]  # an arm's, of a row of which a step has said something


def ranks() -> int:
    """Processes that share this training."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def arguments(
    folder: Path,
    *,
    steps: int,
    lr: float,
    epochs: float,
    batch: int,
    micro: int,
    warmup: float,
    max_grad_norm: float,
    recompute: bool,
    seed: int,
) -> TrainingArguments:
    """The Trainer's arguments: AdamW without weight decay, linear decay after warm-up, nothing reported.

    `steps` are those of the optimizer that `epochs` come to, `micro` the rows of a batch that all ranks take at once.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,  # of which each rank collates its own
        gradient_accumulation_steps=batch // micro,
        num_train_epochs=epochs,
        learning_rate=lr,
        weight_decay=0.0,  # decay would also move the half of the adapter that has to stay
        warmup_steps=math.ceil(warmup * steps),
        lr_scheduler_type="linear",
        max_grad_norm=max_grad_norm,
        activation_checkpointing=recompute,
        activation_checkpointing_kwargs={"use_reentrant": False},  # a frozen layer's inputs may have no gradient
        logging_steps=max(1, round(steps / LOGGED_POINTS)),
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=2,  # it writes in place: while the last one isn't whole, the one before is
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # every row, labelled or not, goes through all of the adapter
        ddp_broadcast_buffers=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a trial has one device; DataParallel would multiply the batch
    return arguments


class Training(Trainer):
    """A Trainer of one or several ranks that learns by its arm's loss what a step has said of the rows."""

    def __init__(
        self, loss: Loss, said: Mapping[str, Any], pad: int, watched: torch.nn.Module | None = None, **options: Any
    ) -> None:
        """`said`: what a step says of training rows, by their ids; `watched`: a layer of which the loss has to know."""
        self._loss, self._said, self._watched = loss, said, watched
        self._norms: list[Any] = []  # of the gradients since the last point of the curve
        super().__init__(data_collator=lambda rows: self._collated(rows, pad), **options)
        self.loss_is_scaled_for_ga = True  # by the answer tokens of all ranks' batch, ours as the model's own
        self.remove_callback(PrinterCallback)  # without a progress bar it prints each log line; the curve is kept

    def get_train_dataloader(self) -> Any:
        """The same batches in the same order on every rank; accelerate's shards would fill up the last one."""
        from accelerate.data_loader import prepare_data_loader

        loader = DataLoader(
            self.train_dataset, batch_size=self.args.train_batch_size, shuffle=True, collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )  # fmt: skip
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True, use_seedable_sampler=True,
            data_seed=self.args.seed,
        )  # fmt: skip

    def _collated(self, rows: list[Encoded], pad: int) -> dict[str, Any]:
        """This rank's rows of a batch; where there is none left for it, one that nothing is learnt from."""
        own = rows[self.args.process_index :: self.args.world_size]
        batch = collate(own or rows[:1], pad)
        if not own:
            batch["labels"].fill_(-100)
        if self._said:
            batch["rows"] = [row.id for row in own]
        return batch

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint's adapter, without the base's embeddings, which PEFT would add."""
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def floating_point_ops(self, inputs: Any) -> int:
        """Counted at each step by a walk through all modules, for a figure that nobody reads."""
        return 0

    def _save_rng_state(self, output_dir: str) -> None:
        """Of all ranks, before the checkpoint's state says that it is whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Of each optimizer step, before it is made: its norm is kept; UserError where the loss isn't finite.

        The sum of losses since the last point was finite a step ago, so that it is this step's that isn't.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        self._norms.append(norm)
        if not math.isfinite(loss := float(self._tr_loss)):
            step, lr = self.state.global_step + 1, self.args.learning_rate
            raise UserError(f"lr: the loss is {loss} at step {step}; take a smaller one than {lr:g}")
        return norm

    def log(self, logs: dict[str, Any], *args: Any, **options: Any) -> None:
        """A point of the curve has the norms, before clipping, of all steps since the last one."""
        if "loss" in logs:
            logs["grad_norms"], self._norms = [float(norm) for norm in self._norms], []
        super().log(logs, *args, **options)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Cross-entropy of the labelled tokens; of rows of which a step has said something, the arm's own loss.

        The model's own loss would have logits of all tokens, and in float32 whatever the model is in.
        """
        rows, labels = inputs.pop("rows", ()), inputs.pop("labels")
        span = labelled(labels)
        with outputs_of(self._watched) as states:
            logits = model(**inputs, use_cache=False, logits_to_keep=span).logits[:, :-1]
        labels = labels[:, span[1:]]
        asked = labels != -100
        own = torch.nn.functional.cross_entropy(widened(logits[asked]), labels[asked], reduction="none")
        total, owners = own.sum(), asked.nonzero()[:, 0]
        for place, row in enumerate(rows):
            if (said := self._said.get(row)) is not None:
                plain = own[owners == place]
                seen = states[0][place, span[:-1]][asked[place]] if states else None
                total = total + self._loss(plain, logits[place][asked[place]], said, seen) - plain.sum()
        return total * self.args.world_size / options["num_items_in_batch"]  # ranks' gradients are averaged


@dataclass
class Watch(TrainerCallback):
    """Saves a checkpoint now and then, ends the training at a step, and its curve with its last step."""

    last: int | None = None  # the step to stop after
    every: float = CHECKPOINT_SECONDS

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Ranks have drawn the same start; what they drop out is their own. A checkpoint's state comes after this."""
        if args.process_index:
            torch.manual_seed(args.seed + args.process_index)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Of every optimizer step. Rank 0's clock is everybody's."""
        trim()
        control.should_training_stop = control.should_training_stop or state.global_step == self.last
        control.should_log = control.should_log or state.global_step == state.max_steps
        if state.global_step == self.last or agreed(time.monotonic() - self._saved >= self.every, _member(args)):
            control.should_save = control.should_log = True
            self._saved = time.monotonic()


@dataclass
class Told(TrainerCallback):
    """Says how far the training is."""

    bar: Generator[Any, str | None, None]  # takes a line for each optimizer step

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """One that goes on from a checkpoint has these steps behind it."""
        next(self.bar)
        for _ in range(state.global_step):
            self.bar.send("from a checkpoint")

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Of every optimizer step: with the last point of the curve."""
        loss = next((point["loss"] for point in reversed(state.log_history) if "loss" in point), None)
        self.bar.send("" if loss is None else f"loss {loss:.3g}")


def run(
    trainer: Training,
    last: int | None,
    partial: Path | None,
    before: Path | None,
    bar: Generator[Any, str | None, None],
) -> list[dict[str, Any]]:
    """Train from the last whole checkpoint of this training, or of the rung before it; returns the training curve.

    One at the step to stop after is of no use: the Trainer would go on beyond it. `bar` hears of each step.
    """
    checkpoint = None
    if trainer.is_world_process_zero():
        for torn in [path for path in saved(partial) if not whole(path)]:
            shutil.rmtree(torn)  # else the Trainer would count it among those that it keeps
        own = [path for path in saved(partial) if step_of(path) != last]
        earlier = [path for path in saved(before and before / RUNG) if whole(path)]
        checkpoint = max(own or earlier, key=step_of, default=None)
    checkpoint = agreed(checkpoint, _member(trainer.args))
    trainer.add_callback(Told(bar))
    with closing(bar):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return [point for point in trainer.state.log_history if "loss" in point]


def _member(args: Any) -> Member:
    return Member(args.process_index, args.world_size)


def saved(folder: Path | None) -> list[Path]:
    """The checkpoints in a folder, torn ones too."""
    return list(folder.glob("checkpoint-*")) if folder else []


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that were made until a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's save came to its end, and nothing was cut off since, as by a machine that lost power.

    The state is written last. A safetensors file says how long it is; torch's are zip archives, which end in their
    table of contents and have a checksum of each part.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text())
        with safe_open(checkpoint / ADAPTER, framework="pt"):
            pass
        random = [path.name for path in checkpoint.glob(RANDOM)]
        for name in (*ZIPPED, *random):
            with zipfile.ZipFile(checkpoint / name) as parts:
                if parts.testzip():
                    return False
    except (FileNotFoundError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return bool(random) and isinstance(state, dict) and state.get("global_step") == step_of(checkpoint)
