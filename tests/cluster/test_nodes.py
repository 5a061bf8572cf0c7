"""Ranks on a cluster of two machines, as far as Ray can tell: two raylets with GPUs that aren't there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import rank_side
from rank_side import node

from orchestrator.cluster import ranks
from orchestrator.cluster.ranks import Placement, spread

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("nodes")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Nodes by their GPUs. The smaller one has so many CPUs that Ray, by itself, begins there and needs both."""
    import ray
    from ray.cluster_utils import Cluster

    quiet = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 2, "_system_config": quiet})
    made.add_node(num_cpus=3, num_gpus=3)
    here = {"env_vars": {"PYTHONPATH": str(Path(rank_side.__file__).parent)}}
    ray.init(address=made.address, log_to_driver=False, runtime_env=here)
    made.wait_for_nodes()
    yield {f"{one['Resources']['GPU']:.0f} GPUs": one["NodeID"] for one in ray.nodes()}
    ray.shutdown()
    made.shutdown()


def where(cluster: dict[str, str], count: int, logs: Path) -> Counter[str]:
    """How many ranks each node got."""
    names = {key: name for name, key in cluster.items()}
    return Counter(names[key] for key in spread(Placement(count), node, range(count), logs))


def test_ranks_are_within_a_node_that_has_room_for_all(cluster: dict[str, str], tmp_path: Path) -> None:
    assert where(cluster, 3, tmp_path) == {"3 GPUs": 3}
    assert where(cluster, 4, tmp_path)["3 GPUs"] >= 2  # no node has room for as many


def test_where_that_node_is_busy_they_are_wherever_there_is_room(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_gpus=1, num_cpus=0)
    class Other:
        def here(self) -> None:
            pass

    there = NodeAffinitySchedulingStrategy(cluster["3 GPUs"], soft=False)
    other = Other.options(scheduling_strategy=there).remote()
    ray.get(other.here.remote())
    monkeypatch.setattr(ranks, "PATIENCE", 3)
    assert where(cluster, 3, tmp_path) in ({"3 GPUs": 2, "2 GPUs": 1}, {"3 GPUs": 1, "2 GPUs": 2})
    ray.kill(other)
