"""A trial: the student with a LoRA that starts where the arm says, trained on the task by transformers' Trainer."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from orchestrator.cluster.sharding import in_shards
from orchestrator.errors import UserError
from orchestrator.models import adapters
from orchestrator.models.borrowed import borrowed, let_go
from orchestrator.models.families import FAMILIES
from orchestrator.models.initialisers import WITH_ROWS, initialised
from orchestrator.models.loading import computed_in, load, load_tokenizer
from orchestrator.models.portable import RoundedRoots
from orchestrator.step import Track, silent
from orchestrator.student.batches import fitting, steps_of
from orchestrator.student.card import write_card
from orchestrator.student.editing import edit
from orchestrator.student.given import by_row, read
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import Encoded, TemplateName, collate, fitted
from orchestrator.transfer.arms import ARMS, Need
from orchestrator.transfer.arms.edited import Edited


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
    max_grad_norm: float,
    max_tokens: int,
    dtype: str,
    seed: int,
    template: TemplateName,
    names: dict[str, str],
    gradient_checkpointing: bool | None = False,
    until: float = 1.0,
    before: Path | None = None,
    partial: Path | None = None,
    sharded: bool = False,
    track: Track[Any] = silent,
    **given: Path,
) -> dict[str, Any]:
    """Write the portable adapter, its card and the training curve (history.json).

    With `until` < 1 the training stops after that share of its steps and leaves its state, which a step with more of
    them takes as `before`. `max_grad_norm` 0 clips nothing. With `gradient_checkpointing` a layer keeps its inputs and
    computes the rest again in the backward pass: same result, less memory, half more time; None: on a GPU. Every rank
    of a training does this, and the first one writes. `sharded`: each holds a part of the frozen student. `given`: by
    name, the results of the steps that the arm needs. UserError at the step at which the loss isn't finite, and for
    starts that would run rows through a sharded student.
    """
    from transformers import set_seed

    from orchestrator.student import training

    again = torch.cuda.is_available() if gradient_checkpointing is None else gradient_checkpointing
    tokenizer = load_tokenizer(student)
    pad = tokenizer.pad_token_id
    fit = fitted(data.read(rows), template, tokenizer, max_tokens)
    encoded = fit.rows
    longest = max(len(example.ids) for example in encoded)
    micro = fitting(longest, batch_size, micro_batch_size)
    chosen = ARMS[arm["kind"]].model_validate(arm)
    if sharded and (chosen.initialiser in WITH_ROWS or isinstance(chosen, Edited)):
        raise UserError(f"arm: {chosen.kind} can't be had of a student in shards; leave --shard-student out")
    first = encoded[:batch_size] if chosen.initialiser else []  # what a start may look at
    batches = [collate(first[at : at + micro], pad) for at in range(0, len(first), micro)]
    found, steps = read(given), steps_of(len(encoded), batch_size, epochs)
    last = None if until == 1.0 else max(1, round(steps * until))
    args = training.arguments(
        partial or folder, steps=steps, lr=lr, epochs=epochs, batch=batch_size,
        micro=fitting(longest, batch_size, micro_batch_size, training.ranks()), warmup=warmup,
        max_grad_norm=max_grad_norm, recompute=again, seed=seed,
    )  # fmt: skip
    with _stock(student, dtype, sharded=sharded, own=again) as model:
        set_seed(seed)
        peft_model = adapted(model, chosen, rank, alpha, dropout, seed, found, batches)
        watched = _layer(model, chosen.watched(model.config.num_hidden_layers))
        trainer = training.Training(
            chosen.loss, by_row(chosen.said(found, seed), encoded), pad, watched, model=peft_model,
            args=args, train_dataset=encoded, callbacks=[training.Watch(last)],
        )  # fmt: skip
        first_rank = trainer.is_world_process_zero()
        bar = (track if first_rank else silent)(repeat(None), "training", last or steps)
        history = training.run(trainer, last, partial, before, bar)
        if isinstance(chosen, Edited):
            some = encoded[: chosen.examples]
            parts = [collate(some[at : at + micro], pad) for at in range(0, len(some), micro)]
            edit(peft_model, chosen, parts, seed, again)
        if first_rank:
            adapters.save(peft_model, folder, names["student"])
        if not sharded:
            adapters.take_off(peft_model)
    if first_rank:
        (folder / "history.json").write_text(json.dumps(history, indent=0) + "\n")
        if last is not None:
            name = f"checkpoint-{last}"
            shutil.copytree(Path(args.output_dir) / name, folder / training.RUNG / name)
        write_card(folder, {**names, "arm": arm["kind"], "rank": rank, "alpha": alpha, "lr": lr, "seed": seed})
    norms = [norm for point in history for norm in point["grad_norms"]]
    return {
        "workers": training.ranks(),
        "steps": trainer.state.global_step,
        "loss": history[-1]["loss"],
        "clipped": sum(norm > max_grad_norm > 0 for norm in norms) / len(norms),  # of all steps
        "grad_norm": statistics.median(norms),  # before clipping
        "tokens": _tokens(encoded, epochs * until),
        "fit": fit.facts(),
        "training_seconds": trainer.state.log_history[-1]["train_runtime"],  # a process's first step imports much
    }


@contextmanager
def _stock(student: str, dtype: str, *, sharded: bool, own: bool) -> Iterator[Any]:
    """The student as it is: the one that this process keeps for all its trials, or an `own` one, or one in shards."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if sharded or own:
        let_go()
    if sharded:
        yield in_shards(student, dtype=computed_in(student, dtype))
    elif own:
        yield load(student, dtype=dtype, device=device)
    else:
        with borrowed(student, dtype=dtype, device=device) as model:
            yield model


def adapted(
    model: Any,
    arm: Any,
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    given: Mapping[Need, Any] = MappingProxyType({}),
    batches: Sequence[dict[str, Tensor]] = (),
) -> Any:
    """The model with this arm's adapter at its start, made of what the arm is `given` by the steps that it needs.

    `batches` of training rows are for starts that look at data.
    """
    row, layers = FAMILIES[model.config.model_type], model.config.num_hidden_layers
    generator = torch.Generator().manual_seed(seed)
    with RoundedRoots():
        if arm.initialiser:
            starts = initialised(model, row.targets, arm.initialiser, rank=rank, alpha=alpha, batches=batches)
        else:
            starts = arm.starts(given, rank, generator)
            if not arm.cancels:  # what a start does counts, and an adapter is multiplied by its scale
                starts = {name: (b0 * (rank / alpha), a0) for name, (b0, a0) in starts.items()}
    peft_model = adapters.attach(
        model, row.targets, rank=rank, alpha=alpha, dropout=dropout, changes_base=arm.cancels, starts=starts
    )
    inside = {row.module(role, layer): layer for role in row.roles for layer in range(layers)}
    for name, layer in adapters.lora_layers(peft_model).items():
        if not arm.learns(inside.get(name), layers):
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
    return peft_model


def _layer(model: Any, layer: int | None) -> Any:
    return None if layer is None else model.get_submodule(FAMILIES[model.config.model_type].block(layer))


def _tokens(encoded: list[Encoded], epochs: float) -> int:
    return round(sum(len(example.ids) for example in encoded) * epochs)
