"""What a model answers, greedily, some questions at a time: transformers' `generate` within a budget of tokens.

for group in grouped(lengths, new=256): ...                     # places of questions that are answered together
answered(model, tokenizer, prompts, new=256, stops=[2])         # one such group's answers
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from orchestrator.tasks.scoring import Said

TOKENS = 8192  # of questions with their answers at once: what is kept of them for the next token


def grouped(lengths: Sequence[int], new: int, tokens: int = TOKENS) -> list[list[int]]:
    """Places of questions that are answered together, the longest first; an answer may have `new` tokens."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and (lengths[groups[-1][0]] + new) * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


@torch.no_grad()
def answered(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, new: int, stops: Sequence[int], device: Any
) -> list[Said]:
    """The answers to some prompts' ids, all at once; each ends with a stop or after `new` tokens."""
    rows = [torch.tensor(list(ids)) for ids in prompts]
    ids = pad_sequence(rows, True, stops[0], "left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
    with greedy(model, stops, new):
        made = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device))[:, ids.shape[1] :]
    return [_said(tokenizer, row, stops) for row in made.tolist()]


def _said(tokenizer: Any, ids: list[int], stops: Sequence[int]) -> Said:
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    return Said(str(tokenizer.decode(ids[:end], skip_special_tokens=True)), cut=end is None)


def greedy(model: Any, stops: Sequence[int], new: int) -> ExitStack:
    """Open: the likeliest token each time, by no setting of the model's own (a repetition penalty, say)."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    restore = ExitStack()
    restore.callback(setattr, base, "generation_config", base.generation_config)
    base.generation_config = GenerationConfig(max_new_tokens=new, eos_token_id=list(stops), pad_token_id=stops[0])
    return restore
