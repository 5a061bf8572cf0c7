"""What a model answers, greedily: rows that have ended leave their places to those that wait.

    for place, said in answered(model, tokenizer, prompts, new=256, stops=[2], at_once=32): ...

A row that waits for the longest answer of its batch costs as much as one that is written. What all questions begin with
(solved examples, say) goes through the model once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from orchestrator.scoring.caches import FEW, alike, held, keep, looks_back, taken
from orchestrator.scoring.judge import Said

TAIL = 8  # tokens more than a text of `until` has characters: it lies in so many, if it is the last


@dataclass
class _Row:
    """One answer that is being written."""

    place: int
    tokens: int  # that the model has seen of it
    said: list[int] = field(default_factory=list)


@torch.no_grad()
def answered(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    new: int,
    stops: Sequence[int],
    at_once: int,
    device: Any,
    until: Sequence[str] = (),
) -> Iterator[tuple[int, Said]]:
    """Each answer with its prompt's place, as it ends: with a stop, before a text of `until`, or after `new` tokens.

    Where there are no stops it goes on past whatever else ends one, and its ids are told, but for special tokens'.
    """
    waiting = deque(sorted(range(len(prompts)), key=lambda place: -len(prompts[place])))
    shared = _shared(model, prompts, device)
    rows: list[_Row] = []
    cache: Any = None
    while waiting or rows:
        free = at_once - len(rows)
        if waiting and (not rows or 4 * free >= at_once):
            if rows:  # those that have ended let go of their room
                cache = taken([(cache, range(len(rows)))], max(row.tokens for row in rows), spent=True)
            places = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            more, fresh, logits = _begun(model, shared, [prompts[place] for place in places], device)
            new_rows = [_Row(place, count) for place, count in zip(places, more, strict=True)]
            old, rows = range(len(rows)), [*rows, *new_rows]
            parts = [(cache, old), (fresh, range(len(new_rows)))]
            cache = taken(parts, max(row.tokens for row in rows), spent=True) if old else fresh
            _write(new_rows, logits)
        else:
            ids = torch.tensor([[row.said[-1]] for row in rows], device=device)
            places_of = torch.tensor([[row.tokens] for row in rows], device=device)
            for row in rows:
                row.tokens += 1
            mask = _mask([row.tokens for row in rows], device)
            _write(rows, model(input_ids=ids, attention_mask=mask, position_ids=places_of, past_key_values=cache,
                               use_cache=True, logits_to_keep=1).logits)  # fmt: skip
        ended = {at: said for at, row in enumerate(rows) if (said := _ended(tokenizer, row.said, stops, until, new))}
        yield from ((rows[at].place, said) for at, said in ended.items())
        if ended:
            order = _order(len(rows), ended)
            rows = [rows[at] for at in order]
            if rows:
                keep(cache, order, max(row.tokens for row in rows))
            else:
                cache = None


def _order(count: int, gone: Collection[int]) -> list[int]:
    """The rows that stay, the last of them in the places of those that have gone: as few as can be move."""
    left = count - len(gone)
    last = iter(at for at in range(left, count) if at not in gone)
    return [next(last) if at in gone else at for at in range(left)]


def _shared(model: Any, prompts: Sequence[Sequence[int]], device: Any) -> tuple[int, Any]:
    """How many tokens all prompts begin with, and the cache that has seen them; none where they are few, or where some
    layer looks back less far than the longest prompt goes: places that are left out would count for it."""
    first, last = (one(map(list, prompts)) for one in (min, max))  # in the order of their tokens: these share the least
    count = min(alike(first, last), min(map(len, prompts)) - 1)
    if len(prompts) < 2 or count < FEW or looks_back(model) < max(map(len, prompts)):
        return 0, None
    cache = held(model)
    model(
        input_ids=torch.tensor([list(prompts[0][:count])], device=device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return count, cache


def _begun(
    model: Any, shared: tuple[int, Any], prompts: Sequence[Sequence[int]], device: Any
) -> tuple[list[int], Any, Tensor]:
    """Prompts that the model has seen: how many tokens each has, the cache of them all, and what comes next."""
    count, before = shared
    rows = [torch.tensor(list(ids[count:])) for ids in prompts]
    ids = pad_sequence(rows, True, 0, "left").to(device)
    own = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left").to(device)
    cache = taken([(before, [0] * len(prompts))], count) if count else held(model)
    mask = torch.cat([own.new_ones(len(prompts), count), own], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, count:]
    logits = model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
                   logits_to_keep=1).logits  # fmt: skip
    if count:
        _close(cache, count, [ids.shape[1] - len(row) for row in rows])
    return [len(ids) for ids in prompts], cache, logits


def _close(cache: Any, count: int, gaps: Sequence[int]) -> None:
    """Move each row's shared places up to its own, so that nothing lies between."""
    for layer in cache.layers:
        for row, gap in enumerate(gaps):
            for tensor in (layer.keys, layer.values):
                tensor[row, :, gap : gap + count] = tensor[row, :, :count].clone()


def _mask(lengths: Sequence[int], device: Any) -> Tensor:
    width = max(lengths)
    return (torch.arange(width)[None] >= width - torch.tensor(lengths)[:, None]).long().to(device)


def _write(rows: Sequence[_Row], logits: Tensor) -> None:
    for row, token in zip(rows, logits[:, -1].argmax(-1).tolist(), strict=True):
        row.said.append(token)


def _ended(tokenizer: Any, said: list[int], stops: Sequence[int], until: Sequence[str], new: int) -> Said | None:
    """The answer, if this is its end."""
    if said[-1] in stops:
        return spoken(tokenizer, said, stops, until)
    if until:
        tail = tokenizer.decode(said[-max(map(len, until)) - TAIL :], skip_special_tokens=True)
        if any(text in tail for text in until):
            return spoken(tokenizer, said, stops, until)
    return spoken(tokenizer, said, stops, until) if len(said) == new else None


def spoken(tokenizer: Any, ids: list[int], stops: Sequence[int], until: Sequence[str]) -> Said:
    """What these ids of an answer say, up to its end."""
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
    first = min((text.index(one) for one in until if one in text), default=None)
    kept = () if stops else tuple(one for one in ids if one not in tokenizer.all_special_ids)
    return Said(text[:first], cut=end is None and first is None, ids=kept)


@torch.no_grad()
def answered_in_step(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    new: int,
    stops: Sequence[int],
    device: Any,
    until: Sequence[str] = (),
) -> list[Said]:
    """The answers to some prompts, all at once: transformers keeps ranks in step that hold shards of one model."""
    rows = [torch.tensor(list(ids)) for ids in prompts]
    ids = pad_sequence(rows, True, (*stops, 0)[0], "left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
    with greedy(model, stops, new):
        made = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device))[:, ids.shape[1] :]
    return [spoken(tokenizer, row, stops, until) for row in made.tolist()]


def greedy(model: Any, stops: Sequence[int], new: int) -> ExitStack:
    """Open: the likeliest token each time, by no setting of the model's own (a repetition penalty, say)."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    restore = ExitStack()
    restore.callback(setattr, base, "generation_config", base.generation_config)
    ends, pad = list(stops) or None, (*stops, 0)[0]
    base.generation_config = GenerationConfig(max_new_tokens=new, eos_token_id=ends, pad_token_id=pad)
    return restore
