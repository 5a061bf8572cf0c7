"""A trial outside of any sweep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.cluster.ranks import Placement, spread
from orchestrator.cluster.session import nodes
from orchestrator.run import Run
from orchestrator.step import Step, materialise
from orchestrator.store import Store
from orchestrator.sweep.hands import placement_of, refuse_unless_shared
from orchestrator.sweep.screen import Screen
from orchestrator.sweep.work import Work, under_way
from orchestrator.tasks.rows import light


def alone(step: Step, store: Store, run: Run, screen: Screen) -> Path:
    """A trial outside of any sweep, with all that it builds on.

    Where there is a GPU, each part is done in a process that ends and gives all of it back to the next.
    """
    refuse_unless_shared(store)
    if store.find(step.name, step.fingerprint) is None:
        with placement_of(run).settled() as placement:
            for part in step.ancestors():
                if part.needs == "nobody" or store.find(part.name, part.fingerprint):
                    continue
                screen.say(f"{part.name} ...")
                if part.needs == "ranks" or placement.here or not any(node.get("GPU") for node in nodes()):
                    materialise(part, store, screen.track, placement)
                else:
                    _apart(part, store, placement, screen)
    return materialise(step, store)


def _apart(step: Step, store: Store, placement: Placement, screen: Screen) -> None:
    with store.resumable(step.name, f"{step.fingerprint}-logs") as logs:
        work = Work(store.address, str(logs), placement.cpus)
        going = partial(under_way, logs, {step.fingerprint: step.name})
        with screen.trials(step.name, 1, going) as tick:
            for _ in spread(replace(placement, ranks=1, offload=None), work, [light(step, store)], logs):
                tick("")
