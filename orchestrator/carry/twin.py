"""The controls of a carried update: of its own norm in every matrix, and without what it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from orchestrator.carry.carry import CARRIED
from orchestrator.carry.scale import TINY
from orchestrator.carry.site import Site
from orchestrator.models import adapters
from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.arms.carried import Carried
from orchestrator.transfer.lowrank import product_svd
from orchestrator.transfer.random_map import RandomMap
from orchestrator.transfer.sides import norm_of


def twin(
    folder: Path,
    *,
    carried: Path,
    arm: dict[str, Any],
    source: Path | None = None,
    teacher: str,
    student: str,
    student_name: str,
    which: str,
    seed: int,
) -> dict[str, Any]:
    """Write the adapter of one random seed's twin.

    "random_map": the teacher's update (`source`), or with none its weights, through random orthogonal maps;
    "shuffled_texts": what was carried by maps between texts that don't belong together (`source`); each matrix at the
    carried one's norm. "spectrum": the carried update's singular values on random directions.
    """
    own = adapters.read_update(carried)
    if which == "spectrum":
        generator = torch.Generator().manual_seed(seed)
        drawn = {name: product_svd(b, a).random_directions(generator) for name, (b, a) in sorted(own.items())}
        made = {name: (factors.u * factors.s, factors.vh) for name, factors in drawn.items()}
    elif which == "shuffled_texts":
        assert source
        made = adapters.read_update(source)
    else:
        layers, method = json.loads((carried / CARRIED).read_text())["layers"], ARMS[arm["kind"]].model_validate(arm)
        assert isinstance(method, Carried)
        changed = adapters.read_update(source) if source else {}
        site = Site.open(teacher, student, changed, method, layers, maps=RandomMap(seed))
        made = {name: site.carried(parts)[0] for name, parts in site.parts().items()}
    alike = {name: (b * (norm_of(*own[name]) / max(norm_of(b, a), TINY)), a) for name, (b, a) in made.items()}
    embeddings = adapters.embeddings_of(carried)
    adapters.write_start(folder, adapters.of_one_rank(alike), base_name=student_name, embeddings=embeddings)
    return {"modules": len(made)}
