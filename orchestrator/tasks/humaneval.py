"""HumanEval (arXiv 2107.03374): functions to be completed, scored by running their tests in a sandbox."""

from __future__ import annotations

from typing import Any

from orchestrator.tasks.base import Example, Task, chat
from orchestrator.tasks.hub import hub_rows
from orchestrator.tasks.metric import Metric


def row(source: dict[str, Any]) -> dict[str, Any]:
    """A hub row as a chat, with what runs the answer."""
    whole = f"```python\n{source['prompt']}{source['canonical_solution'].rstrip()}\n```"
    question = f"Complete the following python function.\n\n{source['prompt']}"
    fields = {name: source[name] for name in ("prompt", "test", "entry_point")}
    return chat(source["task_id"], question, whole, source["canonical_solution"], **fields)


def load() -> dict[str, list[dict[str, Any]]]:
    """All rows; there are none to learn from."""
    return {"test": [row(one) for one in hub_rows("openai/openai_humaneval", None, "test")]}


def with_tests(example: Example, row: dict[str, Any]) -> Example:
    """The function's head is before whatever is answered: a body goes on from it, a whole function takes its place."""
    tests = f"{row.get('test', '')}\ncheck({row.get('entry_point', '')})\n"
    return example.model_copy(update={"before": row.get("prompt", ""), "tests": tests})


TASK = Task(
    name="humaneval",
    about="Python functions to be completed",
    source="openai/openai_humaneval",
    load=load,
    adapt=with_tests,
    needs=("prompt", "test", "entry_point"),
    instead="train on mbpp, and score it beside with --tasks humaneval",
    test_rows=164,
    metric=Metric("pass_at_1", filter_name="sandbox", max_new_tokens=512),
)
