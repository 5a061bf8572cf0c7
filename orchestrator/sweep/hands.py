"""Who does a step, and with what: what is set aside for it of a cluster, by what it needs and how the run is asked for.

    hands = Hands(store, run, gpus, notes)
    run_trials(hands.work, items, done, asks=hands.asks, ready=hands.ready, ...)

A trial has its share of GPUs, or asks for none where a group of workers trains: these ask for their own. A teacher's
step is done by ranks, processes with a GPU each, or, where there is no GPU and one rank, by the process that has the
step, with the cores that nothing else is to be done with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from orchestrator.cluster.groups import Group
from orchestrator.cluster.ranks import Placement, refuse_unless_room, within_a_node
from orchestrator.cluster.searches import Bundles
from orchestrator.cluster.session import cores, nodes, room
from orchestrator.cluster.trials import Rungs
from orchestrator.errors import UserError
from orchestrator.run import Run
from orchestrator.step import Step, lacking
from orchestrator.store import Store
from orchestrator.sweep.work import Work


@dataclass
class Hands:
    """Of one queue, while Ray runs."""

    store: Store
    run: Run
    gpus: float  # of a trial
    notes: Path
    _waits: dict[str, set[tuple[str, str]]] = field(default_factory=dict)  # steps that an item waits for
    _missing: dict[tuple[str, str], bool] = field(default_factory=dict)  # of those that were looked for

    @cached_property
    def placement(self) -> Placement:
        """Of what ranks do."""
        with placement_of(self.run).settled() as settled:
            found = _on_one_node(settled, self.run) if self.store.apart else settled
        return replace(found, cpus=self._most) if found.here else found

    @property
    def _most(self) -> int:
        """Cores of the largest node."""
        return int(max(node.get("CPU", 1) for node in nodes()))

    @property
    def group(self) -> Group | None:
        """Who trains, where that isn't one process."""
        workers = self.run.workers
        return Group(workers, self.run.cpus_per_trial, self.gpus / workers) if workers > 1 else None

    @property
    def work(self) -> Work:
        """What a worker does with a step."""
        run = self.run
        return Work(
            self.store.address, str(self.notes), run.cpus_per_trial, run.system_metrics, run.portable, self.group,
            run.shard_student, self.placement,
        )  # fmt: skip

    def expect(self, items: Sequence[Rungs[Step]], alone: bool) -> None:
        """These join the queue, which is empty but for them where they are `alone`.

        A teacher's step that one process does takes the cores that the others leave it, or half of all.
        """
        if self.placement.here:
            own, most = self.run.cpus_per_trial, self._most
            beside = sum(self.ready(rungs) and rungs[0][0].needs != "ranks" for rungs in items) * own
            cpus = min(most if alone else self.placement.cpus, max(own, most - beside, most // 2))
            self.placement = replace(self.placement, cpus=cpus)

    @property
    def at_once(self) -> int | None:
        """As many trials as this process has cores for. A cluster bounds itself, unless trials wait for groups."""
        run = self.run
        if self.group and not run.trials_at_once:
            return max(1, room(nodes(), run.cpus_per_trial, self.group.gpus) // run.workers)
        here = None if "RAY_ADDRESS" in os.environ else max(1, cores() // run.cpus_per_trial)
        return run.trials_at_once or here

    def ready(self, rungs: Rungs[Step]) -> bool:
        """Whether all that ranks have to do before it is there."""
        key = rungs[0][0].fingerprint
        if key not in self._waits:
            self._waits[key] = {(one.name, one.fingerprint) for step in rungs[0] for one in lacking(step, self.store)}
        for one in self._waits[key] - self._missing.keys():
            self._missing[one] = not self.store.has(*one)
        self._waits[key] = {one for one in self._waits[key] if self._missing[one]}
        return not self._waits[key]

    def look_again(self) -> None:
        """Something that others may wait for was made."""
        self._missing.clear()

    def asks(self, rungs: Rungs[Step]) -> Bundles | None:
        """What is set aside for it; None: as for any trial. UserError where no cluster of these nodes ever has it."""
        step = rungs[0][0]
        if step.needs != "ranks":
            own = "tune" if step.name == "finetune" else "trial"  # a student's training is a part of its trial
            memory = {} if self.group else self._memory(own)
            return [{"CPU": self.run.cpus_per_trial, "GPU": self.gpus, **memory}] if memory else None
        ranks = self.placement.ranks or 1
        memory = self._memory({"evaluate": "teacher_score", "extract": "extract"}.get(step.name, "measure"), ranks)
        if self.placement.here:
            return [{"CPU": self.placement.cpus, **memory}]
        each = refuse_unless_room(self.placement)
        return [{}, *[{**each, **memory}] * ranks]

    def _memory(self, name: str, processes: int = 1) -> dict[str, float]:
        """What the plan says that each process takes; no more than there is, where somebody goes on all the same."""
        if name not in self.run.memory:
            return {}
        most = max(node.get("memory", 0.0) for node in nodes()) // processes
        return {"memory": min(self.run.memory[name], most)}


def placement_of(run: Run) -> Placement:
    """How what ranks do is done."""
    tokens = run.tokens_at_once or Placement.tokens
    return Placement(run.ranks, run.cpus_per_trial, run.offload, tokens, run.answers_at_once, run.replicate)


def refuse_unless_shared(store: Store) -> None:
    """UserError on a cluster whose nodes nothing joins, for a command whose processes read each other's folders."""
    if store.apart and os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"store: {store.address} is no folder that all nodes see, which `pkt run` and `extract` need on a cluster;"
            " name one with --store, or take `pkt sweep`"
        )


def _on_one_node(settled: Placement, run: Run) -> Placement:
    """Ranks that read each other's folders, and workers that share a training. UserError where no node has them all."""
    if run.workers > 1 and len(nodes()) > 1:
        raise UserError(
            "store: workers that share a training need a folder that all nodes see; name one with --store, or give each"
            " training one GPU"
        )
    if settled.here:
        return settled
    most = within_a_node(settled)
    if (run.ranks or 1) > most:
        raise UserError(
            f"ranks: with a store that is no folder all ranks are on one node, and none has room for more than {most};"
            f" ask for --ranks {most}, or name a folder that all nodes see with --store"
        )
    return replace(settled, ranks=min(settled.ranks or 1, most))
