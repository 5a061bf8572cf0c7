"""A cluster's machines are asked, and not the one that the sweep was started from."""

from __future__ import annotations

import pytest

from orchestrator.cluster.workers import _everywhere, everywhere
from orchestrator.models.dtypes import cpu_has_bfloat16
from orchestrator.prepare.native import workers_have_bfloat16

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("ray")]


def yes() -> bool:
    return True


def test_the_nodes_that_work_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in its own environment: without CPUs one does no work, and without GPUs none beside one that has them."""
    from ray.cluster_utils import Cluster

    assert everywhere(yes, yes) is None, "there is no cluster yet"
    cluster = Cluster()

    def add(**resources: int) -> None:
        cluster.add_node(**resources, include_dashboard=False)
        _everywhere.cache_clear()

    try:
        with monkeypatch.context() as limited:
            limited.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # the node's, and not this process's: a CPU without units
            add(num_cpus=0)
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            add(num_cpus=1)
        assert workers_have_bfloat16() is False
        add(num_cpus=1)
        assert workers_have_bfloat16() is False, "one of two"
        add(num_cpus=1, num_gpus=1)
        assert everywhere(yes, cpu_has_bfloat16) is True, "whoever has GPUs does the work"
    finally:
        cluster.shutdown()
