"""What a search tries and takes, and what it remembers; counted against the steps themselves."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from trainings import shared_of

from cli.screen import Terminal
from orchestrator.cluster.searches import FAILED, Halving
from orchestrator.errors import UserError
from orchestrator.recipe import RATES, Sweep
from orchestrator.run import Run
from orchestrator.store import Store
from orchestrator.sweep.cells import TUNING_SEED, cells_of
from orchestrator.sweep.groups import Trainings, fine_tunings, groups_of, share_of_a_try, shared_by
from orchestrator.sweep.hands import Hands
from orchestrator.sweep.presets import complete
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.search import Log, choose, rates_of, rungs_of, sampled, table_of
from orchestrator.sweep.sweep import Plan
from orchestrator.sweep.trial import Trial
from orchestrator.tracking.tracker import NullTracker

ARMS = ["lora", "transfer", "spectrum_control"]


def sweep(**document: Any) -> Sweep:
    axes = {"arm": ARMS, "rank": [4, 8], "layers": ["sensitivity", "last"]}
    base = {"axes": axes, "lr": [1e-3, 1e-1], "tuned_teacher": False, "repeats": 3, "tuning_seeds": 1}
    return Sweep.model_validate(complete({**base, **document}))


def test_what_asha_is_expected_to_take_is_that_of_its_rungs() -> None:
    """Nine settings: all for a ninth, the three best on to a third, the best one on to the end."""
    asked = sweep(search={"kind": "asha", "rungs": 3, "reduction": 3}, trials=200)
    assert share_of_a_try(asked) == pytest.approx((9 * 1 / 9 + 3 * (1 / 3 - 1 / 9) + 1 * (1 - 1 / 3)) / 9)
    compared = 3 * 3
    assert Trainings(9, compared).whole(share_of_a_try(asked)) == pytest.approx(compared + 9 * share_of_a_try(asked))
    assert Trainings(9, compared).whole(share_of_a_try(sweep())) == compared + 9


def test_no_more_trials_at_once_than_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 6}, raising=False)
    runs = Run(store=tmp_path), Run(store=tmp_path, cpus_per_trial=2), Run(store=tmp_path, trials_at_once=9)
    assert [Hands(Store(tmp_path), run, 0.0, tmp_path).at_once for run in runs] == [3, 1, 9]
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert Hands(Store(tmp_path), runs[0], 0.0, tmp_path).at_once is None


def test_a_grid_tries_every_learning_rate_of_every_row() -> None:
    """LoRA has half as many rows, since it has no layers, and so twice as many rates."""
    asked = sweep()
    groups = groups_of(asked, cells_of(asked))
    assert len(groups) == 2 + 4 + 4 and all(len(group.cells) == 1 for group in groups)
    assert [group.searched for group in groups] == [4] * 2 + [2] * 8
    assert fine_tunings(asked, cells_of(asked)) == 3 * 8 + 10 * 3
    assert [setting.lr for setting in sampled(asked, groups[-1])] == [1e-3, 1e-1]
    assert [setting.lr for setting in sampled(asked, groups[0])] == [1e-3, 0.00464, 0.0215, 1e-1]


def test_a_single_learning_rate_is_tried_only_where_rows_compete() -> None:
    alone = sweep(lr=[1e-2], axes={"arm": ARMS, "rank": [4], "layers": ["last"]})
    assert [group.searched for group in groups_of(alone, cells_of(alone))] == [0, 0, 0]
    rows = sweep(lr=[1e-2])
    assert [group.searched for group in groups_of(rows, cells_of(rows))] == [1] * 10


@pytest.mark.parametrize("kind", ["random", "optuna", "asha"])
def test_other_searches_give_every_arm_as_many_tries(kind: str) -> None:
    asked = sweep(search=kind, trials=30)
    groups = groups_of(asked, cells_of(asked))
    assert [group.cells[0].label for group in groups] == ARMS
    assert [group.searched for group in groups] == [7] * 3  # 30 less 3 x 3 trials for the comparison
    assert fine_tunings(asked, cells_of(asked)) == 30
    twice = asked.model_copy(update={"tuning_seeds": 2})
    assert [group.searched for group in groups_of(twice, cells_of(twice))] == [3] * 3
    with pytest.raises(UserError, match=r"trials: 12 leave 1 settings to try for each of 3 arms .* at least 15"):
        groups_of(few := asked.model_copy(update={"trials": 12}), cells_of(few))


def test_a_learning_rate_said_twice_is_tried_once() -> None:
    asked = sweep(lr=[1e-2, 1e-1, 1e-2])
    assert asked.lr == (1e-2, 1e-1)
    assert {group.searched for group in groups_of(asked, cells_of(asked))} == {2, 4}  # LoRA has half of the rows


def test_rates_are_even_on_a_logarithmic_scale() -> None:
    rates = rates_of(sweep(search="random"))
    assert len(rates) == RATES and rates[0] == 1e-3 and rates[-1] == 1e-1
    ratios = [after / before for before, after in pairwise(rates)]
    assert max(ratios) / min(ratios) < 1.02
    assert rates_of(sweep()) == [1e-3, 1e-1]


def test_random_settings_are_distinct_and_always_the_same() -> None:
    asked = sweep(search="random", trials=39)
    group = groups_of(asked, cells_of(asked))[1]
    drawn = sampled(asked, group)
    assert len(drawn) == len(set(drawn)) == 10
    assert drawn == sampled(asked, group)
    assert set(drawn) < set(table_of(group))
    other = sweep(search={"kind": "random", "seed": 1}, trials=39)
    assert sampled(other, group) != drawn


def test_arms_that_could_try_the_same_try_the_same() -> None:
    asked = sweep(search="random", trials=39, axes={"arm": [*ARMS, "pissa"], "rank": [8], "layers": ["last", "first"]})
    drawn: dict[str, list[Any]] = {}
    for group in groups_of(asked, cells_of(asked)):
        drawn[group.cells[0].label] = [(one.cell.recipe.layers, one.lr) for one in sampled(asked, group)]
    assert drawn["transfer"] == drawn["spectrum_control"] != drawn["lora"]
    assert drawn["pissa"] == drawn["lora"]


def test_what_is_told_to_be_shared_is_what_is_shared(demo_models: dict[str, Path]) -> None:
    arms = [*ARMS, "random_window", "shuffled_seeds", "distil", "distil_tuned", "distil_titok", "distil_titok_random"]
    asked = sweep(axes={"arm": arms, "rank": [4, 8], "layers": ["sensitivity", "last"]}, tuning_seeds=2)
    plan = Plan.of(asked)
    counted = Counter(step.name for step in shared_of(plan))
    told = shared_by(asked, plan.cells)
    assert counted == {
        "measure": told["teacher passes"], "extract": told["extractions"], "labels": told["passes for distillation"],
        "excess": 1, "evaluate": 1,  # of the teacher with its update, and its score with it
    }  # fmt: skip
    assert told["teacher passes"] == 2  # the seeds' own answers, and each other's
    assert told["passes for distillation"] == 3  # at two temperatures, and with an update
    assert told["extractions"] == 2 + 2 + 2 * (3 + 2)  # a random window is another one in every trial


def test_tuning_never_sees_the_test_split_nor_a_trials_seed(demo_models: dict[str, Path]) -> None:
    asked = sweep(tuning_seeds=2)
    plan = Plan.of(asked)
    test = plan.cells[0].trial(plan.ready, "test", lr=1e-2, seed=0, stage="trial").step.inputs["rows"].fingerprint
    for group in plan.groups:
        for setting in table_of(group):
            for trial in rungs_of(asked, plan.ready, setting)[-1]:
                assert trial.step.inputs["rows"].fingerprint != test
                assert trial.step.inputs["adapter"].config["seed"] >= TUNING_SEED


def test_the_best_of_the_validation_split_is_taken(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Finished evaluations with known figures are laid into the store; the choice has to be the best mean."""
    asked = sweep(axes={"arm": ["lora"], "rank": [4]}, lr=[1e-3, 1e-2, 1e-1], tuning_seeds=2)
    plan, store = Plan.of(asked), Store(tmp_path)
    (group,) = plan.groups
    figures = {1e-3: [(0.9, 1.0), (0.1, 1.0)], 1e-2: [(0.6, 0.5), (0.6, 0.7)], 1e-1: [(0.6, 0.2), (0.6, 0.9)]}
    for setting in table_of(group):
        for trial, (score, loss) in zip(rungs_of(asked, plan.ready, setting)[-1], figures[setting.lr], strict=True):
            _finished(store, trial, score, loss)
    with Runner(store, Run(), "key", Terminal(), tmp_path, NullTracker()) as runner:
        (choice,) = choose(asked, plan.ready, plan.groups, runner, lambda choice: [])
    assert choice is not None
    assert choice.setting.lr == 1e-1  # the same score as 1e-2, and a lower loss
    assert choice.at_edge
    assert choice.validation == pytest.approx((0.6, -0.55))


