"""A group of processes that work on one thing together: one a GPU, or plain ones where there is none.

    for rank, event in stream(Placement(ranks=8), teacher_pass, job, logs): ...    # what each rank yields, as it comes
    for block in spread(Placement(ranks=8), cutter.cut, modules, logs): ...        # a list of works, in its order

A group is placed whole or not at all, and ends whole: where one rank dies, the others would wait for it for ever.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.cluster import gpus
from orchestrator.cluster.session import connected, cores, inventory, nodes, room
from orchestrator.errors import UserError

LAST_LINES = 12
GATHERED = 1_000_000_000  # parameters that a rank of several keeps whole at once: a layer's, and the next ones'
PATIENCE = 10  # seconds: before a wait for room is told, and to learn of a death


@dataclass(frozen=True)
class Placement:
    """Where a teacher's work is done. `ranks` None: every GPU there is, and one process where there is none."""

    ranks: int | None = None
    cpus: int = 1  # of each rank
    offload: str | None = None  # "cpu", or a folder on a local disk: where a shard's parameters wait
    tokens: int = 4096  # padded ones, that a rank takes through the model at once
    answers: int | None = None  # tokens of questions with their answers at once: shards are gathered for each
    replicate: bool = False  # each rank holds the whole teacher: nothing is sent but the sums

    here: bool = False  # this process does the work itself, with whatever it was given
    reserved: bool = False  # the placement group that this process is in was made for the ranks

    @contextmanager
    def settled(self) -> Iterator[Placement]:
        """With the number of ranks known. While open, Ray is there if ranks are needed elsewhere than here.

        One rank that holds all is here where there is no GPU. Where there is one, this process would keep a part of
        its memory, beside the trials, for as long as it lives: the rank is a process that ends.
        """
        if self.reserved:  # by the driver, who had settled it
            yield self
            return
        alone = (self.ranks or 1) == 1 and not self.offload and not gpus.local()
        if self.here or (alone and not os.environ.get("RAY_ADDRESS")):
            yield replace(self, ranks=1, here=True)
            return
        with connected():
            there = int(sum(node.get("GPU", 0) for node in nodes()))
            ranks = self.ranks or max(1, there - gpus.assigned())
            here, cpus = ranks == 1 and not self.offload and not there, self.cpus
            if there and not os.environ.get("RAY_ADDRESS"):  # a rank does what this process would do with all of them
                cpus = max(cpus, int(min(cores(), nodes()[0]["CPU"])) // there)
            yield replace(self, ranks=ranks, cpus=cpus, here=here)

    @property
    def sharded(self) -> bool:
        """Whether no rank holds the teacher whole."""
        return bool(self.offload) or ((self.ranks or 1) > 1 and not self.replicate)

    @property
    def facts(self) -> dict[str, Any]:
        """How the teacher is held, for a step's manifest."""
        return {"ranks": self.ranks, "teacher": "in shards" if self.sharded else "whole on each rank"}


HERE = Placement(1, here=True)  # of a trial's worker, whose GPU is its own


@dataclass(frozen=True)
class Member:
    """One of a group: its number, and where the group meets."""

    rank: int = 0
    world: int = 1
    address: str = ""


class RankDied(UserError):
    """A process of the group is gone; the message names it and ends with its last lines."""


def stream(
    placement: Placement, work: Callable[[Any, Member], Iterator[Any]], job: Any, logs: Path
) -> Iterator[tuple[int, Any]]:
    """Run `work(job, member)` on every rank at once; yields (rank, event) as events come.

    UserError where the group can never be placed; RankDied where a process is gone; what a rank raises is raised.
    """
    if placement.here:
        for event in work(job, Member()):
            yield 0, event
        return
    import ray

    with _group(placement, logs) as actors:
        address = _get(actors[0].address.remote(), 0, logs)
        members = [Member(rank, len(actors), address) for rank in range(len(actors))]
        streams = {
            actor.stream.options(num_returns="streaming").remote(work, job, member): member.rank
            for actor, member in zip(actors, members, strict=True)
        }
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1)
            rank = streams[ready[0]]
            try:
                yield rank, _get(next(ready[0]), rank, logs)
            except StopIteration:
                del streams[ready[0]]
            except ray.exceptions.RayTaskError:  # perhaps of a rank that only misses another
                _find_the_dead(actors, logs)
                raise


def spread(placement: Placement, work: Callable[[Any], Any], items: Sequence[Any], logs: Path) -> Iterator[Any]:
    """`work` of every item, in their order, by whichever rank is free."""
    if placement.here:
        yield from map(work, items)
        return
    import ray

    with _group(placement, logs) as actors:
        shared = ray.put(work)
        results: dict[int, Any] = {}
        busy: dict[Any, tuple[int, int]] = {}
        waiting, idle, told = list(enumerate(items))[::-1], list(range(len(actors))), 0
        while told < len(items):
            while waiting and idle:
                index, item = waiting.pop()
                rank = idle.pop()
                busy[actors[rank].call.remote(shared, item)] = (index, rank)
            ready, _ = ray.wait(list(busy), num_returns=1)
            index, rank = busy.pop(ready[0])
            results[index] = _get(ready[0], rank, logs)
            idle.append(rank)
            while told in results:
                yield results.pop(told)
                told += 1


