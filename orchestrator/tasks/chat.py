"""Any chat JSONL as a task: `--task my.jsonl --metric rouge_l`; by default the whole answer has to match."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Split, Task, draw, read_jsonl
from orchestrator.tasks.metric import named


def chat_task(path: Path, metric: str = "exact_match", shots: int = 0) -> tuple[Task, dict[Split, list[Example]]]:
    """The task and its splits: a fifth of the rows, by a fixed draw, for the test, and of the rest for validation.

    UserError for fewer than ten rows, of which no honest split can be made.
    """
    judged = named(metric)
    rows = read_jsonl(path, needs=("choices",) if judged.kind == "multiple_choice" else ())
    if len(rows) < 10:
        raise UserError(f"task: {path} has {len(rows)} rows; at least 10 are needed to train, validate and test")
    task = Task(
        name=path.stem,
        about=f"chats of {path.name}",
        source=str(path),
        load=dict,
        metric=judged,
    )
    raw = {"train": rows, "test": draw(rows, len(rows) // 5)}
    return task, task.asked(task.divide(raw), raw, shots)
