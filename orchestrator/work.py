"""What a worker process does with a step. It imports this alone, since each one's start is paid for again."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.steps.evaluate import read_metrics
from orchestrator.steps.step import Step, materialise
from orchestrator.store import Store
from orchestrator.system_metrics import sampled, samples_of


@dataclass(frozen=True)
class Work:
    """Makes what the store lacks, and nothing else."""

    store: str
    cpus: int
    sampled: bool = False  # watch the machine meanwhile

    def __call__(self, step: Step) -> dict[str, Any]:
        """The evaluation's figures; nothing for another step."""
        import torch

        torch.set_num_threads(self.cpus)  # a worker that inherits the driver's OMP_NUM_THREADS would crowd the others
        store = Store(Path(self.store))
        adapter = step.inputs.get("adapter")
        watch = self.sampled and adapter and not store.find(adapter.name, adapter.fingerprint)
        with sampled(samples_of(store, adapter)) if watch and adapter else nullcontext():
            folder = materialise(step, store)
        _settle()
        return read_metrics(folder) if step.name == "evaluate" else {}


@cache
def _settle() -> None:
    """Once the first trial has imported it all: each collection that Trainer asks for walked all libraries again."""
    gc.collect()
    gc.freeze()
