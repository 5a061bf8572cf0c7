"""A fine-tuning that several processes share, on a real Ray: the same as by one, and begun again where one dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import recipe, weights

from cli.screen import Terminal
from orchestrator import pipeline
from orchestrator.cluster.broken import Broken
from orchestrator.cluster.groups import Group
from orchestrator.cluster.session import session
from orchestrator.cluster.trials import run_trials
from orchestrator.errors import UserError
from orchestrator.prepare.ready import prepare
from orchestrator.run import Run
from orchestrator.step import Step, materialise
from orchestrator.store import Store
from orchestrator.sweep.hands import Hands
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.stages import Stage
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.work import sharded

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("groups")]
SHORT = {"examples": 37, "epochs": 2, "batch_size": 8, "dropout": 0.0}  # the last batch of an epoch has five rows
Do = Callable[[Step, Callable[[], Any]], Any]


@pytest.fixture(scope="module", autouse=True)
def ray_session(room: None, demo_models: dict[str, Path]) -> Iterator[None]:
    with session(cpus=1, gpus=0, workers=2):
        yield


def by(workers: int, scratch: Path) -> Do:
    def do(step: Step, work: Callable[[], Any]) -> Any:
        return Group(workers, 1, 0)(work, scratch / step.fingerprint) if step.name == "finetune" else work()

    return do


def trained(arm: str, **fields: Any) -> Step:
    asked = recipe(arm, finetune=SHORT | fields, lr=1e-3)
    return pipeline.finetune_step(asked, prepare(asked))


def products(folder: Path) -> dict[str, Any]:
    """Of each module's two factors: a decomposition's directions may come with either sign, from one thread or two."""
    found = weights(folder)
    ups = {
        name: name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B") for name in found if "_A" in name
    }
    return {name: found[up].double() @ found[name].double() for name, up in ups.items()}


def alike(one: Path, other: Path) -> None:
    right, found = products(one), products(other)
    assert right
    assert right.keys() == found.keys()
    assert max(float((right[name] - found[name]).abs().max()) for name in right) < 1e-5
    curves = [json.loads((folder / "history.json").read_text()) for folder in (one, other)]
    for wanted, point in zip(*curves, strict=True):
        assert point["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert point["grad_norms"] == pytest.approx(wanted["grad_norms"], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("arm", "dies"), [("pissa", False), ("transfer", True)])
def test_two_workers_that_hold_half_of_the_student_train_as_one(arm: str, dies: bool, tmp_path: Path) -> None:
    """DeepSpeed's shards of the frozen student; the adapter is whole on each. Also from a checkpoint."""
    step, held = trained(arm), tmp_path / "held"
    two, died = by(2, tmp_path), tmp_path / "died"

    def watched(work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            from orchestrator.cluster import sharding
            from orchestrator.student import training

            usual = sharding._settings
            least = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 1000}  # of a tiny student

            def settings(*how: Any) -> dict[str, Any]:
                made = usual(*how)
                return made | {"zero_optimization": made["zero_optimization"] | least}

            class Watched(training.Watch):
                def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                    frozen = [one for one in more["model"].parameters() if not one.requires_grad]
                    here = sum(one.numel() + one.ds_tensor.numel() for one in frozen)
                    held.write_text(f"{here} {sum(one.ds_numel for one in frozen)}")
                    control.should_save = state.global_step == 5
                    if dies and state.global_step == 6 and args.process_index == 0 and not died.exists():
                        died.touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                    super().on_step_end(args, state, control, **more)

            training.Watch, sharding._settings = Watched, settings  # type: ignore[misc]
            return work()

        return run

    def do(step: Step, work: Callable[[], Any]) -> Any:
        return two(step, watched(work))

    store = Store(tmp_path / "two")
    if dies:
        with pytest.raises(Broken, match=r"^worker 0 of 2 died: killed, or out of memory$"):
            materialise(sharded(step), store, do=do)
    together = materialise(sharded(step), store, do=do)
    assert together.name == step.fingerprint
    alike(materialise(step, Store(tmp_path / "one")), together)
    here, whole = map(int, held.read_text().split())
    assert whole > 200_000
    assert here == pytest.approx(whole / 2, rel=0.01)  # of a rank between steps: nothing stays gathered


