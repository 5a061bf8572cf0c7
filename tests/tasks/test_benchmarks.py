"""The benchmarks' own rows: every reference answer is right, and what is shown before a question is as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rows import chat, raw, write

from orchestrator.errors import UserError
from orchestrator.prepare.rows import find_task
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.scoring.judge import Item, Said, judge
from orchestrator.tasks import TASKS
from orchestrator.tasks.base import Example
from orchestrator.tasks.metric import Metric

FILES = {"gsm8k": "data/gsm8k", "mmlu": "data/mmlu", "super_ni": "data/super_ni"}
FILES |= {"humaneval": "code/humaneval", "mbpp": "code/mbpp"}


def items(rows: list[Example], choices: tuple[str, ...] = ()) -> list[Item]:
    return [
        Item(
            f"{row.id} {place}",
            str(place),
            row.gold,
            row.choices or choices,
            (),
            (),
            row.references,
            row.before,
            row.tests,
        )
        for place, row in enumerate(rows)
    ]


def scored(task: str, rows: list[Example], said: list[str]) -> list[float]:
    known = TASKS[task]
    answers = [
        Said(text) if known.metric.writes else Said(logs=tuple(float(text == one) for one in known.choices))
        for text in said
    ]
    return [one.score for one in judge(items(rows, known.choices), answers, known.metric)]


@pytest.mark.parametrize(
    "name", [name if name != "mbpp" else pytest.param(name, marks=pytest.mark.long) for name in FILES]
)
def test_every_reference_answer_of_every_row_is_right(name: str, shared: Path, request: pytest.FixtureRequest) -> None:
    """Against the rows' own answers, in all files; another row's answer is not, but for a few that happen to be."""
    if TASKS[name].metric.runs:
        request.getfixturevalue("sandboxes")
    folder = shared.parent / FILES[name]
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    for split, rows in TASKS[name]._read(str(folder)).items():
        assert len(rows) == len(raw(folder / f"{split}.jsonl"))
        own = [row.messages[-1].content for row in rows]
        assert set(scored(name, rows, own)) == {1.0}, split
        others = scored(name, rows[:31], [*own[1:], own[0]][:31])
        assert sum(others) / len(others) < 0.4, split


def test_code_scores_one_by_its_body_alone_or_as_a_whole_function(shared: Path, sandboxes: None) -> None:
    """A completion goes on from the function's head; a fence may be open, or stand in talk; broken code is wrong."""
    folder = shared.parent / "code/humaneval"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    (row,) = TASKS["humaneval"].test(str(folder))[:1]
    body, head = row.answer, row.before
    assert body.startswith("    for ")
    said = [body, f"```python\n{head}{body}", f"Sure:\n```\n{head}{body}```\nIt takes pairs.\n```python\n1/0\n```"]
    wrong = ["", "    return False", f"```python\n{head}{body}\n    oops(", "I don't know.", "import os; os._exit(0)"]
    assert scored("humaneval", [row] * 8, said + wrong) == [1.0] * 3 + [0.0] * 5


# Solved examples


def test_gsm8k_is_asked_with_the_eight_published_examples(shared: Path) -> None:
    """Against lm-eval's file of them, read as YAML: in its order, in one turn, under one heading."""
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k-cot.yaml"
    samples = yaml.safe_load(path.read_text())["fewshot_config"]["samples"]
    (first, *_) = raw(shared / "gsm8k/test.jsonl")
    question = first["messages"][0]["content"].split("Question: ")[1]
    for shots in (8, 3):
        task, splits = find_task(TaskChoice(name=f"gsm8k:{shots}", data=str(shared / "gsm8k")))
        assert task.name == f"gsm8k-{shots}shot"
        shown = "".join(f"Question: {one['question']}\nAnswer: {one['target']}\n\n" for one in samples[:shots])
        (asked, answer) = splits["test"][0].messages
        assert asked.content == f"Answer the following questions.\n\n{shown}Question: {question}"
        assert answer.content == first["messages"][1]["content"]
        assert all(
            len(row.messages) == 2 and row.messages[0].content.startswith("Answer the following question.")
            for row in splits["train"]
        )
        assert all(row.messages[0].content.startswith("Answer the following questions") for row in splits["validation"])
    with pytest.raises(UserError, match="gsm8k has 8 solved examples to show, not 9"):
        find_task(TaskChoice(name="gsm8k:9", data=str(shared / "gsm8k")))


