"""How well the teacher itself knows the task, by as many ranks as hold it: one too large for a device is gated, too.

In each round every rank answers a batch, since each gathers the others' shards; a rank that has none left answers an
example that doesn't count. `generate` keeps the ranks in step until the last of a round's answers has ended. Each token
of a round takes a gather of all shards, so that a round is as large as the plan found memory for. Ranks that hold the
whole teacher gather nothing, and wait for nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial as bound
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.loading import load_tokenizer
from orchestrator.scoring import edits
from orchestrator.scoring.asking import Asked, asked, context_of
from orchestrator.scoring.budgets import ANSWERS, TOKENS
from orchestrator.scoring.engine import gold_losses, said
from orchestrator.scoring.evaluate import judged as by_kind
from orchestrator.scoring.evaluate import outputs, preferences, said_of, write
from orchestrator.scoring.judge import Item, Said, room
from orchestrator.step import Track, silent
from orchestrator.store.files import appearing
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import Encoded, TemplateName, stops
from orchestrator.teacher.by_example import by_example, file_of
from orchestrator.teacher.teacher_pass import Job, Passed, Progress, device, follow


@dataclass(frozen=True)
class Asking(Job):
    """What the ranks have to know to ask."""

    items: dict[str, Item] = field(default_factory=dict)  # by an example's id
    asked: Metric | None = None
    ends: tuple[int, ...] = ()
    judged: int = 1  # gold answers that go through the model at once, where ranks wait for each other


def teacher_score(
    folder: Path,
    *,
    rows: Path,
    model: str,
    template: TemplateName,
    metric: dict[str, Any],
    choices: list[str],
    dtype: str,
    partial: Path,
    adapter: Path | None = None,
    untouched: Path | None = None,
    judge: dict[str, str] | None = None,
    judge_at: str = "",
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """The files of an evaluation, of the teacher as it is or with an adapter on."""
    tokenizer, context = load_tokenizer(model), context_of(model)
    items, judged, encoded = asked(rows, template, model, metric, choices)
    fit = [item for item in items if room(item, judged) <= context]
    along = {row.id: row for row in encoded}
    rows_asked = [along[item.id] for item in fit if item.id in along]
    with placement.settled() as settled:
        at_once = settled.tokens if judged.chooses else settled.answers or ANSWERS
        job = Asking(
            model, rows_asked, tokenizer.pad_token_id, dtype, partial,
            replace(settled, tokens=at_once),
            at_once=max(1, at_once // max((room(item, judged) for item in fit), default=1)),
            items={item.id: item for item in fit}, asked=judged, ends=tuple(stops(template, tokenizer)),
            judged=max(1, TOKENS // max((len(row.ids) for row in rows_asked), default=1)),
            adapter=adapter,
        )  # fmt: skip
        follow(asking, job, track, "scoring the teacher")
        told = {row.id: json.loads((partial / _file(row.id)).read_text()) for row in job.encoded}
        losses = [told[item.id].pop("loss") if item.id in told else None for item in items]
        answers = [said_of(told[item.id]) if item.id in told else Said(asked=False) for item in items]
        prefer = preferences(judge, judge_at, partial, settled)
        before = edits.untouched_in(untouched) if untouched else None
        scored = by_kind(items, answers, losses, judged, prefer, before)
    more = outputs(folder, Asked(items, judged, encoded), scored, prefer)
    return write(folder, scored, losses, metric, trained=adapter is not None, told=more)


def asking(job: Asking, member: Member) -> Iterator[Progress]:
    """One rank's part."""
    yield from by_example(job, member, bound(_ask, load_tokenizer(job.teacher)), _file)


def _ask(tokenizer: Any, job: Any, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
    """Some examples' answers and losses: where ranks hold shards, each goes through the model equally often."""
    together = job.placement.sharded
    along = batch or (job.encoded[:1] if together else [])
    items = [job.items[example.id] for example in along]
    options = {"stops": job.ends, "together": together, "device": device()}
    told = {place: one for some in said(model, tokenizer, items, job.asked, **options) for place, one in some}
    parts = _alike(along, job, member) if together else [along]
    losses = [
        loss
        for part in parts
        for loss in gold_losses(model, part, job.pad, tokens=None if together else TOKENS, device=device())
    ]
    for place, (example, loss) in enumerate(zip(batch, losses, strict=False)):
        with appearing(job.partial / _file(example.id)) as file:
            file.write_text(json.dumps({**asdict(told[place]), "loss": loss}))
    return batch, set()


def _alike(rows: list[Encoded], job: Any, member: Member) -> list[list[Encoded]]:
    """As many parts as the largest batch of any rank has; those that are left are an example that doesn't count."""
    most = min(job.at_once, -(-len(job.encoded) // member.world))
    return [rows[start : start + job.judged] or rows[:1] for start in range(0, most, job.judged)]


def _file(identity: str) -> str:
    return f"{file_of(identity)}.json"
