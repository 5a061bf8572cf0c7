"""The second pass of exact windows at scale: what the kept layers' scores are made of, written down.

Scores of single weights (granularity 1, the paper's) of a 70B teacher's kept layers are 110 GB: no rank holds them.
Instead this pass writes each kept matrix's inputs and output gradients, an example at a time, and extraction makes
the scores of one matrix from them when it needs that matrix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.loading import load_tokenizer
from orchestrator.step import Track, silent
from orchestrator.store.files import link
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import Encoded, TemplateName, fitted
from orchestrator.teacher.checkpoints import agreed
from orchestrator.teacher.files import LAYERS
from orchestrator.teacher.teacher_pass import Job, Passed, Progress, backward, follow, opened, passes, progress
from orchestrator.transfer.layers import LayerSelection
from orchestrator.transfer.record import record


@dataclass(frozen=True)
class Recording(Job):
    """What the ranks have to know to record."""

    names: frozenset[str] = frozenset()


def activations(
    folder: Path,
    *,
    measured: Path,
    seeds: Path,
    teacher: str,
    template: TemplateName,
    max_tokens: int,
    dtype: str,
    skip_bad: bool,
    layers: dict[str, Any],
    count: int,
    matrices: list[str],
    partial: Path,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write gy (t, n) and x (t, m) of each example and each of `matrices` ("model.layers.{}.mlp.up_proj.weight", ...)
    in the `count` layers that the selection keeps.

    UserError as `measure`.
    """
    scores = json.loads((measured / LAYERS).read_text())
    chosen = TypeAdapter[Any](LayerSelection).validate_python(layers).select(scores, count)
    names = frozenset(name.format(layer) for name in matrices for layer in chosen)
    tokenizer = load_tokenizer(teacher)
    encoded = fitted(data.read(seeds), template, tokenizer, max_tokens).rows
    with placement.settled() as settled:
        pad = tokenizer.pad_token_id
        job = Recording(teacher, encoded, pad, dtype, partial, settled, skip_bad=skip_bad, names=names)
        follow(recording, job, track, "recording the kept layers")
    for name in names:
        (folder / name).mkdir()
        for path in (partial / name).iterdir():
            link(path, folder / name / path.name)  # not moved: should the step end before it is kept, they stay
    return {"matrices": len(names), **settled.facts}


def recording(job: Recording, member: Member) -> Iterator[Progress]:
    """One rank's part: its examples' files, and a mark for each example that has all of them."""
    marks = job.partial / "done"
    marks.mkdir(parents=True, exist_ok=True)
    writer = Writer(job.partial)
    with opened(job, member) as model, record(model, job.names, writer.keep):
        done = agreed({example.id for example in job.encoded if (marks / _file(example)).exists()}, member)
        for round in passes(job, member, model, done, writer.through):
            for example in round.own:
                (marks / _file(example)).touch()
            yield progress(round)


@dataclass
class Writer:
    """Puts what is recorded into files, one a matrix and example."""

    folder: Path

    def through(self, job: Job, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
        """A forward and backward pass, whose rows are known by their examples."""
        return backward(job, member, model, batch, self.begin)

    def begin(self, batch: list[Encoded]) -> None:
        """Whose rows come next; none of them where a pass is of weight zero."""
        self._batch = batch

    def keep(self, name: str, gy: Tensor, x: Tensor) -> None:
        """Each example without its padding, in the dtype it was computed in."""
        for row, example in enumerate(self._batch):
            length = len(example.ids)
            path = self.folder / name / _file(example)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"gy": gy[row, :length].cpu().contiguous(), "x": x[row, :length].cpu().contiguous()}, path)


def _file(example: Encoded) -> str:
    return hashlib.sha256(example.id.encode()).hexdigest()[:20] + ".safetensors"