@contextmanager
def _group(placement: Placement, logs: Path) -> Iterator[list[Any]]:
    """The ranks' actors, all placed; killed at the end, since a rank may wait for another that is gone."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with connected(), _placed(placement) as group:
        logs.mkdir(parents=True, exist_ok=True)
        compiled = tempfile.mkdtemp(prefix="compiled-", dir=logs)
        actors = []
        try:
            for rank in range(placement.ranks or 1):
                options = ray.remote(_Rank).options(
                    num_cpus=placement.cpus, num_gpus=group.bundle_specs[rank].get("GPU", 0), max_restarts=0,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                )  # fmt: skip
                actors.append(options.remote(str(_log(logs, rank)), placement.cpus, compiled))
            yield actors
        finally:
            for actor in actors:
                ray.kill(actor)
            shutil.rmtree(compiled, ignore_errors=True)


@contextmanager
def _placed(placement: Placement) -> Iterator[Any]:
    """A placement group with a bundle for each rank: that which was set aside for this process, or one of its own.

    Within one node where one has room for all: between nodes all that ranks send each other is several times slower.
    """
    import ray
    from ray.util.placement_group import get_current_placement_group, placement_group, remove_placement_group

    if placement.reserved:
        yield get_current_placement_group()
        return
    count, bundle = placement.ranks or 1, refuse_unless_room(placement)
    near = within_a_node(placement) >= count
    group = placement_group([bundle] * count, strategy="STRICT_PACK" if near else "PACK")
    try:
        if near and not group.wait(timeout_seconds=PATIENCE):  # the node that has room for all is busy
            remove_placement_group(group)
            group = placement_group([bundle] * count, strategy="PACK")
        if not group.wait(timeout_seconds=PATIENCE):
            free = ray.available_resources()
            logging.getLogger("pkt").warning(
                "waiting for room for %d ranks: %g CPUs and %g GPUs are free now",
                count, free.get("CPU", 0), free.get("GPU", 0),
            )  # fmt: skip
        ray.get(group.ready())
        yield group
    finally:
        remove_placement_group(group)


def _bundle(placement: Placement) -> dict[str, float]:
    """What each rank is placed with: a whole GPU where any node has one."""
    whole = {"GPU": 1.0} if any(node.get("GPU") for node in nodes()) else {}
    return {"CPU": float(placement.cpus), **whole}


def within_a_node(placement: Placement) -> int:
    """How many ranks the node with the most room has room for."""
    bundle = _bundle(placement)
    return max(room([node], bundle["CPU"], bundle.get("GPU", 0)) for node in nodes())


def refuse_unless_room(placement: Placement) -> dict[str, float]:
    """What each rank is placed with. UserError where even an idle cluster hasn't all: Ray would wait for ever."""
    there, count, bundle = nodes(), placement.ranks or 1, _bundle(placement)
    cpus, gpu = placement.cpus, int(bundle.get("GPU", 0))
    held = gpus.assigned() if gpu else 0
    most = room(there, cpus, gpu) - held
    if most < count:
        own = f" and this job holds {held} of the GPUs itself," if held else ""
        raise UserError(
            f"ranks: {count} ranks of {cpus} CPUs and {gpu} GPUs each are asked for, the nodes have {inventory(there)},"
            f"{own} which is room for {most}; {f'ask for --ranks {most} or ' if most > 0 else ''}add nodes"
        )
    return bundle


def _find_the_dead(actors: list[Any], logs: Path) -> None:
    """RankDied where a process of the group is gone; one that works on doesn't answer, and is left alone."""
    import ray

    asked = [actor.address.remote() for actor in actors]
    for rank, reference in enumerate(asked):
        if ray.wait([reference], timeout=PATIENCE / len(asked))[0]:
            _get(reference, rank, logs)


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.log"


def _get(reference: Any, rank: int, logs: Path) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:  # the process is gone: killed, out of memory, never begun, its node dead
        log = _log(logs, rank)
        lines = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:] if log.is_file() else []
        lines = lines or str(error).strip().splitlines()[-1:]
        last = "\n".join(f"    {line}" for line in lines)
        raise RankDied(f"rank {rank} died; its last lines ({log}):\n{last}") from error


class _Rank:
    """One process of a group. Its output goes to a file, which tells of a death; the screen is the user's."""

    def __init__(self, log: str, cpus: int, compiled: str) -> None:
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
        # What a killed process was compiling stays locked, and whoever shares the folder waits for it without end.
        os.environ["TORCH_EXTENSIONS_DIR"] = compiled
        import torch

        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(cpus)

    def address(self) -> str:
        """Where the group meets: a free port of this rank's machine."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def stream(self, work: Callable[[Any, Member], Iterator[Any]], job: Any, member: Member) -> Iterator[Any]:
        """What the rank's work yields, as it comes."""
        yield from work(job, member)

    def call(self, work: Callable[[Any], Any], item: Any) -> Any:
        """One piece of work."""
        return work(item)
