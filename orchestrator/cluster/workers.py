"""What the machines that do a sweep's work say of themselves: this one, or the nodes of the cluster whose job this is.

everywhere(gpu_has_bfloat16, cpu_has_bfloat16)      # True where all that work have it
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from orchestrator.cluster.session import connected

Question = Callable[[], bool]


def everywhere(gpus: Question, cpus: Question) -> bool | None:
    """Whether every node of the cluster (RAY_ADDRESS) says so: of its GPUs where any node has some, else of its CPU.

    None without a cluster. Nodes are asked by tasks that wait for no room, once a process.
    """
    address = os.environ.get("RAY_ADDRESS")
    return _everywhere(address, gpus, cpus) if address else None


@cache
def _everywhere(address: str, gpus: Question, cpus: Question) -> bool:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with connected():
        there = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        kind, question = ("GPU", gpus) if any(has.get("GPU") for has in there.values()) else ("CPU", cpus)
        ask = ray.remote(num_cpus=0)(_say)
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node, has in there.items() if has.get(kind)]
        return all(ray.get([ask.options(scheduling_strategy=place).remote(question) for place in places]))


def _say(question: Question) -> bool:
    return question()
