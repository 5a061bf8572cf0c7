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

from orchestrator.prepare.rows import at_hand, find_rows, find_task, scored_beside, seeds_of, template_of, used_rows
from orchestrator.recipe import SEEDS, Recipe, Sweep, TaskChoice
from orchestrator.tasks import TASKS, Task
from orchestrator.tasks.base import Example
from orchestrator.tasks.template import TemplateName, fitted
from orchestrator.tasks.text import windows

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
    beside: tuple[Beside, ...] = ()  # of the tasks that are scored, too

    @property
    def not_counted(self) -> list[str]:
        """Tasks beside whose rows, or what cuts them, aren't here, nor how many there are."""
        return [str(one.task) for one in self.beside if one.lengths is None]

    @property
    def counted(self) -> list[tuple[TaskChoice, Lengths]]:
        """Tasks beside, with lengths of which the test rows alone count."""
        return [(one.task, one.lengths) for one in self.beside if one.lengths]

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
        guessed = ", ".join(str(task) for task, one in self.counted if one.unknown)
        more = f", those of {guessed} as long as they may be" if guessed else ""
        return f"seed examples of up to {seed:,} tokens, training rows of up to {train:,}{more}"


class Beside(NamedTuple):
    """A task that is scored beside the one that is trained; no lengths where nothing is known of its rows."""

    task: TaskChoice
    lengths: Lengths | None


def lengths_for(sweep: Sweep, **options: bool) -> Lengths:
    """Those of all that a sweep does: with the tasks that it scores beside, and whose seeds it measures by."""
    return lengths_of(sweep.recipe, beside=sweep.tasks, seeds=sweep.axes.get(SEEDS, ()), **options)


def lengths_of(
    recipe: Recipe,
    fetch: bool = False,
    *,
    seeds_alone: bool = False,
    beside: Sequence[TaskChoice] = (),
    seeds: Sequence[str] = (),
) -> Lengths:
    """Those of the rows that a recipe takes. With `fetch` a hub may be asked for rows, though never for a model.
    `seeds_alone`: where only the teacher is asked, the others are taken to be as long as they may be. `beside`: the
    tasks that are scored, too. `seeds`: tasks by whose seed examples the teacher is measured, of which those with most
    tokens count: a pass is as large as the largest of them.

    UserError for rows and templates that can't be.
    """
    if fetch or at_hand(recipe.task):
        own = _counted_rows(recipe, seeds_alone)
    else:
        own = Lengths.longest(recipe, f"the rows of {recipe.task.name} aren't here; --data says where they are")
    if seeds:
        each = [_counted_seeds(recipe, name, fetch or at_hand(TaskChoice(name=name), recipe.task)) for name in seeds]
        own = replace(own, seed=max(each, key=lambda rows: sum(row.tokens for row in rows)))
    if seeds_alone:
        return own
    others = (Beside(one, _counted_beside(recipe, one, fetch or at_hand(one, recipe.task))) for one in beside)
    return replace(own, beside=tuple(others))


@functools.cache
def _counted_beside(recipe: Recipe, choice: TaskChoice, here: bool) -> Lengths | None:
    from orchestrator.models.loading import config_of, tokenizer_here

    as_long_as_may_be = Lengths.longest(recipe.model_copy(update={"task": choice}))
    tokenizer = tokenizer_here(recipe.student, "student") if here else None
    if tokenizer is None:
        return as_long_as_may_be if choice.name in TASKS else None
    task, rows = scored_beside(recipe, choice)
    (new, choices), template = _answers(task, rows), template_of(recipe, task)
    if template == "text":
        rows = windows(rows, tokenizer, config_of(recipe.student, "student").max_position_embeddings)
    asked = _rows(rows, template, tokenizer, NO_LIMIT)
    return replace(as_long_as_may_be, test=asked, new=new, choices=choices, unknown="")


@functools.cache
def _counted_seeds(recipe: Recipe, name: str, here: bool) -> tuple[Row, ...]:
    from orchestrator.models.loading import tokenizer_here

    tokenizer = tokenizer_here(recipe.teacher, "teacher") if here else None
    if tokenizer is None:
        return Lengths.longest(recipe).seed
    named = recipe.model_copy(update={"measure": recipe.measure.model_copy(update={"seeds": name})})
    rows = used_rows(named, {"seed": seeds_of(name, recipe)}, "seed")
    return _rows(rows, template_of(recipe, find_task(recipe.task)[0]), tokenizer, recipe.measure.max_tokens)


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


def _answers(task: Task, rows: Sequence[Example] = ()) -> tuple[int, int]:
    if task.metric.chooses:
        return 0, len(task.choices) or max((len(row.choices) for row in rows), default=4)
    return task.metric.max_new_tokens if task.metric.writes else 0, 0


def _rows(rows: Sequence[Example], template: TemplateName, tokenizer: Any, most: int) -> tuple[Row, ...]:
    return tuple(
        Row(len(row.ids), next(place for place, label in enumerate(row.labels) if label != -100))
        for row in fitted(rows, template, tokenizer, most).rows
    )
