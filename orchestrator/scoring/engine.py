"""A model with its adapter, loaded, as what tasks are put to: one after another, by whichever engine runs it.

    with loaded(student, adapter, dtype="float32") as engine:
        for some in engine.said(items, metric, stops=stops, known={}): ...      # places, and what was said there
        losses = engine.losses(rows)                                            # of the gold answers

Answers come a batch at a time, so that none is lost with the next.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch

from orchestrator.models.adapters import folded, wearing
from orchestrator.models.borrowed import borrowed
from orchestrator.models.loading import load_tokenizer
from orchestrator.scoring import budgets, generation, likelihoods
from orchestrator.scoring.caches import tokens_at_once
from orchestrator.scoring.judge import Item, Said, Scored, judge, room
from orchestrator.step import Track, silent
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import Encoded

Some = list[tuple[int, Said]]  # an item's place, and what was said to it
Writer = Callable[[Any, Sequence[Item], Metric, Sequence[int], Mapping[str, Said]], Iterator[Some]]


class Engine(Protocol):
    """Who runs a model: transformers is always there. Prompts are ids by then, and judging is no engine's."""

    def said(
        self,
        items: Sequence[Item],
        metric: Metric,
        *,
        stops: Sequence[int],
        known: Mapping[str, Said],
        golds: Mapping[str, Encoded],
    ) -> Iterator[Some]:
        """What the model answers, or how likely it finds each choice; of a batch that is all `known`, that.

        Where it is asked for choices, `golds` (by the items' ids) tell the gold answers' losses on the way.
        """

    def losses(self, rows: Sequence[Encoded], *, track: Track[Any] = silent) -> list[float]:
        """Per example, the mean cross-entropy of its gold answer's tokens."""


@dataclass(frozen=True)
class Transformers:
    """A model in this process, within budgets of tokens; answers may be written by another engine."""

    model: Any
    tokenizer: Any
    writer: Writer | None = None

    def said(
        self,
        items: Sequence[Item],
        metric: Metric,
        *,
        stops: Sequence[int],
        known: Mapping[str, Said],
        golds: Mapping[str, Encoded],
    ) -> Iterator[Some]:
        """Token by token, or by how likely each choice is, or both."""
        return said(
            self.model, self.tokenizer, items, metric, stops=stops, known=known, golds=golds, writer=self.writer
        )

    def losses(self, rows: Sequence[Encoded], *, track: Track[Any] = silent) -> list[float]:
        """By forward passes."""
        return gold_losses(self.model, rows, self.tokenizer.pad_token_id, track=track)


