"""A recipe's task and the rows of it that a trial takes: all that is known of it without its models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.tasks import TASKS, Task, chat_task
from orchestrator.tasks.base import Example, Split, draw, read_jsonl


def used_rows(recipe: Recipe, splits: Mapping[Split, list[Example]], split: Split) -> list[Example]:
    """The rows of a split that a trial takes: to measure, to train on or to be scored by."""
    most = {"seed": recipe.measure.examples, "train": recipe.finetune.examples}.get(split, recipe.evaluate.examples)
    return draw(splits[split], most) if most else splits[split]


def find_rows(recipe: Recipe, *, seeds_alone: bool = False) -> tuple[Task, dict[Split, list[Example]]]:
    """A recipe's task and all of its rows, or the seed examples alone: all that a teacher's blocks are taken by.

    Where those are a file of their own, a known task's rows need not be anywhere.
    """
    own = recipe.measure.seeds
    if seeds_alone and own and recipe.task.name in TASKS:
        task, splits = TASKS[recipe.task.name], dict[Split, list[Example]]()
    else:
        task, splits = find_task(recipe.task)
    if own:
        splits["seed"] = [task.adapt(example) for example in read_jsonl(Path(own).expanduser())]
    return task, {"seed": splits["seed"]} if seeds_alone else splits


def find_task(choice: TaskChoice) -> tuple[Task, dict[Split, list[Example]]]:
    """A known task, or a chat JSONL by its path. UserError with the known names for anything else."""
    if choice.name in TASKS:
        task = TASKS[choice.name]
        return task, task.splits(choice.data)
    path = Path(choice.name).expanduser()
    if path.suffix == ".jsonl" or path.is_file():
        return chat_task(path)
    raise UserError(f"task: {choice.name!r} is not known; known: {', '.join(TASKS)}, or a FILE.jsonl of chats")
