"""Workers whose GPU is of no more use, with the errors that torch raises and none of its GPUs."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cluster.broken import Broken, remedy
from orchestrator.cluster.session import session
from orchestrator.cluster.trials import run_trials
from orchestrator.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("trials")]
STICKY = "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in the docs."
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB"


ERRORS = {
    "kernel": (torch.AcceleratorError, STICKY),
    "cublas": (RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    "triton": (RuntimeError, "Triton Error [CUDA]: an illegal memory access was encountered"),
}


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with session(cpus=1, gpus=0):
        yield


def went(work: Any, count: int, at_once: int = 2) -> dict[int, tuple[int, dict[str, Any]]]:
    """Rung and outcome of each of so many items."""
    told = {}

    def done(index: int, rung: int, outcomes: list[dict[str, Any]]) -> list[Any]:
        told[index] = (rung, outcomes[0])
        return []

    run_trials(work, [[[index]] for index in range(count)], done, cpus=1, gpus=0, at_once=at_once)
    return told


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_after_which_cuda_fails_is_known_below_a_librarys_own_words(name: str) -> None:
    kind, text = ERRORS[name]
    beside = ValueError("the training can't go on")
    beside.__context__ = kind(text)
    for error in (kind(text), beside):
        with pytest.raises(Broken, match=re.escape(f"{kind.__name__}: {text.splitlines()[0]}")):
            remedy(error)
    assert remedy(ValueError("the training can't go on")) is None


def test_a_process_whose_cuda_is_broken_ends_and_what_it_did_is_begun_again(tmp_path: Path) -> None:
    """Whatever else it took would fail within the second, and one of two would go through the whole queue."""
    kind, text = ERRORS["cublas"]

    def work(index: int) -> dict[str, Any]:
        (tmp_path / f"{os.getpid()}-{index}").touch()
        if index == 1 and not (tmp_path / "broken").exists():
            (tmp_path / "broken").write_text(str(os.getpid()))
        if (tmp_path / "broken").exists() and (tmp_path / "broken").read_text() == str(os.getpid()):
            try:
                raise kind(text)
            except Exception as error:  # as by a library that says it in its own words
                raise ValueError("the training can't go on") from error
        return {"score": 1.0}

    told = went(work, 12)
    assert told == dict.fromkeys(range(12), (0, {"score": 1.0}))
    ended = (tmp_path / "broken").read_text()
    assert 1 in [int(path.name.split("-")[1]) for path in tmp_path.glob("*-*") if not path.name.startswith(ended)]
    assert len(list(tmp_path.glob("*-*"))) == 13  # it took nothing after the one that broke it


def test_one_that_breaks_every_process_fails_with_its_own_error(tmp_path: Path) -> None:
    text = STICKY

    def work(index: int) -> dict[str, Any]:
        if index == 0:
            (tmp_path / str(os.getpid())).touch()
            raise torch.AcceleratorError(text)
        return {"score": 1.0}

    told = went(work, 4)
    rung, outcome = told.pop(0)
    assert rung == -1
    assert outcome["error"] == f"its process died 4 times: AcceleratorError: {STICKY.splitlines()[0]}"
    assert told == dict.fromkeys((1, 2, 3), (0, {"score": 1.0}))
    assert len(list(tmp_path.iterdir())) == 4


def test_out_of_memory_is_the_items_own_the_first_time_and_the_second_ends_the_process(tmp_path: Path) -> None:
    """Two items have no room anywhere; all others have room in a process that has not been out of memory twice."""
    text = FULL

    def work(index: int) -> dict[str, Any]:
        before = len(list(tmp_path.glob(f"{os.getpid()}-*")))
        if index in (1, 4):
            (tmp_path / f"{os.getpid()}-{index}").touch()
            raise torch.OutOfMemoryError(text)
        if before > 1:
            raise UserError("memory: of a process that should have ended")
        return {"score": 1.0}

    told = {index: outcome for index, (_, outcome) in went(work, 8, at_once=1).items()}
    assert {index for index, one in told.items() if "score" in one} == {0, 2, 3, 5, 6, 7}
    for index in (1, 4):
        assert told[index]["error"].startswith(f"OutOfMemoryError: {FULL}; take a smaller finetune.micro_batch_size")
        assert not told[index]["judged"]
    tries = Counter(path.name.split("-")[1] for path in tmp_path.iterdir())
    assert tries == {"1": 1, "4": 2}
