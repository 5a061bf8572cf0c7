"""What a teacher predicts of a token, kept small, and how far a student's prediction is from it."""

from __future__ import annotations

import torch
from torch import Tensor

KEPT = 128  # likeliest tokens of each position; the rest of the probability is one more outcome


def likeliest(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    """Tokens (t, k) and log-probabilities (t, k + 1) of logits (t, v) at a temperature."""
    logs = torch.log_softmax(logits.float() / temperature, -1)
    kept = logs.topk(min(KEPT, logs.shape[-1]), -1)
    others = logs.scatter(-1, kept.indices, -torch.inf).logsumexp(-1, keepdim=True)
    both = torch.cat([kept.values, others], -1)
    return {"tokens": kept.indices.int().cpu().contiguous(), "logs": both.cpu().contiguous()}


def divergence(logits: Tensor, tokens: Tensor, logs: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of each position, (t,), times temperature² as its authors do, so that gradients keep
    their scale; over the teacher's likeliest tokens and all others as one.
    """
    own = torch.log_softmax(logits.float() / temperature, -1)
    tokens = tokens.long()
    rest = torch.ones_like(own, dtype=torch.bool).scatter(-1, tokens, False)
    others = own.masked_fill(~rest, torch.finfo(own.dtype).min).logsumexp(-1, keepdim=True)
    both = torch.cat([own.gather(-1, tokens), others], -1)
    kept = logs > -torch.inf  # where every token was kept, none is among the others
    terms = logs.exp() * (logs.masked_fill(~kept, 0) - both.masked_fill(~kept, 0))
    return terms.sum(-1) * temperature**2
