"""What another group left in the same folder must never join this one's sums."""

from __future__ import annotations

from pathlib import Path

import torch

from orchestrator.cluster.ranks import Member
from orchestrator.teacher.checkpoints import Checkpoints
from orchestrator.transfer.scores import Scores


def scores(value: float) -> dict[str, Scores]:
    made = Scores.zeros(torch.Size((4, 4)), 2, torch.device("cpu"))
    made.add(0, torch.full((4, 4), value))
    return {"a": made}


def test_the_last_whole_checkpoint_counts_and_an_unfinished_one_of_another_group_does_not(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Member())
    checkpoints.write(scores(1.0), {"1", "2"}, {"2"})
    checkpoints.write(scores(3.0), {"1", "2", "3"}, {"2"})
    stale = tmp_path / "000009-4-0123456789ab"
    stale.mkdir()
    for rank in (2, 3):
        (stale / f"rank-{rank}.safetensors").write_bytes(b"what a dying rank wrote")
    taken = scores(0.0)
    assert checkpoints.resume(taken) == ({"1", "2", "3"}, {"2"})
    assert float(taken["a"].tiles.sum()) == 48.0 and float(taken["a"].rows[0]) == 12.0
    assert len(list(tmp_path.iterdir())) == 2  # the older one of its own is gone


def test_other_examples_of_the_same_number_are_another_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Member())
    checkpoints.write(scores(1.0), {"1", "2"}, set())
    first = {path.name for path in tmp_path.iterdir()}
    checkpoints.write(scores(1.0), {"1", "3"}, set())
    assert {path.name for path in tmp_path.iterdir()}.isdisjoint(first)


def test_nothing_kept_is_nothing_done(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", Member()).resume(scores(0.0)) == (set(), set())