def test_mmlu_is_asked_with_its_subjects_five_dev_rows(shared: Path) -> None:
    """Against dev.jsonl, read with `json` alone: the five of the subject in their order, and then the question."""
    dev: dict[str, list[dict[str, Any]]] = {}
    for row in raw(shared / "mmlu/dev.jsonl"):
        dev.setdefault(row["category"], []).append(row)
    rows = raw(shared / "mmlu/test.jsonl")
    _, splits = find_task(TaskChoice(name="mmlu:5", data=str(shared / "mmlu")))
    for row, example in zip(rows, splits["test"], strict=True):
        solved = [f"{text(one)} {one['answer']}" for one in dev[row["category"]]]
        assert len(solved) == 5
        heading = row["messages"][0]["content"].split("\n\n")[0]
        assert example.messages[0].content == "\n\n".join([heading, *solved, text(row)])
        assert (example.messages[1].content, example.category) == (row["answer"], row["category"])


def text(row: dict[str, Any]) -> str:
    options = "\n".join(f"{letter}. {one}" for letter, one in zip("ABCD", row["choices"], strict=True))
    return f"{row['question']}\n{options}\nAnswer:"


def test_other_tasks_show_training_rows_as_earlier_turns(tmp_path: Path) -> None:
    """Against the files: none of what is shown is ever asked, and each question has the same before it."""
    write(tmp_path / "train.jsonl", [chat(number) for number in range(40)])
    write(tmp_path / "test.jsonl", [chat(number) for number in range(100, 110)])
    _, splits = find_task(TaskChoice(name="super_ni:3", data=str(tmp_path)))
    for split in ("validation", "test"):
        shown = {row.messages[:-2] for row in splits[split]}
        assert len(shown) == 1 and len(shown.pop()) == 6
    asked = {row.messages[-2] for split in ("validation", "test") for row in splits[split]}
    assert not asked & {*splits["test"][0].messages[:-2]}


def test_an_example_that_is_asked_itself_is_refused(shared: Path, tmp_path: Path) -> None:
    """A dev file with a question of the test, by its id."""
    rows = raw(shared / "mmlu/test.jsonl")[:5]
    write(tmp_path / "test.jsonl", rows)
    write(tmp_path / "train.jsonl", raw(shared / "mmlu/train.jsonl")[:40])
    write(tmp_path / "dev.jsonl", [*raw(shared / "mmlu/dev.jsonl")[:4], rows[2]])
    with pytest.raises(UserError, match=rf"dev\.jsonl has questions of test\.jsonl \({rows[2]['id']}\)"):
        find_task(TaskChoice(name="mmlu:5", data=str(tmp_path)))
    write(tmp_path / "dev.jsonl", raw(shared / "mmlu/dev.jsonl")[:4])
    with pytest.raises(UserError, match="mmlu has 4 solved examples to show, not 5"):
        find_task(TaskChoice(name="mmlu:5", data=str(tmp_path)))


# What is asked for


def test_a_name_says_how_many_are_shown() -> None:
    """In flags, in YAML and in what was recorded: one and the same choice."""
    fields = {"teacher": "demo-teacher", "student": "demo-student"}
    (short, plain) = (Recipe.model_validate(fields | {"task": task}).task for task in ("mmlu:5", "mmlu"))
    assert (short.name, short.shots, plain.shots) == ("mmlu", 5, 0)
    assert TaskChoice.model_validate(short.model_dump()) == short
    assert TaskChoice(name="rows.jsonl:2").shots == 2


def test_programs_are_not_run_unasked(shared: Path, sandboxes: None) -> None:
    """Nor is a benchmark without training rows trained on; both say what to do."""
    code = shared.parent / "code"
    if not code.is_dir():
        pytest.skip(f"{code} is not here")
    with pytest.raises(UserError, match="mbpp runs programs that a model wrote; --run-code has them run, in sandboxes"):
        find_task(TaskChoice(name="mbpp", data=str(code / "mbpp")))
    with pytest.raises(
        UserError, match=r"humaneval has no train\.jsonl; .*; train on mbpp, and score it beside with --tasks humaneval"
    ):
        find_task(TaskChoice(name="humaneval", data=str(code / "humaneval"), run_code=True))


def test_rows_without_what_scores_them_are_named(tmp_path: Path) -> None:
    """File, line and field; seed examples need none of it."""
    row = {"messages": chat(1)["messages"], "test_list": ["assert f() == 1"]}
    write(tmp_path / "train.jsonl", [row | {"messages": chat(number)["messages"]} for number in range(20)])
    write(tmp_path / "test.jsonl", [row | {"messages": chat(30)["messages"]}, chat(31)])
    write(tmp_path / "seed.jsonl", [chat(1)])
    with pytest.raises(UserError, match=r"test\.jsonl:2: there is no field `test_list`"):
        TASKS["mbpp"].splits(str(tmp_path))
    write(tmp_path / "test.jsonl", [row | {"messages": chat(30)["messages"]}])
    assert len(TASKS["mbpp"].splits(str(tmp_path))["seed"]) == 1


