"""A Ray of this machine's own: the cores that this process may use and no more, and nobody reaches it from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from orchestrator.cluster.session import connected, cores, nodes, session
from orchestrator.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("trials")]
LISTENERS = """
import json, psutil
from orchestrator.cluster.session import connected
with connected():
    import ray
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    me = psutil.Process()
    there = [at.laddr.ip for one in (me, *me.children(recursive=True)) for at in one.net_connections("inet")
             if at.status == psutil.CONN_LISTEN]
print(json.dumps(there))
"""


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


def test_a_session_of_this_machines_own_listens_on_loopback_alone() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", LISTENERS], env=env, capture_output=True, text=True, check=True)
    listeners = json.loads(done.stdout.splitlines()[-1])
    assert len(listeners) >= 5  # the driver, the head's store of facts, its raylet and that one's agents
    assert {place.removeprefix("::ffff:") for place in listeners} == {"127.0.0.1"}
