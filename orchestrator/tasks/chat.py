"""Any chat JSONL as a task: `--task my.jsonl`, scored by exact match of the whole answer, with its loss beside it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Split, Task, draw, read_jsonl
from orchestrator.tasks.metric import Metric


def chat_task(path: Path) -> tuple[Task, dict[Split, list[Example]]]:
    """The task and its splits: a fifth of the rows, by a fixed draw, for the test, and of the rest for validation.

    UserError for fewer than ten rows, of which no honest split can be made.
    """
    rows = read_jsonl(path)
    if len(rows) < 10:
        raise UserError(f"task: {path} has {len(rows)} rows; at least 10 are needed to train, validate and test")
    task = Task(
        name=path.stem,
        about=f"chats of {path.name}",
        source=str(path),
        load=dict,
        metric=Metric("exact_match", filter_name="none", max_new_tokens=256),
    )
    return task, task.divide({"train": rows, "test": draw(rows, len(rows) // 5)})