def test_a_metric_of_the_tasks_own_or_none(shared: Path) -> None:
    """super_ni by its exact match; what a task's answers can't be judged by is told with what they can."""
    task, _ = find_task(TaskChoice(name="super_ni", metric="normalized_match", data=str(shared / "super_ni")))
    assert (task.metric.kind, task.metric.also) == ("normalized_match", ("rouge_l",))
    task, _ = find_task(TaskChoice(name="gsm8k", metric="loss", data=str(shared / "gsm8k")))
    assert task.metric == Metric("loss", "none")
    with pytest.raises(UserError, match="metric: gsm8k is scored by exact_match, loss, not by 'rouge_l'"):
        find_task(TaskChoice(name="gsm8k", metric="rouge_l", data=str(shared / "gsm8k")))


def test_a_file_of_chats_by_the_metric_of_the_users_choice(tmp_path: Path) -> None:
    """Each word, and what doesn't fit the rows; a wrong one is told with those that there are."""
    path = tmp_path / "own.jsonl"
    write(path, [chat(number) | {"choices": ["a", f"a{number}"]} for number in range(20)])
    for metric in ("exact_match", "contains", "rouge_l", "multiple_choice", "loss", "regex:(a[0-9]+)"):
        task, splits = find_task(TaskChoice(name=str(path), metric=metric))
        kind = "exact_match" if metric.startswith("regex") else metric
        assert task.metric.kind == kind
        assert len(splits["test"]) == 4
    write(path, [chat(number) for number in range(20)])
    with pytest.raises(UserError, match=r"own\.jsonl:1: there is no field `choices`"):
        find_task(TaskChoice(name=str(path), metric="multiple_choice"))
    with pytest.raises(UserError, match="metric: 'bleu' is not known; known: exact_match, contains"):
        find_task(TaskChoice(name=str(path), metric="bleu"))
    with pytest.raises(UserError, match=r"metric: 'regex:\[' is not known|metric: 'regex:\['"):
        find_task(TaskChoice(name=str(path), metric="regex:["))


def test_a_rows_other_fields_are_its_own(tmp_path: Path) -> None:
    """A column `tests` or `before` of a user's is none of ours: rows are read as before."""
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(chat(n) | {"tests": [1], "before": {}}) + "\n" for n in range(12)))
    assert {row.tests for row in find_task(TaskChoice(name=str(path)))[1]["test"]} == {""}


def test_who_judges_a_win_rate(shared: Path, tmp_path: Path) -> None:
    """An endpoint and its model, a model alone; nobody: then the references' likelihood is the score, no win rate."""
    rows = str(shared / "self_instruct")
    task, splits = find_task(TaskChoice(name="alpaca", data=rows, judge="http://host/v1", judge_model="m"))
    assert (task.metric.kind, task.judge, len(splits["test"])) == ("win_rate", ("http://host/v1", "m"), 252)
    task, _ = find_task(TaskChoice(name="alpaca", data=rows))
    assert (task.metric.name, task.judge, task.metric.writes, task.metric.keeps) == ("loss,outputs", None, True, True)
    with pytest.raises(UserError, match=r"judge: http://host/v1 has to be told which model judges; .* --judge-model"):
        find_task(TaskChoice(name="alpaca", data=rows, judge="http://host/v1"))
    with pytest.raises(UserError, match="judge: gsm8k is scored by exact_match; leave --judge out"):
        find_task(TaskChoice(name="gsm8k", data=str(shared / "gsm8k"), judge="http://host/v1", judge_model="m"))
    with pytest.raises(UserError, match="judge: gsm8k is scored by exact_match; leave --judge-model out"):
        find_task(TaskChoice(name="gsm8k", data=str(shared / "gsm8k"), judge_model="m"))
    assert find_task(TaskChoice(name="alpaca", data=rows, judge_model="m"))[0].judge == ("", "m")
    path = tmp_path / "own.jsonl"
    write(path, [chat(number) for number in range(20)])
    own, _ = find_task(TaskChoice(name=str(path), metric="win_rate", judge="http://host/v1", judge_model="m"))
    assert own.judge and own.metric.kind == "win_rate"
