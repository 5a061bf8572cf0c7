"""What a group of ranks has measured so far, so that a death costs the last few examples and not the pass."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.cluster.ranks import Member
from orchestrator.store.files import appearing
from orchestrator.transfer.scores import Scores

T = TypeVar("T")
PARTS = ("tiles", "rows", "cols")


def sum_over_ranks(statistics: Iterable[Tensor], member: Member) -> bool:
    """Add all ranks' statistics up on rank 0, in place; tells whether this is it."""
    if member.world > 1:
        for tensor in statistics:
            if tensor.numel():
                torch.distributed.reduce(tensor, 0)
    return member.rank == 0


def agreed(found: T, member: Member) -> T:
    """What rank 0 found, on every rank: a shared file system may show them different things for a while."""
    if member.world == 1:
        return found
    told = [found]
    torch.distributed.broadcast_object_list(told, 0)
    return told[0]


@dataclass(frozen=True)
class Checkpoints:
    """What a group has measured so far: one file a rank in a folder that counts once all are there."""

    folder: Path
    member: Member

    def write(self, scores: dict[str, Scores], done: set[str], left_out: set[str]) -> None:
        """Each rank its own sums; once all have written, the one before is dropped.

        The folder's name tells the group's size and the examples, so that no other group's files ever join them.
        """
        digest = hashlib.sha256(json.dumps(sorted(done)).encode()).hexdigest()[:12]
        place = self.folder / f"{len(done):06d}-{self.member.world}-{digest}"
        place.mkdir(parents=True, exist_ok=True)
        target = place / f"rank-{self.member.rank}.safetensors"
        parts = {f"{name}:{part}": getattr(score, part) for name, score in scores.items() for part in PARTS}
        ids = {"done": json.dumps(sorted(done)), "left_out": json.dumps(sorted(left_out))}
        with appearing(target) as file:
            save_file({key: part.cpu() for key, part in parts.items()}, file, metadata=ids)
        if self.member.world > 1:
            torch.distributed.barrier()
        for older in self._all() if self.member.rank == 0 else ():
            if older != place:
                shutil.rmtree(older, ignore_errors=True)

    def resume(self, scores: dict[str, Scores]) -> tuple[set[str], set[str]]:
        """Take up this rank's part of the last whole checkpoint; the ids that it covers, and those left out of it.

        A group of another size shares the files out: the sum over ranks is the same.
        """
        place = agreed(next((place for place in reversed(self._all()) if _whole(place)), None), self.member)
        if place is None:
            return set(), set()
        for rank in range(self.member.rank, _world(place), self.member.world):
            with safe_open(place / f"rank-{rank}.safetensors", framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a dict)
                    name, part = key.rsplit(":", 1)
                    kept = getattr(scores[name], part)
                    kept += tensors.get_tensor(key).to(kept.device)
        with safe_open(place / "rank-0.safetensors", framework="pt") as tensors:
            about = tensors.metadata()
        return set(json.loads(about["done"])), set(json.loads(about["left_out"]))

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*")) if self.folder.is_dir() else []


def _world(place: Path) -> int:
    return int(place.name.split("-")[1])


def _whole(place: Path) -> bool:
    return len(list(place.glob("rank-*.safetensors"))) == _world(place)
