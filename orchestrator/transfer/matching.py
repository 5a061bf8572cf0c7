"""Which of the teacher's layers does what each of the student's does: by what they make of the same examples.

monotone(similarity(teacher_states, student_states))      # (0, 0, 2, 3, 5): for each of the student's layers
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def similarity(teacher: Float[Tensor, "lt n mt"], student: Float[Tensor, "ls n ms"]) -> Float[Tensor, "lt ls"]:
    """Linear CKA of every pair of layers (Kornblith et al., arXiv 1905.00414): ‖YᵀX‖² / (‖XᵀX‖ · ‖YᵀY‖), centred.

    By the n x n Gram matrices of the examples, whatever the widths. It is in [0, 1], and 1 for rotated and scaled
    copies. A layer that says the same of all examples is like no other: 0.
    """
    grams = []
    for states in (teacher, student):
        centred = states.double() - states.double().mean(1, keepdim=True)
        gram = centred @ centred.mT
        norm = gram.flatten(1).norm(dim=1)
        grams.append(gram.flatten(1) / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None])
    return grams[0] @ grams[1].t()


def monotone(alike: Float[Tensor, "lt ls"]) -> tuple[int, ...]:
    """For each of the student's layers one of the teacher's, never before that of the layer below, of largest total.

    By dynamic programming; the earlier one wins a tie. A layer of the teacher's may serve several, or none.
    """
    theirs, own = alike.shape
    values, best, steps = alike.tolist(), alike[:, 0].tolist(), []
    for layer in range(1, own):
        most, at, froms, totals = best[0], 0, [], []
        for one in range(theirs):
            if best[one] > most:
                most, at = best[one], one
            froms.append(at)
            totals.append(most + values[one][layer])
        steps.append(froms)
        best = totals
    chosen = [best.index(max(best))]
    for froms in reversed(steps):
        chosen.append(froms[chosen[-1]])
    return tuple(reversed(chosen))
