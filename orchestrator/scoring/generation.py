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

from orchestrator.scoring import budgets
from orchestrator.scoring.judge import Said


def tokens_at_once(model: Any, device: torch.device) -> int:
    """As many as the device affords; on a CPU a few, since there more at once are no faster."""
    if device.type != "cuda":
        return budgets.ANSWERS
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = next(model.parameters()).element_size()
    return budgets.affordable(
        torch.cuda.mem_get_info(device)[0], 2 * config.num_hidden_layers * heads * head_dim * width
    )


@torch.no_grad()
def answered(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    new: int,
    stops: Sequence[int],
    device: Any,
    until: Sequence[str] = (),
) -> list[Said]:
    """The answers to some prompts' ids, all at once; each ends with a stop, before a text of `until`, or after `new`
    tokens."""
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
