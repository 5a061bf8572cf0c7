"""How much surer the teacher's update makes it of each token of the answers: which of them the update is about.

By as many ranks as hold the teacher, row by row, so that a pass that was ended goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.loading import load_tokenizer
from orchestrator.scoring.budgets import TOKENS
from orchestrator.scoring.engine import evaluating
from orchestrator.scoring.likelihoods import token_logs
from orchestrator.step import Track, silent
from orchestrator.store.files import appearing
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import Encoded, TemplateName, fitted
from orchestrator.teacher.by_example import by_example, file_of
from orchestrator.teacher.teacher_pass import Job, Passed, Progress, device, follow

EXCESS = "excess.safetensors"


def excess(
    folder: Path,
    *,
    rows: Path,
    update: Path,
    teacher: str,
    template: TemplateName,
    max_tokens: int,
    dtype: str,
    partial: Path,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write log p with the update minus log p without, (t,) of each row's t answer tokens (TiTok's token excess)."""
    tokenizer = load_tokenizer(teacher, "teacher")
    encoded, found = fitted(data.read(rows), template, tokenizer, max_tokens).rows, dict[str, Tensor]()
    with placement.settled() as settled:
        for adapter in (update, None):
            kept = partial / ("with" if adapter else "without")
            kept.mkdir(exist_ok=True)
            job = Job(teacher, encoded, tokenizer.pad_token_id, dtype, kept, settled, adapter=adapter)
            follow(asking, job, track, f"asking the teacher {kept.name} its update")
            for row in (file_of(one.id) for one in encoded):
                logs = load_file(kept / row)["logs"]
                found[row] = found[row] - logs if row in found else logs
    save_file(found, folder / EXCESS)
    values = torch.cat([*found.values()])
    return {"rows": len(found), "tokens": len(values), "mean": round(float(values.mean()), 4), **settled.facts}


def asking(job: Job, member: Member) -> Iterator[Progress]:
    """One rank's part."""
    yield from by_example(job, member, _ask)


def _ask(job: Job, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
    """Where ranks hold shards, one without rows asks of one that doesn't count, and all of a batch goes at once."""
    together = job.placement.sharded
    along, tokens = batch or (job.encoded[:1] if together else []), None if together else TOKENS
    with evaluating(model):
        for place, logs in chain.from_iterable(token_logs(model, along, pad=job.pad, tokens=tokens, device=device())):
            if batch:
                with appearing(job.partial / file_of(batch[place].id)) as file:
                    save_file({"logs": logs.float().cpu().contiguous()}, file)
    return batch, set()


def read_excess(folder: Path) -> dict[str, Tensor]:
    """By the file that a row's id names."""
    return load_file(folder / EXCESS)
