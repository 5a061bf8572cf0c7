"""A task's rows as a model is asked them: prompts and choices as ids, and the gold answers as the loss wants them.

asks = asked(rows, "plain", student, metric, choices=())
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.models.loading import load_tokenizer, read_config
from orchestrator.scoring import edits
from orchestrator.scoring.judge import Item
from orchestrator.tasks import rows as data
from orchestrator.tasks.base import Example
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import Encoded, TemplateName, choice_ids, fitted, question


class Asked(NamedTuple):
    """A task as a model is asked it: its questions, how answers are judged, and the rows with their gold answers."""

    items: list[Item]
    metric: Metric
    encoded: list[Encoded]


def asked(rows: Path, template: TemplateName, model: str, metric: dict[str, Any], choices: Sequence[str]) -> Asked:
    """The questions of some rows, how their answers are judged, and the rows as the loss wants them.

    Rows whose question alone fills the model's context have no loss. They are cut into tokens once a process, and not
    for every trial: rows lie in a folder that is named by their contents.
    """
    return _asked(rows, template, model, json.dumps(metric), tuple(choices))


@functools.lru_cache(maxsize=8)
def _asked(rows: Path, template: TemplateName, model: str, metric: str, choices: tuple[str, ...]) -> Asked:
    examples, tokenizer = data.read(rows), load_tokenizer(model)
    items, judged = questions(examples, template, tokenizer, Metric.of(json.loads(metric)), choices)
    return Asked(items, judged, fitted(examples, template, tokenizer, context_of(model)).rows)


def context_of(model: str) -> int:
    """A model's context length, in tokens."""
    return int(read_config(Path(model), "model").max_position_embeddings)


def questions(
    examples: list[Example], template: TemplateName, tokenizer: Any, metric: Metric, choices: Sequence[str]
) -> tuple[list[Item], Metric]:
    """The prompts of a task's rows as ids, and the metric with the number of tokens that an answer may have.

    Where the whole answer has to match, that is one more than the longest gold answer has.
    """
    if not (metric.writes or metric.chooses):
        return [Item(one.id, "", one.gold, category=one.category) for one in examples], metric
    items = []
    for one in examples:
        prompt, ids = question(one, template, tokenizer)
        offered = one.choices or tuple(choices)
        asks = [(one, ids)] * len(offered)
        if one.contexts:
            asks = [(again := one.asked_as(text), question(again, template, tokenizer)[1]) for text in one.contexts]
        ways = tuple(
            tuple(choice_ids(each, choice, before, template, tokenizer))
            for (each, before), choice in zip(asks, offered, strict=True)
        )
        told = "\n\n".join(turn.content for turn in one.messages[:-1]) if metric.keeps else ""
        contexts = tuple(tuple(before) for _, before in asks) if one.contexts else ()
        probes = edits.forced(one, template, tokenizer)
        more = (one.references, one.before, one.tests, one.category, told, contexts, one.doc, probes)
        items.append(Item(one.id, prompt, one.gold, offered, tuple(ids), ways, *more))
    if metric.kind == "exact_match" and metric.pattern is None and not metric.harness:
        golds = [
            choice_ids(one, one.gold, list(item.ids), template, tokenizer)
            for one, item in zip(examples, items, strict=True)
        ]
        metric = replace(metric, max_new_tokens=min(metric.max_new_tokens, max(map(len, golds)) + 1))
    return items, metric
