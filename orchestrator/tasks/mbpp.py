"""MBPP (arXiv 2108.07732): basic Python problems with three asserts shown, scored by running them in a sandbox."""

from __future__ import annotations

from typing import Any

from orchestrator.tasks.base import Example, Task, chat
from orchestrator.tasks.hub import hub_rows
from orchestrator.tasks.metric import Metric


def row(source: dict[str, Any]) -> dict[str, Any]:
    """A hub row as a chat, with what runs the answer."""
    tests = "\n".join(source["test_list"])
    code = source["code"].replace("\r\n", "\n")
    question = f"{source['text']}\nYour code should pass these tests:\n\n{tests}"
    fields = {name: source[name] for name in ("test_list", "test_setup_code")}
    return chat(f"mbpp_{source['task_id']}", question, f"```python\n{code}\n```", code, **fields)


def load() -> dict[str, list[dict[str, Any]]]:
    """The published splits; the three solved examples of the `prompt` split are those to be shown."""
    names = {"train": "train", "validation": "validation", "test": "test", "dev": "prompt"}
    return {name: [row(one) for one in hub_rows("google-research-datasets/mbpp", "full", split)]
            for name, split in names.items()}  # fmt: skip


def with_tests(example: Example, row: dict[str, Any]) -> Example:
    """All of a problem's asserts have to hold."""
    tests = "\n".join([row.get("test_setup_code") or "", *row.get("test_list", ())])
    return example.model_copy(update={"tests": tests})


TASK = Task(
    name="mbpp",
    about="basic Python problems",
    source="google-research-datasets/mbpp",
    load=load,
    adapt=with_tests,
    needs=("test_list",),
    test_rows=500,
    metric=Metric("pass_at_1", filter_name="sandbox", max_new_tokens=512),
)
