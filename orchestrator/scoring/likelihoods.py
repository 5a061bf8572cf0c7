"""How likely a model finds given tokens: the loss of gold answers, and the choice among given ones.

    for found in token_logs(model, rows, pad=0): ...      # [(a row's place, its labelled tokens' log-probabilities)]

What rows begin with in common goes through the model once: a subject's solved questions before all of its own, a
question before all of its choices. Logits are as wide as the vocabulary, 12 GB for 64 answers of 300 tokens among
151,936 in float32: they are formed at labelled places alone, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orchestrator.scoring.budgets import LOGITS, PADDING, TOKENS
from orchestrator.scoring.caches import FEW, alike, held, looks_back, taken, tokens_at_once
from orchestrator.tasks.template import Encoded
from orchestrator.transfer.sensitivity import widened

PART = 4  # what follows is at most so many times as long as what is shared: else little is saved

Found = list[tuple[int, Tensor]]


@dataclass
class Stretch:
    """Tokens that some rows have in common after what they had in common before: a node of the tree of all rows."""

    start: int  # tokens before it
    ids: Sequence[int]
    rows: list[int]  # places of the rows that go through it
    then: list[Stretch] = field(default_factory=list)
    spot: int = 0  # its row in its batch
    wanted: list[tuple[int, int]] = field(default_factory=list)  # where in it a label is foretold, and of which row


class Seen(NamedTuple):
    """A batch that the model has seen: keys and values, and which of their places are tokens, (rows, places)."""

    cache: Any
    mask: Tensor


@torch.no_grad()
def token_logs(
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad: int,
    tokens: int | None = TOKENS,
    device: torch.device | None = None,
    known: Container[int] = (),
) -> Iterator[Found]:
    """Rows by their places in `rows`, each once, with the log-probabilities (t,) of their labelled tokens.

    `tokens` None: all in one pass, as ranks do that wait for each other. `device`: where a model computes whose
    parameters lie elsewhere. What only rows at `known` places go through is left out; the others' batches, and so
    their rounding, are as they would be with it.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        last = max((at for at, label in enumerate(row.labels) if label != -100 and at), default=len(row.ids) - 1)
        places.setdefault(tuple(row.ids[:last]), []).append(place)  # what nothing is foretold from is left out
    inputs = sorted(places)
    if tokens is None or looks_back(model) < max(map(len, inputs), default=0):
        tree = [Stretch(0, ids, places[ids]) for ids in inputs]
    else:
        tree = _tree(inputs, places, 0)
    pass_ = _Pass(model, rows, pad, tokens, device or model.device, known)
    yield from pass_.through(tree, None)


