"""Oracle: every window's sum, added up one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from orchestrator.transfer.blocks import BlockSelection, best_window
from orchestrator.transfer.place import Place
from orchestrator.transfer.scores import Scores

parse = TypeAdapter(BlockSelection).validate_python


def exhaustive(scores: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    best, place = -1.0, (0, 0)
    for row in range(scores.shape[0] - shape[0] + 1):
        for col in range(scores.shape[1] - shape[1] + 1):
            total = float(scores[row : row + shape[0], col : col + shape[1]].double().sum())
            if total > best:
                best, place = total, (row, col)
    return place


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int]]:
    n, m = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    values = draw(st.lists(st.integers(0, 3), min_size=n * m, max_size=n * m))  # small integers: many ties
    return torch.tensor(values).float().view(n, m), (draw(st.integers(1, n)), draw(st.integers(1, m)))


def exact(values: Tensor) -> Scores:
    return Scores(values, torch.zeros(0), torch.zeros(0), 1)


@given(matrices())
def test_the_window_is_the_first_best_of_all(case: tuple[Tensor, tuple[int, int]]) -> None:
    values, shape = case
    assert best_window(values, shape) == exhaustive(values, shape)


@pytest.mark.parametrize(("size", "shape"), [((40, 30), (25, 11)), ((30, 40), (30, 17)), ((64, 48), (16, 48))])
def test_the_window_of_scores_as_they_are(size: tuple[int, int], shape: tuple[int, int]) -> None:
    values = torch.rand(size, generator=torch.Generator().manual_seed(0)) ** 8 * 1e-6
    assert best_window(values, shape) == exhaustive(values, shape)


def test_a_tiled_window_starts_on_tiles() -> None:
    values = torch.rand(32, 48, generator=torch.Generator().manual_seed(0))
    tiles = values.view(4, 8, 6, 8).sum((1, 3))
    block = parse("window").select(Scores(tiles, values.sum(1), values.sum(0), 8), Place("a", (16, 24)))
    row, col = exhaustive(tiles, (2, 3))
    assert block.origin == (row * 8, col * 8)
    assert torch.equal(block.take(values), values[row * 8 : row * 8 + 16, col * 8 : col * 8 + 24])


@pytest.mark.parametrize("shape", [(32, 19), (13, 48), (32, 48)])
def test_a_window_that_keeps_a_side_whole_is_exact_at_any_granularity(shape: tuple[int, int]) -> None:
    values = torch.rand(32, 48, generator=torch.Generator().manual_seed(0))
    scores = Scores(values.view(4, 8, 6, 8).sum((1, 3)), values.sum(1), values.sum(0), 8)
    assert parse("window").select(scores, Place("a", shape)).origin == exhaustive(values, shape)
    starts = {parse({"kind": "random_window", "seed": s}).select(scores, Place("a", shape)).origin for s in range(40)}
    assert shape == (32, 48) or any(row % 8 or col % 8 for row, col in starts if row is not None)


def test_row_column_takes_the_highest_means_in_order() -> None:
    values = torch.rand(12, 10, generator=torch.Generator().manual_seed(0))
    block = parse("row_column").select(exact(values), Place("a", (5, 4)))
    rows = sorted(sorted(range(12), key=lambda row: -values[row].mean())[:5])
    cols = sorted(sorted(range(10), key=lambda col: -values[:, col].mean())[:4])
    assert torch.equal(block.take(values), values[rows][:, cols])
    assert block.describe() == {"rows": rows, "columns": cols}


def test_neuron_takes_the_highest_weights_in_row_major_order() -> None:
    values = torch.rand(6, 7, generator=torch.Generator().manual_seed(0))
    block = parse("neuron").select(exact(values), Place("a", (3, 4)))
    threshold = sorted(values.flatten().tolist(), reverse=True)[11]
    assert block.take(values).flatten().tolist() == [v for v in values.flatten().tolist() if v >= threshold]
    with pytest.raises(ValueError, match="granularity 1"):
        parse("neuron").select(Scores(values, values[:, 0], values[0], 2), Place("a", (3, 4)))


@pytest.mark.parametrize("kind", ["random", "random_window"])
def test_random_choices_fit_differ_by_name_and_seed_and_repeat(kind: str) -> None:
    values = torch.arange(400.0).view(20, 20)
    first = parse(kind).select(exact(values), Place("a", (6, 5))).take(values)
    assert first.shape == (6, 5)
    assert len(first.unique()) == 30
    assert torch.equal(parse(kind).select(exact(values), Place("a", (6, 5))).take(values), first)
    others = [
        parse({"kind": kind, "seed": seed}).select(exact(values), Place("a", (6, 5))).take(values) for seed in range(9)
    ]
    assert sum(not torch.equal(other, first) for other in others) >= 7
    assert any(
        not torch.equal(parse(kind).select(exact(values), Place(name, (6, 5))).take(values), first)
        for name in ("b", "c")
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("granularity", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_a_head_aligned_window_is_the_best_that_holds_whole_heads(axis: int, granularity: int, seed: int) -> None:
    """5 heads of 4, of which 3 are wanted, by trying every place."""
    values = torch.rand(20, 12, generator=torch.Generator().manual_seed(seed))
    g = granularity
    best = max(
        ((head, col) for head in range(3) for col in range(0, 12 - 8 + 1, g)),
        key=lambda at: float(values[4 * at[0] : 4 * at[0] + 12, at[1] : at[1] + 8].sum()),
    )
    given, shape, axes = (values, (12, 8), ("query", "residual"))
    if axis == 1:
        given, shape, axes = values.T.contiguous(), (8, 12), ("residual", "query")
    scores = Scores.zeros(given.shape, g, given.device)
    scores.add(0, given)
    block = parse("head_aligned").select(scores, Place("a", shape, axes, (4, 4), 0))
    assert block.origin == ((4 * best[0], best[1]) if axis == 0 else (best[1], 4 * best[0]))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_smaller_heads_are_cut_out_of_whole_ones(axis: int, seed: int) -> None:
    """2 heads of 4 out of 5 of 8: of each the same two rotary pairs, 0 and 2."""
    values = torch.rand(40, 12, generator=torch.Generator().manual_seed(seed))
    dims = [0, 2, 4, 6]
    rows = {head: [8 * h + dim for h in (head, head + 1) for dim in dims] for head in range(4)}
    best = max(
        ((head, col) for head in range(4) for col in range(12 - 7 + 1)),
        key=lambda at: float(values[rows[at[0]]][:, at[1] : at[1] + 7].sum()),
    )
    given, shape, axes = (values, (8, 7), ("key", "residual"))
    if axis == 1:
        given, shape, axes = values.T.contiguous(), (7, 8), ("residual", "query")
    block = parse("head_aligned").select(exact(given), Place("a", shape, axes, (8, 4), 0))
    right = values[rows[best[0]]][:, best[1] : best[1] + 7]
    assert torch.equal(block.take(given), right if axis == 0 else right.T)
    tiled = Scores.zeros(given.shape, 2, given.device)
    with pytest.raises(ValueError, match=r"heads of 4 from heads of 8 by tiles of 2; set measure\.granularity=1"):
        parse("head_aligned").select(tiled, Place("a", shape, axes, (8, 4), 0))


def test_more_heads_than_the_teacher_has_are_refused() -> None:
    """4 heads of 16 have as many rows as 8 of 8, and no more heads for it."""
    with pytest.raises(ValueError, match="wants 8 attention heads of a teacher's matrix that has 4; take window"):
        parse("head_aligned").select(exact(torch.rand(64, 9)), Place("a", (64, 5), ("query", "residual"), (16, 8), 0))


def test_what_has_no_heads_is_cut_by_the_best_window() -> None:
    values = torch.rand(20, 12, generator=torch.Generator().manual_seed(0))
    place = Place("a", (12, 8), ("ffn", "residual"), (4, 4), 0)
    assert parse("head_aligned").select(exact(values), place) == parse("window").select(exact(values), place)
