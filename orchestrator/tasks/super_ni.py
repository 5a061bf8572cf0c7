"""Super-NaturalInstructions (arXiv 2204.07705): a task's definition and an input, scored by ROUGE-L and exact match."""

from __future__ import annotations

from typing import Any

from orchestrator.tasks.base import Example, Task, chat
from orchestrator.tasks.hub import hub_rows
from orchestrator.tasks.metric import Metric


def row(source: dict[str, Any], references: list[str]) -> dict[str, Any]:
    """A hub row as a chat: its first reference is learnt, each of them is right."""
    question = f"{source['definition'].strip()}\n\nInput: {source['inputs'].strip()}\nOutput:"
    first, task = references[0], source["task_name"]
    return chat(source["id"], question, first, first, references=references, task=task)


def load() -> dict[str, list[dict[str, Any]]]:
    """All questions of the hub's two splits; there each reference is a row of its own."""
    found = {}
    for split in ("train", "test"):
        asked: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for one in hub_rows("Muennighoff/natural-instructions", None, split):
            asked.setdefault(one["id"], (one, []))[1].append(one["targets"])
        found[split] = [row(*one) for one in asked.values()]
    return found


def by_task(example: Example, row: dict[str, Any]) -> Example:
    """Told apart by the benchmark's tasks: their categories hold several."""
    return example.model_copy(update={"category": str(row.get("task", ""))})


TASK = Task(
    name="super_ni",
    about="instructions of many kinds, with all their references",
    source="Muennighoff/natural-instructions",
    load=load,
    adapt=by_task,
    test_rows=11_810,
    metric=Metric("rouge_l", filter_name="none", also=("normalized_match",), max_new_tokens=128),
)
