"""A Ray session that starts quietly, says what it lacks before anything waits for it, and always ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.cluster.gpus import assigned
from orchestrator.errors import UserError

USABLE = 0.92  # of a device's memory: the rest is the driver's or the system's, the kernels' and fragments


@contextmanager
def connected() -> Iterator[None]:
    """Ray on this machine, or the cluster whose job this process is (RAY_ADDRESS); a session already open is used.

    On this machine Ray would promise cores that this process may not use (taskset, a scheduler's share), too: where
    there are such, it is told how many. RAY_OVERRIDE_RESOURCES='{"CPU": 4}', which is Ray's own, has the last word.
    UserError where the cluster doesn't answer.
    """
    import psutil
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; unset, Ray warns of it
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    address = os.environ.get("RAY_ADDRESS") or "local"
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            num_cpus=mine if address == "local" and (mine := cores()) < (os.cpu_count() or 1) else None,
            # what the plan counts on; Ray would take what is free at this moment, and less
            _memory=int(USABLE * psutil.virtual_memory().total) if address == "local" else None,
            include_dashboard=False if address == "local" else None,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except SystemExit as end:  # by Ray's own handler of SIGTERM, which ends the process without a word
        raise KeyboardInterrupt from end
    except ConnectionError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"RAY_ADDRESS: no Ray cluster at {address} ({reason}); start one, or unset it") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


def cores() -> int:
    """Of this machine, those that this process may use; all, where the system can't tell (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores(otherwise: int) -> int:
    """Those that Ray has set aside for this process, where it is one of its workers."""
    import ray

    about = ray.get_runtime_context() if ray.is_initialized() else None
    return int(about.get_assigned_resources().get("CPU", 1)) if about and about.get_actor_id() else otherwise


def nodes() -> list[dict[str, float]]:
    """What each living node has in all, whether it is free or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(there: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """Processes of so many CPUs and GPUs that nodes could have at once if they had nothing else."""
    most = ([node.get("CPU", 0) // cpus] + ([node.get("GPU", 0) // gpus] if gpus else []) for node in there)
    return sum(int(min(each)) for each in most)


def inventory(there: list[dict[str, float]]) -> str:
    """What nodes have, for people."""
    return "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in there)


@contextmanager
def session(*, cpus: float, gpus: float | None, workers: int = 1) -> Iterator[float]:
    """Ray, with room for a trial; yields a trial's GPUs. `gpus` None: one a worker, where any node has one.

    UserError where no node could ever place a worker of `cpus` and its share of the GPUs, or all together not a trial's
    `workers`, since Ray would let them wait for ever.
    """
    with connected():
        there = nodes()
        if gpus is None:
            gpus = float(workers) if any(node.get("GPU") for node in there) else 0.0
        held = assigned() if gpus else 0
        fits = room(there, cpus, gpus / workers) >= workers
        if not fits or sum(node.get("GPU", 0) for node in there) - held < gpus:
            own = f", of which this job itself holds {held} GPUs" if held else ""
            needs = f"{cpus:g} CPUs and {gpus / workers:g} GPUs on one node"
            needs = needs if workers == 1 else f"{workers} workers, each of {needs}"
            raise UserError(
                f"run: a trial needs {needs}, the nodes have {inventory(there)}"
                f"{own}; ask for less with --cpus-per-trial or --gpus-per-trial"
            )
        yield gpus
