"""The teacher's sensitivities on the seed examples: the one pass that all trials of a sweep share."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.families import FAMILIES, Geometry
from orchestrator.models.loading import load_tokenizer, read_config
from orchestrator.step import Track, silent
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import TemplateName, fitted
from orchestrator.teacher.checkpoints import Checkpoints, sum_over_ranks
from orchestrator.teacher.from_weights import count_inputs, score_weights
from orchestrator.teacher.scores import write_scores
from orchestrator.teacher.teacher_pass import Job, Progress, backward, follow, opened, passes, progress
from orchestrator.transfer.metrics import Magnitude, SensitivityMetric, Wanda
from orchestrator.transfer.sensitivity import collect

CHECKPOINT_EVERY = 8  # examples, of all ranks together
LEFT_OUT = "left_out.json"


@dataclass(frozen=True)
class Measuring(Job):
    """What the ranks have to know to measure."""

    out: Path = Path()  # the step's folder, filled by rank 0
    granularity: int = 1
    checkpoint_every: int = CHECKPOINT_EVERY


def measure(
    folder: Path,
    *,
    seeds: Path,
    teacher: str,
    template: TemplateName,
    max_tokens: int,
    metric: dict[str, Any],
    granularity: int,
    dtype: str,
    skip_bad: bool,
    partial: Path,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write S of every parameter of the teacher, and each layer's total.

    UserError where an example's loss is not finite, with the example's id, and where ranks die time and again.
    """
    chosen = TypeAdapter[Any](SensitivityMetric).validate_python(metric)
    tokenizer = load_tokenizer(teacher)
    fit = fitted(data.read(seeds), template, tokenizer, max_tokens)
    encoded = fit.rows
    with placement.settled() as settled:
        job = Measuring(
            teacher, encoded, tokenizer.pad_token_id, dtype, partial, settled, chosen, skip_bad,
            out=folder, granularity=granularity,
        )  # fmt: skip
        if isinstance(chosen, Wanda):
            follow(count_inputs, job, track, "counting the teacher's inputs")
        elif not isinstance(chosen, Magnitude):
            follow(measuring, job, track, "measuring the teacher")
    if isinstance(chosen, Magnitude | Wanda):
        score_weights(job, track)
    left_out = json.loads((folder / LEFT_OUT).read_text()) if (folder / LEFT_OUT).is_file() else []
    if left_out:
        logging.getLogger("pkt").warning("seed examples left out, as their loss is not finite: %s", ", ".join(left_out))
    held = {} if isinstance(chosen, Magnitude) else settled.facts
    return {"examples": len(encoded) - len(left_out), "left_out": left_out, "fit": fit.facts(), **held}


def measuring(job: Measuring, member: Member) -> Iterator[Progress]:
    """One rank's part, going on from the last checkpoint; rank 0 writes the sum over the ranks."""
    config = read_config(Path(job.teacher), "teacher")
    family = FAMILIES[config.model_type]
    with (
        opened(job, member) as model,
        collect(model, metric=job.metric, granularity=job.granularity, norm_offset=family.norm_offset) as scores,
    ):
        checkpoints = Checkpoints(job.partial, member)
        done, left_out = checkpoints.resume(scores)
        since = 0
        for round in passes(job, member, model, done, backward):
            done |= round.done
            left_out |= round.left_out
            since += len(round.done)
            if since >= job.checkpoint_every and len(done) < len(job.encoded):
                checkpoints.write(scores, done, left_out)
                since = 0
            yield progress(round)
        if sum_over_ranks(
            (part for score in scores.values() for part in (score.tiles, score.rows, score.cols)), member
        ):
            write_scores(scores, job.out, family.layer, Geometry.of(config).layers)
            (job.out / LEFT_OUT).write_text(json.dumps(sorted(left_out)) + "\n")
