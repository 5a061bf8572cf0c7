"""Tune as a queue and as a search, on a real Ray: what dies is begun again, and what is stopped holds nothing."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.searches import Halving, Proposals
from orchestrator.cluster.session import session
from orchestrator.cluster.trials import run_trials
from orchestrator.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("trials")]


@pytest.fixture(scope="module", autouse=True)
def ray_session(room: None) -> Iterator[None]:
    """With room for two at once, which some wait for."""
    with session(cpus=1, gpus=0):
        yield


Told = list[tuple[int, int, list[dict[str, Any]]]]


def went(work: Any, items: list[Any], **how: Any) -> Told:
    told: Told = []

    def done(*result: Any) -> list[Any]:
        told.append(result)  # type: ignore[arg-type]
        return []

    run_trials(work, items, done, cpus=1, gpus=0, at_once=2, **how)
    return told


def single(count: int) -> list[Any]:
    return [[[index]] for index in range(count)]


def test_each_is_told_once_and_an_error_ends_its_item_alone() -> None:
    def work(index: int) -> dict[str, Any]:
        if index == 1:
            raise UserError("lr: too large")
        return {"score": index / 10}

    told = {index: (rung, outcomes) for index, rung, outcomes in went(work, single(4))}
    assert {index: told[index] for index in (0, 2, 3)} == {k: (0, [{"score": k / 10}]) for k in (0, 2, 3)}
    assert told[1][1][0]["error"] == "lr: too large"


def test_what_a_finished_one_makes_possible_is_done_by_the_same_processes() -> None:
    """Even by the last of a stage, and where it failed; a worker that imports anew costs more than many a trial."""
    told: Told = []

    def work(index: int) -> dict[str, Any]:
        if index == 3:
            raise UserError("lr: too large")
        return {"score": 1.0, "process": os.getpid()}

    def done(index: int, rung: int, outcomes: list[dict[str, Any]]) -> list[Any]:
        told.append((index, rung, outcomes))
        return {3: [[[10]], [[11]]], 5: [[[12]]]}.get(index, [])

    run_trials(work, single(4), done, cpus=1, gpus=0, at_once=2)
    assert sorted(index for index, _, _ in told) == list(range(7))
    assert len({outcome["process"] for _, _, (outcome,) in told if "process" in outcome}) <= 2


def test_a_process_that_dies_while_it_waits_for_work_costs_nothing(tmp_path: Path) -> None:
    """Tune keeps one for the next item, and calls that failed whose process is gone before it began."""
    told: dict[int, list[dict[str, Any]]] = {}
    idle, other = tmp_path / "idle", tmp_path / "other"

    def work(index: int) -> dict[str, Any]:
        if index == 0:
            while not other.is_file():  # two processes: neither does both
                time.sleep(0.1)
        if index == 1:
            other.touch()
            while not idle.is_file():
                time.sleep(0.1)
            time.sleep(2)  # the other one is put aside meanwhile
            os.kill(int(idle.read_text()), signal.SIGKILL)
            time.sleep(2)
        return {"score": 1.0, "process": os.getpid()}

    def done(index: int, rung: int, outcomes: list[dict[str, Any]]) -> list[Any]:
        told[index] = outcomes
        if index == 0:
            aside = tmp_path / "aside"
            aside.write_text(str(outcomes[0]["process"]))
            aside.rename(idle)
        return [[[2]], [[3]]] if index == 1 else []

    run_trials(work, single(2), done, cpus=1, gpus=0, at_once=2)
    assert sorted(told) == [0, 1, 2, 3]
    assert all("error" not in outcome for (outcome,) in told.values()), told


def test_where_the_caller_fails_nothing_more_is_begun(tmp_path: Path) -> None:
    def work(index: int) -> dict[str, Any]:
        (tmp_path / str(index)).touch()
        return {"score": 1.0}

    def done(index: int, rung: int, outcomes: list[dict[str, Any]]) -> list[Any]:
        raise RuntimeError(f"of {index}")

    with pytest.raises(RuntimeError, match=r"of [01]$"):
        run_trials(work, single(100), done, cpus=1, gpus=0, at_once=2)
    assert len(list(tmp_path.iterdir())) < 20


def test_a_process_that_is_killed_is_begun_again(tmp_path: Path) -> None:
    def work(index: int) -> dict[str, Any]:
        marks = list(tmp_path.glob(f"{index}-*"))
        (tmp_path / f"{index}-{len(marks)}").touch()
        if index == 2 and len(marks) < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"score": 1.0}

    told = went(work, single(4))
    assert sorted(index for index, _, _ in told) == [0, 1, 2, 3]
    assert all(outcomes == [{"score": 1.0}] for _, _, outcomes in told)
    assert len(list(tmp_path.glob("2-*"))) == 3


def test_one_that_dies_time_and_again_fails_and_the_others_end() -> None:
    def work(index: int) -> dict[str, Any]:
        if index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"score": 1.0}

    told = {index: (rung, outcomes) for index, rung, outcomes in went(work, single(3))}
    assert told[0][0] == -1
    assert told[0][1][0]["error"].startswith("its process died 4 times")
    assert told[1][1] == told[2][1] == [{"score": 1.0}]


@pytest.mark.long
def test_what_passes_by_itself_is_tried_again_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By another process, after some time; what doesn't pass is told at once, as is a full disk."""

    def work(item: int) -> dict[str, Any]:
        tries = len(list(tmp_path.glob(f"{item}-*")))
        (tmp_path / f"{item}-{tries}").write_text(f"{time.time()} {os.getpid()}")
        if item == 0 and tries == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "/shared/rows.jsonl")
        if item == 0 and tries == 1:
            try:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            except OSError as error:
                raise UserError("student: its tokenizer can't be read") from error
        if item == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if item == 2:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/rows")
        if item == 3:
            raise TimeoutError("of the hub")
        return {"score": 1.0}

    told = {index: (rung, outcome) for index, rung, (outcome,) in went(work, single(4), patience=1.0)}
    tries = {item: sorted(tmp_path.glob(f"{item}-*")) for item in range(4)}
    assert {item: len(marks) for item, marks in tries.items()} == {0: 3, 1: 1, 2: 1, 3: 4}
    assert told[0] == (0, {"score": 1.0})
    when, who = zip(*(mark.read_text().split() for mark in tries[0]), strict=True)
    assert float(when[1]) - float(when[0]) >= 1
    assert len(set(who)) == 3
    assert told[1][1]["error"] == "OSError: [Errno 28] No space left on device"
    assert told[2][1]["error"] == "FileNotFoundError: [Errno 2] No such file or directory: '/rows'"
    assert told[3][0] == -1
    assert told[3][1]["error"] == "4 times: TimeoutError: of the hub"
    assert not told[3][1].get("judged")
    said = [record.getMessage() for record in caplog.records if record.name == "pkt"]
    assert sorted(said) == [
        "OSError: [Errno 5] Input/output error: '/shared/rows.jsonl'; it is tried again",
        *["TimeoutError: of the hub; it is tried again"] * 3,
        "student: its tokenizer can't be read; it is tried again",
    ]


