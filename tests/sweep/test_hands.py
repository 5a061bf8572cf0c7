"""One queue places a whole sweep: what ranks do is done once, beside all that doesn't build on it."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cli.screen import Terminal
from orchestrator.cluster.ranks import Placement
from orchestrator.cluster.searches import Halving
from orchestrator.cluster.session import USABLE, nodes, session
from orchestrator.errors import UserError
from orchestrator.run import Run
from orchestrator.step import Step
from orchestrator.store import Store
from orchestrator.store.objects import Objects
from orchestrator.sweep.hands import Hands, _on_one_node, refuse_unless_shared
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.stages import Stage
from orchestrator.sweep.trial import Trial

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("hands")]
DEADLINE = 120.0  # seconds


@pytest.fixture(scope="module", autouse=True)
def ray_session(room: None) -> Iterator[None]:
    with session(cpus=1, gpus=0):
        yield


def measure(folder: Path, *, number: int, until: str, **_: Any) -> None:
    """Ends once a trial has that doesn't build on it."""
    ends = time.monotonic() + DEADLINE
    while until and not Path(until).is_file():
        assert time.monotonic() < ends, f"{until} was waited for in vain"
        time.sleep(0.05)
    (folder / "process").write_text(str(os.getpid()))


def train(folder: Path, *, number: int, partial: Path, measured: Path | None = None, **_: Any) -> None:
    (folder / "adapter_model.safetensors").write_text((measured / "process").read_text() if measured else "")


def score(folder: Path, *, adapter: Path, number: int, **_: Any) -> None:
    (folder / "process").write_text(str(os.getpid()))
    (folder / "metrics.json").write_text(f'{{"score": {number / 10}, "loss": 1.0}}')


def trial(number: int, measured: Step | None = None) -> Trial:
    inputs = {"measured": measured} if measured else {}
    trained = Step("finetune", train, {"number": number}, inputs, needs="group")
    step = Step("evaluate", score, {"number": number}, {"adapter": trained}, needs="model")
    return Trial(f"trial {number}", step, {"stage": "trial"})


def runner(place: Path, **run: Any) -> Runner:
    (place / "sweep").mkdir()
    return Runner(Store(place), Run(store=place, **run), "key", Terminal(), place / "sweep")


@pytest.mark.parametrize("ranks", [None, 2])
def test_trials_that_need_no_teacher_end_before_its_pass_does(tmp_path: Path, ranks: int | None) -> None:
    """The pass waits for one, and would fail without it; what builds on the pass comes after, and finds it."""
    alone = trial(0)
    until = str(tmp_path / "evaluate" / alone.step.fingerprint / "metrics.json")
    measured = Step("measure", measure, {"number": 0, "until": until}, needs="ranks")
    built = [trial(number, measured) for number in (1, 2)]
    with runner(tmp_path, trials_at_once=2, ranks=ranks) as hands:
        hands.go([Stage("trials", [*built, alone], 3)])
        assert not hands.failed and all(hands.metrics(one) for one in (*built, alone))
    assert len(list((tmp_path / "measure").glob("[!.]*"))) == 1
    ended = {one.label: (tmp_path / "evaluate" / one.step.fingerprint).stat().st_mtime for one in (*built, alone)}
    passed = (tmp_path / "measure" / measured.fingerprint).stat().st_mtime
    assert ended["trial 0"] < passed < min(ended["trial 1"], ended["trial 2"])
    assert int((tmp_path / "measure" / measured.fingerprint / "process").read_text()) != os.getpid()


def note(place: Path, step: Step) -> str:
    return (place / step.name / step.fingerprint / "process").read_text()


