"""One rank's part of the teacher's pass: its share of the seed examples, forward and backward.

All ranks run the same number of rounds, since each gathers the others' shards; a rank that has no batch left in a
round sends nothing through. Each rank adds up its own statistics, and they are summed once, at the end: ZeRO's
averaged gradients would be of no use, because the absolute value is taken per example.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from orchestrator.cluster.ranks import HERE, Member, Placement, RankDied, stream
from orchestrator.cluster.sharding import joined, sharded
from orchestrator.errors import UserError
from orchestrator.models.dtypes import dtype_of, has_bfloat16
from orchestrator.models.freed import give_back
from orchestrator.models.loading import load, read_config
from orchestrator.step import Track
from orchestrator.tasks.template import Encoded, batches, collate, labelled
from orchestrator.transfer.metrics import GradientMetric
from orchestrator.transfer.sensitivity import TAYLOR, example_losses

RESTARTS = 2  # of a group whose rank died


@dataclass(frozen=True)
class Job:
    """What every rank has to know; a value, so that it can be sent."""

    teacher: str
    encoded: list[Encoded]
    pad: int
    dtype: str
    partial: Path  # what an unfinished pass leaves, on a file system that the ranks share
    placement: Placement = HERE
    metric: GradientMetric = TAYLOR
    at_once: int | None = None  # examples of a batch, at most
    adapter: Path | None = None  # a LoRA that the teacher wears
    skip_bad: bool = False  # leave an example out whose loss is not finite, rather than stop


@dataclass(frozen=True)
class Progress:
    """What a rank has done in a round."""

    examples: int
    tokens: int
    seconds: float  # of its own time
    memory: int  # bytes in use on its device


Work = Callable[[Any, Member], Iterator[Progress]]  # one rank's part
Passed = tuple[list[Encoded], set[str]]  # this rank's examples that went through, and the ids that all ranks left out
Through = Callable[[Job, Member, nn.Module, list[Encoded]], Passed]


def follow(work: Work, job: Any, track: Track[Any], what: str) -> None:
    """Have every rank do its part of a pass, and begin anew from what is kept where one dies.

    RankDied where that happens time and again; UserError of whatever rank raises one.
    """
    ranks = job.placement.ranks or 1
    total = ranks * sum(1 for _ in rounds(job, ranks))
    for _ in track(_lines(_restarted(work, job), len(job.encoded)), what, total):
        pass


def _restarted(work: Work, job: Any) -> Iterator[tuple[int, Progress]]:
    for left in reversed(range(RESTARTS + 1)):
        try:
            yield from stream(job.placement, work, job, job.partial)
            return
        except RankDied as death:
            if not left:
                raise
            logging.getLogger("pkt").warning("%s\ngoing on from what is kept", death)


def _lines(events: Iterator[tuple[int, Progress]], total: int) -> Iterator[str]:
    """How far the pass is, whenever a rank has done its part of a round."""
    examples, tokens, seconds, most = 0, 0, 0.0, 0
    ranks = set()
    for rank, progress in events:
        ranks.add(rank)
        examples, tokens, seconds = examples + progress.examples, tokens + progress.tokens, seconds + progress.seconds
        most = max(most, progress.memory)
        pace = tokens * len(ranks) / seconds
        yield f"{examples}/{total} examples, {pace:.0f} tokens/s, {most / 2**30:.1f} GiB a rank"


@dataclass(frozen=True)
class Round:
    """What a round did: this rank's examples, and the ids of all ranks' examples and of those left out."""

    own: list[Encoded]
    done: set[str]
    left_out: set[str]
    seconds: float


def passes(job: Job, member: Member, model: nn.Module, done: set[str], through: Through) -> Iterator[Round]:
    """Every round that isn't done yet, after this rank's batch went `through` the model."""
    for each in rounds(job, member.world):
        left = [[example for example in batch if example.id not in done] for batch in each]
        ids = {example.id for batch in left for example in batch}
        if ids:
            began = time.perf_counter()
            own, bad = through(job, member, model, left[member.rank])
            yield Round(own, ids, bad, time.perf_counter() - began)


def progress(round: Round) -> Progress:
    """What a rank tells of a round."""
    return Progress(len(round.own), sum(len(example.ids) for example in round.own), round.seconds, memory())


@contextmanager
def opened(job: Job, member: Member) -> Iterator[nn.Module]:
    """The teacher: whole where there is one rank or each is to hold it, in shards otherwise.

    Its layers recompute their activations, but for a whole one's on a CPU.
    """
    if not torch.cuda.is_available():
        give_back()
    offload = job.placement.offload
    if not offload and (member.world == 1 or job.placement.replicate):
        with joined(member):
            model = load(job.teacher, dtype=job.dtype, device=str(device()))
            if torch.cuda.is_available():
                recompute(model)
            yield model
        return
    config = read_config(Path(job.teacher), "teacher")
    dtype = dtype_of(config, job.dtype, native=has_bfloat16())
    with sharded(job.teacher, member, dtype=dtype, offload=offload) as model:
        recompute(model)
        yield model


def recompute(model: Any) -> None:
    """Gradient checkpointing of a model in evaluation mode: no layer's dropout comes with it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # on this module alone: it is all that decides about recomputing


