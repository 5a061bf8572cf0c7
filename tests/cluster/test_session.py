"""What a Ray on this machine is told of it: the cores that this process may use, and no more."""

from __future__ import annotations

import os

import pytest

from orchestrator.cluster.session import connected, cores, nodes, session
from orchestrator.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("trials")]


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `taskset -c 0`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)


def cpus() -> list[float]:
    return [node["CPU"] for node in nodes()]


@pytest.mark.parametrize("told", [None, 4])
def test_ray_has_the_cores_that_are_ours_unless_it_is_told_otherwise(
    one_core: None, monkeypatch: pytest.MonkeyPatch, told: int | None
) -> None:
    if told:
        monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", f'{{"CPU": {told}}}')
    with session(cpus=1, gpus=0):
        assert cpus() == [told or 1]
    with pytest.raises(UserError, match=rf"^run: a trial needs 9 CPUs .* the nodes have {told or 1} CPUs, "):
        with session(cpus=9, gpus=0):
            pass


def test_where_all_are_ours_ray_counts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows a container's share, which no affinity tells."""
    from ray._private.utils import get_num_cpus

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("orchestrator.cluster.session.cores", lambda: os.cpu_count() or 1)
    with connected():
        assert cpus() == [get_num_cpus()]


def test_a_system_without_affinities_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
