"""What the teacher predicts on training rows: the targets of logit distillation, computed once for all trials.

Distillation libraries keep the teacher beside the student in every training; a sweep would then hold (and pay for) a
70B teacher in each of its trials. Here one pass over the ranks writes the likeliest tokens down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.loading import load_tokenizer
from orchestrator.step import Track, silent
from orchestrator.store.files import appearing, link
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import Encoded, TemplateName, fitted
from orchestrator.teacher.by_example import by_example, file_of
from orchestrator.teacher.teacher_pass import Job, Passed, Progress, device, follow, inputs
from orchestrator.transfer.distillation import likeliest

FORWARDS_OF_A_PASS = 3  # what a forward and a backward pass cost, in forward passes


@dataclass(frozen=True)
class Labelling(Job):
    """What the ranks have to know to label."""

    temperature: float = 1.0
    vocabulary: int = 0  # tokens that there are: rows of padding predict nothing


def labels(
    folder: Path,
    *,
    rows: Path,
    seeds: Path,
    teacher: str,
    template: TemplateName,
    max_tokens: int,
    seed_tokens: int,
    dtype: str,
    temperature: float,
    passes: int | None,
    partial: Path,
    update: Path | None = None,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write `tokens` (t, k) and `logs` (t, k + 1) of each row's t answer tokens: the k likeliest at this temperature
    with their log-probabilities, and that of all others together.

    `update`: a LoRA that it has on. `passes`: as many rows as take that many times the seed examples' tokens; None: all
    rows.
    """
    tokenizer = load_tokenizer(teacher)
    encoded = within(passes, rows, seeds, tokenizer, template, max_tokens, seed_tokens)
    with placement.settled() as settled:
        job = Labelling(
            teacher, encoded, tokenizer.pad_token_id, dtype, partial, settled,
            temperature=temperature, vocabulary=len(tokenizer), adapter=update,
        )  # fmt: skip
        follow(labelling, job, track, "asking the teacher")
    for example in encoded:
        link(partial / file_of(example.id), folder / file_of(example.id))
    return {"rows": len(encoded), "tokens": sum(len(example.ids) for example in encoded), **settled.facts}


def within(
    passes: int | None, rows: Path, seeds: Path, tokenizer: Any, template: TemplateName, max_tokens: int,
    seed_tokens: int,
) -> list[Encoded]:  # fmt: skip
    """The first rows that take at most so many times the seed examples' tokens; with None all of them."""
    encoded = fitted(data.read(rows), template, tokenizer, max_tokens).rows
    if passes is None:
        return encoded
    asked = fitted(data.read(seeds), template, tokenizer, seed_tokens).rows
    return affordable(encoded, passes * sum(len(example.ids) for example in asked))


def affordable(encoded: list[Encoded], tokens: int) -> list[Encoded]:
    """The first rows that together have at most that many tokens; at least one."""
    kept: list[Encoded] = []
    for example in encoded:
        tokens -= len(example.ids)
        if kept and tokens < 0:
            break
        kept.append(example)
    return kept


def labelling(job: Labelling, member: Member) -> Iterator[Progress]:
    """One rank's part."""
    yield from by_example(job, member, _ask)


@torch.no_grad()
def _ask(job: Any, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
    tensors = {name: tensor.to(device()) for name, tensor in inputs(job, batch).items()}
    answers = tensors.pop("labels")[:, 1:] != -100
    logits = model(**tensors, use_cache=False).logits[:, :-1]
    for example, row, own in zip(batch, logits, answers, strict=False):  # an empty batch is a token that asks nothing
        with appearing(job.partial / file_of(example.id)) as file:
            save_file(likeliest(row[own, : job.vocabulary], job.temperature), file)
    return batch, set()


def read_labels(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Tokens and log-probabilities by the file that a row's id names."""
    found = ((path.name, load_file(path)) for path in sorted(folder.glob("*.safetensors")))
    return {name: (tensors["tokens"], tensors["logs"]) for name, tensors in found}
