"""A Ray session that starts quietly, says what it lacks before anything waits for it, and always ends."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import UserError


@contextmanager
def session(*, cpus: float, gpus: float) -> Iterator[dict[str, float]]:
    """Ray on this machine, or the cluster whose job this process is (RAY_ADDRESS); yields its resources.

    UserError where no node could ever place a trial of `cpus` and `gpus`: Ray would let it wait for ever.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; unset, Ray warns of it
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    ray.init(
        address=os.environ.get("RAY_ADDRESS") or "local",
        include_dashboard=None if os.environ.get("RAY_ADDRESS") else False,
        configure_logging=True,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            there = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise UserError(
                f"run: a trial needs {cpus:g} CPUs and {gpus:g} GPUs on one node, the nodes have {there};"
                " ask for less with --cpus-per-trial or --gpus-per-trial"
            )
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
