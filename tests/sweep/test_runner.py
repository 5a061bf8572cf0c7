"""What a sweep's hands do where a disk or a network is at a bad moment, and what they leave behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cli.screen import Terminal
from orchestrator.errors import UserError
from orchestrator.run import Run
from orchestrator.step import Step, materialise
from orchestrator.store import Store
from orchestrator.sweep.kept import noted
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.stages import Stage
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.work import noting
from orchestrator.tracking.outbox import Waiting
from orchestrator.tracking.run_record import Record
from orchestrator.tracking.tracker import NullTracker


def train(folder: Path, *, number: int, partial: Path, before: Path | None = None, **_: Any) -> None:
    (folder / "adapter_model.safetensors").write_text("weights")
    (folder / "rung").mkdir()
    (folder / "history.json").write_text("[]")


def score(folder: Path, *, adapter: Path, **_: Any) -> None:
    (folder / "metrics.json").write_text('{"score": 0.5, "loss": 1.0}')


def trial(number: int, stage: str = "tune", before: Step | None = None) -> Trial:
    inputs = {"before": before} if before else {}
    adapter = Step("finetune", train, {"number": number}, inputs, needs="group")
    step = Step("evaluate", score, {}, {"adapter": adapter}, needs="model")
    return Trial(f"{stage} {number}", step, {"stage": stage})


def adapter(trial: Trial) -> Step:
    return trial.step.inputs["adapter"]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    """Its trials are made in this process, by `make` or as Ray's workers do it."""
    (tmp_path / "sweep").mkdir()

    def made(make: Any = None, **how: Any) -> Runner:
        def here(work: Any, items: Any, done: Any, **how: Any) -> None:
            every = list(items)
            for index, item in enumerate(every):  # and those that join them meanwhile
                for rung, works in enumerate(item):
                    every += done(index, rung, outcomes := [(make or work)(one) for one in works])
                    if "ends" in outcomes[0]:
                        break

        monkeypatch.setattr("orchestrator.sweep.runner.run_trials", here)
        monkeypatch.setattr("orchestrator.sweep.hands.nodes", lambda: [{"CPU": 2.0}])
        monkeypatch.setattr("orchestrator.sweep.runner.session", lambda **how: nullcontext(0.0))
        return Runner(Store(tmp_path), how.pop("run", Run()), "key", Terminal(), tmp_path / "sweep", **how)

    return made


