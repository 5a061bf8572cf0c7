"""What a step has on each rank, and what it takes of that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.cluster.ranks import Placement
from orchestrator.cluster.session import USABLE
from orchestrator.errors import UserError
from orchestrator.scoring import budgets

PROCESS = 500_000_000  # bytes: Python, its libraries and a tokenizer, where they share what the model is in


@dataclass(frozen=True)
class Hardware:
    """What the work would run on. `gpus` None: as few as it takes."""

    gpus: int | None = None
    memory: float = 80e9  # bytes of each
    flops: float = 400e12  # a second, achieved in bfloat16: 40 % of an H100's peak
    bandwidth: float = 100e9  # bytes a second that each rank receives
    tokens: int = Placement.tokens
    native: bool = True  # fast in bfloat16
    fewer: bool = False  # tokens at once, where so many don't fit
    cuda: bool = True  # a GPU recomputes activations even where it is alone
    offload: bool = False  # the ranks' shards wait elsewhere
    replicate: bool = False  # each rank holds the whole teacher
    answers: int = budgets.ANSWERS  # of the teacher, in tokens with their questions, at once
    trial: float | None = None  # bytes that each process of a trial has, where that isn't a rank's memory
    workers: int = 1  # processes that share a fine-tuning
    sharded: bool = False  # each of them holds a part of the student

    @property
    def process(self) -> int:
        """Bytes that a process takes of this memory before a model is there; those beside a GPU are in none of its."""
        return 0 if self.cuda else PROCESS

    def shards(self, ranks: int) -> bool:
        """Whether none of so many ranks holds the teacher whole."""
        return self.offload or (ranks > 1 and not self.replicate)


@dataclass(frozen=True)
class PerRank:
    """Bytes on the fullest rank."""

    weights_bytes: int = 0
    activations_bytes: int = 0
    statistics_bytes: int = 0
    factors_bytes: int = 0
    process_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """All at once: no part waits for another to go."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Cost:
    """One step on so many ranks. `network_bytes` are those that all ranks together receive."""

    ranks: int
    per_rank: PerRank
    network_bytes: int
    seconds: float
    memory: float
    smallest_cluster: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the peak leaves what a device needs for itself."""
        return self.per_rank.peak_bytes <= USABLE * self.memory

    def then(self, other: Cost) -> Cost:
        """This and another after it, in one process that lets go of the first: the fuller's memory, both times."""
        fuller = max(self, other, key=lambda cost: cost.per_rank.peak_bytes)
        smallest = self.smallest_cluster if other.fits else None
        return replace(self, per_rank=fuller.per_rank, seconds=self.seconds + other.seconds, smallest_cluster=smallest)

    @property
    def gpu_hours(self) -> float:
        """Of all ranks together."""
        return self.ranks * self.seconds / 3600

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        memory = asdict(self.per_rank) | {"peak_bytes": self.per_rank.peak_bytes}
        found = {name: getattr(self, name) for name in ("network_bytes", "seconds", "gpu_hours", "smallest_cluster")}
        return {"fits": self.fits, "ranks": self.ranks, "per_rank": memory, **found}


def refuse_unless_fits(cost: Cost, what: str, assumed: str = "", remedy: str = "") -> None:
    """UserError with the figures, with what was `assumed` and with a `remedy`, where a step would run out of memory."""
    if cost.fits:
        return
    need, room = cost.per_rank.peak_bytes, USABLE * cost.memory
    where = "on 1 rank" if cost.ranks == 1 else f"on each of {cost.ranks} ranks"
    remedy = remedy or "a smaller --tokens-at-once, finetune.micro_batch_size or max_tokens takes less"
    if cost.smallest_cluster:
        remedy = f"{cost.smallest_cluster} ranks with as much memory each would do (see `pkt plan`)"
    raise UserError(
        f"plan: {what} takes {need / 1e9:.1f} GB {where}, of which {room / 1e9:.1f} GB are usable"
        f"{f' ({assumed})' if assumed else ''}; {remedy}, and --force goes on all the same"
    )
