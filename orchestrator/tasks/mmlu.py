"""MMLU (arXiv 2009.03300): multiple choice over 57 subjects, scored by the likeliest letter.

The assistant's turn is the answer letter alone, in seeds, training and evaluation alike: the loss covers that letter
and the end-of-sequence token after it (the paper's seeds carry only the letter too), and the score compares the
log-likelihoods of A, B, C and D in the same place. Rows whose turn says "The answer is: C" are cut to "C".
"""

from __future__ import annotations

from typing import Any

from orchestrator.tasks.base import Example, Message, Task
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
    return {
        "id": f"mmlu_{split}_{place}",
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "answer": answer,
    }


def load() -> dict[str, list[dict[str, Any]]]:
    """Rows of the hub: MMLU has no training split, so its validation split trains."""
    return {
        split: [row(place, source, name) for place, source in enumerate(hub_rows("cais/mmlu", "all", name))]
        for split, name in (("train", "validation"), ("test", "test"))
    }


def letter_only(example: Example) -> Example:
    """The same question with the gold letter as the whole answer."""
    turn = Message(role="assistant", content=example.gold)
    return example.model_copy(update={"messages": (*example.messages[:-1], turn)})


TASK = Task(
    name="mmlu",
    about="multiple choice over 57 subjects, zero-shot",
    source="cais/mmlu",
    load=load,
    test_rows=14_042,
    adapt=letter_only,
    choices=LETTERS,
    loss_covers="the answer letter and the end-of-sequence token",
    metric=Metric("multiple_choice", filter_name="none"),
)
