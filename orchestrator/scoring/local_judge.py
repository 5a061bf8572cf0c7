"""A checkpoint as the judge of win rates, for whoever may send no answers to a server, or has none.

    Preferences(Local(folder, "float32", logs), partial / "judged.jsonl").scores(pairs)

It is loaded once all answers are there, has the room of the student, and goes when it has judged: in any case another
model is needed before the next pairs are there, and a process never holds two. Beside a teacher on GPUs it is a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orchestrator.cluster.ranks import HERE, Member, Placement, stream
from orchestrator.errors import UserError
from orchestrator.models.borrowed import let_go
from orchestrator.models.loading import Checkpoint, load, load_tokenizer
from orchestrator.scoring.budgets import REPLY
from orchestrator.scoring.engine import said
from orchestrator.scoring.judge import Item
from orchestrator.scoring.preference import PROMPT, Told
from orchestrator.tasks.base import Message
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import TemplateName, render, stops, tokenize

ANSWER = Metric("win_rate", "judge", max_new_tokens=REPLY)


class Asked(NamedTuple):
    """What is sent to the process that the judge is in."""

    folder: str
    dtype: str
    prompts: list[str]


@dataclass(frozen=True)
class Local:
    """A model from its folder, asked greedily. `logs`: of its process, where that isn't this one."""

    folder: str
    dtype: str
    logs: Path
    placement: Placement = HERE

    def __call__(self, prompts: Sequence[str], told: Told) -> None:
        """A batch at a time, each once: what is asked greedily again is said again."""
        alone = replace(self.placement, ranks=1, offload=None)
        for _, (place, text) in stream(alone, replies, Asked(self.folder, self.dtype, list(prompts)), self.logs):
            told(place, text)


def replies(job: Asked, member: Member) -> Iterator[tuple[int, str]]:
    """Each prompt's place and what is said to it: nothing, where the model's context has no room for it."""
    let_go()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(job.folder)
    asked, ends = questions(job.prompts, tokenizer)
    items = [Item(str(place), "", "", ids=tuple(ids)) for place, ids in enumerate(asked)]
    model = load(job.folder, dtype=job.dtype, device=device)
    for some in said(model, tokenizer, items, ANSWER, stops=ends):
        yield from ((place, first_line(one.text)) for place, one in some)


def questions(prompts: Sequence[str], tokenizer: Any) -> tuple[list[list[int]], list[int]]:
    """The prompts as ids, in the model's own chat template where it has one, and the ids that end a reply.

    A model that may think aloud is told not to, as Qwen 3's template has it: its verdict would come too late.
    """
    template: TemplateName = "chat" if tokenizer.chat_template else "plain"
    turns = [(Message(role="user", content=prompt),) for prompt in prompts]
    texts = [render(turn, template, tokenizer, ask=True, enable_thinking=False) for turn in turns]
    return [list(tokenize(text, tokenizer, verbose=False).input_ids) for text in texts], stops(template, tokenizer)


def first_line(text: str) -> str:
    """Of what was said: models that never learnt to end a turn go on with turns of their own."""
    return next(filter(str.strip, text.split("\n")), "")


def check(judge: Checkpoint) -> None:
    """UserError for a model that can't be asked, before there is anything to judge."""
    try:
        (asked,), _ = questions([PROMPT], load_tokenizer(judge.folder))
    except UserError as error:
        raise UserError(f"judge-model: {judge.name} can't be asked ({error}); take another one") from error
    if len(asked) + REPLY > (context := judge.config.max_position_embeddings):
        raise UserError(
            f"judge-model: {judge.name} reads {context} tokens, and the question alone has {len(asked)}; take one with"
            " room for two answers, too"
        )
