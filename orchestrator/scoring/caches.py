"""Keys and values of rows that come and go: what is kept of tokens that a model has seen, so that none is seen twice.

    cache = held(model)                                 # empty
    model(ids, past_key_values=cache)                   # (rows, tokens): now it has them
    cache = taken([(cache, [0, 2])], width=7)           # rows 0 and 2, the last 7 places of each
    keep(cache, [0, 2], width=7)                        # the same in its own memory

Rows are aligned at their ends, so that a row's places are next to each other and windows of attention are as they
would be alone. transformers' own cache copies all that it has with every token; this one has room for some more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from orchestrator.scoring import budgets

FEW = 16  # tokens in common that are not worth a pass of their own
SPARE = 64  # tokens for which a buffer has room at the least, before it grows
Part = tuple[Cache, Sequence[int]]


class Held(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """One layer's keys and values (rows, heads, tokens, head_dim): the begins of buffers for more rows and tokens."""

    keys: Tensor
    values: Tensor
    buffers: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Both as they are with these at their ends."""
        if not self.is_initialized:
            self.begin([_buffer(key_states, 0), _buffer(value_states, 0)], key_states.shape[0], 0)
        (rows, _, start, _), new = self.keys.shape, key_states.shape[2]
        end = start + new
        if end > self.buffers[0].shape[2]:
            self.buffers = [_grown(one, end) for one in (self.keys, self.values)]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = states
        self.begin(self.buffers, rows, end)
        return self.keys, self.values

    def begin(self, buffers: Sequence[Tensor], rows: int, tokens: int) -> None:
        """With the first so many rows and places of these."""
        if not self.is_initialized:
            self.lazy_initialization(*buffers)
        self.buffers = list(buffers)
        self.keys, self.values = (buffer[:rows, :, :tokens] for buffer in buffers)


def _buffer(like: Tensor, tokens: int, rows: int | None = None) -> Tensor:
    """Room for so many tokens and some more: zeros, since what is masked may not be NaN either."""
    return like.new_zeros(rows or like.shape[0], like.shape[1], tokens + max(SPARE, tokens // 8), like.shape[3])


def _grown(some: Tensor, tokens: int) -> Tensor:
    buffer = _buffer(some, tokens)
    buffer[:, :, : some.shape[2]] = some
    return buffer


def held(model: Any) -> Cache:
    """An empty cache for all of a model's layers: each keeps all tokens, those beyond a window of attention too."""
    return Cache(layers=[Held() for _ in range(copies(model) * model.config.num_hidden_layers)])


def copies(model: Any) -> int:
    """How often keys and values are kept: by each of the adapters of a composition."""
    return int(getattr(model, "copies", 1))


def tokens_at_once(model: Any, device: torch.device) -> int:
    """Of how many tokens a device affords to keep keys and values."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * copies(model) * config.num_hidden_layers * heads * head_dim * next(model.parameters()).element_size()
    if device.type != "cuda":
        return budgets.on_cpu(each)
    return budgets.affordable(torch.cuda.mem_get_info(device)[0], each)


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def looks_back(model: Any) -> float:
    """How many tokens the shortest-sighted of a model's layers sees: of more, those that are left out would count."""
    config = model.config
    if getattr(config, "layer_types", None) == ["full_attention"] * config.num_hidden_layers:
        return math.inf
    return getattr(config, "sliding_window", None) or math.inf


def taken(parts: Sequence[Part], width: int, *, spent: bool = False) -> Cache:
    """These rows of these caches, of each the last `width` places; what a shorter cache lacks is zero at the front.

    `spent`: nobody needs the caches any more, and each layer goes with its successor's coming.
    """
    found = Cache(layers=[])
    for place in range(len(parts[0][0].layers)):
        layer, names = Held(), ("keys", "values")
        buffers = [
            _gathered([(getattr(cache.layers[place], name), rows) for cache, rows in parts], width) for name in names
        ]
        layer.begin(buffers, buffers[0].shape[0], width)
        found.layers.append(layer)
        if spent:
            for cache, _ in parts:
                cache.layers[place] = None
    return found


def keep(cache: Cache, order: Sequence[int], width: int) -> None:
    """In place: row `at` becomes what row `order[at]` was, and `width` places of each are left, its last.

    A row may only come from further back than where it goes.
    """
    moved = [(to, of) for to, of in enumerate(order) if to != of]
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            for to, of in moved:
                tensor[to] = tensor[of]
        first = layer.keys.shape[2] - width
        layer.begin([buffer[:, :, first:] for buffer in layer.buffers], len(order), width)


def _gathered(parts: Sequence[tuple[Tensor, Sequence[int]]], width: int) -> Tensor:
    buffer = _buffer(parts[0][0], width, sum(len(rows) for _, rows in parts))
    start = 0
    for tensor, rows in parts:
        own = min(width, tensor.shape[2])
        index = torch.tensor(list(rows), device=tensor.device)
        buffer[start : start + len(rows), :, width - own : width] = tensor[:, :, tensor.shape[2] - own :][index]
        start += len(rows)
    return buffer