def _tree(inputs: Sequence[tuple[int, ...]], places: dict[tuple[int, ...], list[int]], depth: int) -> list[Stretch]:
    """What sorted inputs, alike up to `depth`, go on with: those that share enough of it share a stretch."""
    groups: list[list[tuple[int, ...]]] = []
    for ids in inputs:
        if groups and alike(groups[-1][-1], ids) - depth >= max(FEW, (len(ids) - depth) // PART):
            groups[-1].append(ids)
        else:
            groups.append([ids])
    found = []
    for group in groups:
        end = alike(group[0], group[-1])  # of sorted ones, the first and the last share the least
        rows = [place for ids in group for place in places[ids]]
        rest = [ids for ids in group if len(ids) > end]
        then = _tree(rest, places, end) if rest else []
        ids = group[0][depth:end]
        if len(then) == 1:  # all go on alike, or end: one pass, since no token sees those after it
            ids, then = (*ids, *then[0].ids), then[0].then
        found.append(Stretch(depth, ids, rows, then))
    return found


class _Pass:
    """One call's: rows through a model, and what was found of each so far."""

    def __init__(
        self, model: Any, rows: Sequence[Encoded], pad: int, tokens: int | None, device: Any, known: Container[int]
    ) -> None:
        self.model, self.rows, self.pad, self.tokens, self.device, self.known = model, rows, pad, tokens, device, known
        self.padding = PADDING["cuda" if torch.device(device).type == "cuda" else "cpu"]
        self.held = tokens_at_once(model, torch.device(device))
        self.logits = LOGITS // (model.config.vocab_size * next(model.parameters()).element_size())
        self.labelled = [[at for at, label in enumerate(row.labels) if label != -100 and at] for row in rows]
        self.left = [len(places) for places in self.labelled]
        self.logs: list[list[tuple[int, Tensor]]] = [[] for _ in rows]

    def through(self, stretches: Sequence[Stretch], seen: Seen | None) -> Iterator[Found]:
        """These, and all that follows them, a batch at a time."""
        for batch in self._batches(stretches):
            if all(row in self.known for one in batch for row in one.rows):
                continue
            after = self._forward(batch, seen)
            if done := self._finished(batch):
                yield done
            if then := [following for one in batch for following in one.then]:
                yield from self.through(then, after)

    def _batches(self, stretches: Sequence[Stretch]) -> Iterator[list[Stretch]]:
        """The longest first; as many together as the budgets of tokens, of what is kept and of logits allow."""
        batch: list[Stretch] = []
        for one in sorted(stretches, key=lambda one: -len(one.ids)):
            self._look(one)
            if batch and self.tokens is not None and not self._fits([*batch, one]):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _look(self, one: Stretch) -> None:
        end = one.start + len(one.ids)
        one.wanted = [
            (at - 1 - one.start, row) for row in one.rows for at in self.labelled[row] if one.start < at <= end
        ]

    def _fits(self, batch: Sequence[Stretch]) -> bool:
        assert self.tokens is not None
        count, at = len(batch), [place for one in batch for place, _ in one.wanted]
        span = max(at) + 1 - min(at) if at else 0
        return (
            count * len(batch[0].ids) <= self.tokens
            and sum(len(batch[0].ids) - len(one.ids) for one in batch) <= self.padding
            and count * max(one.start + len(one.ids) for one in batch) <= self.held
            and count * span <= self.logits
        )

    def _forward(self, batch: list[Stretch], seen: Seen | None) -> Seen:
        width = max(len(one.ids) for one in batch)
        ids = torch.tensor([[*one.ids, *[self.pad] * (width - len(one.ids))] for one in batch], device=self.device)
        mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in batch], device=self.device)
        options: dict[str, Any] = {"use_cache": False}
        if seen or any(one.then for one in batch):
            cache = held(self.model)
            if seen:
                before = [one.spot for one in batch]
                cache = taken([(seen.cache, before)], seen.mask.shape[1])
                mask = torch.cat([seen.mask[before], mask], 1)
            starts = torch.tensor([[one.start] for one in batch], device=self.device)
            options = {"use_cache": True, "past_key_values": cache}
            options["position_ids"] = starts + torch.arange(width, device=self.device)
        at = [place for one in batch for place, _ in one.wanted] or [width - 1]
        span = torch.arange(min(at), max(at) + 1, device=self.device)
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=span, **options).logits
        for spot, one in enumerate(batch):
            self._pick(logits[spot], one, min(at))
            for following in one.then:
                following.spot = spot
        return Seen(options.get("past_key_values"), mask)

    def _pick(self, logits: Tensor, one: Stretch, first: int) -> None:
        """Keep the log-probabilities of the labels that these logits (places, vocabulary) foretell."""
        wanted, start = one.wanted, one.start
        if not wanted:
            return
        places = sorted({at for at, _ in wanted})
        wide = widened(logits[[at - first for at in places]])
        total, spots = wide.logsumexp(-1), {at: spot for spot, at in enumerate(places)}
        chosen = torch.tensor([spots[at] for at, _ in wanted], device=logits.device)
        labels = torch.tensor([self.rows[row].labels[start + at + 1] for at, row in wanted], device=logits.device)
        logs = (wide[chosen].gather(-1, labels[:, None])[:, 0] - total[chosen]).cpu()
        for (at, row), log in zip(wanted, logs, strict=True):
            self.logs[row].append((start + at, log))

    def _finished(self, batch: Sequence[Stretch]) -> Found:
        done = [row for one in batch for row in one.rows if self.left[row] and len(self.logs[row]) == self.left[row]]
        for row in done:
            self.left[row] = 0
        return [(row, torch.stack([log for _, log in sorted(self.logs[row], key=lambda one: one[0])])) for row in done]
