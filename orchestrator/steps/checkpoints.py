"""What a group of ranks has measured so far, so that a death costs the last few examples and not the pass."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.cluster.ranks import Member
from orchestrator.transfer.scores import Scores

PARTS = ("tiles", "rows", "cols")


def sum_over_ranks(statistics: Iterable[Tensor], member: Member) -> bool:
    """Add all ranks' statistics up on rank 0, in place; tells whether this is it."""
    if member.world > 1:
        for tensor in statistics:
            if tensor.numel():
                torch.distributed.reduce(tensor, 0)
    return member.rank == 0


@dataclass(frozen=True)
class Checkpoints:
    """What a group has measured so far: one file a rank in a folder that counts once all are there."""

    folder: Path
    member: Member

    def write(self, scores: dict[str, Scores], done: set[str], left_out: set[str]) -> None:
        """Each rank its own sums, under the number of examples done; the one before is then dropped."""
        place = self.folder / f"{len(done):06d}"
        place.mkdir(parents=True, exist_ok=True)
        target = place / f"rank-{self.member.rank}.safetensors"
        parts = {f"{name}:{part}": getattr(score, part) for name, score in scores.items() for part in PARTS}
        ids = {"done": json.dumps(sorted(done)), "left_out": json.dumps(sorted(left_out))}
        save_file(
            {key: part.cpu() for key, part in parts.items()},
            target.with_suffix(".aside"),
            metadata=ids | {"world": str(self.member.world)},
        )
        target.with_suffix(".aside").rename(target)
        if self.member.world > 1:
            torch.distributed.barrier()
        for older in self._all():
            if older != place:
                (older / target.name).unlink(missing_ok=True)

    def resume(self, scores: dict[str, Scores]) -> tuple[set[str], set[str]]:
        """Take up this rank's part of the last whole checkpoint; the ids that it covers, and those left out of it.

        A group of another size shares the files out: the sum over ranks is the same.
        """
        for place in reversed(self._all()):
            files = sorted(place.glob("rank-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))
            if not files:
                continue
            with safe_open(files[0], framework="pt") as tensors:
                about = tensors.metadata()
            if len(files) != int(about["world"]):
                continue
            for path in files[self.member.rank :: self.member.world]:
                with safe_open(path, framework="pt") as tensors:
                    for key in tensors.keys():  # noqa: SIM118  (not a dict)
                        name, part = key.rsplit(":", 1)
                        kept = getattr(scores[name], part)
                        kept += tensors.get_tensor(key).to(kept.device)
            return set(json.loads(about["done"])), set(json.loads(about["left_out"]))
        return set(), set()

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*")) if self.folder.is_dir() else []