@pytest.mark.parametrize("judged", [True, False])
def test_a_try_that_was_lost_is_none(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: bool
) -> None:
    """A setting that can't be trained was tried; one whose process died was not, and the sweep has a failure."""
    asked = sweep(axes={"arm": ["lora"], "rank": [4]}, lr=[1e-3, 1e-2, 1e-1])
    plan, store = Plan.of(asked), Store(tmp_path)
    (group,) = plan.groups
    for setting in table_of(group)[:2]:
        (trial,) = rungs_of(asked, plan.ready, setting)[-1]
        _finished(store, trial, 0.5, setting.lr)

    def fails(work: Any, items: Any, done: Any, **how: Any) -> None:
        (_,) = items
        done(0, 0 if judged else -1, [{"error": "of a test", "traceback": "", "judged": judged}])

    monkeypatch.setattr("orchestrator.sweep.runner.run_trials", fails)
    monkeypatch.setattr("orchestrator.sweep.runner.session", lambda **how: nullcontext(0.0))
    monkeypatch.setattr("orchestrator.sweep.hands.nodes", lambda: [{"CPU": 2.0}])
    with Runner(store, Run(), "key", Terminal(), tmp_path, NullTracker()) as runner:
        (choice,) = choose(asked, plan.ready, plan.groups, runner, lambda choice: [])
    assert choice is not None
    assert (choice.setting.lr, choice.tried, len(runner.failed)) == ((1e-3, 3, 0) if judged else (1e-3, 2, 1))


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ({"score": 0.9, "loss": 1.0}, None),  # by a worker that has another store
        ({"error": "of a test", "traceback": "", "judged": False}, None),
        ({"error": "of a test", "traceback": "", "judged": True}, FAILED),
    ],
)
def test_a_search_is_told_what_was_lost(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: dict[str, Any], told: Any
) -> None:
    asked = sweep(axes={"arm": ["lora"], "rank": [4]})
    plan = Plan.of(asked)
    items = [rungs_of(asked, plan.ready, table_of(plan.groups[0])[0])]
    monkeypatch.setattr("orchestrator.sweep.runner.run_trials", lambda work, items, done, **how: done(0, 0, [outcome]))
    monkeypatch.setattr("orchestrator.sweep.runner.session", lambda **how: nullcontext(0.0))
    monkeypatch.setattr("orchestrator.sweep.hands.nodes", lambda: [{"CPU": 2.0}])
    found: list[Any] = []
    with Runner(Store(tmp_path), Run(), "key", Terminal(), tmp_path, NullTracker(), late=0.0) as runner:
        runner.search(items, [Halving(range(1), 3)], lambda *result: found.append(result))
    assert found == [(0, 0, told)]


