"""Files of edits: every form of KnowEdit's own is read, and what is wrong with one is told with row and field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rows import chat, ids, write

from orchestrator.errors import UserError
from orchestrator.prepare.ready import check, prepare
from orchestrator.prepare.rows import find_beside, find_task
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.tasks.base import Example
from orchestrator.tasks.knowedit import edit_task, is_edits, splits_of
from orchestrator.tasks.rows import data_step

RECENT = {  # answers in lists of lists
    "subject": "Ann",
    "prompt": "The home of Ann is",
    "target_new": "Rome",
    "portability": {
        "Reasoning": [{"prompt": "Ann's country is", "ground_truth": [["Italy", "IT"]]}],
        "Logical_Generalization": [{"prompt": "Is Ann alive?", "ground_truth": [["no"], ["false"]]}],
        "Subject_Aliasing": None,
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Ann's father is", "ground_truth": [["Bob"]]},
            {"prompt": "Ann's mother is", "ground_truth": []},
        ]
    },
}
COUNTERFACT = {  # plain texts
    "prompt": "The job of Cid is ",
    "target_new": "baker",
    "ground_truth": "mayor",
    "portability": {"Subject_Aliasing": [{"prompt": "The job of El Cid is", "ground_truth": "baker"}]},
    "locality": {"Forgetfulness": [{"prompt": "Cid's old job is", "ground_truth": "mayor"}]},
}
ZSRE = {  # a rephrase, and answers in a list
    "subject": "Dee",
    "prompt": "Which family is Dee of?",
    "target_new": "Owls",
    "ground_truth": ["Bats"],
    "rephrase_prompt": "What is Dee's family?",
    "cond": "Bats >> Owls || Which family is Dee of?",
    "locality": {"Relation_Specificity": [{"prompt": "Dee's rank is", "ground_truth": ["genus", "Genus"]}]},
}
WIKIBIO = {  # other names, and nothing that follows
    "text": "This is about Eve.",
    "labels": "She was a chemist.",
    "concept": "Eve",
    "locality": {"Relation_Specificity": [{"prompt": "Eve's field is", "ground_truth": ["tea", 7]}]},
}
COLUMNS = {  # as EasyEdit hands them on
    "prompt": "Fay speaks",
    "target_new": "Danish",
    "rephrase": ["Fay talks", ""],
    "portability": {"Reasoning": {"prompt": ["Fay reads", "Fay sings"], "ground_truth": ["Danish", ["Norse"]]}},
    "locality": {},
}
FORMS = [RECENT, COUNTERFACT, ZSRE, WIKIBIO, COLUMNS]


def probes(row: Example) -> list[tuple[str, str, str, str]]:
    return [(one.of, one.kind, one.prompt, one.answer) for one in row.probes]


@pytest.mark.parametrize("lines", [False, True])
def test_every_form_is_read(lines: bool, tmp_path: Path) -> None:
    """Against what each says, written out by hand."""
    path = tmp_path / "my edits.json"
    if lines:
        write(path, FORMS)
    else:
        path.write_text(json.dumps(FORMS, indent=1))
    assert is_edits(path)
    task, rows = edit_task(path)
    assert (task.name, task.metric.kind, ids(rows)) == ("my edits", "edit_success", [f"edit_{n}" for n in range(1, 6)])
    assert [tuple(turn.content for turn in row.messages) for row in rows] == [
        ("The home of Ann is", "Rome"), ("The job of Cid is", "baker"), ("Which family is Dee of?", "Owls"),
        ("This is about Eve.", "She was a chemist."), ("Fay speaks", "Danish"),
    ]  # fmt: skip
    assert [probes(row) for row in rows] == [
        [
            ("success", "prompt", "The home of Ann is", "Rome"),
            ("portability", "Reasoning", "Ann's country is", "Italy"),
            ("portability", "Logical_Generalization", "Is Ann alive?", "no"),
            ("locality", "Relation_Specificity", "Ann's father is", "Bob"),
        ],
        [
            ("success", "prompt", "The job of Cid is", "baker"),
            ("portability", "Subject_Aliasing", "The job of El Cid is", "baker"),
            ("locality", "Forgetfulness", "Cid's old job is", "mayor"),
        ],
        [
            ("success", "prompt", "Which family is Dee of?", "Owls"),
            ("success", "rephrase", "What is Dee's family?", "Owls"),
            ("locality", "Relation_Specificity", "Dee's rank is", "genus"),
        ],
        [
            ("success", "prompt", "This is about Eve.", "She was a chemist."),
            ("locality", "Relation_Specificity", "Eve's field is", "tea"),
        ],
        [
            ("success", "prompt", "Fay speaks", "Danish"),
            ("success", "rephrase", "Fay talks", "Danish"),
            ("portability", "Reasoning", "Fay reads", "Danish"),
            ("portability", "Reasoning", "Fay sings", "Norse"),
        ],
    ]


def edits(count: int) -> list[dict[str, Any]]:
    return [{**RECENT, "prompt": f"q{number}", "target_new": f"a{number}"} for number in range(count)]


@pytest.mark.parametrize(("count", "chosen"), [(5, 1), (57, 11), (1301, 200)])
def test_all_edits_are_learnt_and_each_is_scored_once(count: int, chosen: int, tmp_path: Path) -> None:
    task, splits = find_task(TaskChoice(name=str(write(tmp_path / "e.jsonl", edits(count)))))
    every = {f"edit_{number}" for number in range(1, count + 1)}
    assert set(ids(splits["train"])) == every and len(splits["train"]) == count
    validation, test = set(ids(splits["validation"])), set(ids(splits["test"]))
    assert (len(validation), validation | test, validation & test) == (chosen, every, set())
    assert set(ids(splits["seed"])) <= every and len(splits["seed"]) == min(32, count)
    assert all(row.probes for row in [*splits["validation"], *splits["test"]])
    assert find_task(TaskChoice(name=str(tmp_path / "e.jsonl"))) == (task, splits)
    assert len(find_beside(TaskChoice(name=str(tmp_path / "e.jsonl")), TaskChoice())[1]) == count


def test_a_training_doesnt_depend_on_what_is_asked_afterwards(tmp_path: Path) -> None:
    """By the names of its rows; those that are scored have others."""
    parts = []
    for more in ({}, {"locality": {"Forgetfulness": [{"prompt": "x", "ground_truth": "y"}]}}):
        task, rows = edit_task(write(tmp_path / "e.jsonl", [{**row, **more} for row in edits(9)]))
        splits = splits_of(task, rows)
        parts.append({name: data_step(some).fingerprint for name, some in splits.items()})
    assert {name for name in parts[0] if parts[0][name] == parts[1][name]} == {"seed", "train"}


def test_too_few_to_choose_by_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", edits(4))
    with pytest.raises(UserError, match=r"e\.jsonl has 4 edits; at least 5 are needed"):
        find_task(TaskChoice(name=str(path)))
    assert len(find_beside(TaskChoice(name=str(path)), TaskChoice())[1]) == 4  # there is nothing to choose


GOOD = {"prompt": "p", "target_new": "t"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p"}, "target_new: field required"),
        ({"target_new": "t"}, "prompt: field required"),
        ({**GOOD, "prompt": " "}, "prompt: .*at least 1"),
        ({**GOOD, "prompt": ["p"]}, "prompt: .*valid string"),
        ({**GOOD, "target_new": []}, "target_new: .*at least 1"),
        ({**GOOD, "target_new": {"str": "t"}}, "target_new: .*valid string"),
        ({**GOOD, "rephrase_prompt": 3}, r"rephrase_prompt\.0: .*valid string"),
        ({**GOOD, "locality": ["p"]}, "locality: .*dictionary"),
        ({**GOOD, "locality": {"F": ["p"]}}, r"locality\.F\.0: "),
        ({**GOOD, "locality": {"F": [{"ground_truth": "a"}]}}, r"locality\.F\.0\.prompt: field required"),
        ({**GOOD, "portability": {"R": [{"prompt": "p", "ground_truth": True}]}}, r"portability\.R\.0\.ground_truth: "),
        ({**GOOD, "portability": {"R": {"prompt": ["p", "q"], "ground_truth": ["a"]}}}, r"portability\.R: .*as many"),
        ("p", "it is no JSON object"),
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_a_bad_row_is_named(row: Any, says: str, lines: bool, tmp_path: Path) -> None:
    """With its place: of a list, its number, of lines, the line's."""
    path, rows = tmp_path / "e.json", [GOOD, GOOD, row, GOOD]
    text = "\n\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    path.write_text(text)
    where, says = (":5", "not a JSON object" if row == "p" else says) if lines else (" row 3: ", says)
    with pytest.raises(UserError, match=rf"^data: {re.escape(str(path))}{where}.*{says}"):
        edit_task(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"prompt": "p",\n "target_new": }]', ":2 is not JSON"),
        ("[]", " has no rows; give edits"),
        ('[{"prompt": "\\ud83d", "target_new": "t"}]', r" is not JSON \(UnicodeEncodeError\)"),
        ('{"prompt": "p", "target_new": "t"}\n{', ":2 is not JSON"),
    ],
)
def test_a_bad_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    assert is_edits(path)
    with pytest.raises(UserError, match=rf"^data: {re.escape(str(path))}{says}"):
        find_task(TaskChoice(name=str(path)))


