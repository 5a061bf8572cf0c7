"""The rotation that takes one model's channels nearest to another's, without a matrix as wide as both."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotation(
    teacher: Float[Tensor, "k mt"], student: Float[Tensor, "k ms"], *, centre: bool = False, whiten: float = 0.0
) -> tuple[Float[Tensor, "mt c"], Float[Tensor, "c ms"]]:
    """U and Vᵀ of T = UVᵀ, where C = H_TᵀH_S = UΣVᵀ (orthogonal Procrustes, Schönemann 1966), in float64.

    C is formed where k tokens are more than the channels, and from both sides' QR (k x k) where they are fewer.
    Directions in which C is zero to rounding are left out: there any rotation would be as good. With `whiten` p > 0
    each H is H·(HᵀH)^-p first, so that strong channels count for less; at 1/2 none counts for more than another.
    """
    teacher, student = teacher.double(), student.double()
    if centre:
        teacher, student = teacher - teacher.mean(0), student - student.mean(0)
    if whiten:
        teacher, student = _whitened(teacher, whiten), _whitened(student, whiten)
    if len(teacher) >= min(teacher.shape[1], student.shape[1]):
        u, s, vh = torch.linalg.svd(teacher.t() @ student, full_matrices=False)
    else:
        (q_t, r_t), (q_s, r_s) = torch.linalg.qr(teacher.t()), torch.linalg.qr(student.t())
        u, s, vh = torch.linalg.svd(r_t @ r_s.t(), full_matrices=False)
        u, vh = q_t @ u, vh @ q_s.t()
    kept = s > torch.finfo(s.dtype).eps * max(teacher.shape[1], student.shape[1]) * s.max()
    return u[:, kept], vh[kept]


def _whitened(h: Float[Tensor, "k m"], power: float) -> Float[Tensor, "k m"]:
    """H·(HᵀH)^-p within what the tokens span."""
    u, s, vh = torch.linalg.svd(h, full_matrices=False)
    kept = s > torch.finfo(s.dtype).eps * max(h.shape) * s.max()
    return (u[:, kept] * s[kept] ** (1 - 2 * power)) @ vh[kept]