def _finished(store: Store, trial: Trial, score: float, loss: float) -> None:
    with store.writing("evaluate", trial.step.fingerprint, {}) as folder:
        (folder / "metrics.json").write_text(json.dumps({"score": score, "loss": loss}))


def test_a_search_remembers_whole_lines_alone(tmp_path: Path) -> None:
    log = Log(tmp_path / "search.jsonl")
    log.write(3, 0, 0.5)
    log.write(3, 1, 0.4)
    log.write(4, 0, FAILED)
    log.write(5, -1, None)  # its process died
    with log.path.open("a") as file:
        file.write('{"index": 9, "ru')  # killed here
    log.write(1, 0, 0.2)
    assert log.read() == {3: (1, 0.4), 4: (0, FAILED), 5: (-1, None), 1: (0, 0.2)}
    log.write(1, 1, None)  # it went on and failed: its first score is no reason to take it
    assert log.read()[1] == (1, None)
    assert not log.ended()
    log.end()
    assert log.ended()
    log.keep([(3, 0.4), (4, FAILED)])
    log.write(5, 0, 0.7)  # tried again
    assert log.read() == {3: (0, 0.4), 4: (0, FAILED), 5: (0, 0.7)}


def test_no_arm_gets_more_tries_than_the_poorest_has_settings() -> None:
    asked = sweep(search="random", trials=200, axes={"arm": ARMS, "rank": [8], "layers": ["sensitivity", "last"]})
    groups = groups_of(asked, cells_of(asked))
    assert [group.searched for group in groups] == [13] * 3  # LoRA has no layers to choose
    assert [len(set(sampled(asked, group))) for group in groups] == [13] * 3


def test_an_axis_that_means_nothing_for_an_arm_makes_no_second_row() -> None:
    cells = cells_of(sweep(axes={"arm": ["lora", "transfer"], "rank": [8], "measure.examples": [8, 16, 32]}))
    assert [cell.label for cell in cells] == ["lora", "transfer", "transfer", "transfer"]


def test_a_number_of_trials_is_no_grid() -> None:
    asked = sweep(trials=10)
    with pytest.raises(UserError, match="trials: 10, but a grid makes what its axes make"):
        groups_of(asked, cells_of(asked))


def test_rungs_need_steps_to_end_after(demo_models: dict[str, Path]) -> None:
    asked = sweep(search="asha", recipe={"finetune": {"examples": 72, "batch_size": 36, "epochs": 2}})
    with pytest.raises(UserError, match="search: 4 training steps can't end after a 9th"):
        Plan.of(asked)
