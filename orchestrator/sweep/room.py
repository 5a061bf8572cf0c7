"""What there is room for on this machine or its cluster, and how much of a sweep goes on there at once."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from orchestrator.cluster import gpus
from orchestrator.cluster.ranks import Placement
from orchestrator.cluster.session import USABLE, connected, cores, nodes
from orchestrator.prepare.native import workers_have_bfloat16
from orchestrator.run import Run
from orchestrator.sweep.hardware import Hardware
from orchestrator.sweep.plan import Forecast

BESIDE = 2_000_000_000  # bytes of this machine that the sweep's own process and Ray's have


def here(run: Run, memory: float | None) -> Hardware | None:
    """What this machine or its cluster has for the ranks; None for a cluster without GPUs, or that doesn't tell.

    `memory` is what each GPU has, where that is said.
    """
    import psutil

    found = Hardware(
        tokens=run.tokens_at_once or Placement.tokens, fewer=run.tokens_at_once is None, offload=bool(run.offload),
        native=workers_have_bfloat16(), workers=run.workers, sharded=run.shard_student,
    )  # fmt: skip
    ranks, remote = run.ranks, bool(os.environ.get("RAY_ADDRESS"))
    with connected() if remote else nullcontext():
        count = int(sum(node.get("GPU", 0) for node in nodes())) - gpus.assigned() if remote else gpus.local()
        if count and not memory:
            memory = gpus.memory_of_nodes() if remote else gpus.memory(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if memory:
        share = min(1.0, run.gpus_per_trial or 1.0)  # of a GPU
        return replace(found, gpus=ranks or count or None, memory=memory, trial=memory * share)
    if count:
        logging.getLogger("pkt").warning("no GPU tells its memory, so that none is checked; say it with --gpu-memory")
    if count or remote:
        return None
    own = max(psutil.virtual_memory().total - BESIDE, 0)
    trial = own / (run.trials_at_once or 1) / run.workers
    return replace(found, gpus=ranks or 1, memory=own / (ranks or 1), cuda=False, trial=trial)


def within(run: Run, told: Forecast, hardware: Hardware) -> Run:
    """With as many tokens and, without GPUs, as many trials at once as there is memory for, where that wasn't said.

    Without GPUs, what a process takes is asked for where not just any of them have room beside each other.
    """
    more: dict[str, Any] = {"replicate": told.replicated, "gradient_checkpointing": told.recompute}
    if told.held.tokens < hardware.tokens:
        more["tokens_at_once"] = told.held.tokens
    if told.held.answers != hardware.answers:
        more["answers_at_once"] = told.held.answers
    if not hardware.cuda:
        peaks = {name: float(cost.per_rank.peak_bytes) for name, cost in told.steps.items()}
        peaks["trial"] = max(peaks["finetune"], peaks["score"])
        most = run.trials_at_once or max(1, cores() // run.cpus_per_trial // run.workers)
        if run.trials_at_once is None:
            fitting = max(1, int(USABLE * (hardware.trial or hardware.memory) // peaks["trial"]))
            if fitting < most:
                more["trials_at_once"] = most = fitting
        ranks = hardware.gpus or 1
        if ranks * max(peaks.values()) + (most - 1) * peaks["trial"] > USABLE * ranks * hardware.memory:
            more["memory"] = peaks
    return run.model_copy(update=more)
