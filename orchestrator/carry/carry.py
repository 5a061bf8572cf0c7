"""From the teacher's update to one of the student: module by module, by the arm's maps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from orchestrator.carry.site import Site, Sources
from orchestrator.cluster.ranks import HERE, Placement, spread
from orchestrator.models import adapters
from orchestrator.models.families import Geometry
from orchestrator.models.loading import read_config
from orchestrator.step import Track, silent
from orchestrator.teacher.states import read_states
from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.arms.carried import ALIKE, Carried, Transported
from orchestrator.transfer.matching import monotone, similarity
from orchestrator.transfer.transport import shares

CARRIED = "carried.json"
CARD = """# A carried update

The teacher's update in the student's channels, in the form of a LoRA adapter for the student: loaded by itself it adds
the update to the student's weights. `carried.json` says how good the maps are, module by module.
"""


def carry(
    folder: Path,
    *,
    update: Path | None = None,
    teacher: str,
    student: str,
    student_name: str,
    arm: dict[str, Any],
    pairs: Path | None = None,
    of_teacher: Path | None = None,
    of_student: Path | None = None,
    teacher_states: Path | None = None,
    student_states: Path | None = None,
    shuffled: bool = False,
    placement: Placement = HERE,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write B' and A' of every module that the update changes as an adapter folder, and carried.json beside them.

    `shuffled`: the student's tokens in another order than the teacher's. ValueError for layers that the teacher hasn't.
    """
    changed = adapters.read_update(update) if update else {}
    method = ARMS[arm["kind"]].model_validate(arm)
    assert isinstance(method, Carried)
    layers: Sequence[Sources]
    if isinstance(method.layers, ALIKE):
        assert teacher_states and student_states
        after = [read_states(one)[1:] for one in (teacher_states, student_states)]  # the first are the embeddings
        alike = similarity(*after)
        if isinstance(method.layers, Transported):
            layers = shares(alike, method.layers.regularisation, method.layers.most)
        else:
            layers = [[(layer, 1.0)] for layer in monotone(alike)]
    else:
        depths = [Geometry.of(read_config(Path(name), "model")).layers for name in (teacher, student)]
        layers = [[(layer, 1.0)] for layer in method.layers.select([0.0] * depths[0], depths[1])]
    site = Site.open(teacher, student, changed, method, layers, (pairs, of_teacher, of_student), shuffled)
    parts = site.parts()
    by_layer = [dict(some) for _, some in groupby(parts.items(), key=lambda one: one[1][0][1])]
    with placement.settled() as settled:  # a layer at a time, whose matrices share channels, and so maps
        found = spread(settled, site.together, [list(some.values()) for some in by_layer], partial or folder)
        each = track(found, "carrying the update over", len(by_layer))
        made = dict(zip(parts, chain.from_iterable(each), strict=True))
    starts = {name: start for name, (start, _) in made.items()}
    embeddings = frozenset({site.own.family.module("embed", None)}) & starts.keys()
    adapters.write_start(folder, adapters.of_one_rank(starts), base_name=student_name, embeddings=embeddings)
    said = {name: facts for name, (_, facts) in made.items()}
    record = {"layers": [list(sources) for sources in site.layers], "modules": said}
    (folder / CARRIED).write_text(json.dumps(record, indent=1) + "\n")
    (folder / "README.md").write_text(CARD)
    keys = dict.fromkeys(key for facts in said.values() for key in facts if key != "norm")
    return {"modules": len(made), **{key: _mean(said, key) for key in keys}}


def _mean(said: dict[str, dict[str, float]], key: str) -> float | None:
    values = [facts[key] for facts in said.values() if math.isfinite(facts[key])]
    return round(sum(values) / len(values), 4) if values else None
