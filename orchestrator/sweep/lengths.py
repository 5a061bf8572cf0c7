"""How long the rows are, in tokens: what memory and time are made of, known before a byte of weights is loaded.

    lengths_of(recipe).train         # (Row(311, 120), Row(274, 98), ...), as the student's tokenizer cuts them

Rows of 300 tokens take a seventh of what `max_tokens` allows for, and a machine that they fit is not to be refused.
Where rows or tokenizers aren't at hand, every example is taken to be as long as it may be.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from orchestrator.prepare.rows import find_rows, is_file, template_of, used_rows
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.tasks import TASKS, Task
from orchestrator.tasks.base import Example
from orchestrator.tasks.template import TemplateName, fitted

NO_LIMIT = 10**9


class Row(NamedTuple):
    """One row: its tokens, and those of them before the first that is learnt."""

    tokens: int
    asked: int


@dataclass(frozen=True)
class Lengths:
    """Each row that a trial takes, cut where its step cuts it. `unknown`: why all are taken to be as long as may be."""

    seed: tuple[Row, ...]  # by the teacher's tokenizer, the others by the student's
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    new: int  # tokens that an answer may have
    choices: int  # that each question has, 0 where answers are written
    unknown: str = ""

    @classmethod
    def longest(cls, recipe: Recipe, unknown: str = "the rows aren't at hand") -> Lengths:
        """As long as they may be; as many as are published, where a task's rows are somewhere else."""
        measure, finetune, task = recipe.measure, recipe.finetune, TASKS.get(recipe.task.name)
        most = recipe.evaluate.examples or NO_LIMIT
        counts = (min(most, task.validation_rows), min(most, task.test_rows)) if task else (1, 1)
        new, choices = _answers(task) if task else (0, 0)
        seed, train = Row(measure.max_tokens, 0), Row(finetune.max_tokens, 0)
        asked = Row(finetune.max_tokens, finetune.max_tokens)
        validation, test = ((asked,) * count for count in counts)
        return cls((seed,) * measure.examples, (train,) * finetune.examples, validation, test, new, choices, unknown)

    def __str__(self) -> str:
        if self.unknown:
            return "every example as long as it may be"
        seed, train = (max(row.tokens for row in rows) for rows in (self.seed, self.train))
        return f"seed examples of up to {seed:,} tokens, training rows of up to {train:,}"


def lengths_of(recipe: Recipe, fetch: bool = False, *, seeds_alone: bool = False) -> Lengths:
    """Those of the rows that a recipe takes. With `fetch` a hub may be asked for rows, though never for a model.
    `seeds_alone`: where only the teacher is asked, the others are taken to be as long as they may be.

    UserError for rows and templates that can't be.
    """
    if not (fetch or at_hand(recipe.task)):
        return Lengths.longest(recipe, f"the rows of {recipe.task.name} aren't here; --data says where they are")
    return _counted_rows(recipe, seeds_alone)


@functools.cache  # a command asks for its cost, its budget and its memory
def _counted_rows(recipe: Recipe, seeds_alone: bool) -> Lengths:
    from orchestrator.models.loading import tokenizer_here  # torch comes with it

    tokenizers = []
    for field, name in (("teacher", recipe.teacher), ("student", recipe.student)):
        tokenizers.append(found := tokenizer_here(name, field))
        if found is None:
            return Lengths.longest(recipe, f"the tokenizer of {name} isn't here")
    task, splits = find_rows(recipe, seeds_alone=seeds_alone)
    (theirs, own), template = tokenizers, template_of(recipe, task)
    if seeds_alone:
        own_rows = _rows(used_rows(recipe, splits, "seed"), template, theirs, recipe.measure.max_tokens)
        return replace(Lengths.longest(recipe), seed=own_rows, unknown="")
    seed, train, validation, test = (
        used_rows(recipe, splits, split) for split in ("seed", "train", "validation", "test")
    )
    new, choices = _answers(task, test)
    return Lengths(
        _rows(seed, template, theirs, recipe.measure.max_tokens),
        _rows(train, template, own, recipe.finetune.max_tokens),
        _rows(validation, template, own, NO_LIMIT),
        _rows(test, template, own, NO_LIMIT),
        new,
        choices,
    )


def at_hand(choice: TaskChoice) -> bool:
    """Whether no hub has to be asked for a task's rows."""
    known = TASKS.get(choice.name)
    made = known.source == "generated" if known else is_file(choice.name)
    return made or choice.data is not None


def _answers(task: Task, rows: Sequence[Example] = ()) -> tuple[int, int]:
    if task.metric.chooses:
        return 0, len(task.choices) or max((len(row.choices) for row in rows), default=4)
    return task.metric.max_new_tokens if task.metric.writes else 0, 0


def _rows(rows: Sequence[Example], template: TemplateName, tokenizer: Any, most: int) -> tuple[Row, ...]:
    return tuple(
        Row(len(row.ids), next(place for place, label in enumerate(row.labels) if label != -100))
        for row in fitted(rows, template, tokenizer, most).rows
    )
