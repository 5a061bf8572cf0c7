"""A step as a value, and the one rule: a step whose folder is there is not run.

adapter = Step("finetune", finetune, config={...}, inputs={"rows": train})
folder = materialise(adapter, store)         # runs what is missing, inputs first
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from orchestrator.cluster.ranks import HERE, Placement
from orchestrator.store import Store, fingerprint

T = TypeVar("T")
# Items as they come, and progress through them; an item's line is the item, where it is a string, or what is sent back.
Track = Callable[[Iterable[T], str, int], Generator[T, str | None, None]]


# How a step's work is done: in this process, or by others that it waits for.
Do = Callable[["Step", Callable[[], T]], T]

# Whom a step needs: nobody in particular, being done in a moment; a process with room for a model; all that share a
# training; as many ranks as hold a model between them that may be too large for one.
Needs = Literal["nobody", "model", "group", "ranks"]
OWN = ("adapter", "before")  # names of inputs that are made for one trial alone


def itself(step: Step, work: Callable[[], T]) -> T:
    """In this process."""
    return work()


def silent(items: Iterable[T], what: str, total: int) -> Generator[T, str | None, None]:
    """Progress for whoever has no screen."""
    for item in items:  # noqa: UP028  (what is sent back is for nobody)
        yield item


@dataclass(frozen=True)
class Step:
    """`run(folder, **config, **where, **inputs)` and what names its result.

    `config` and `identity` (contents that `config` doesn't hold, such as a model's hash) are hashed, and so are the
    inputs' fingerprints. `where` (folders, devices) is passed and never hashed. `version` rises when `run` changes
    what it computes. `needs` says who has to make it, and `Run` how many of them there are and what each has.
    """

    name: str
    run: Callable[..., dict[str, Any] | None]
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Step] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    needs: Needs = "nobody"

    @cached_property
    def fingerprint(self) -> str:
        """The result's name."""
        return fingerprint(self.lineage)

    @property
    def lineage(self) -> dict[str, Any]:
        """Everything that determines the result."""
        return {
            "step": self.name,
            "version": self.version,
            "config": dict(self.config),
            "identity": dict(self.identity),
            "inputs": {key: step.fingerprint for key, step in self.inputs.items()},
        }

    def ancestors(self) -> Iterator[Step]:
        """Every step that this one builds on, nearest last, and then itself."""
        for step in self.inputs.values():
            yield from step.ancestors()
        yield self


def lacking(step: Step, store: Store) -> list[Step]:
    """What many build on that a step which the store lacks still waits for, inputs first."""
    if store.has(step.name, step.fingerprint):
        return []
    found: dict[str, Step] = {}
    for name, before in step.inputs.items():
        found |= {one.fingerprint: one for one in lacking(before, store)}
        alone = name in OWN and step.needs != "ranks"  # ranks score what others have trained
        shared = before.needs == "ranks" or (before.needs != "nobody" and not alone)
        if shared and not store.has(before.name, before.fingerprint):
            found[before.fingerprint] = before
    return list(found.values())


def materialise(
    step: Step,
    store: Store,
    track: Track[Any] = silent,
    placement: Placement = HERE,
    do: Do[Any] = itself,
) -> Path:
    """The step's folder, made now if it isn't there. The manifest tells inputs, versions, time and peak memory.

    `track` shows progress. Steps that need ranks get them as `placement` says; `do` calls the work of those that need a
    model or a group, here or in other processes.
    """
    if folder := store.find(step.name, step.fingerprint):
        return folder
    inputs = {key: materialise(before, store, track, placement, do) for key, before in step.inputs.items()}
    try:
        if step.needs == "nobody":
            return _run(step, store, inputs)
        extra: dict[str, Any] = {"track": track}
        extra |= {"placement": placement} if step.needs == "ranks" else {"do": do}
        with store.resumable(step.name, step.fingerprint) as partial:
            found = store.find(step.name, step.fingerprint)  # another process may have made it meanwhile
            return found or _run(step, store, inputs, partial=partial, **extra)
    except Exception:
        if all(store.find(before.name, before.fingerprint) for before in step.inputs.values()):
            raise
        return materialise(step, store, track, placement, do)  # another sweep has let go of what this one was reading


def _run(step: Step, store: Store, inputs: Mapping[str, Path], do: Do[Any] = itself, **extra: Any) -> Path:
    manifest: dict[str, Any] = {"lineage": step.lineage, "versions": versions()}
    with store.writing(step.name, step.fingerprint, manifest) as folder:
        began = time.perf_counter()
        work = partial(_work, step.run, folder, {**step.config, **step.where, **inputs, **extra})
        facts, manifest["peak_memory_bytes"] = do(step, work)
        manifest["seconds"] = round(time.perf_counter() - began, 3)
        manifest["facts"] = facts or {}
    found = store.find(step.name, step.fingerprint)
    assert found is not None
    return found


def _work(run: Callable[..., Any], folder: Path, arguments: Mapping[str, Any]) -> tuple[Any, int]:
    """Call the step; returns the facts that it tells, and the peak memory of the process that did it."""
    return run(folder, **arguments), peak_memory()


@cache
def versions() -> dict[str, str]:
    """The libraries that numbers depend on."""
    names = ("pkt", "torch", "transformers", "peft", "lm-eval", "deepspeed", "ray")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}


def peak_memory() -> int:
    """The process's largest resident size so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
