"""A trial: the student with a LoRA that starts where the arm says, trained on the task by transformers' Trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from orchestrator.errors import UserError
from orchestrator.models import adapters
from orchestrator.models.families import FAMILIES
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.steps import data
from orchestrator.steps.card import write_card
from orchestrator.tasks.template import Encoded, TemplateName, collate, encode
from orchestrator.transfer.arms import Arm
from orchestrator.transfer.lowrank import Factors

LOGGED_POINTS = 50  # of the training curve
TOKENS_AT_ONCE = 2048  # through the student in one forward pass: a 7B student then fits into 80 GB


def finetune(
    folder: Path,
    *,
    rows: Path,
    student: str,
    arm: dict[str, Any],
    rank: int,
    alpha: float,
    dropout: float,
    lr: float,
    epochs: float,
    batch_size: int,
    micro_batch_size: int | None,
    warmup: float,
    max_tokens: int,
    dtype: str,
    seed: int,
    template: TemplateName,
    names: dict[str, str],
    start: Path | None = None,
) -> dict[str, Any]:
    """Write the portable adapter, its card and the training curve (history.json).

    UserError where the loss stops being finite.
    """
    from transformers import Trainer, set_seed

    set_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(student)
    encoded = [encode(example, template, tokenizer, max_tokens) for example in data.read(rows)]
    model = load(student, dtype=dtype, device=device)
    peft_model = adapted(model, arm, rank, alpha, dropout, seed, start)
    trainer = Trainer(
        model=peft_model,
        args=arguments(
            folder, len(encoded), lr, epochs, batch_size, micro_batch_size or fitting(encoded, batch_size), warmup, seed
        ),
        train_dataset=encoded,
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
    )
    quiet(trainer)
    trainer.train()
    history = [point for point in trainer.state.log_history if "loss" in point]
    for point in history:
        if not math.isfinite(point["loss"]):
            raise UserError(f"lr: the loss is {point['loss']} at step {point['step']}; take a smaller one than {lr:g}")
    (folder / "history.json").write_text(json.dumps(history, indent=0) + "\n")
    adapters.save(peft_model, folder, names["student"])
    write_card(folder, {**names, "arm": arm["kind"], "rank": rank, "alpha": alpha, "lr": lr, "seed": seed})
    return {"steps": trainer.state.global_step, "loss": history[-1]["loss"], "tokens": _tokens(encoded, epochs)}


def adapted(
    model: Any, arm: dict[str, Any], rank: int, alpha: float, dropout: float, seed: int, start: Path | None
) -> Any:
    """The model with this arm's adapter at its start."""
    chosen = TypeAdapter[Any](Arm).validate_python(arm)
    row = FAMILIES[model.config.model_type]
    extracted = adapters.read_start(start) if start else {}
    generator = torch.Generator().manual_seed(seed)
    starts = {}
    for name, module in sorted(model.named_modules()):
        if name.rsplit(".", 1)[-1] in row.targets:
            weight = module.weight.detach().float().cpu()
            if first := chosen.start(weight, _factors(extracted.get(name)), rank, generator):
                starts[name] = first
    return adapters.attach(
        model, row.targets, rank=rank, alpha=alpha, dropout=dropout, changes_base=chosen.changes_base, starts=starts
    )


def _factors(start: adapters.Start | None) -> Factors | None:
    """U, S and Vᵀ of an extracted B0 = U·S: the columns' lengths are the singular values."""
    if start is None:
        return None
    s = start[0].norm(dim=0)
    return Factors(start[0] / s.clamp_min(torch.finfo(s.dtype).tiny), s, start[1])


def arguments(
    folder: Path, examples: int, lr: float, epochs: float, batch: int, micro: int, warmup: float, seed: int
) -> Any:
    """The Trainer's arguments: AdamW without weight decay, linear decay after warm-up, nothing saved or reported."""
    from transformers import TrainingArguments

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
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a trial has one device; DataParallel would multiply the batch
    return arguments


def fitting(encoded: list[Encoded], batch: int) -> int:
    """The largest part of a batch with at most TOKENS_AT_ONCE padded tokens: gradients add up to the same."""
    longest = max(len(example.ids) for example in encoded)
    return max(
        part for part in range(1, batch + 1) if batch % part == 0 and (part == 1 or part * longest <= TOKENS_AT_ONCE)
    )


def quiet(trainer: Any) -> None:
    """Without a progress bar the Trainer prints each log line; the curve goes into a file instead."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _tokens(encoded: list[Encoded], epochs: float) -> int:
    return round(sum(len(example.ids) for example in encoded) * epochs)
