"""GSM8K (arXiv 2110.14168): grade-school word problems, scored by the number after "the answer is"."""

from __future__ import annotations

import re
from typing import Any

from orchestrator.tasks.base import Task
from orchestrator.tasks.hub import hub_rows
from orchestrator.tasks.metric import Metric


def row(place: int, source: dict[str, Any], split: str) -> dict[str, Any]:
    """A hub row as a chat: calculator marks out, the solution on one line, closed by "So the answer is N."."""
    solution, answer = source["answer"].split("####")
    answer = answer.strip().replace(",", "")
    solution = " ".join(re.sub(r"<<[^>]*>>", "", solution).split())
    solution += "" if solution.endswith((".", "?", "!")) else "."
    return {
        "id": f"gsm_{split}_{place}",
        "messages": [
            {"role": "user", "content": f"Answer the following question.\n\nQuestion: {source['question'].strip()}"},
            {"role": "assistant", "content": f"Answer: {solution} So the answer is {answer}."},
        ],
        "answer": answer,
    }


def load() -> dict[str, list[dict[str, Any]]]:
    """All rows of the hub's two splits."""
    return {
        split: [row(place, source, split) for place, source in enumerate(hub_rows("openai/gsm8k", "main", split))]
        for split in ("train", "test")
    }


TASK = Task(
    name="gsm8k",
    about="grade-school word problems, zero-shot chain of thought",
    source="openai/gsm8k",
    load=load,
    test_rows=1319,
    metric=Metric(
        "exact_match",
        filter_name="strict-match",
        pattern=r"[Tt]he answer is \$?(-?[0-9][0-9,]*(?:\.[0-9]+)?)",
        max_new_tokens=512,
        ignore=(",", r"\$", r"\.$"),
    ),
)