def rounds(job: Job, world: int) -> Iterator[list[list[Encoded]]]:
    """Each round's batches, one a rank; in the last round some ranks have none."""
    tokens = job.placement.tokens // len(job.metric.points())
    share = -(-len(job.encoded) // world)
    groups = batches(job.encoded, tokens, at_most=min(share, job.at_once or share))
    for first in range(0, len(groups), world):
        some = groups[first : first + world]
        yield some + [[]] * (world - len(some))


def backward(
    job: Job, member: Member, model: nn.Module, batch: list[Encoded], going: Callable[[list[Encoded]], object] = len
) -> Passed:
    """One forward and backward pass over some examples; who listens to the model (`collect`) has what comes of it.

    An empty batch goes through as a token of weight zero, so that other ranks don't wait for this one's shards.
    Where examples are to be left out, all ranks do the round again without theirs: nothing of them is counted.
    `going` is told what will go backward. UserError for a loss that is not finite, with the example's id.
    """
    losses = _losses(job, model, batch)
    if not job.skip_bad:
        check_losses(batch, losses, "leave it out, or let --skip-bad-examples do it")
    elif left_out := _everybodys(_bad(batch, losses), member):
        del losses  # and with it what the backward pass would have needed
        good = [example for example in batch if example.id not in left_out]
        own, more = backward(job, member, model, good, going)
        return own, left_out | more
    going(batch)
    losses.sum().backward()
    return batch, set()


def check_losses(batch: list[Encoded], losses: Tensor, remedy: str) -> None:
    """UserError for a loss that is not finite, with the example's id."""
    if bad := _bad(batch, losses):
        id, loss = next(iter(bad.items()))
        raise UserError(f"data: the teacher's loss on seed example {id!r} is {loss}; {remedy}")


def _bad(batch: list[Encoded], losses: Tensor) -> dict[str, float]:
    pairs = zip(batch, losses.tolist(), strict=False)  # an empty batch has the loss of a token that doesn't count
    return {example.id: loss for example, loss in pairs if not math.isfinite(loss)}


def _losses(job: Job, model: nn.Module, batch: list[Encoded]) -> Tensor:
    """Each example's loss, (b,): the mean over the points at which the metric looks at it."""
    tensors = {name: job.metric.repeat(tensor).to(device()) for name, tensor in inputs(job, batch).items()}
    labels = tensors.pop("labels")
    span = labelled(labels)
    logits = model(**tensors, use_cache=False, logits_to_keep=span).logits
    if not batch:
        return (logits * 0).sum().view(1)
    return example_losses(logits, labels[:, span]).view(len(batch), -1).sum(1)


def inputs(job: Job, batch: list[Encoded]) -> dict[str, Tensor]:
    """A batch as tensors; an empty one is a single token that no mask lets count."""
    return collate(batch or [Encoded("", [job.pad], [-100])], job.pad)


def _everybodys(ids: Iterable[str], member: Member) -> set[str]:
    """The union of the ranks' sets."""
    if member.world == 1:
        return set(ids)
    every: list[set[str]] = [set()] * member.world
    torch.distributed.all_gather_object(every, set(ids))
    return set().union(*every)


def device() -> torch.device:
    """Where a rank computes. A sharded parameter can't tell: its shard may be offloaded."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory() -> int:
    """Bytes in use: the GPU's, or this process's own. A mapped checkpoint isn't, where the system tells it apart."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    held = psutil.Process().memory_info()
    return held.rss - getattr(held, "shared", 0)  # psutil has it on Linux alone
