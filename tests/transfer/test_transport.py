"""Plans between channels: against exact assignment, and between a model and copies of it."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from orchestrator.transfer.transport import apart, averaged, plan, shares, summed

TOKENS, RANK = 200, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_plan_uses_up_both_sides_and_costs_what_an_assignment_does() -> None:
    cost = torch.rand(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = plan(cost, 0.02)
    for axis in (0, 1):
        torch.testing.assert_close(found.sum(axis), torch.full((12,), 1 / 12, dtype=torch.float64), rtol=1e-4, atol=0)
    rows, columns = linear_sum_assignment(cost.numpy())
    assert float((found * cost).sum()) == pytest.approx(cost[rows, columns].mean().item(), abs=0.02)


def test_the_cost_is_one_minus_pearsons_r() -> None:
    own, other = drawn(TOKENS, 4), drawn(TOKENS, 6, seed=1)
    own[:, 2] = 7.1  # a channel that never changes
    wanted = 1 - torch.corrcoef(torch.cat([own, other], 1).t())[:4, 4:]
    wanted[2] = 1
    torch.testing.assert_close(apart(own, other), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_permuted_and_scaled_copy_is_found_again(dtype: torch.dtype) -> None:
    student = drawn(TOKENS, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    teacher = 3.0 * student[:, order]
    z = drawn(RANK, 40, seed=3).to(dtype)
    wanted = torch.zeros_like(z)
    wanted[:, order] = z
    for way in (averaged, summed):
        found = way(z, teacher, student, 0.05)
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_teacher_of_copies_reads_and_writes_what_the_student_does() -> None:
    """Each channel twice: W_T writes it twice and reads half of each, as HyperCloning (arXiv 2409.12903) widens."""
    inputs, outputs, weight = drawn(TOKENS, 20), drawn(TOKENS, 24, seed=1), drawn(24, 20, seed=2)
    wide = weight.repeat(2, 2) / 2
    read = summed(wide, inputs.repeat(1, 2), inputs, 0.05)
    found = averaged(read.t(), outputs.repeat(1, 2), outputs, 0.05).t()
    torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-4)


def test_layers_take_shares_of_those_that_are_alike() -> None:
    alike = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)  # six of the teacher's, two for each
    found = shares(alike, 0.05, 2)
    assert [[layer for layer, _ in row] for row in found] == [[0, 1], [2, 3], [4, 5]]
    assert [share for row in found for _, share in row] == pytest.approx([0.5] * 6, abs=1e-6)
    assert shares(torch.eye(3, dtype=torch.float64), 0.05, 1) == [[(0, 1.0)], [(1, 1.0)], [(2, 1.0)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plan_too_sharp_for_its_kernel_is_found_by_logarithms_or_refused(dtype: torch.dtype) -> None:
    cost = 1 - torch.eye(6, dtype=dtype)
    cost[2] = 1.0  # a channel that is like no other
    found = plan(cost, 0.005)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found.sum(1), torch.full((6,), 1 / 6, dtype=dtype), rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="no transport plan of a regularisation of 1e-30"):
        plan(cost, 1e-30)
