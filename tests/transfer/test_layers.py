"""Oracles: every subset for the best one; plain properties for the rest."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.transfer.layers import LayerSelection

parse = TypeAdapter(LayerSelection).validate_python
SCORES = st.lists(st.floats(0, 10), min_size=1, max_size=8)


@given(SCORES, st.data())
def test_sensitivity_keeps_the_subset_with_the_largest_sum(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    chosen = parse("sensitivity").select(scores, count)
    best = max(sum(scores[layer] for layer in subset) for subset in itertools.combinations(range(len(scores)), count))
    assert sum(scores[layer] for layer in chosen) == pytest.approx(best)


@given(st.sampled_from(["sensitivity", "random", "first", "last", "uniform"]), SCORES, st.data())
def test_every_strategy_gives_that_many_layers_in_order(kind: str, scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    chosen = parse(kind).select(scores, count)
    assert len(chosen) == count
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(range(len(scores)))


def test_where_each_strategy_looks() -> None:
    scores = [5.0, 1.0, 2.0, 9.0, 4.0, 3.0]
    assert parse("sensitivity").select(scores, 3) == (0, 3, 4)
    assert parse("first").select(scores, 3) == (0, 1, 2)
    assert parse("last").select(scores, 3) == (3, 4, 5)
    assert parse("uniform").select(scores, 3) == (0, 3, 5)
    assert parse("uniform").select(scores, 6) == (0, 1, 2, 3, 4, 5)
    assert parse("0, 2,5").select(scores, 3) == (0, 2, 5)
    draws = {parse({"kind": "random", "seed": seed}).select(scores, 3) for seed in range(20)}
    assert len(draws) > 5


def test_an_explicit_choice_must_fit() -> None:
    with pytest.raises(ValueError, match=r"3 of the teacher's 0\.\.3 are needed"):
        parse("0,1").select([1.0] * 4, 3)
    with pytest.raises(ValueError, match="0,9 given"):
        parse("0,9").select([1.0] * 4, 2)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="sensitivity"):
        parse("sensitivty")
