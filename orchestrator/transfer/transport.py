"""Which channels of two models do the same, as a transport plan: each channel's weight goes to those most like it."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

LARGE = 2**27  # pairs of channels, above which a plan is made in float32: POT holds four matrices of that size
MET = 0.1  # of each channel's weight may be missing
STOP = 1e-5  # of the marginals' own norm; whoever uses a plan norms it, so that the rest does no harm


def plan(cost: Float[Tensor, "n m"], regularisation: float) -> Float[Tensor, "n m"]:
    """The entropic transport plan between uniform weights (Sinkhorn; Cuturi 2013), by POT: its entries sum to 1.

    By its kernel, and where that is too small for the number type by logarithms. ValueError where neither meets the
    weights to a tenth.
    """
    import ot

    n, m = cost.shape
    ours, theirs = (torch.full((size,), 1 / size, dtype=cost.dtype, device=cost.device) for size in (n, m))
    for method in ("sinkhorn", "sinkhorn_log"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells in words what is looked at here
            found = ot.sinkhorn(ours, theirs, cost, regularisation, method=method, stopThr=STOP * n**-0.5, warn=False)
        if bool(((found.sum(1) * n - 1).abs() < MET).all() and ((found.sum(0) * m - 1).abs() < MET).all()):
            return found
    raise ValueError(f"no transport plan of a regularisation of {regularisation:g} was found; take a larger one")


def apart(own: Float[Tensor, "k n"], other: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """1 - Pearson's r of every two channels over the same tokens; a channel that never changes is like no other: 1."""
    large = own.shape[1] * other.shape[1] > LARGE
    alike = []
    for side in (own, other):
        centred = side.double() - side.double().mean(0)
        norms = centred.norm(dim=0)
        still = norms <= 1e-12 * side.double().norm(dim=0)
        unit = torch.where(still, 0.0, centred / norms.clamp_min(torch.finfo(norms.dtype).tiny))
        alike.append(unit.float() if large else unit)
    return 1 - alike[0].t() @ alike[1]


def averaged(
    z: Float[Tensor, "r mt"], teacher: Float[Tensor, "k mt"], student: Float[Tensor, "k ms"], regularisation: float
) -> Float[Tensor, "r ms"]:
    """What the teacher writes: each of the student's channels takes the mean of those that the plan gives it."""
    found = plan(apart(student, teacher), regularisation)
    return (z.to(found) @ (found / found.sum(1, keepdim=True)).t()).to(z.dtype)


def summed(
    z: Float[Tensor, "r mt"], teacher: Float[Tensor, "k mt"], student: Float[Tensor, "k ms"], regularisation: float
) -> Float[Tensor, "r ms"]:
    """What the teacher reads: each of its channels is read off those of the student that the plan gives it.

    Weights of channels that do the same add up: what is read from two copies of one is read from that one twice.
    """
    found = plan(apart(student, teacher), regularisation)
    return (z.to(found) @ (found / found.sum(0, keepdim=True)).t()).to(z.dtype)


def shares(alike: Float[Tensor, "lt ls"], regularisation: float, most: int) -> list[list[tuple[int, float]]]:
    """For each of the student's layers the `most` of the teacher's that a plan between layers gives it most of.

    With their shares, which sum to 1. The earlier one wins a tie.
    """
    found = plan(1 - alike.t(), regularisation)
    chosen = []
    for row in found.tolist():
        best = sorted(sorted(range(len(row)), key=lambda layer: (-row[layer], layer))[:most])
        whole = sum(row[layer] for layer in best)
        chosen.append([(layer, row[layer] / whole) for layer in best])
    return chosen