@contextmanager
def loaded(model: str, adapter: Path | None, *, dtype: str, writer: Writer | None = None) -> Iterator[Engine]:
    """The engine for a checkpoint folder with an adapter on it; what was loaded before in this process is taken."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with borrowed(model, dtype=dtype, device=device) as base, wearing(base, adapter) as network, folded(network):
        yield Transformers(network, load_tokenizer(model), writer)


def said(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    metric: Metric,
    *,
    stops: Sequence[int],
    known: Mapping[str, Said] | None = None,
    golds: Mapping[str, Encoded] | None = None,
    together: bool = False,
    device: Any = None,
    writer: Writer | None = None,
) -> Iterator[Some]:
    """What a model (PreTrainedModel or PeftModel) says to the items, batch by batch; to choices with the losses of
    those `golds` that are given.

    Of a batch that is all `known` (by the items' ids) those answers are told and nothing is computed.
    Batches are the same however many are known, so that rounding is. `together`: all in one, as ranks do that wait for
    each other. What doesn't fit into the model's context is told first, and not asked.
    """
    device, known = torch.device(device or model.device), known or {}
    context = model.config.max_position_embeddings
    fit = [place for place, item in enumerate(items) if room(item, metric) <= context]
    if len(fit) < len(items):
        yield [(place, Said(asked=False)) for place in sorted({*range(len(items))} - {*fit})]
    chosen = [items[place] for place in fit]
    with evaluating(model):
        if not metric.writes:
            some = _likeliest(model, chosen, known, golds or {}, together, device, stops[0])
        elif metric.kind == "edit_success":
            shown = _likeliest(model, chosen, known, golds or {}, together, device, stops[0])
            some = _edited(shown, _generated(model, tokenizer, chosen, metric, (), known, together, device))
        elif writer:
            some = writer(tokenizer, chosen, metric, stops, known)
        else:
            some = _generated(model, tokenizer, chosen, metric, stops, known, together, device)
        for batch in some:
            yield [(fit[place], one) for place, one in batch]


def score(model: Any, tokenizer: Any, items: Sequence[Item], metric: Metric, *, stops: Sequence[int]) -> list[Scored]:
    """Asked and judged at once: results in the items' order."""
    found = {place: one for some in said(model, tokenizer, items, metric, stops=stops) for place, one in some}
    return judge(items, [found[place] for place in range(len(items))], metric)


def evaluating(model: Any) -> ExitStack:
    """Open: no dropout. Modules are restored one by one, since a frozen part may be in another mode than the rest."""
    restore = ExitStack()
    for module in model.modules():
        restore.callback(setattr, module, "training", module.training)
    model.eval()
    return restore


def gold_losses(
    model: Any,
    encoded: Sequence[Encoded],
    pad: int,
    *,
    tokens: int | None = budgets.TOKENS,
    device: torch.device | None = None,
    track: Track[Any] = silent,
) -> list[float]:
    """Per example, the mean cross-entropy of its gold answer's tokens."""
    losses = [math.nan] * len(encoded)
    with evaluating(model):
        each = chain.from_iterable(likelihoods.token_logs(model, encoded, pad=pad, tokens=tokens, device=device))
        for place, logs in track(each, "losses of gold answers", len(encoded)):
            losses[place] = -float(logs.mean())
    return losses


def _generated(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    metric: Metric,
    stops: Sequence[int],
    known: Mapping[str, Said],
    together: bool,
    device: Any,
) -> Iterator[Some]:
    options: Any = {"new": metric.max_new_tokens, "stops": stops, "until": metric.until, "device": device}
    if together:
        told = generation.answered_in_step(model, tokenizer, [item.ids for item in items], **options)
        yield list(enumerate(told))
        return
    tokens = tokens_at_once(model, device)
    for group, at_once in budgets.turns([len(item.ids) for item in items], metric.max_new_tokens, tokens, device.type):
        asked = [items[place] for place in group]
        if all(item.id in known for item in asked):
            yield [(place, known[items[place].id]) for place in group]
            continue
        prompts = [item.ids for item in asked]
        for place, one in generation.answered(model, tokenizer, prompts, at_once=at_once, **options):
            yield [(group[place], one)]


def _edited(shown: Iterator[Some], written: Iterator[Some]) -> Iterator[Some]:
    """What each edit's prompt is gone on with, and how its probes went: those of all edits are through before."""
    probes = dict(chain.from_iterable(shown))
    for batch in written:
        yield [(place, replace(probes[place], text=one.text, ids=one.ids)) for place, one in batch]


def _likeliest(
    model: Any,
    items: Sequence[Item],
    known: Mapping[str, Said],
    golds: Mapping[str, Encoded],
    together: bool,
    device: Any,
    pad: int,
) -> Iterator[Some]:
    """Each item once the last of its choices, and its gold answer, have gone through the model."""
    if told := [(place, known[item.id]) for place, item in enumerate(items) if item.id in known]:
        yield told
    asked = [(place, ids, choice) for place, item in enumerate(items) for ids, choice in item.forced]
    rows = [Encoded("", [*ids, *choice], [-100] * len(ids) + [*choice]) for _, ids, choice in asked]
    forced = any(item.probes or len(item.choice_ids) == 1 for item in items)  # is it what a model would say?
    best: dict[int, torch.Tensor] | None = {} if forced else None
    own = [place for place, item in enumerate(items) if item.id in golds]
    rows += [golds[items[place].id] for place in own]
    of = [*(place for place, *_ in asked), *own]  # whose each row is
    whole = Counter(of)
    done = {at for at, place in enumerate(of) if items[place].id in known}
    logs: dict[int, dict[int, torch.Tensor]] = {}
    tokens = None if together else budgets.TOKENS
    options: Any = {"tokens": tokens, "device": device, "known": done, "likeliest": best}
    for batch in likelihoods.token_logs(model, rows, pad=pad, **options):
        some: Some = []
        for at, found in ((at, found) for at, found in batch if at not in done):
            mine = logs.setdefault(of[at], {})
            mine[at] = found
            if len(mine) == whole[of[at]]:
                chosen = tuple(float(mine[key].sum()) for key in sorted(mine) if key < len(asked))
                loss = [-float(mine[key].mean()) for key in mine if key >= len(asked)]
                ids = tuple(tuple(best[key].tolist()) for key in sorted(mine) if key < len(asked)) if best else ()
                some.append((of[at], Said(logs=chosen, loss=loss[0] if loss else None, likeliest=ids)))
        if some:
            yield some