def test_what_has_no_edits_is_read_as_before(tmp_path: Path) -> None:
    for text in (json.dumps(chat(1)), "nonsense", "", "3", "\xe9", "[1]\n", '["messages"]', "[]"):
        (tmp_path / "chats.jsonl").write_text(text, encoding="latin-1")
        assert not is_edits(tmp_path / "chats.jsonl")
    assert not is_edits(tmp_path) and not is_edits(tmp_path / "lost.json")


def test_options_that_mean_nothing_to_edits_are_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path / "e.jsonl", edits(9)))
    with pytest.raises(UserError, match=r"^metric: 'rouge_l': e\.jsonl has edits, which are scored by edit_success"):
        find_task(TaskChoice(name=path, metric="rouge_l"))
    with pytest.raises(UserError, match=r"^task: 2 solved examples: .*asked as they are"):
        find_beside(TaskChoice(name=path, shots=2), TaskChoice())
    with pytest.raises(UserError, match=r"^judge: e is scored by edit_success; leave --judge out"):
        find_task(TaskChoice(name=path, judge="http://x", judge_model="y"))


def test_edits_that_would_not_all_be_learnt_are_refused(demo_models: dict[str, Path], tmp_path: Path) -> None:
    path = str(write(tmp_path / "e.jsonl", edits(9)))
    pair = {"teacher": "demo-teacher", "student": "demo-student", "task": {"name": path}, "arm": "lora"}
    few, all_of_them = (Recipe.model_validate({**pair, "finetune": {"examples": n}}).settled() for n in (8, 9))
    with pytest.raises(
        UserError, match=r"^finetune.examples: 8 of 9 edits would be learnt.* --set finetune.examples=9"
    ):
        check(few, prepare(few))
    check(all_of_them, prepare(all_of_them))
