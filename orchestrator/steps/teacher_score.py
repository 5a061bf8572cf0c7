"""How well the teacher itself knows the task, by as many ranks as hold it: one too large for a device is gated, too.

In each round every rank answers a batch, since each gathers the others' shards; a rank that has none left answers an
example that doesn't count. `generate` keeps the ranks in step until the last of a round's answers has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial as bound
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.loading import load_tokenizer, read_config
from orchestrator.steps.checkpoints import agreed
from orchestrator.steps.evaluate import asked, gold_losses, write
from orchestrator.steps.labels import file_of
from orchestrator.steps.step import Track, silent
from orchestrator.steps.teacher_pass import Job, Passed, Progress, device, follow, opened, passes, progress
from orchestrator.store import appearing
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.scoring import Item, Scored, check, score
from orchestrator.tasks.template import Encoded, TemplateName


@dataclass(frozen=True)
class Asking(Job):
    """What the ranks have to know to ask."""

    items: dict[str, Item] = field(default_factory=dict)  # by an example's id
    asked: Metric | None = None


def teacher_score(
    folder: Path,
    *,
    rows: Path,
    model: str,
    template: TemplateName,
    metric: dict[str, Any],
    choices: list[str],
    batch_size: int,
    max_tokens: int,
    dtype: str,
    partial: Path,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """The files of an evaluation, of the teacher as it is; `batch_size` texts at once on each rank."""
    tokenizer = load_tokenizer(model)
    items, judged, encoded = asked(rows, template, tokenizer, metric, choices, max_tokens)
    check(items, judged, tokenizer, read_config(Path(model), "teacher").max_position_embeddings)
    with placement.settled() as settled:
        job = Asking(
            model, encoded, tokenizer.pad_token_id, dtype, partial, settled,
            at_once=max(1, batch_size // max(1, len(choices))),
            items={item.id: item for item in items}, asked=judged,
        )  # fmt: skip
        follow(asking, job, track, "scoring the teacher")
    told = [json.loads((partial / _file(example.id)).read_text()) for example in encoded]
    losses = [one.pop("loss") for one in told]
    return write(folder, [Scored(**one) for one in told], losses, metric, trained=False)


def asking(job: Asking, member: Member) -> Iterator[Progress]:
    """One rank's part."""
    tokenizer = load_tokenizer(job.teacher)
    with opened(job, member) as model:
        done = agreed({example.id for example in job.encoded if (job.partial / _file(example.id)).exists()}, member)
        for round in passes(job, member, model, done, bound(_ask, tokenizer)):
            yield progress(round)


def _ask(tokenizer: Any, job: Any, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
    along = batch or job.encoded[:1]
    items = [job.items[example.id] for example in along]
    at_once = len(along) * max(1, len(items[0].choices))  # one forward pass for likelihoods, on every rank
    scored = score(model, tokenizer, items, job.asked, batch_size=at_once, device=device())
    losses = gold_losses(model, along, job.pad, len(along), device())
    for example, one, loss in zip(batch, scored, losses, strict=False):
        with appearing(job.partial / _file(example.id)) as file:
            file.write_text(json.dumps({**asdict(one), "loss": loss}))
    return batch, set()


def _file(identity: str) -> str:
    return f"{file_of(identity)}.json"
