"""The teacher's update where it was made elsewhere: a LoRA of the teacher, or what the teacher was trained from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.cluster.ranks import HERE, Placement, spread
from orchestrator.errors import UserError
from orchestrator.models import adapters, hub
from orchestrator.models.families import Geometry, family
from orchestrator.models.loading import Checkpoint, Weights, place_of, read_config
from orchestrator.step import Track, silent
from orchestrator.teacher.teacher_pass import device
from orchestrator.transfer.lowrank import truncated_svd
from orchestrator.transfer.sides import norm_of

FILES = ("adapter_config.json", "adapter_model.safetensors")
UNREADABLE = (  # more than B·A of modules
    "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias", "layer_replication",
)  # fmt: skip
PLAIN = (True, False, "gaussian", "eva", "orthogonal")  # ways to begin that leave the base as it was


def find_adapter(
    name: str, teacher: Checkpoint, say: Callable[[str], None] = lambda line: None, field: str = "teacher-adapter"
) -> tuple[str, str]:
    """A LoRA's folder and the hash of its contents, once it is known to be one of this teacher's.

    UserError for a name that stands for none, for what is no plain LoRA, and for modules that the teacher hasn't, or
    has in other shapes; for values that aren't finite, or an update of nothing.
    """
    place = place_of(name)
    if place is None:
        raise UserError(f"{field}: {name!r} is no folder and no hub id of the form ORG/NAME")
    folder = Path(place) if Path(place).is_absolute() else hub.fetch(place, field, FILES, say)
    if missing := next((file for file in FILES if not (folder / file).is_file()), None):
        raise UserError(f"{field}: {folder} has no {missing}; give a folder that PEFT's save_pretrained made")
    config = json.loads((folder / FILES[0]).read_text())
    if what := _more_than_lora(config):
        raise UserError(f"{field}: {folder} is {what}, and only a plain LoRA is known here; convert it")
    _check(adapters.read_update(folder), teacher, config, field)
    return str(folder), hashlib.sha256(b"".join((folder / file).read_bytes() for file in FILES)).hexdigest()


def _more_than_lora(config: dict[str, Any]) -> str:
    """What an adapter is besides B·A of some modules; nothing of a plain LoRA."""
    if (kind := config.get("peft_type")) != "LORA":
        return str(kind)
    if more := next((one for one in UNREADABLE if config.get(one)), None):
        return f"a LoRA with {more}"
    if config.get("bias", "none") != "none":
        return f"a LoRA with bias {config['bias']}"
    if (start := config.get("init_lora_weights", True)) not in PLAIN:
        return f"a LoRA that took its start ({start}) from the base"
    return ""


def _check(changed: dict[str, adapters.Start], teacher: Checkpoint, config: dict[str, Any], field: str) -> None:
    known = dict(_matrices(teacher.config))
    of = config.get("base_model_name_or_path") or "another model"
    for name, (b, a) in sorted(changed.items()):
        if name not in known:
            raise UserError(f"{field}: it changes {name}, which {teacher.name} hasn't; it was made for {of}")
        if (own := (b.shape[0], a.shape[1])) != known[name]:
            raise UserError(
                f"{field}: its {name} is {own[0]} x {own[1]} and {teacher.name}'s {known[name][0]} x"
                f" {known[name][1]}; it was made for {of}"
            )
        if not bool(b.isfinite().all() and a.isfinite().all()):
            raise UserError(f"{field}: {name} has NaN or infinite values; take another adapter")
    if all(norm_of(b, a) == 0 for b, a in changed.values()):
        raise UserError(f"{field}: it changes nothing of the teacher; train it, or take another one")


def _matrices(config: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every module that an update may change, with its shape."""
    row, geometry = family(config.model_type), Geometry.of(config)
    shapes: dict[str, tuple[int, int]] = {}
    for role, layer in geometry.matrices():
        name, (n, m) = row.module(role, layer), geometry.shape(role)
        shapes[name] = shapes.get(name, (0, m))[0] + n, m
    yield from shapes.items()


def adapter(folder: Path, *, adapter: str, teacher: str) -> dict[str, Any]:
    """Write a LoRA of the teacher as carrying takes it."""
    changed = adapters.read_update(Path(adapter))
    _write(folder, changed, teacher)
    return {"modules": len(changed)}


def difference(
    folder: Path,
    *,
    tuned: str,
    base: str,
    rank: int,
    placement: Placement = HERE,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write the best factors of that rank of every matrix in which two checkpoints differ.

    `kept` is the share of the difference's squared norm that they hold. UserError where nothing differs.
    """
    config = read_config(Path(tuned), "teacher")
    names = [name for name, _ in _matrices(config)]
    cut = Difference(Weights(Path(tuned)), Weights(Path(base)), rank, family(config.model_type).module("embed", None))
    with placement.settled() as settled:
        found = list(track(spread(settled, cut.of, names, partial or folder), "comparing checkpoints", len(names)))
    whole = sum(norm for _, norm, _ in found)
    if not whole:
        raise UserError("teacher-base: it doesn't differ from the teacher in any matrix; name what it was trained from")
    changed = {name: start for name, (start, norm, _) in zip(names, found, strict=True) if norm}
    _write(folder, changed, tuned)
    return {"modules": len(changed), "kept": round(sum(norm * kept for _, norm, kept in found) / whole, 4)}


@dataclass(frozen=True)
class Difference:
    """Two checkpoints, matrix by matrix."""

    tuned: Weights
    base: Weights
    rank: int
    embedding: str

    def of(self, module: str) -> tuple[adapters.Start, float, float]:
        """Factors of one matrix's difference, its squared norm, and the share of that which they keep."""
        theirs, own = (self._weight(weights, module) for weights in (self.tuned, self.base))
        whole = theirs.to(device()).float() - own.to(device()).float()
        norm = float(whole.double().square().sum())
        factors = truncated_svd(whole, min(self.rank, *whole.shape)).to("cpu")
        kept = float(factors.s.double().square().sum()) / norm if norm else 0.0
        return (factors.u * factors.s, factors.vh), norm, kept

    def _weight(self, weights: Weights, module: str) -> torch.Tensor:
        name = f"{module}.weight"
        return weights.get(name if name in weights else f"{self.embedding}.weight")  # of a tied head


def _write(folder: Path, changed: dict[str, adapters.Start], teacher: str) -> None:
    embedding = family(read_config(Path(teacher), "teacher").model_type).module("embed", None)
    adapters.write_start(
        folder, adapters.of_one_rank(changed), base_name=teacher, embeddings=frozenset({embedding}) & changed.keys()
    )