def test_the_workers_of_one_stage_are_those_of_the_next_which_is_asked_for_once_it_has_ended(tmp_path: Path) -> None:
    """A stage of which nothing is lacking is passed over; what the last one can't be asked for ends it all."""
    first, then, last = [trial(0), trial(1)], [trial(2)], [trial(3)]
    seen: list[list[bool]] = []

    def stages() -> Iterator[Stage]:
        yield Stage("untouched", first, 2)
        seen.append([hands.metrics(one) is not None for one in (*first, *then)])
        yield Stage("trials", then, 2, lambda one: last if one is then[0] else [])
        seen.append([hands.metrics(one) is not None for one in (*then, *last)])
        yield Stage("again", [*first, *last], 3)
        raise UserError("gate: no")

    with runner(tmp_path, trials_at_once=1) as hands:
        with pytest.raises(UserError, match="gate: no"):
            hands.go(stages())
        assert not hands.failed
    assert seen == [[True, True, False], [True, True]]
    assert len({note(tmp_path, one.step) for one in (*first, *then, *last)}) == 1


def test_a_lone_process_takes_the_cores_that_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but theirs, half at least, and no more again once there was more to do; the worker asks Ray how many."""
    there = [{"CPU": 16.0}, {"CPU": 8.0}]
    monkeypatch.setattr("orchestrator.sweep.hands.nodes", lambda: there)
    measured = Step("measure", measure, {"number": 0, "until": ""}, needs="ranks")
    hands = Hands(Store(tmp_path), Run(store=tmp_path, cpus_per_trial=2), 0.0, tmp_path)
    for others, alone, cpus in (
        (1, True, 14),
        (3, False, 10),
        (0, False, 10),
        (7, False, 8),
        (1, False, 8),
        (1, True, 14),
    ):
        beside = [[[trial(number).step]] for number in range(others)]
        hands.expect([[[measured]], *beside, [[trial(9, measured).step]]], alone)
        assert hands.asks([[measured]]) == [{"CPU": cpus}]
    assert Hands(Store(tmp_path), Run(store=tmp_path, ranks=2), 0.0, tmp_path).placement.cpus == 1


def threads(folder: Path, *, number: int, placement: Placement, **_: Any) -> None:
    (folder / "process").write_text(f"{torch.get_num_threads()} {placement.cpus}")
    (folder / "metrics.json").write_text('{"score": 1.0, "loss": 1.0}')


def test_what_one_process_does_has_as_many_threads_as_cores_were_set_aside(tmp_path: Path) -> None:
    """All where there is nothing else to do, half where there is much."""
    cores = int(nodes()[0]["CPU"])
    alone, beside = (Step("evaluate", threads, {"number": number}, needs="ranks") for number in range(2))
    first, then = (Trial("teacher", step, {"stage": "trial"}) for step in (alone, beside))
    with runner(tmp_path, trials_at_once=2) as hands:
        hands.go([Stage("alone", [first], 1), Stage("trials", [then, *map(trial, range(cores))], 1 + cores)])
        assert not hands.failed
    assert [note(tmp_path, step) for step in (alone, beside)] == [f"{n} {n}" for n in (cores, max(1, cores // 2))]


def test_a_search_waits_for_what_it_builds_on_and_others_do_not(tmp_path: Path) -> None:
    lone = [[[trial(number)]] for number in range(3)]
    until = str(tmp_path / "evaluate" / lone[2][0][0].step.fingerprint / "metrics.json")
    measured = Step("measure", measure, {"number": 0, "until": until}, needs="ranks")
    built = [[[trial(number, measured)]] for number in range(3, 6)]
    told: list[tuple[int, float | None]] = []
    with runner(tmp_path, trials_at_once=2) as hands:
        hands.search(
            [*built, *lone],
            [Halving(range(3), 3), Halving(range(3, 6), 3)],
            lambda index, _, score: told.append((index, score)),
        )
    assert sorted(told) == [(0, 0.3), (1, 0.4), (2, 0.5), (3, 0.0), (4, 0.1), (5, 0.2)]
    assert {index for index, _ in told[:3]} == {3, 4, 5}


def test_memory_is_set_aside_where_not_everything_fits_beside_each_other(tmp_path: Path) -> None:
    """A step that would take most of the machine is alone on it, and another kind of step has its own amount."""
    run = Run(store=tmp_path, memory={"trial": 3e9, "measure": 1e18, "extract": 2e9, "teacher_score": 4e9})
    hands = Hands(Store(tmp_path), run, 0.0, tmp_path)
    measured = Step("measure", measure, {"number": 0, "until": ""}, needs="ranks")
    cut = Step("extract", measure, {"number": 0, "until": ""}, {"measured": measured}, needs="ranks")
    reference = Step("evaluate", measure, {"number": 0, "until": ""}, needs="ranks")
    items = [[[one]] for one in (measured, cut, reference, trial(0).step)]
    hands.expect(items, alone=True)
    asked = [hands.asks(item) for item in items]
    (most,) = {bundle["memory"] for bundle in asked[0] or []}
    assert 3e9 < most < 1e18  # all there is
    assert [(each or [{}])[0]["memory"] for each in asked[1:]] == [2e9, 4e9, 3e9]
    assert [hands.ready(item) for item in items] == [True, False, True, True]
    assert Hands(Store(tmp_path), Run(store=tmp_path), 0.0, tmp_path).asks(items[3]) is None
    hands = Hands(Store(tmp_path), run.model_copy(update={"ranks": 2}), 0.0, tmp_path)
    hands.expect(items, alone=True)
    head, *each = hands.asks(items[0]) or []
    assert head == {} and [bundle["memory"] for bundle in each] == [most // 2] * 2  # they are on one machine


def test_without_a_file_system_that_joins_the_nodes_ranks_are_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"CPU": 0.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}]
    for place in ("sweep.hands", "cluster.ranks"):
        monkeypatch.setattr(f"orchestrator.{place}.nodes", lambda: nodes)
    spread = Placement(ranks=6)
    assert _on_one_node(spread, Run()).ranks == 4
    assert _on_one_node(Placement(ranks=2), Run(ranks=2)).ranks == 2
    with pytest.raises(UserError, match=r"none has room for more than 4; ask for --ranks 4, or name a folder"):
        _on_one_node(spread, Run(ranks=6))
    with pytest.raises(UserError, match=r"store: workers that share a training need a folder that all nodes see"):
        _on_one_node(spread, Run(workers_per_trial=2))
    apart = Store(Objects("memory://pkt", here=tmp_path))
    refuse_unless_shared(apart)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    refuse_unless_shared(Store(tmp_path))
    with pytest.raises(UserError, match=r"store: memory://pkt is no folder that all nodes see"):
        refuse_unless_shared(apart)


def test_what_the_driver_settled_a_worker_takes_as_it_is() -> None:
    """It has no address of the cluster, and would count this machine's cores and GPUs anew."""
    asked = Placement(ranks=8, cpus=3, reserved=True)
    with asked.settled() as settled:
        assert settled == asked


def busy(folder: Path, *, number: int, **_: Any) -> None:
    began = time.time()
    time.sleep(1)
    (folder / "metrics.json").write_text(json.dumps({"score": 1.0, "loss": 1.0, "began": began, "ended": time.time()}))


def test_what_has_no_room_beside_each_other_is_done_in_turn(tmp_path: Path) -> None:
    """Each asks for more than half of the memory, as Ray counts it; without that, two of them are at work at once."""
    for name, most in (("together", 0.2), ("in-turn", 0.6)):
        place = tmp_path / name
        place.mkdir()
        asked = most * USABLE * psutil.virtual_memory().total
        steps = [Step("evaluate", busy, {"number": number}, needs="model") for number in range(4)]
        trials = [Trial(f"trial {number}", step, {"stage": "trial"}) for number, step in enumerate(steps)]
        with runner(place, trials_at_once=2, memory={"trial": asked}) as hands:
            hands.go([Stage("trials", trials, 4)])
            told = [hands.metrics(one) for one in trials]
        times = sorted((one["began"], one["ended"]) for one in told if one)
        assert len(times) == 4
        overlaps = [second[0] < first[1] for first, second in itertools.pairwise(times)]
        assert any(overlaps) is (name == "together"), times
