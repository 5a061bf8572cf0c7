"""How likely a model finds given tokens: the loss of gold answers, and the choice among given ones.

    for place, logs in token_logs(model, rows, pad=0): ...      # each row's labelled tokens' log-probabilities, (t,)

Logits are as wide as the vocabulary: 64 answers of 300 tokens among 151,936 are 12 GB in float32. They are formed
at labelled places alone, a few rows at a time, and nothing is cached for a next token that never comes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.scoring.budgets import LOGITS, TOKENS
from orchestrator.tasks.template import Encoded, collate
from orchestrator.transfer.sensitivity import widened


@torch.no_grad()
def token_logs(
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad: int,
    tokens: int | None = TOKENS,
    device: torch.device | None = None,
    known: Container[int] = (),
) -> Iterator[list[tuple[int, Tensor]]]:
    """Each batch's rows by their places in `rows`, with the log-probabilities (t,) of their labelled tokens.

    Rows whose tokens before the last are the same (choices of one token) go through the model once. `tokens` None: all
    in one pass, as ranks do that wait for each other. `device`: where a model computes whose parameters lie elsewhere.
    Batches of which all rows are at `known` places are left out; the others are as they would be with them.
    """
    device = device or model.device
    places: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(tuple(row.ids[:-1]), []).append(place)
    inputs = sorted(places, key=lambda ids: -len(ids))
    kept = {ids: _kept([rows[place] for place in places[ids]]) for ids in inputs}
    width = model.config.vocab_size * next(model.parameters()).element_size()
    for group in _groups(inputs, kept, tokens, LOGITS // width):
        if all(place in known for ids in group for place in places[ids]):
            continue
        batch = collate([Encoded("", list(ids), []) for ids in group], pad)
        asked = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        first = min(kept[ids].start for ids in group)
        span = torch.arange(first, max(kept[ids].stop for ids in group), device=device)
        logits = model(**asked, use_cache=False, logits_to_keep=span).logits
        yield [
            (place, _picked(logits[at], rows[place], first)) for at, ids in enumerate(group) for place in places[ids]
        ]
        del logits


def _kept(rows: Sequence[Encoded]) -> range:
    """Where logits are needed: each predicts the token after it."""
    labelled = [at for row in rows for at, label in enumerate(row.labels) if label != -100 and at]
    return range(min(labelled) - 1, max(labelled))


def _groups(
    inputs: Sequence[tuple[int, ...]], kept: dict[tuple[int, ...], range], tokens: int | None, logits: int
) -> Iterator[list[tuple[int, ...]]]:
    """The longest first; as many together as both budgets allow."""
    group: list[tuple[int, ...]] = []
    for ids in inputs:
        more = [*group, ids]
        span = max(kept[one].stop for one in more) - min(kept[one].start for one in more)
        if group and tokens is not None and (len(group[0]) * len(more) > tokens or span * len(more) > logits):
            yield group
            more = [ids]
        group = more
    if group:
        yield group


def _picked(logits: Tensor, row: Encoded, first: int) -> Tensor:
    """The log-probabilities of one row's labelled tokens; logits (places, vocabulary) from the place `first` on."""
    at = [place for place, label in enumerate(row.labels) if label != -100 and place]
    wide = widened(logits[at[0] - 1 - first : at[-1] - first])
    chosen = torch.tensor([place - at[0] for place in at], device=logits.device)
    targets = torch.tensor([row.labels[place] for place in at], device=logits.device)
    return (wide[chosen].gather(-1, targets[:, None])[:, 0] - wide.logsumexp(-1)[chosen]).cpu()
