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

from orchestrator.scoring.budgets import LOGITS, TOKENS
from orchestrator.scoring.caches import FEW, held, looks_back, taken, tokens_at_once
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

    def wanted(self, rows: Sequence[Encoded]) -> list[tuple[int, int]]:
        """Where in it a label of a row is foretold, and by which of the rows."""
        end = self.start + len(self.ids)
        return [
            (at - 1 - self.start, row)
            for row in self.rows
            for at, label in enumerate(rows[row].labels[self.start + 1 : end + 1], self.start + 1)
            if label != -100
        ]


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
        places.setdefault(tuple(row.ids[:-1]), []).append(place)
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
        if groups and _alike(groups[-1][-1], ids) - depth >= max(FEW, (len(ids) - depth) // PART):
            groups[-1].append(ids)
        else:
            groups.append([ids])
    found = []
    for group in groups:
        end = _alike(group[0], group[-1])  # of sorted ones, the first and the last share the least
        rows = [place for ids in group for place in places[ids]]
        rest = [ids for ids in group if len(ids) > end]
        found.append(Stretch(depth, group[0][depth:end], rows, _tree(rest, places, end) if rest else []))
    return found


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class _Pass:
    """One call's: rows through a model, and what was found of each so far."""

    def __init__(
        self, model: Any, rows: Sequence[Encoded], pad: int, tokens: int | None, device: Any, known: Container[int]
    ) -> None:
        self.model, self.rows, self.pad, self.tokens, self.device, self.known = model, rows, pad, tokens, device, known
        self.held = tokens_at_once(model, torch.device(device))
        self.logits = LOGITS // (model.config.vocab_size * next(model.parameters()).element_size())
        self.left = [sum(label != -100 for label in row.labels[1:]) for row in rows]
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
        """The longest first; as many together as the budgets of tokens and of logits allow."""
        batch: list[Stretch] = []
        places: list[int] = []
        for one in sorted(stretches, key=lambda one: -len(one.ids)):
            wanted = [at for at, _ in one.wanted(self.rows)]
            both = [*places, *wanted]
            span, count = (max(both) + 1 - min(both) if both else 0), len(batch) + 1
            if (
                batch
                and self.tokens is not None
                and (
                    count * len(batch[0].ids) > self.tokens
                    or count * max(each.start + len(each.ids) for each in [*batch, one]) > self.held
                    or count * span > self.logits
                )
            ):
                yield batch
                batch, both = [], wanted
            batch, places = [*batch, one], both
        if batch:
            yield batch

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
        wanted = [one.wanted(self.rows) for one in batch]
        at = [place for some in wanted for place, _ in some] or [width - 1]
        span = torch.arange(min(at), max(at) + 1, device=self.device)
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=span, **options).logits
        for spot, (one, some) in enumerate(zip(batch, wanted, strict=True)):
            self._pick(logits[spot], one.start, some, min(at))
            for following in one.then:
                following.spot = spot
        return Seen(options.get("past_key_values"), mask)

    def _pick(self, logits: Tensor, start: int, wanted: Sequence[tuple[int, int]], first: int) -> None:
        """Keep the log-probabilities of the labels that these logits (places, vocabulary) foretell."""
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
