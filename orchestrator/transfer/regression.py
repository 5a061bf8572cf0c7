"""Ridge regression from tokens, on whichever side is the smaller, with the penalty that held-out tokens choose."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.transfer.sides import explained

# Times the mean of the Gram matrix's diagonal: one grid for all. A smaller one has to be seen to be better by BETTER,
# since what little it penalises of directions that no token has is rounding.
PENALTIES = (1.0, 1e-1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
BETTER = 1e-12
WITHOUT = 1e-10  # where nothing is held out to choose by


def fitted(x: Float[Tensor, "k m"], y: Float[Tensor, "k r"], held: int, most: float = math.inf) -> Float[Tensor, "m r"]:
    """W of y ≈ x·W, of the penalty with the least error on the last `held` tokens, of which no W is made.

    W = (XᵀX + λ)⁻¹XᵀY, or Xᵀ(XXᵀ + λ)⁻¹Y where tokens are fewer than channels; in float64. Without held-out tokens:
    of next to none. `most`: only of penalties with which ‖W‖ (Frobenius) is no more.
    """
    until = len(x) - held
    exact, target = x.double(), y.double()
    seen, known = exact[:until], target[:until]
    dual = until < x.shape[1]
    gram, right = (seen @ seen.t(), known) if dual else (seen.t() @ seen, seen.t() @ known)

    def solved(penalty: float) -> Tensor:
        found = _solved(gram, right, penalty)
        return seen.t() @ found if dual else found

    def good(found: Tensor) -> float:
        return explained(target[until:], exact[until:] @ found)

    return _best(solved, good, held, lambda found: bool(found.norm() <= most)).to(x.dtype)


def through(
    z: Float[Tensor, "r n"],
    x: Float[Tensor, "k n"],
    y: Float[Tensor, "k m"],
    held: int,
    fits: Callable[[Float[Tensor, "r m"]], bool] = lambda found: True,
) -> Float[Tensor, "r m"]:
    """z·W of the regression y ≈ x·W as in `fitted`, without the n x m matrix W: of the rows z alone.

    z·(XᵀX + λ)⁻¹·XᵀY, where (XᵀX + λ)⁻¹ is solved for zᵀ; or z·Xᵀ·(XXᵀ + λ)⁻¹·Y. `fits`: only of penalties whose
    result is said to.
    """
    until = len(x) - held
    exact, target = x.double(), y.double()
    seen, known = exact[:until], target[:until]
    dual = until < x.shape[1]
    rows = torch.cat([z.double(), exact[until:]])  # the held-out tokens' predictions are more rows of the same product
    gram, right = (seen @ seen.t(), seen @ rows.t()) if dual else (seen.t() @ seen, rows.t())

    def solved(penalty: float) -> Tensor:
        found = _solved(gram, right, penalty).t()
        return found @ known if dual else (found @ seen.t()) @ known

    def good(found: Tensor) -> float:
        return explained(target[until:], found[len(z) :])

    return _best(solved, good, held, lambda found: fits(found[: len(z)]))[: len(z)].to(z.dtype)


def _best(
    solved: Callable[[float], Tensor], good: Callable[[Tensor], float], held: int, fits: Callable[[Tensor], bool]
) -> Tensor:
    """The solution that explains most of what is held out, of those that fit; where none does, the smallest."""
    if not held:
        return solved(WITHOUT)
    best = solved(PENALTIES[0])
    most = good(best)
    for penalty in PENALTIES[1:]:
        found = solved(penalty)
        if fits(found) and (explains := good(found)) > most + BETTER:
            best, most = found, explains
    return best


def _solved(gram: Float[Tensor, "m m"], right: Float[Tensor, "m r"], penalty: float) -> Float[Tensor, "m r"]:
    whole = gram.clone()
    whole.diagonal().add_(penalty * float(gram.diagonal().mean()) or torch.finfo(gram.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(whole)
    if int(failed):  # rounding has made it indefinite: the penalty is below the noise
        return torch.full_like(right, math.nan)
    return torch.cholesky_solve(right, factor)
