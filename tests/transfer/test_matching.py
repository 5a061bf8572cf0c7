"""Layers matched by what they make of the same examples: by definition, and by trying every map."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from orchestrator.transfer.matching import monotone, similarity


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_its_definition() -> None:
    """From cross-covariances of channels, where the code goes by the examples' Gram matrices."""
    teacher, student = drawn(3, 20, 7), drawn(2, 20, 5, seed=1)
    found = similarity(teacher, student)
    for one, other in itertools.product(range(3), range(2)):
        x, y = (part - part.mean(0) for part in (teacher[one], student[other]))
        own = (x.t() @ y).square().sum() / ((x.t() @ x).norm() * (y.t() @ y).norm())
        assert float(found[one, other]) == pytest.approx(float(own), rel=1e-9)


def test_rotated_scaled_and_shifted_copies_are_alike_and_constants_are_like_nothing() -> None:
    x = drawn(1, 30, 6)
    turn = torch.linalg.qr(drawn(6, 6, seed=2)).Q
    assert float(similarity(x, 3 * x @ turn + 5)) == pytest.approx(1)
    assert float(similarity(x, torch.ones(1, 30, 4))) == pytest.approx(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("theirs", "own"), [(5, 3), (4, 4), (2, 4), (3, 1)])
def test_the_map_is_the_best_of_all_monotone_ones(theirs: int, own: int, seed: int) -> None:
    alike = drawn(theirs, own, seed=seed)
    every = itertools.combinations_with_replacement(range(theirs), own)
    best = max(every, key=lambda at: sum(float(alike[one, layer]) for layer, one in enumerate(at)))
    assert monotone(alike) == best


def test_a_student_that_is_every_other_layer_is_matched_to_them() -> None:
    teacher = drawn(8, 40, 12).cumsum(0)
    turn = torch.linalg.qr(drawn(12, 12, seed=3)).Q
    assert monotone(similarity(teacher, teacher[1::2] @ turn)) == (1, 3, 5, 7)
