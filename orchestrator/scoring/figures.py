"""Figures that lm-eval has no metric for: of an answer as text, and of a row with `gold` and `references`.

    rouge_l("the cat", {"gold": "a cat", "references": []})         # 0.5

Nothing here but the standard library and rouge-score: an exported task takes this file along.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]


def _right(row: Row) -> list[str]:
    return list(row["references"]) or [row["gold"]]


def contains(answer: str, row: Row) -> float:
    """Whether a right answer stands in this one, whatever is around it and in capitals."""
    return float(any(one.strip().lower() in answer.lower() for one in _right(row)))


def normalized(text: str) -> str:
    """As Super-NaturalInstructions compares: lower case, no ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def normalized_match(answer: str, row: Row) -> float:
    """Whether it is one of the right answers, normalized: the benchmark's exact match."""
    return float(normalized(answer) in map(normalized, _right(row)))


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, row: Row) -> float:
    """ROUGE-L's F with the closest of the right answers, stemmed, as Super-NaturalInstructions takes it: 0 to 1."""
    return max(float(_rouge().score(one, answer)["rougeL"].fmeasure) for one in _right(row))


def code_of(answer: str) -> str:
    """The program in an answer: what its first fence holds, or all of it."""
    fenced = re.search(r"```[ \t]*\w*[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return fenced[1] if fenced else answer


FIGURES: dict[str, Callable[[str, Row], float]] = {
    "contains": contains,
    "normalized_match": normalized_match,
    "rouge_l": rouge_l,
}
