"""A cluster of two machines, as far as Ray can tell: two raylets with GPUs that aren't there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import rank_side
import torch
from rank_side import node

from cli.options import check_memory
from orchestrator.cluster import ranks
from orchestrator.cluster.ranks import Placement, spread
from orchestrator.errors import UserError
from orchestrator.recipe import Sweep
from orchestrator.run import Run
from orchestrator.sweep.presets import complete
from orchestrator.sweep.room import here

SIZES = ("81920", "40960")  # MiB, of the smaller node's GPUs and of the larger one's
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("nodes")]


def driver(folder: Path, sizes: list[str]) -> Path:
    """A folder with an `nvidia-smi` that knows of GPUs of these sizes in MiB; `-i 1` names the second."""
    folder.mkdir()
    tool = folder / "nvidia-smi"
    asked = "--query-gpu=memory.total --format=csv,noheader,nounits"
    all_of_them = "; ".join(f"echo {size}" for size in sizes)
    cases = f"'{asked}') {all_of_them};;\n'{asked} -i 1') echo {sizes[1]};;\n*) exit 2"
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n')
    tool.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Nodes by their GPUs. The smaller one has so many CPUs that Ray, by itself, begins there and needs both."""
    import ray
    from ray.cluster_utils import Cluster

    place = tmp_path_factory.mktemp("drivers")
    path = {size: {"PATH": f"{driver(place / size, [size] * 2)}{os.pathsep}{os.environ['PATH']}"} for size in SIZES}
    quiet = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
    head = {"num_cpus": 8, "num_gpus": 2, "_system_config": quiet, "env_vars": path["81920"]}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=3, num_gpus=3, env_vars=path["40960"])
    here = {"env_vars": {"PYTHONPATH": str(Path(rank_side.__file__).parent)}}
    ray.init(address=made.address, log_to_driver=False, runtime_env=here)
    made.wait_for_nodes()
    yield {f"{one['Resources']['GPU']:.0f} GPUs": one["NodeID"] for one in ray.nodes()}
    ray.shutdown()
    made.shutdown()


def told(run: Run, memory: float | None = None) -> tuple[int | None, float, int]:
    """GPUs, bytes of each and tokens at once."""
    found = here(run, memory)
    assert found and found.cuda and found.trial == found.memory
    return found.gpus, found.memory, found.tokens


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


def test_the_plan_knows_the_smallest_gpu_of_all_nodes(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "of the session that is open")
    assert told(Run()) == (5, 40960 * 2**20, Placement.tokens)
    assert told(Run(ranks=3, tokens_at_once=512)) == (3, 40960 * 2**20, 512)
    assert told(Run(), 24e9) == (5, 24e9, Placement.tokens)
    pair = {"teacher": "llama2-13b", "student": "llama2-7b"}
    asked = Sweep.model_validate(complete({"recipe": pair}))
    plain = Sweep.model_validate(complete({"recipe": {**pair, "finetune": {"gradient_checkpointing": False}}}))
    steps = ("measure", "extract", "finetune")
    with pytest.raises(UserError, match=r"finetune \(llama2-13b .* takes 47\.4 GB on 1 rank, of which 39\.5"):
        check_memory(plain, steps, Run(), print, gpu_memory=None, force=False)
    for memory, again in ((None, True), ("80GB", False)):
        found = check_memory(asked, steps, Run(), print, gpu_memory=memory, force=False)
        assert (found.replicate, found.gradient_checkpointing) == (True, again)
    with pytest.raises(UserError, match=r"takes 47\.4 GB on 1 rank, of which 36\.8"):  # of which two share each
        check_memory(plain, steps, Run(gpus_per_trial=0.5), print, gpu_memory="80GB", force=False)


def test_of_this_machine_those_gpus_count_that_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert here(Run(), None) is None
    assert "no GPU tells its memory, so that none is checked; say it with --gpu-memory" in caplog.text
    monkeypatch.setenv("PATH", f"{driver(tmp_path / 'driver', ['2048', '81920'])}{os.pathsep}{os.environ['PATH']}")
    assert told(Run()) == (2, 2048 * 2**20, Placement.tokens)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert told(Run()) == (1, 81920 * 2**20, Placement.tokens)
