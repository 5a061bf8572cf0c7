"""Who does a step, and with what: what is set aside for it of a cluster, by what it needs and how the run is asked for.

    hands = Hands(store, run, gpus, notes)
    run_trials(hands.work(items), items, done, asks=hands.asks, ready=hands.ready, ...)

A trial has its share of GPUs, or asks for none where a group of workers trains: these ask for their own. What ranks do
is done by processes of a machine that a whole GPU each is set aside for; where there is no GPU, by the one that has the
step itself, with the cores that nothing else is to be done with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.cluster.groups import Group
from orchestrator.cluster.ranks import HERE, Placement, refuse_unless_room
from orchestrator.cluster.searches import Bundles
from orchestrator.cluster.session import cores, nodes, room
from orchestrator.cluster.trials import Rungs
from orchestrator.recipe import Run
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
    placement: Placement = HERE  # of what ranks do, once that is known

    @property
    def group(self) -> Group | None:
        """Who trains, where that isn't one process."""
        workers = self.run.workers
        return Group(workers, self.run.cpus_per_trial, self.gpus / workers) if workers > 1 else None

    def work(self, items: Sequence[Rungs[Step]]) -> Work:
        """What a worker does with a step of these, or of others that they make possible."""
        run = self.run
        with placement_of(run).settled() as settled:
            self.placement = settled
        if settled.here:
            beside = sum(self.ready(rungs) and rungs[0][0].needs != "ranks" for rungs in items) * run.cpus_per_trial
            most = int(max(node.get("CPU", 1) for node in nodes()))
            self.placement = replace(settled, cpus=max(run.cpus_per_trial, most - beside, most // 2))
        return Work(
            self.store.address, str(self.notes), run.cpus_per_trial, run.system_metrics, run.portable, self.group,
            run.shard_student, self.placement,
        )  # fmt: skip

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
        return not any(lacking(step, self.store) for step in rungs[0])

    def asks(self, rungs: Rungs[Step]) -> Bundles | None:
        """What is set aside for it; None: as for any trial. UserError where no cluster of these nodes ever has it."""
        step = rungs[0][0]
        if step.needs != "ranks":
            memory = {} if self.group else self._memory("trial")
            return [{"CPU": self.run.cpus_per_trial, "GPU": self.gpus, **memory}] if memory else None
        memory = self._memory({"evaluate": "teacher_score", "extract": "extract"}.get(step.name, "measure"))
        if self.placement.here:
            return [{"CPU": self.placement.cpus, **memory}]
        each = refuse_unless_room(self.placement)
        return [{}, *[{**each, **memory}] * (self.placement.ranks or 1)]

    def _memory(self, name: str) -> dict[str, float]:
        """What the plan says that a process takes; no more than there is, where somebody goes on all the same."""
        most = max(node.get("memory", 0.0) for node in nodes())
        return {"memory": min(self.run.memory[name], most)} if name in self.run.memory else {}


def placement_of(run: Run) -> Placement:
    """How what ranks do is done."""
    tokens = run.tokens_at_once or Placement.tokens
    return Placement(run.ranks, run.cpus_per_trial, run.offload, tokens, run.answers_at_once, run.replicate)
