"""Instructions of all kinds, scored by the win rate over reference answers (AlpacaFarm, arXiv 2305.14387).

A judge has to be named (--judge, --judge-model). Without one the answers are kept as AlpacaEval reads them, and the
score is how likely the reference answers are: no win rate is made up.
"""

from __future__ import annotations

from typing import Any

from orchestrator.tasks.base import Task, chat
from orchestrator.tasks.hub import hub_rows
from orchestrator.tasks.metric import Metric

TESTS = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"


def row(place: int, split: str, source: dict[str, Any]) -> dict[str, Any]:
    """A hub row as a chat."""
    question = "\n\n".join(filter(None, (source["instruction"].strip(), source.get("input", "").strip())))
    answer = source["output"].strip()
    return chat(f"alpaca_{split}_{place}", question, answer, answer, category=source.get("dataset", ""))


def load() -> dict[str, list[dict[str, Any]]]:
    """Alpaca's rows to learn from, and AlpacaEval's instructions with the answers that others are held against."""
    train = [one for one in hub_rows("tatsu-lab/alpaca", None, "train") if one["output"].strip()]
    test = hub_rows("json", None, "train", data_files=TESTS)
    return {
        name: [row(place, name, one) for place, one in enumerate(rows)]
        for name, rows in (("train", train), ("test", test))
    }


TASK = Task(
    name="alpaca",
    about="instructions of all kinds",
    source="tatsu-lab/alpaca, tatsu-lab/alpaca_eval",
    load=load,
    test_rows=805,
    metric=Metric("win_rate", filter_name="judge", max_new_tokens=512),
)
