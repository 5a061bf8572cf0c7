"""Oracle: torch's full singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.transfer.lowrank import product_svd, truncated_svd


def slow_spectrum(n: int, m: int) -> Tensor:
    """A matrix with singular values i^(-1/4): the slow decay on which sketches fail."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(n, min(n, m), generator=generator)).Q
    v = torch.linalg.qr(torch.randn(m, min(n, m), generator=generator)).Q
    return u * torch.arange(1, min(n, m) + 1).float().pow(-0.25) @ v.T


@pytest.mark.parametrize(("n", "m"), [(1200, 900), (900, 1200), (64, 192), (300, 300)])
def test_nearly_all_of_the_best_energy(n: int, m: int) -> None:
    matrix = slow_spectrum(n, m)
    factors = truncated_svd(matrix, 16)
    best = torch.linalg.svdvals(matrix)[:16]
    assert float(factors.s.square().sum() / best.square().sum()) > 0.999
    kept = torch.linalg.norm(matrix) ** 2 - torch.linalg.norm(matrix - factors.u * factors.s @ factors.vh) ** 2
    assert float(kept / best.square().sum()) > 0.999
    assert torch.allclose(factors.u.T @ factors.u, torch.eye(16), atol=1e-5)
    assert torch.allclose(factors.vh @ factors.vh.T, torch.eye(16), atol=1e-5)
    assert list(factors.s) == sorted(factors.s, reverse=True)


def test_truncations_are_nested() -> None:
    matrix = slow_spectrum(700, 600)
    large, small = truncated_svd(matrix, 32).truncate(8), truncated_svd(matrix, 8)
    product, right = large.u * large.s @ large.vh, small.u * small.s @ small.vh
    assert float((product - right).norm() / right.norm()) < 0.05
    assert float(large.s.square().sum() / torch.linalg.svdvals(matrix)[:8].square().sum()) > 0.9999


def test_the_same_factors_each_time_and_in_bfloat16() -> None:
    matrix = slow_spectrum(600, 500)
    first, second = truncated_svd(matrix, 8), truncated_svd(matrix, 8)
    assert torch.equal(first.u, second.u)
    assert truncated_svd(matrix.bfloat16(), 8).u.dtype == torch.float32


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_that_no_matrix_has(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of a 8 x 20"):
        truncated_svd(torch.ones(8, 20), rank)


def test_the_spectrum_control_keeps_the_values_and_nothing_else() -> None:
    factors = truncated_svd(slow_spectrum(80, 60), 8)
    control = factors.random_directions(torch.Generator().manual_seed(0))
    assert torch.allclose(torch.linalg.svdvals(control.u * control.s @ control.vh)[:8], factors.s, atol=1e-5)
    assert float((control.u.T @ factors.u).abs().max()) < 0.5
    other = factors.random_directions(torch.Generator().manual_seed(1))
    assert not torch.allclose(control.u, other.u)


@pytest.mark.parametrize(("n", "k", "m"), [(50, 8, 30), (30, 8, 50), (5, 8, 30), (50, 8, 4), (9, 1, 7)])
def test_the_decomposition_of_a_product_is_that_of_its_matrix(n: int, k: int, m: int) -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(n, k, generator=generator), torch.randn(k, m, generator=generator)
    product = product_svd(b, a)
    assert torch.allclose(product.s, torch.linalg.svdvals(b @ a)[: min(n, k, m)], rtol=1e-4, atol=1e-5)
    assert torch.allclose(product.u * product.s @ product.vh, b @ a, atol=1e-4)
    assert product.u.shape == (n, min(n, k, m))
    for rank in range(1, min(n, k, m)):
        cut = product.truncate(rank)
        lost = torch.linalg.norm(b @ a - cut.u * cut.s @ cut.vh)
        assert float(lost) == pytest.approx(float(torch.linalg.svdvals(b @ a)[rank:].norm()), rel=1e-4)


def test_what_rounding_leaves_of_halves_that_cancel_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(60, 4, generator=generator), torch.randn(4, 40, generator=generator)
    assert not product_svd(torch.cat([b, -b], 1), torch.cat([a, a])).s.any()
    moved = b + 1e-6 * torch.randn(60, 4, generator=generator)
    product = product_svd(torch.cat([moved, -b], 1), torch.cat([a, a]))
    want = (moved.double() - b.double()) @ a.double()
    assert int((product.s > 0).sum()) == 4
    assert float((product.u * product.s @ product.vh - want).norm() / want.norm()) < 1e-6
