"""GSM8K (arXiv 2110.14168): grade-school word problems, scored by the number after "the answer is"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.tasks.base import Example, Message, Task, chat
from orchestrator.tasks.hub import hub_rows
from orchestrator.tasks.metric import Metric

HEADING = "Answer the following question."


def row(place: int, source: dict[str, Any], split: str) -> dict[str, Any]:
    """A hub row as a chat: calculator marks out, the solution on one line, closed by "So the answer is N."."""
    solution, answer = source["answer"].split("####")
    answer = answer.strip().replace(",", "")
    solution = " ".join(re.sub(r"<<[^>]*>>", "", solution).split())
    solution += "" if solution.endswith((".", "?", "!")) else "."
    question = f"{HEADING}\n\nQuestion: {source['question'].strip()}"
    return chat(f"gsm_{split}_{place}", question, f"Answer: {solution} So the answer is {answer}.", answer)


def load() -> dict[str, list[dict[str, Any]]]:
    """All rows of the hub's two splits."""
    return {
        split: [row(place, source, split) for place, source in enumerate(hub_rows("openai/gsm8k", "main", split))]
        for split in ("train", "test")
    }


def solved() -> list[Example]:
    """The eight solved examples of chain-of-thought prompting (arXiv 2201.11903), as lm-eval's gsm8k_cot has them."""
    import lm_eval
    import yaml

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    samples = yaml.safe_load(path.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
    return [
        Example(
            id=f"cot_{place}",
            messages=(
                Message(role="user", content=f"{HEADING}\n\nQuestion: {one['question']}"),
                Message(role="assistant", content=f"Answer: {one['target']}"),
            ),
        )
        for place, one in enumerate(samples)
    ]


def under_one_heading(example: Example, shots: Sequence[Example]) -> Example:
    """The solved questions before this one, in one turn, as the published evaluations have them."""
    questions = [one.messages[0].content.removeprefix(f"{HEADING}\n\n") for one in (*shots, example)]
    parts = [f"{asked}\n{shot.messages[1].content}" for asked, shot in zip(questions[:-1], shots, strict=True)]
    turn = Message(role="user", content="\n\n".join([HEADING.replace("question", "questions"), *parts, questions[-1]]))
    return example.model_copy(update={"messages": (turn, *example.messages[1:])})


TASK = Task(
    name="gsm8k",
    about="grade-school word problems, by chain of thought",
    source="openai/gsm8k",
    load=load,
    shown=under_one_heading,
    solved=solved,
    test_rows=1319,
    metric=Metric(
        "exact_match",
        filter_name="strict-match",
        pattern=r"[Tt]he answer is \$?(-?[0-9][0-9,]*(?:\.[0-9]+)?)",
        max_new_tokens=512,
        ignore=(",", r"\$", r"\.$"),
        until=("Question:",),  # a model that asks itself the next one has ended its answer
    ),
)
