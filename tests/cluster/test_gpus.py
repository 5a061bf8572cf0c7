"""GPUs as Ray counts them, on a machine that has none: who works where, and that the driver opens none."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import rank_side
import torch
from rank_side import process
from tiny import saved

from cli.screen import Terminal
from orchestrator import pipeline
from orchestrator.cluster.ranks import HERE, Placement, spread
from orchestrator.cluster.session import connected
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Sweep
from orchestrator.run import Run
from orchestrator.scoring.evaluate import read_metrics
from orchestrator.store import Store
from orchestrator.sweep.alone import alone
from orchestrator.sweep.presets import complete
from orchestrator.sweep.sweep import Plan, run_sweep
from orchestrator.tracking.tracker import NullTracker

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("gpus")]


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A session that has them as far as Ray knows."""
    import ray

    here = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(Path(rank_side.__file__).parent), *sys.path])}}
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    with connected():
        yield
    ray.shutdown()


@pytest.fixture
def shown(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is shown the GPUs, too, and fails where it asks for more than their number."""

    def opened() -> bool:
        raise AssertionError("the driver asks for its GPU")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", opened)


def test_one_rank_is_a_process_that_ends(shown: None, tmp_path: Path) -> None:
    with Placement(1).settled() as placed:
        (worker,) = spread(placed, process, [0], tmp_path)
    assert worker != os.getpid()
    assert not placed.here and placed.cpus == 1  # its share of two
    assert not psutil.pid_exists(worker) or psutil.Process(worker).wait(60) is None
    with Placement().settled() as placed:
        assert placed.ranks == 2


def test_a_worker_that_was_given_its_gpu_uses_it(shown: None, tmp_path: Path) -> None:
    with HERE.settled() as placed:
        assert list(spread(placed, process, [0], tmp_path)) == [os.getpid()]


@pytest.mark.long
def test_a_trial_by_itself_leaves_the_gpu_to_processes_that_end(shown: None, tmp_path: Path) -> None:
    """From the teacher's pass to the score; with a choice that looks at all exact scores of fused matrices."""
    saved(tmp_path / "teacher", "phi3")
    saved(tmp_path / "student", "phi3", 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    asked = {
        "recipe": {
            "teacher": str(tmp_path / "teacher"),
            "student": str(tmp_path / "student"),
            "task": {"name": "demo"},
            "structure": "consistent",
            "modules": "attention",
            "rank": 2,
            "lr": 1e-3,
            "measure": {"examples": 2, "passes": 2},
            "finetune": {"examples": 8, "epochs": 1, "batch_size": 8},
            "evaluate": {"examples": 4},
        }
    }
    recipe = Sweep.model_validate(complete(asked)).recipe.settled()
    step = pipeline.trial(recipe, prepare(recipe), "test")
    assert {part.name for part in step.ancestors()} >= {"activations", "extract", "finetune"}
    store = Store(tmp_path / "store")
    folder = alone(step, store, Run(ranks=1), Terminal())
    assert read_metrics(folder)["examples"] == 4
    assert not [path for path in store.root.glob("*/.*") if path.is_dir()]


@pytest.mark.long
def test_a_whole_sweep_is_placed_on_gpus(shown: None, tmp_path: Path) -> None:
    """The teacher's steps by two ranks with a GPU each, the trials with one; and the driver asks for none."""
    short = {"examples": 16, "epochs": 1, "batch_size": 8}
    asked = {
        "recipe": {"rank": 2, "measure": {"examples": 4}, "finetune": short, "evaluate": {"examples": 4}},
        "axes": {"arm": ["lora", "transfer"]}, "lr": [1e-3], "repeats": 2, "tuned_teacher": False, "gate": None,
    }  # fmt: skip
    plan = Plan.of(Sweep.model_validate(complete(asked)))
    run = Run(store=tmp_path)
    record = run_sweep(plan, run, NullTracker, Terminal())
    assert not record["failed"] and len(record["rows"]) == 4
    store, trials = Store(tmp_path), [key for row in record["rows"] for key in row["trials"]]
    assert all(store.find("evaluate", key) for key in trials)
    (measured,) = tmp_path.glob("measure/*/manifest.json")
    assert json.loads(measured.read_text())["facts"]["ranks"] == 2