def test_a_result_that_is_seen_late_counts_and_one_that_never_is_costs_a_minute_once(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    elsewhere, late = Store(tmp_path / "elsewhere"), trial(0, "trial")

    def appear(step: Step) -> None:
        time.sleep(0.5)
        (tmp_path / "evaluate").mkdir()
        folder = elsewhere.find("evaluate", step.fingerprint)
        assert folder
        folder.rename(tmp_path / "evaluate" / step.fingerprint)

    def make(step: Step) -> dict[str, Any]:
        materialise(step, elsewhere)
        if step.fingerprint == late.step.fingerprint:
            threading.Thread(target=appear, args=(step,)).start()
        return {"score": 0.5, "loss": 1.0}

    with runner(make, late=3.0) as hands:
        began = time.monotonic()
        hands.go([Stage("trials", [late], 1)])
        assert 0.5 <= time.monotonic() - began < 3
        assert hands.metrics(late)
        hands.go([Stage("trials", [trial(number, "trial") for number in range(1, 20)], 19)])
        assert 3.5 <= time.monotonic() - began < 10
    assert len(hands.failed) == 19
    reasons = {one["reason"] for one in hands.failed.values()}
    assert reasons == {f"its worker doesn't share the store {tmp_path}; name one on a common file system"}


def test_what_many_build_on_ends_the_sweep_where_it_cannot_be_made(
    runner: Callable[..., Runner], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own words, and those of a fault that is ours by all of it."""

    def refused(step: Step) -> dict[str, Any]:
        return {"error": "data: no", "words": "data: no\nmore", "traceback": "T", "judged": step.config["number"] == 1}

    for number, kind, words in ((1, UserError, "data: no\nmore"), (2, RuntimeError, "measure: data: no\nT")):
        measured = Step("measure", train, {"number": number}, needs="ranks")
        with runner(refused) as hands, pytest.raises(kind, match=words):
            hands.go([Stage("trials", [trial(number, before=measured)], 1)])

    def dies(work: Any, items: Any, done: Any, **how: Any) -> None:
        reason = "its process died 4 times: killed, or out of memory"
        done(0, -1, [{"error": reason, "words": reason, "traceback": reason, "judged": False}])

    with runner() as hands, pytest.raises(UserError, match=r"measure: its process died 4 times: .*; what was finished"):
        monkeypatch.setattr("orchestrator.sweep.runner.run_trials", dies)
        hands.go([Stage("trials", [trial(3, before=Step("measure", train, {"number": 3}, needs="ranks"))], 1)])
    assert capsys.readouterr().err.count("warning: measure failed; what runs now is waited for, and kept") == 3


def test_a_stage_that_lost_one_is_followed_by_the_next_once_all_have_ended(
    runner: Callable[..., Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose process dies after it was told of is told of again, and no other is taken for ended."""
    lost = {"error": "its process died", "words": "its process died", "traceback": "", "judged": False}
    first, second, third = (trial(number, "trial") for number in range(3))
    asked: list[str] = []

    def stages() -> Iterator[Stage]:
        yield Stage("first", [first, second], 2)
        asked.append("second")
        yield Stage("second", [third], 1)
        asked.append("end")

    def dying(work: Any, items: Any, done: Any, **how: Any) -> None:
        assert [len(done(0, rung, [lost])) for rung in (0, -1)] == [0, 0] and not asked
        assert len(done(1, 0, [{"score": 0.5, "loss": 1.0}])) == 1 and asked == ["second"]
        assert done(2, -1, [lost]) == []

    with runner() as hands:
        monkeypatch.setattr("orchestrator.sweep.runner.run_trials", dying)
        monkeypatch.setattr(hands, "late", 0.0)
        hands.go(stages())
    assert asked == ["second", "end"]
    assert {first.step.fingerprint, third.step.fingerprint} <= hands.failed.keys()


@pytest.mark.parametrize("keep", [False, True])
def test_what_was_only_tried_keeps_its_score_and_not_its_weights(
    runner: Callable[..., Runner], tmp_path: Path, keep: bool
) -> None:
    store, tried, compared, others = Store(tmp_path), trial(0), trial(1, "trial"), trial(2)
    materialise(adapter(others), store)  # by `pkt run`

    def make(step: Step) -> dict[str, Any]:
        materialise(step, store)
        return {"score": 0.5, "loss": 1.0}

    def weights(one: Trial) -> bool:
        return store.find("finetune", adapter(one).fingerprint) is not None

    with runner(make, run=Run(keep_tuned=keep)) as hands:
        hands.go([Stage("trials", [tried, compared, others], 3)])
        assert all(hands.metrics(one) for one in (tried, compared, others))
    assert [weights(one) for one in (tried, compared, others)] == [keep, True, True]
    assert noted(tmp_path / "sweep") == {
        tried.step.fingerprint: keep, compared.step.fingerprint: True, others.step.fingerprint: True,
    }  # fmt: skip
    with runner(make) as hands:  # again: nothing is made, and what was kept stays
        hands.go([Stage("trials", [tried, compared, others], 3)])
    assert [weights(one) for one in (tried, compared, others)] == [keep, True, True]


def test_what_a_killed_sweep_had_scored_is_let_go_by_the_next(runner: Callable[..., Runner], tmp_path: Path) -> None:
    store, tried = Store(tmp_path), trial(0)

    def killed(step: Step) -> dict[str, Any]:
        materialise(step, store)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), runner(killed) as hands:
        hands.go([Stage("trials", [tried], 1)])
    assert store.find("finetune", adapter(tried).fingerprint)
    with runner(killed) as hands:
        hands.go([Stage("trials", [tried], 1)])
    assert store.find("finetune", adapter(tried).fingerprint) is None


def test_a_rungs_state_is_there_until_the_next_has_gone_on_from_it(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    store, first = Store(tmp_path), trial(0)
    second = trial(1, before=adapter(first))
    third = trial(2, before=adapter(second))
    whole: list[list[bool]] = []

    def make(step: Step) -> dict[str, Any]:
        materialise(step, store)
        whole.append([bool(store.find("finetune", adapter(one).fingerprint)) for one in (first, second, third)])
        return {"score": 0.5, "loss": 1.0}

    with runner(make) as hands:
        hands.search([[[first], [second], [third]]], [], lambda *result: None)
    assert whole == [[True, False, False], [True, True, False], [False, True, True]]
    assert not any(store.find("finetune", adapter(one).fingerprint) for one in (first, second, third))


def test_a_setting_that_ended_early_keeps_no_state(runner: Callable[..., Runner], tmp_path: Path) -> None:
    store, first = Store(tmp_path), trial(0)
    second = trial(1, before=adapter(first))

    def make(step: Step) -> dict[str, Any]:
        materialise(step, store)
        return {"score": 0.5, "loss": 1.0, "ends": True}

    with runner(make) as hands:
        hands.search([[[first], [second]]], [], lambda *result: None)
    assert hands.metrics(first)
    assert store.find("finetune", adapter(first).fingerprint) is None
    assert store.find("finetune", adapter(first).fingerprint, bare=True)


def test_how_far_a_trial_is_that_runs_elsewhere(
    runner: Callable[..., Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def asking(folder: Path, *, adapter: Path, track: Any, **_: Any) -> None:
        for _ in track(range(3), "asking", 3):
            seen.append(one._under_way())
            time.sleep(0.15)  # and the screen's thread looks
        score(folder, adapter=adapter)

    monkeypatch.setattr("cli.screen.SOON", 0.1)
    monkeypatch.setattr("orchestrator.sweep.work.NOTED", 0.1)
    (tmp_path / ".sweep.running").mkdir()
    (tmp_path / ".sweep.running" / "left-by-one-that-was-killed").write_text("training 1/2")
    asked = Trial(
        "lora rank 8", Step("evaluate", asking, {}, {"adapter": adapter(trial(0))}, needs="model"), {"stage": "trial"}
    )
    with runner() as one:
        assert [note.name for note in one._notes.iterdir()] == []
        one.go([Stage("trials", [asked], 1)])
        assert one._under_way() == ""
        told = capsys.readouterr().err.splitlines()
    assert seen == [f"running: lora rank 8 asking {done}/3" for done in range(3)]
    assert told[0].startswith("trials: 0/1 after 0 s  running: lora rank 8 asking ")
    assert not (tmp_path / ".sweep.running").exists()


def test_what_has_not_ended_its_first_batch_is_told(tmp_path: Path) -> None:
    note = tmp_path / "note"
    assert list(noting(note)((note.read_text() for _ in range(1)), "asking", 3)) == ["asking 0/3"]


def test_whoever_does_not_wait_for_mlflow_is_told_what_waits(
    runner: Callable[..., Runner], capsys: pytest.CaptureFixture[str]
) -> None:
    class Hangs(NullTracker):
        def flush(self, seconds: float) -> Waiting:
            if seconds:
                raise KeyboardInterrupt
            return Waiting(3, "no answer yet")

    one = runner()
    one.begin(Hangs(), Record("key", "sweep", "RUNNING"))
    with pytest.raises(KeyboardInterrupt):
        one.end("FINISHED", seconds=20)
    assert "3 records wait for MLflow (no answer yet)" in capsys.readouterr().err


def test_a_step_that_several_trials_share_is_done_once_and_told_of_each(
    runner: Callable[..., Runner], tmp_path: Path
) -> None:
    """What a carried update scores before any step is the same for all random seeds."""
    store, told, made = Store(tmp_path), list[Record](), list[str]()
    step = trial(0).step
    params = {"stage": "before", "task.name": "before any step", "run": "ridge"}
    alike = [Trial(f"ridge seed {seed}, before any step", step, params, of=f"of-{seed}") for seed in range(3)]

    class Listening(NullTracker):
        def finished(self, key: str) -> bool:
            return False

        def put(self, record: Record) -> None:
            told.append(record)

    def make(step: Step) -> dict[str, Any]:
        made.append(step.fingerprint)
        materialise(step, store)
        return {"score": 0.5, "loss": 1.0}

    with runner(make, tracker=Listening()) as hands:
        hands.go([Stage("trials", alike, 3)])
        assert all(hands.metrics(one) for one in alike)
    assert made == [step.fingerprint]
    assert len({record.key for record in told}) == len(told) == 3