@pytest.mark.parametrize(
    ("arm", "workers", "fields"),
    [("transfer", 2, {}), ("distil", 3, {"micro_batch_size": 2})],
)
@pytest.mark.long
def test_any_number_of_workers_trains_as_one(arm: str, workers: int, fields: dict[str, Any], tmp_path: Path) -> None:
    """Adapter, losses and norms: also where a batch doesn't divide by them, or one has no row of it."""
    step = trained(arm, **fields)
    alone = materialise(step, Store(tmp_path / "one"))
    together = materialise(step, Store(tmp_path / "more"), do=by(workers, tmp_path))
    alike(alone, together)
    moved = [float(tensor.abs().max()) for name, tensor in weights(alone).items() if "lora_B" in name]
    assert min(moved) > 1e-3
    assert not list(together.glob("checkpoint-*"))
    manifest = json.loads((together / "manifest.json").read_text())
    assert manifest["facts"]["steps"] == 10 and manifest["peak_memory_bytes"] > 1e8


@pytest.mark.long
def test_the_first_fault_is_told_and_not_who_missed_that_worker(tmp_path: Path) -> None:
    def work() -> None:
        if torch.distributed.get_rank() == 1:
            raise UserError("lr: too large")
        torch.distributed.barrier()

    with pytest.raises(UserError, match=r"^lr: too large$"):
        Group(2, 1, 0)(work, tmp_path / "scratch")


@pytest.mark.long
def test_a_worker_that_is_killed_ends_its_group_and_the_next_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    step, mark, told, two = trained("lora"), tmp_path / "died", [], by(2, tmp_path)

    def dying(work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            from orchestrator.student import training

            class Dying(training.Watch):
                def __post_init__(self) -> None:
                    super().__post_init__()
                    self.every = 0.0

                def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                    with (tmp_path / f"seen-{args.process_index}").open("a") as seen:
                        seen.write(f"{state.global_step} ")
                    if args.process_index == 1 and state.global_step == 7 and not mark.exists():
                        mark.touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                    super().on_step_end(args, state, control, **more)

            training.Watch = Dying  # type: ignore[misc]
            return work()

        return run

    def make(item: str) -> dict[str, Any]:
        def do(step: Step, work: Callable[[], Any]) -> Any:
            return two(step, dying(work))

        try:
            materialise(step, Store(tmp_path / item), do=do)
        except Broken as error:
            (tmp_path / "told").write_text(str(error))
            raise
        return {"score": 1.0}

    run_trials(make, [[["again"]]], lambda *one: told.append(one) or [], cpus=0, gpus=0, at_once=1)
    assert told == [(0, 0, [{"score": 1.0}])]
    assert mark.exists()
    assert (tmp_path / "told").read_text() == "worker 1 of 2 died: killed, or out of memory"
    assert (tmp_path / "seen-0").read_text().split() == [str(n) for n in (*range(1, 8), *range(7, 11))]
    folder = Store(tmp_path / "again").find("finetune", step.fingerprint)
    assert folder
    alike(materialise(step, Store(tmp_path / "whole")), folder)


@pytest.mark.long
def test_trials_of_a_sweep_are_groups(tmp_path: Path) -> None:
    """Two at once, in as many CPUs as they have; then scored, each by one process."""
    trials = []
    for seed in (0, 1):
        asked = recipe("lora", finetune=SHORT, lr=1e-3, seed=seed, evaluate={"examples": 4})
        trials.append(Trial(f"seed {seed}", pipeline.trial(asked, prepare(asked), "test"), {"stage": "trial"}))
    (tmp_path / "sweep").mkdir()
    store = Store(tmp_path)
    with Runner(store, Run(store=tmp_path, workers_per_trial=2), "key", Terminal(), tmp_path / "sweep") as runner:
        assert Hands(store, runner.run, runner._session(), tmp_path).at_once == 2
        runner.go([Stage("trying", trials, 2)])
        assert not runner.failed
        assert all(runner.metrics(trial) for trial in trials)
    for trial in trials:
        folder = store.find("finetune", trial.step.inputs["adapter"].fingerprint)
        assert folder and json.loads((folder / "manifest.json").read_text())["facts"]["workers"] == 2
