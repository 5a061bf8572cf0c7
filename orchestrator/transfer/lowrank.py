"""The best factors of low rank, at the price of a few products with the matrix.

    factors = truncated_svd(block, rank=16)      # block (4096, 4096)
    factors.u * factors.s @ factors.vh           # the nearest matrix of rank 16 (Eckart and Young)

Truncations are nested: the first r columns of a factorisation at rank 64 are the one at rank r, so that one
factorisation serves every rank of a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 256  # below this the full decomposition costs less than a sketch is worth


@dataclass(frozen=True)
class Factors:
    """U (n, r), singular values (r,) descending and V transposed (r, m) of a matrix, in float32."""

    u: Float[Tensor, "n r"]
    s: Float[Tensor, " r"]
    vh: Float[Tensor, "r m"]

    def to(self, device: str) -> Factors:
        """The same, there."""
        return Factors(self.u.to(device), self.s.to(device), self.vh.to(device))

    def truncate(self, rank: int) -> Factors:
        """The factors of the best approximation of a smaller rank."""
        return Factors(self.u[:, :rank], self.s[:rank], self.vh[:rank])

    def random_directions(self, generator: torch.Generator) -> Factors:
        """Random orthonormal directions with these singular values: what is left of a block without its content.

        The control that decides whether the teacher's directions matter, or only the scale of the start.
        """
        n, r, m = *self.u.shape, self.vh.shape[1]
        u = torch.linalg.qr(torch.randn(n, r, generator=generator)).Q
        v = torch.linalg.qr(torch.randn(m, r, generator=generator)).Q
        return Factors(u, self.s, v.t().contiguous())


def truncated_svd(matrix: Float[Tensor, "n m"], rank: int, *, depth: int = 4) -> Factors:
    """The `rank` leading singular triplets, by randomised block Krylov iteration (Musco & Musco, arXiv 1504.05477).

    The basis spans G, (MMᵀ)G, ... (MMᵀ)^depth G for a random block G of 1.5 × rank + 8 columns, re-orthogonalised at
    each step, so that it converges on slowly decaying spectra too. Deterministic: the random block has a fixed
    seed, and each triplet's largest entry of U is made positive. ValueError where the rank exceeds a side.
    """
    n, m = matrix.shape
    if not 1 <= rank <= min(n, m):
        raise ValueError(f"rank {rank} of a {n} x {m} matrix")
    matrix = matrix.float()
    width = rank + rank // 2 + 8
    if min(n, m) <= max(SMALL, 2 * width * (depth + 1)):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return _signed(u[:, :rank], s[:rank], vh[:rank])
    start = torch.randn(m, width, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    block = torch.linalg.qr(matrix @ start).Q
    basis = [block]
    for _ in range(depth):
        block = torch.linalg.qr(matrix @ (matrix.t() @ block)).Q
        basis.append(block)
    q = torch.linalg.qr(torch.cat(basis, 1)).Q
    u, s, vh = torch.linalg.svd(q.t() @ matrix, full_matrices=False)
    return _signed(q @ u[:, :rank], s[:rank], vh[:rank])


def product_svd(b: Float[Tensor, "n k"], a: Float[Tensor, "k m"]) -> Factors:
    """The SVD of B·A, whole, without the n x m matrix: QR of both factors, then the SVD of a k x k one.

    In float64, and what its rounding leaves of a product whose halves cancel is zero: B = [B, -B0] and A = [A; A0]
    are each much larger than their product where little was learnt.
    """
    qb, rb = torch.linalg.qr(b.double())
    qa, ra = torch.linalg.qr(a.double().t())
    u, s, vh = torch.linalg.svd(rb @ ra.t(), full_matrices=False)
    rounding = torch.finfo(s.dtype).eps * rb.shape[1] * rb.norm() * ra.norm()
    factors = _signed(qb @ u, torch.where(s > rounding, s, 0), vh @ qa.t())
    return Factors(factors.u.float(), factors.s.float(), factors.vh.float())


def _signed(u: Tensor, s: Tensor, vh: Tensor) -> Factors:
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return Factors((u * sign).contiguous(), s.contiguous(), (vh * sign.t()).contiguous())
