"""How much goes through a model at once when it is scored: what plans count on, and what scoring keeps to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

ANSWERS = 8192  # tokens of questions with their answers at once, whose keys and values are kept for the next token
MOST = 262_144  # where there is room for more than ANSWERS: the more are answered together, the less each costs
ROWS = 32  # answers at once on a CPU: with twice as many, none comes faster
ON_CPU = 1 << 30  # bytes for those keys and values there
TURN = 8  # times as many questions as are answered at once take turns
SHARE = 0.6  # of a GPU's free memory, for the same
TOKENS = 4096  # padded ones at once, where likelihoods are asked for
REPLY = 8  # tokens that a judge may say
QUESTION = 128  # about as many has what it is asked, without instruction and answers
PADDING = {"cpu": 32, "cuda": TOKENS}  # tokens of it in a batch that cost no more than another pass would
LOGITS = 1 << 29  # bytes of them at once, or those of one row


def affordable(room: float, each: int) -> int:
    """Tokens of answers at once on a GPU of so much free memory, a token's keys and values taking `each` bytes."""
    return max(ANSWERS, min(MOST, int(SHARE * room // each)))


def on_cpu(each: int) -> int:
    """The same in a machine's memory."""
    return max(ANSWERS // 4, min(MOST, ON_CPU // each))


def turns(lengths: Sequence[int], new: int, tokens: int, device: str) -> Iterator[tuple[list[int], int]]:
    """The places of questions that take turns with each other, the longest first, and how many of them at once.

    A turn is what a process that was killed does again: a few times as many questions as go at once.
    """
    places = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while places:
        at_once = max(1, tokens // (lengths[places[0]] + new))
        at_once = min(at_once, ROWS) if device != "cuda" else at_once
        yield places[: TURN * at_once], at_once
        places = places[TURN * at_once :]
