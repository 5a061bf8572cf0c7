"""The choice of heads against every possible one, and planted indices that have to be found."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from orchestrator.transfer.consistent import Consistent, choose_heads
from orchestrator.transfer.place import Place, head_dims
from orchestrator.transfer.scores import Scores

TEACHER = {"residual": 40, "query": 8 * 4, "key": 4 * 4, "ffn": 24}
STUDENT = {"residual": 12, "query": 4 * 4, "key": 2 * 4, "ffn": 9}
ROLES = {
    "q": ("query", "residual"), "k": ("key", "residual"), "v": ("key", "residual"), "o": ("residual", "query"),
    "up": ("ffn", "residual"), "down": ("residual", "ffn"),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "heads"), [(2, 4), (2, 2), (3, 6), (1, 2)])
@pytest.mark.parametrize("seed", range(8))
def test_the_best_groups_and_their_best_heads(groups: int, heads: int, seed: int) -> None:
    """Of a teacher with 4 K/V heads for 8 query heads, by trying every choice."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.rand(8, generator=generator), torch.rand(4, generator=generator)
    own = heads // groups

    def value(taken: tuple[int, ...]) -> float:
        return float(sum(key[g] + query[2 * g : 2 * g + 2].sort(descending=True).values[:own].sum() for g in taken))

    best = max(combinations(range(4), groups), key=value)
    members, found = choose_heads(query, key, heads, groups)
    assert found.tolist() == list(best)
    assert [member // 2 for member in members.tolist()] == [group for group in best for _ in range(own)]
    assert float(query[members].sum() + key[found].sum()) == pytest.approx(value(best))


def test_larger_groups_read_what_their_best_member_read() -> None:
    """A teacher in which every query head has its own K/V head, for two groups of two."""
    query = torch.tensor([0.1, 5.0, 0.2, 3.0, 4.0, 0.3, 9.0, 0.4])
    members, read = choose_heads(query, torch.zeros(8), 4, 2)
    assert members.tolist() == [1, 3, 4, 6]
    assert read.tolist() == [1, 6]
    members, read = choose_heads(query, 10 * torch.arange(8.0), 4, 2)
    assert members.tolist() == [4, 5, 6, 7]  # a head's K/V rows count as well
    assert read.tolist() == [5, 7]


def test_fewer_groups_than_the_student_has_are_read_twice() -> None:
    """Two K/V heads, of which each serves four query heads, for four groups of one; but query heads must suffice."""
    members, read = choose_heads(torch.tensor([1.0, 9, 8, 1, 1, 7, 1, 6]), torch.zeros(2), 4, 4)
    assert members.tolist() == [1, 2, 5, 7]
    assert read.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="wants 16 attention heads of a teacher's matrix that has 8"):
        choose_heads(torch.zeros(8), torch.zeros(2), 16, 4)


def test_smaller_heads_are_judged_by_the_dimensions_they_keep() -> None:
    """Of 3 heads of 8, cut to 2 of 4: the first is large only where it is left behind."""
    query, key = torch.ones(3, 8), torch.zeros(3, 8)
    query[0, [1, 3, 5, 7]] = 100
    query[1:] = 2
    places = [Place(n, (8, 5), (a, "residual"), (8, 4), 0) for n, a in (("q", "query"), ("k", "key"))]
    chooser = Consistent().prepared(
        [(place, side.flatten(), torch.ones(9)) for place, side in zip(places, (query, key), strict=True)]
    )
    kept = [8 * head + dim for head in (1, 2) for dim in (0, 2, 4, 6)]
    for place in places:
        block = chooser.select(Scores.zeros(torch.Size((24, 9)), 1, query.device), place)
        assert block.rows is not None and block.rows.tolist() == kept


def test_smaller_heads_keep_rotary_pairs_and_their_frequencies() -> None:
    """Dimensions j and j + 8 of 16 turn together; pair j of a head of 8 is as fast as pair 2j of a head of 16."""
    dims = head_dims(16, 8)
    assert dims.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    base = 10_000.0
    small = [base ** (-2 * j / 8) for j in range(4)]
    large = [base ** (-2 * j / 16) for j in range(8)]
    assert small == pytest.approx([large[dim] for dim in dims.tolist()[:4]])
    assert torch.equal(head_dims(6, 6), torch.arange(6))
    with pytest.raises(ValueError, match="attention heads of 8 can't be whole heads of the teacher's 4"):
        head_dims(4, 8)


@pytest.mark.parametrize("granularity", [1, 4])
def test_planted_indices_are_found_in_every_matrix(granularity: int) -> None:
    """Two layers with heads and neurons of their own, and one residual stream, under noise."""
    generator = torch.Generator().manual_seed(0)
    residual = torch.randperm(40, generator=generator)[:12].sort().values
    planted: dict[tuple[int, str], Tensor] = {}
    for layer in range(2):
        groups = torch.randperm(4, generator=generator)[:2].sort().values
        planted[layer, "query"] = torch.cat([torch.arange(4) + 4 * head for g in groups for head in (2 * g, 2 * g + 1)])
        planted[layer, "key"] = torch.cat([torch.arange(4) + 4 * g for g in groups])
        planted[layer, "ffn"] = torch.randperm(24, generator=generator)[:9].sort().values

    def at(axis: str, layer: int | None) -> Tensor:
        return residual if axis == "residual" or layer is None else planted[layer, axis]

    matrices, scores = [], {}
    for layer in range(2):
        for role, axes in ROLES.items():
            values = 0.1 * torch.rand([TEACHER[axis] for axis in axes], generator=generator)
            values[at(axes[0], layer)[:, None], at(axes[1], layer)] += 1
            place = Place(role, (STUDENT[axes[0]], STUDENT[axes[1]]), axes, (4, 4), layer)
            score = Scores.zeros(values.shape, granularity, values.device)
            score.add(0, values)
            scores[place] = score
            matrices.append((place, values.sum(1), values.sum(0)))
    chooser = Consistent().prepared(matrices)
    for place, score in scores.items():
        block = chooser.select(score, place)
        assert torch.equal(block.rows, at(place.axes[0], place.layer))
        assert torch.equal(block.cols, at(place.axes[1], place.layer))
    place = Place("embed", (50, 12), ("vocabulary", "residual"))
    embedding = chooser.select(Scores.zeros(torch.Size((50, 40)), 1, residual.device), place)
    assert torch.equal(embedding.rows, torch.arange(50)) and torch.equal(embedding.cols, residual)