def test_asha_ends_the_worse_ones_early_and_gives_their_room_back(tmp_path: Path) -> None:
    from ray.util import placement_group_table

    def work(item: tuple[int, int]) -> dict[str, Any]:
        (tmp_path / f"{item[0]}-{item[1]}").touch()
        return {"score": item[0] / 10}

    items = [[[(index, rung)] for rung in range(3)] for index in reversed(range(9))]
    told = went(work, items, searches=[Halving(range(9), 3)])
    deepest = {8 - place: max(rung for index, rung, _ in told if index == place) for place in range(9)}
    assert deepest[8] == 2  # the best goes to its end
    assert sum(rung == 2 for rung in deepest.values()) <= 3
    assert deepest[0] == 0
    assert len(list(tmp_path.iterdir())) == len(told) < 27
    until = time.monotonic() + 120  # Ray removes what was set aside in its own time; what is free it tells later yet
    assert len(placement_group_table()) > 0  # Ray tells of those that it removed, too
    while (held := _held(placement_group_table())) and time.monotonic() < until:
        time.sleep(0.2)
    assert not held


def _held(groups: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is still set aside, or asked for."""
    return [group for group in groups.values() if group["state"] != "REMOVED"]


def test_searches_side_by_side_are_judged_apart_and_share_the_workers() -> None:
    """The worst of one search is better than the best of the other: together, the other would be ended."""

    def work(item: tuple[int, int]) -> dict[str, Any]:
        return {"score": item[0] / 100 + (item[0] < 9), "process": os.getpid()}

    items = [[[(index, rung)] for rung in range(3)] for index in (*reversed(range(9)), *reversed(range(9, 18)))]
    told = went(work, items, searches=[Halving(range(9), 3), Halving(range(9, 18), 3)])
    for first in (0, 9):
        deepest = [max(rung for index, rung, _ in told if index == place) for place in range(first, first + 9)]
        assert deepest[0] == 2  # its best, the first one, goes to its end
        assert sum(rung == 2 for rung in deepest) <= 3
        assert deepest[8] == 0
    processes = {outcome["process"] for _, _, (outcome,) in told}
    assert len(processes) <= 2


def test_each_sampler_learns_from_its_own_items() -> None:
    def work(index: int) -> dict[str, Any]:
        best = 10 if index < 50 else 90
        return {"score": 1 - abs(index - best) / 50}

    def asked(items: range) -> Proposals:
        told = [(place, work(items[place])["score"]) for place in (5, 25, 45)]
        return Proposals(items, 50, 16, seed=1, told=told)

    found = [index for index, _, _ in went(work, single(100), searches=[asked(range(50)), asked(range(50, 100))])]
    for own, best in ((range(50), 10), (range(50, 100), 90)):
        of_it = [index for index in found if index in own]
        assert len(set(of_it)) == len(of_it) == 16
        assert not {own[place] for place in (5, 25, 45)} & set(of_it)
        assert sum(abs(index - best) <= 12 for index in of_it) > len(of_it) / 2


def test_optuna_learns_nothing_of_a_process_that_died(tmp_path: Path) -> None:
    """Killed while it waits: begun again, and its score is learnt; killed at work for good: as if never tried."""
    from orchestrator.cluster.searches import Queue

    queue = Queue(single(20), [], [Proposals(range(20), 20, 4, seed=1)])
    first = queue.suggest("a")["index"]
    queue.on_trial_complete("a", None, error=True)
    assert queue.again(first)
    assert queue.suggest("b")["index"] == first
    queue.on_trial_complete("b", {"score": 0.9, "outcomes": [{"score": 0.9}]})
    queue.suggest("c")
    queue.on_trial_complete("c", {"score": -1.0, "outcomes": [{"error": "OSError: gone", "judged": False}]})
    queue.suggest("d")
    queue.on_trial_complete("d", {"score": -1.0, "outcomes": [{"error": "lr: too large", "judged": True}]})
    (sampler,) = queue._samplers
    known = [(trial.params["column"], trial.value) for trial in sampler._study.trials if trial.value is not None]
    assert known[0] == (first, 0.9)
    assert [value for _, value in known] == [0.9, -1.0]
    queue.stop()
    assert not queue.again(first)


def test_optuna_ends_where_nothing_is_untried() -> None:
    """A flat score, and as many tries as there are settings: it would insist on those that it knows."""
    told = went(lambda index: {"score": 0.0}, single(12), searches=[Proposals(range(12), 4, 11, 0, [(5, 0.0)])])
    assert sorted(index for index, _, _ in told) == [*range(5), *range(6, 12)]


def test_optuna_learns_from_what_was_tried_before() -> None:
    def work(index: int) -> dict[str, Any]:
        return {"score": 1 - abs(index % 50 - 30) / 50 - (index < 50)}

    before = [(column, 0.4 - column / 100) for column in (0, 10, 40)] + [(50 + 29, 0.98)]
    told = went(work, single(100), searches=[Proposals(range(100), 50, 12, seed=1, told=before)])
    assert len(told) == 12
    found = [index for index, _, _ in told]
    assert sum(index >= 50 for index in found) > 6  # the row in which the good one was
    assert max(outcomes[0]["score"] for _, _, outcomes in told) > 0.9


def test_works_of_a_rung_are_judged_together() -> None:
    told = went(lambda item: {"score": item}, [[[0.2, 0.4]], [[0.5]]])
    assert sorted((index, [one["score"] for one in outcomes]) for index, _, outcomes in told) == [
        (0, [0.2, 0.4]),
        (1, [0.5]),
    ]
