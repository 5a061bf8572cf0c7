"""What a worker process does with a step. It imports this alone, since each one's start is paid for again."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.cluster.groups import Group
from orchestrator.cluster.ranks import HERE, Placement
from orchestrator.cluster.session import own_cores
from orchestrator.models.borrowed import let_go
from orchestrator.models.freed import trim
from orchestrator.models.portable import portable
from orchestrator.scoring.evaluate import read_metrics
from orchestrator.step import Step, Track, itself, materialise
from orchestrator.store import Store
from orchestrator.tracking.system_metrics import sampled

NOTED = 1.0  # seconds between two notes of how far a trial is
MOST = 4  # trials of which that is told


@dataclass(frozen=True)
class Work:
    """Makes what the store lacks, and nothing else."""

    store: str  # its address
    notes: str  # a folder, in which each trial notes how far it is
    cpus: int
    sampled: bool = False  # watch the machine meanwhile
    portable: bool = False  # compute by kernels that CPUs share
    group: Group | None = None  # who trains, where that isn't this process; one of them scores
    sharded: bool = False  # each of the group holds a part of the student while it trains
    placement: Placement = HERE  # of what ranks do

    def __call__(self, step: Step) -> dict[str, Any]:
        """The evaluation's figures, what there was to warn of, and how far a teacher's step came in what time."""
        import torch

        warnings, ended = _Heard(), list[str]()
        placement = replace(self.placement, reserved=step.needs == "ranks" and not self.placement.here)
        if placement.here:  # the driver knows what else there was to do when it was begun
            placement = replace(placement, cpus=own_cores(placement.cpus))
        # a worker that inherits the driver's OMP_NUM_THREADS would crowd the others
        torch.set_num_threads(placement.cpus if step.needs == "ranks" else self.cpus)
        if self.portable:
            portable()
        step = sharded(step) if self.sharded else step
        store, note = Store(self.store), Path(self.notes) / step.fingerprint
        adapter = step if step.name == "finetune" else step.inputs.get("adapter")
        watch = self.sampled and adapter and not store.find(adapter.name, adapter.fingerprint)
        if step.needs == "ranks":
            let_go()  # the teacher is to have the room
        try:
            with warnings, sampled(samples_of(store, adapter)) if watch and adapter else nullcontext():
                do = self._by_group if self.group else itself
                folder = materialise(step, store, noting(note, ended.append), placement, do)
        finally:
            note.unlink(missing_ok=True)
        _settle()
        trim()
        figures = read_metrics(folder) if step.name == "evaluate" else {}
        if step.needs != "ranks" or (figures and placement.here):  # a trial's score has a line of its own
            ended.clear()
        return {**figures, "warnings": warnings.lines, "ended": ended}

    def _by_group(self, step: Step, work: Callable[[], Any]) -> Any:
        assert self.group
        group = self.group if step.needs == "group" else replace(self.group, workers=1)
        return group(work, Path(self.notes) / f".{step.fingerprint}")


def samples_of(store: Store, step: Step) -> Path:
    """Where a training's system metrics are, if any were taken."""
    return store.root / "system" / f"{step.fingerprint}.jsonl"


class _Heard(logging.Handler):
    """While open, what there is to warn of is kept for whoever has a screen: this process has none."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """A line."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("pkt").addHandler(self)

    def __exit__(self, *error: object) -> None:
        logging.getLogger("pkt").removeHandler(self)


def sharded(step: Step) -> Step:
    """The same step, whose trainings are done by ranks that hold a part of the student each."""
    where = {**step.where, "sharded": True} if step.needs == "group" else step.where
    return replace(step, where=where, inputs={key: sharded(before) for key, before in step.inputs.items()})


def noting(file: Path, ended: Callable[[str], object] = id) -> Track[Any]:
    """Progress for a screen elsewhere: how far the step is, in a file for whoever looks; `ended` is told its end."""

    def write(line: str) -> None:
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        with suppress(OSError):  # no reason to lose a training
            aside.write_text(line)
            aside.replace(file)

    def track(items: Iterable[Any], what: str, total: int) -> Generator[Any, str | None, None]:
        began = last = time.monotonic()
        done, line = 0, ""
        write(f"{what} 0/{total}")  # the first alone may take minutes
        for item in items:
            if (now := time.monotonic()) - last >= NOTED:
                last = now
                write(f"{what} {done}/{total} {line}".strip())
            yield item
            done, line = done + 1, item if isinstance(item, str) else ""
        ended(f"{what}: {done}/{total} after {time.monotonic() - began:.0f} s  {line}")

    return track


def under_way(folder: Path, labels: Mapping[str, str]) -> str:
    """How far the trials are that run now, for people; `labels` by fingerprint."""
    found = []
    for note in folder.glob("[!.]*"):
        with suppress(OSError, KeyError):  # it has just ended
            found.append(f"{labels[note.name]} {note.read_text()}".strip())
    found.sort()
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return f"running: {', '.join(found[:MOST])}{more}" if found else ""


def _settle() -> None:
    """A trial's models, which lie in circles, are let go before the next loads its own."""
    gc.collect()
    if "transformers.trainer" in sys.modules:
        _freeze()


@cache
def _freeze() -> None:
    """Once the first trial has imported it all: each collection that Trainer asks for walked all libraries again."""
    gc.freeze()
