"""How much goes through a model at once when it is scored: what plans count on, and what scoring keeps to."""

from __future__ import annotations

ANSWERS = 8192  # tokens of questions with their answers at once, whose keys and values are kept for the next token
MOST = 262_144  # where a GPU has room for more than ANSWERS: the more are answered together, the less each costs
SHARE = 0.6  # of a GPU's free memory, for those keys and values
TOKENS = 4096  # padded ones at once, where likelihoods are asked for
LOGITS = 1 << 29  # bytes of them at once, or those of one row


def affordable(room: float, each: int) -> int:
    """Tokens of answers at once on a GPU of so much free memory, a token's keys and values taking `each` bytes."""
    return max(ANSWERS, min(MOST, int(SHARE * room // each)))
