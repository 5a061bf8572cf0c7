"""Golds of GSM8K: the pattern against every real solution, and the rows of the hub against those at hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rows import raw

from orchestrator.tasks import gsm8k
from orchestrator.tasks.metric import Metric


def judge(metric: Metric, output: str, gold: str) -> bool:
    """lm-eval's strict match by hand: the last match's group, what is ignored taken out of both, equality."""
    found = re.findall(str(metric.pattern), output)
    answer = found[-1].strip() if found else "[invalid]"
    for ignored in metric.ignore:
        answer, gold = re.sub(ignored, "", answer), re.sub(ignored, "", gold)
    return answer == gold


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_pattern_takes_the_gold_from_every_solution(split: str, count: int, shared: Path) -> None:
    """Against the row's `answer`, and against the same solution with another number or another wording."""
    metric, rows = gsm8k.TASK.metric, raw(shared / "gsm8k" / f"{split}.jsonl")
    assert len(rows) == count
    for row in rows:
        solution, gold = row["messages"][-1]["content"], row["answer"]
        assert judge(metric, solution, gold), row["id"]
        assert judge(metric, solution + " The answer", gold)
        assert not judge(metric, solution[:-1] + "5.", gold), row["id"]
        assert not judge(metric, f"The answer is {gold}. {solution[:-1]}1.", gold)
        assert not judge(metric, solution.replace("answer", "result"), gold)


@pytest.mark.parametrize(
    ("output", "gold", "right"),
    [
        ("The answer is 72.", "72", True),
        ("the answer is 72", "72", True),
        ("So the answer is $1,234,567.", "1234567", True),
        ("So the answer is 1234.", "1,234", True),
        ("So the answer is -5.", "-5", True),
        ("So the answer is 3.5.", "3.5", True),
        ("So the answer is 72 dollars.", "72", True),
        ("So the answer is 72.\n\nSo the answer is 72", "72", True),
        ("The answer is 71. No: the answer is 72.", "72", True),
        ("The answer is 72. No: the answer is 71.", "72", False),
        ("So the answer is 72.5.", "72", False),
        ("So the answer is 720.", "72", False),
        ("So the answer is 7.", "72", False),
        ("So the answer is 5.", "-5", False),
        ("So the answer is seventy-two.", "72", False),
        ("So the answer: 72.", "72", False),
        ("THE ANSWER IS 72", "72", False),
        ("#### 72", "72", False),
        ("72", "72", False),
        ("", "72", False),
    ],
)
def test_pattern_on_other_wordings(output: str, gold: str, right: bool) -> None:
    """Against a person's reading of what "strict match" is."""
    assert judge(gsm8k.TASK.metric, output, gold) is right


HUB_GSM8K = {  # rows of the hub as they stand there: file and id of the same row, question, answer
    ("train", "gsm_0"): (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips"
        " did Natalia sell altogether in April and May?",
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether in April"
        " and May.\n#### 72",
    ),
    ("train", "gsm_1"): (
        "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she"
        " earn?",
        "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 ="
        " $<<0.2*50=10>>10.\n#### 10",
    ),
    ("test", "gsm_test_0"): (
        "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her"
        " friends every day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg."
        " How much in dollars does she make every day at the farmers' market?",
        "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day at the"
        " farmer’s market.\n#### 18",
    ),
    ("test", "gsm_test_1"): (  # no full stop at its end
        "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?",
        "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total amount of fabric is 2+1=<<2+1=3>>3 bolts of"
        " fabric\n#### 3",
    ),
    ("test", "gsm_test_3"): (
        "James decides to run 3 sprints 3 times a week.  He runs 60 meters each sprint.  How many total meters does he"
        " run a week?",
        "He sprints 3*3=<<3*3=9>>9 times\nSo he runs 9*60=<<9*60=540>>540 meters\n#### 540",
    ),
    ("test", "gsm_test_26"): (
        "Mishka bought 3 pairs of shorts, 3 pairs of pants, and 3 pairs of shoes. One pair of shorts costs $16.50. One"
        " pair of pants costs $22.50 and one pair of shoes costs $42. How many dollars did Mishka spend on all the"
        " clothing items?",
        "3 * (16.50 + 22.50 + 42) = $<<3*(16.50+22.50+42)=243>>243\nMishka spent $243 on clothing.\n#### 243",
    ),
}


@pytest.mark.parametrize("key", HUB_GSM8K)
def test_a_hub_row_of_gsm8k_becomes_the_row_at_hand(key: tuple[str, str], shared: Path) -> None:
    """Against the same row of the local files, which another program made of the same source."""
    split, identity = key
    asked, answer = HUB_GSM8K[key]
    local = next(row for row in raw(shared / "gsm8k" / f"{split}.jsonl") if row["id"] == identity)
    made = gsm8k.row(7, {"question": asked, "answer": answer}, split)
    assert made["id"] == f"gsm_{split}_7"
    assert (made["messages"], made["answer"]) == (local["messages"], local["answer"])


def test_a_hub_row_with_thousands_keeps_them_out_of_the_gold() -> None:
    """Against a row written by hand, with a negative number and a "####" after a space."""
    made = gsm8k.row(0, {"question": " How much? ", "answer": "He has $<<1*2=2>>-1,234.\n#### -1,234"}, "test")
    assert made["answer"] == "-1234"
    assert made["messages"][0]["content"] == "Answer the following question.\n\nQuestion: How much?"
    assert made["messages"][1]["content"].startswith("Answer: He has $-1,234. So the answer is -1")
    assert judge(gsm8k.TASK.metric, made["messages"][1]["content"], made["answer"])
