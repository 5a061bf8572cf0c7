"""MMLU (arXiv 2009.03300): multiple choice over 57 subjects, scored by the likeliest letter.

The assistant's turn is the answer letter alone, in seeds, training and evaluation alike: the loss covers that letter
and the end-of-sequence token after it (the paper's seeds carry only the letter too), and the score compares the
log-likelihoods of A, B, C and D in the same place. Rows whose turn says "The answer is: C" are cut to "C".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.tasks.base import Example, Message, Task, chat
from orchestrator.tasks.hub import hub_rows
from orchestrator.tasks.metric import Metric

LETTERS = ("A", "B", "C", "D")


def row(place: int, source: dict[str, Any], split: str) -> dict[str, Any]:
    """A hub row as a chat."""
    subject = source["subject"].replace("_", " ")
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, source["choices"], strict=True))
    question = (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        f"{source['question'].strip()}\n{options}\nAnswer:"
    )
    answer = LETTERS[source["answer"]]
    return chat(f"mmlu_{split}_{place}", question, answer, answer, category=source["subject"])


def load() -> dict[str, list[dict[str, Any]]]:
    """Rows of the hub: MMLU has no training split, so its validation split trains."""
    return {
        split: [row(place, source, name) for place, source in enumerate(hub_rows("cais/mmlu", "all", name))]
        for split, name in (("train", "validation"), ("test", "test"), ("dev", "dev"))
    }


def letter_only(example: Example, row: dict[str, Any]) -> Example:
    """The same question with the gold letter as the whole answer."""
    turn = Message(role="assistant", content=example.gold)
    return example.model_copy(update={"messages": (*example.messages[:-1], turn), "choices": ()})


def under_one_heading(example: Example, shots: Sequence[Example]) -> Example:
    """The subject's solved questions before this one, in one turn: the benchmark's own form."""
    heading, _, asked = example.messages[0].content.partition("\n\n")
    solved = [f"{shot.messages[0].content.partition(chr(10) * 2)[2]} {shot.gold}" for shot in shots]
    turn = Message(role="user", content="\n\n".join([heading, *solved, asked]))
    return example.model_copy(update={"messages": (turn, *example.messages[1:])})


TASK = Task(
    name="mmlu",
    about="multiple choice over 57 subjects",
    source="cais/mmlu",
    load=load,
    test_rows=14_042,
    adapt=letter_only,
    shown=under_one_heading,
    choices=LETTERS,
    loss_covers="the answer letter and the end-of-sequence token",
    metric=Metric("multiple_choice", filter_name="none"),
)
