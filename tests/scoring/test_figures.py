"""Figures that lm-eval lacks, against values worked out by hand and against the published scripts' rules."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scoring.figures import code_of, contains, normalized_match, rouge_l
from orchestrator.scoring.judge import Item, Said, judge
from orchestrator.tasks import TASKS
from orchestrator.tasks.metric import Metric


def row(*references: str) -> dict[str, object]:
    return {"gold": references[0], "references": list(references)}


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The Cat.", ["the cat"], 1.0),  # case and punctuation
        ("  the\n cat ", ["The cat"], 1.0),  # white space
        ("cat", ["the cat"], 0.0),  # articles count, otherwise than in SQuAD
        ("dog", ["cat", "Dog!"], 1.0),  # any reference
        ("", ["cat"], 0.0),
        ("it's", ["its"], 1.0),
        ("1,000", ["1000"], 1.0),
        ("3.5", ["35"], 1.0),  # as the benchmark has it: punctuation goes
        ("naïve", ["naive"], 0.0),
        ("“cat”", ["cat"], 0.0),  # ASCII punctuation alone
    ],
)
def test_exact_match_of_super_naturalinstructions(answer: str, references: list[str], expected: float) -> None:
    assert normalized_match(answer, row(*references)) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the cat", ["the cat"], 1.0),
        ("the cat", ["a cat"], 0.5),  # one of two, both ways
        ("cats running", ["the cat runs"], 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),  # stemmed
        ("a b c d", ["d c b a"], 0.25),  # order counts
        ("", ["cat"], 0.0),
        ("no", ["yes", "no no"], 2 * 1 * 0.5 / 1.5),  # the closest reference
        ("!?", ["..."], 0.0),
    ],
)
def test_rouge_l(answer: str, references: list[str], expected: float) -> None:
    assert rouge_l(answer, row(*references)) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abcd"), max_size=7), st.lists(st.sampled_from("abcd"), min_size=1, max_size=7))
def test_rouge_l_is_the_longest_common_subsequence(said: list[str], right: list[str]) -> None:
    """Against its recursion, and the harmonic mean of what it covers of both."""

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(said) or j == len(right):
            return 0
        if said[i] == right[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    common = longest(0, 0)
    expected = 2 * common / (len(said) + len(right)) if common else 0.0
    assert rouge_l(" ".join(said), row(" ".join(right))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("It is Paris, I think.", 1.0), ("paris", 1.0), ("Par is", 0.0), ("", 0.0), ("LYON or so", 1.0)],
)
def test_contains(answer: str, expected: float) -> None:
    assert contains(answer, row("Paris", " lyon ")) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here:\n```py\nx = 1\n```\nand\n```\ny\n```", "x = 1\n"),
        ("```\n    return 1", "    return 1"),
        ("    return 1\n", "    return 1\n"),
        ("use `x` here", "use `x` here"),
    ],
)
def test_the_program_in_an_answer(answer: str, expected: str) -> None:
    assert code_of(answer) == expected


GSM8K = [  # (gold, what was said, score)
    ("1234", "So the answer is 1,234.", 1),
    ("1234", "The answer is $1,234.", 1),
    ("-5", "the answer is -5", 1),
    ("5", "The answer is -5.", 0),
    ("2.5", "The answer is 2.5.", 1),
    ("18", "The answer is 18 dollars.", 1),
    ("18", "The answer is about 18.", 0),  # strict
    ("18", "The answer is 17. No, wait. The answer is 18.", 1),  # the last that is told
    ("18", "16 - 3 - 4 = 9 and 9 * 2 = 18", 0),
    ("18", "I can't help with that.", 0),
    ("18", "", 0),
    ("18", "The answer is 18.0", 0),
    ("18", "The answer is 18%.", 1),
]


def test_gsm8ks_hard_cases() -> None:
    """By hand: separators, units, signs, decimals, several numbers, refusals."""
    items = [Item(str(place), str(place), gold) for place, (gold, _, _) in enumerate(GSM8K)]
    scores = [one.score for one in judge(items, [Said(text) for _, text, _ in GSM8K], TASKS["gsm8k"].metric)]
    assert scores == [float(score) for _, _, score in GSM8K]


def test_the_score_and_what_is_told_beside_it() -> None:
    """One pass of lm-eval over the answers, whatever their order: each figure is that of its row."""
    right = [("a cat", ("a cat", "cat")), ("two dogs", ("dogs",)), ("x", ("y", "z"))] * 5
    random.Random(0).shuffle(right)
    items = [Item(str(at), str(at), refs[0], references=refs) for at, (_, refs) in enumerate(right)]
    for kind, also in (("rouge_l", "normalized_match"), ("normalized_match", "rouge_l")):
        metric = Metric(kind, "none", also=(also,))  # type: ignore[arg-type]
        told = judge(items, [Said(f" {text}\n") for text, _ in right], metric)
        figures = {"rouge_l": rouge_l, "normalized_match": normalized_match}
        assert [one.score for one in told] == [figures[kind](text, row(*refs)) for text, refs in right]
        assert [one.also for one in told] == [{also: figures[also](text, row(*refs))} for text, refs in right]
        assert [one.answer for one in told] == [text for text, _ in right]
