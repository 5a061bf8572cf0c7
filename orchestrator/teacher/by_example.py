"""A pass that leaves a file for each example: what is there isn't done again by the next try.

def work(job, member): yield from by_example(job, member, through)      # `through` writes partial / file_of(id)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from orchestrator.cluster.ranks import Member
from orchestrator.models.adapters import wearing
from orchestrator.teacher.checkpoints import agreed
from orchestrator.teacher.teacher_pass import Job, Progress, Through, opened, passes, progress


def file_of(identity: str) -> str:
    """The name of an example's file, whatever its id is made of."""
    return hashlib.sha256(identity.encode()).hexdigest()[:20] + ".safetensors"


def by_example(job: Job, member: Member, through: Through, named: Callable[[str], str] = file_of) -> Iterator[Progress]:
    """One rank's part: each batch goes `through` the model, which leaves the files that ids are `named` by."""
    with opened(job, member) as base, wearing(base, job.adapter) as model:
        done = agreed({example.id for example in job.encoded if (job.partial / named(example.id)).exists()}, member)
        for round in passes(job, member, model, done, through):
            yield progress(round)
