"""Rows and splits, on the real rows wherever there are some: read a second time with `json` alone."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from demo import make_models as demo
from rows import REAL, chat, ids, question, raw, write
from tiny import tiny

from orchestrator.errors import UserError
from orchestrator.prepare.rows import used_rows
from orchestrator.recipe import Recipe
from orchestrator.scoring.asking import questions
from orchestrator.scoring.engine import score
from orchestrator.tasks import TASKS, mmlu
from orchestrator.tasks.base import Message, draw, read_jsonl
from orchestrator.tasks.template import encode, prompt_of

# Splits


@pytest.mark.parametrize("name", REAL)
def test_splits_of_the_real_rows(name: str, shared: Path) -> None:
    """Against the files read with `json` alone: nothing lost, nothing in two splits, seeds as the file has them."""
    splits = TASKS[name].splits(str(shared / name))
    files = {split: raw(shared / name / f"{split}.jsonl") for split in ("train", "test", "seed")}
    golds = {row["id"]: row["answer"] for rows in files.values() for row in rows}
    texts = {row["id"]: row["messages"][0]["content"] for rows in files.values() for row in rows}
    for rows in splits.values():
        assert [row.gold for row in rows] == [golds[row.id] for row in rows]
        assert [question(row) for row in rows] == [texts[row.id] for row in rows]
    assert ids(splits["test"]) == [row["id"] for row in files["test"]]
    assert ids(splits["seed"]) == [row["id"] for row in files["seed"]]
    learnt = set(ids(splits["validation"]))
    assert ids(splits["train"]) == [row["id"] for row in files["train"] if row["id"] not in learnt]
    assert len(learnt) == len(splits["validation"]) == 200
    assert len(splits["train"]) + 200 == len(files["train"])
    assert set(ids(splits["seed"])) <= set(ids(splits["train"]))
    asked = {split: {(row.messages[0].content, row.gold) for row in splits[split]} for split in splits}
    assert not asked["train"] & asked["test"]
    assert not asked["validation"] & (asked["train"] | asked["test"] | asked["seed"])


@pytest.mark.parametrize("name", REAL)
def test_draws_are_the_same_each_time(name: str, shared: Path, tmp_path: Path) -> None:
    """Against a second call under another random state, another folder and rows read with `json` alone."""
    first = TASKS[name].splits(str(shared / name))
    random.seed(5)
    state = random.getstate()
    assert TASKS[name].splits(str(shared / name)) == first
    assert random.getstate() == state
    for split in ("train", "test"):
        shutil.copy(shared / name / f"{split}.jsonl", tmp_path)
    alone = TASKS[name].splits(str(tmp_path))  # no seed file: these are drawn too
    assert alone == TASKS[name].splits(str(tmp_path))
    assert len(set(ids(alone["seed"]))) == 32
    assert set(ids(alone["seed"])) <= set(ids(alone["train"]))
    assert not set(ids(alone["validation"])) & set(ids(alone["train"]))
    assert ids(alone["test"]) == ids(first["test"])
    order = {row["id"]: place for place, row in enumerate(raw(shared / name / "train.jsonl"))}
    for rows in (alone["seed"], alone["train"], alone["validation"]):
        assert [order[row.id] for row in rows] == sorted(order[row.id] for row in rows)


def test_draw_is_the_published_one(shared: Path) -> None:
    """Against seed.jsonl, which its README says was drawn by random.Random(231011451).sample, in the original order."""
    for name in REAL:
        rows = read_jsonl(shared / name / "train.jsonl")
        expected = [row["id"] for row in raw(shared / name / "seed.jsonl")]
        assert ids(draw(rows, 32)) == expected
    assert ids(draw(rows[:3], 9)) == ids(rows[:3])


def test_validation_and_seed_files_are_taken_as_they_are(tmp_path: Path) -> None:
    """Against the files written: every training row with an id of its own stays, in its order."""
    write(tmp_path / "train.jsonl", [chat(number, id=f"t{number}") for number in range(40)])
    write(tmp_path / "validation.jsonl", [chat(3, id="t3"), chat(100, id="v")])
    write(tmp_path / "seed.jsonl", [chat(200, id="s")])
    write(tmp_path / "test.jsonl", [chat(300, id="e")])
    splits = TASKS["gsm8k"].splits(str(tmp_path))
    assert ids(splits["train"]) == [f"t{number}" for number in range(40) if number != 3]
    assert [ids(splits[name]) for name in ("validation", "seed", "test")] == [["t3", "v"], ["s"], ["e"]]


def test_rows_without_ids_are_not_lost(tmp_path: Path) -> None:
    """Against the files written: equal places in two files don't make two rows the same."""
    write(tmp_path / "train.jsonl", [chat(number) for number in range(40)])
    write(tmp_path / "validation.jsonl", [chat(number) for number in range(100, 110)])
    write(tmp_path / "test.jsonl", [chat(number) for number in range(200, 210)])
    splits = TASKS["gsm8k"].splits(str(tmp_path))
    assert [question(row) for row in splits["validation"]] == [f"q{number}" for number in range(100, 110)]
    assert [question(row) for row in splits["train"]] == [f"q{number}" for number in range(40)]


def test_seed_rows_without_ids_are_kept_out_of_the_drawn_validation(tmp_path: Path) -> None:
    """Against the questions: the seed file's rows are training rows, of which none may be validated on."""
    write(tmp_path / "train.jsonl", [chat(number) for number in range(200)])
    write(tmp_path / "seed.jsonl", [chat(number) for number in range(100, 132)])
    write(tmp_path / "test.jsonl", [chat(number) for number in range(300, 310)])
    splits = TASKS["gsm8k"].splits(str(tmp_path))
    assert not {question(row) for row in splits["seed"]} & {question(row) for row in splits["validation"]}


def test_a_folder_needs_train_and_test(tmp_path: Path) -> None:
    """The error names the file that is missing."""
    with pytest.raises(UserError, match=r"has no test\.jsonl"):
        TASKS["mmlu"].splits(str(tmp_path))
    write(tmp_path / "test.jsonl", [chat(1)])
    with pytest.raises(UserError, match=r"has no train\.jsonl"):
        TASKS["mmlu"].splits(str(tmp_path))


# MMLU


@pytest.mark.parametrize(("split", "count"), [("train", 1452), ("test", 1140)])
def test_hub_rows_of_mmlu_become_the_rows_at_hand(split: str, count: int, shared: Path) -> None:
    """Against every local row, which keeps the hub's question, choices, subject and letter beside the chat."""
    rows = raw(shared / "mmlu" / f"{split}.jsonl")
    assert len(rows) == count
    for place, row in enumerate(rows):
        source = {
            "question": row["question"], "subject": row["category"], "choices": row["choices"],
            "answer": "ABCD".index(row["answer"]),
        }  # fmt: skip
        made = mmlu.row(place, source, split)
        assert made["id"] == f"mmlu_{split}_{place}"
        assert made["messages"][0] == row["messages"][0]
        assert (made["messages"][1]["content"], made["answer"]) == (row["answer"], row["answer"])


def test_mmlu_learns_the_letter_alone(shared: Path) -> None:
    """Against the letter's and the eos token's ids, in all splits; the rows at hand say "The answer is: X"."""
    tokenizer, splits = demo.tokenizer(), TASKS["mmlu"].splits(str(shared / "mmlu"))
    assert raw(shared / "mmlu" / "seed.jsonl")[0]["messages"][1]["content"].startswith("The answer is: ")
    letters = Counter(row.gold for rows in splits.values() for row in rows)
    assert set(letters) == set(mmlu.LETTERS) == set(TASKS["mmlu"].choices) == set("ABCD")
    for row in [row for rows in splits.values() for row in rows[:40]]:
        assert row.messages[-1] == Message(role="assistant", content=row.gold)
        encoded = encode(row, "plain", tokenizer, 10**6)
        learnt = [label for label in encoded.labels if label != -100]
        assert learnt == encoded.ids[-2:] == tokenizer.convert_tokens_to_ids([row.gold, "<eos>"])
        assert encoded.labels[-2:] == learnt
        assert prompt_of(row, "plain", tokenizer).endswith("\nAnswer:\n\n<|assistant|>\n")


def test_mmlu_score_is_the_likeliest_letter(shared: Path) -> None:
    """Against the argmax of the next token's log-probabilities over the four letters, by one plain forward pass."""
    tokenizer, task = demo.tokenizer(), TASKS["mmlu"]
    model = tiny("llama", vocab_size=104, max_position_embeddings=2048)
    short = sorted(task.splits(str(shared / "mmlu"))["test"], key=lambda row: len(question(row)))
    rows = [next(row for row in short if row.gold == letter) for letter in "ABCD"]
    items, _ = questions(rows, "plain", tokenizer, task.metric, task.choices)
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list("ABCD")))
    picks = []
    for item in items:
        with torch.no_grad():
            logs = model(torch.tensor([tokenizer(item.prompt).input_ids])).logits[0, -1].log_softmax(-1)[letters]
        assert logs.topk(2).values.diff().abs() > 1e-4  # no tie that rounding could turn
        picks.append("ABCD"[int(logs.argmax())])
    scored = score(model, tokenizer, items, task.metric, stops=[1])
    assert [one.output for one in scored] == picks
    assert len(set(picks)) > 1
    assert [one.score for one in scored] == [float(pick == row.gold) for pick, row in zip(picks, rows, strict=True)]
    assert [(one.id, one.gold) for one in scored] == [(row.id, row.gold) for row in rows]


def test_a_model_that_prefers_the_gold_scores_one(shared: Path) -> None:
    """By construction: an output layer that always says C is right exactly on the rows whose gold is C."""
    tokenizer, task = demo.tokenizer(), TASKS["mmlu"]
    model = tiny("llama", vocab_size=104, max_position_embeddings=2048)
    place = tokenizer.convert_tokens_to_ids("C")
    model.lm_head = torch.nn.Linear(64, 104)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(place), 104))
    short = sorted(task.splits(str(shared / "mmlu"))["test"], key=lambda row: len(question(row)))
    rows = [row for letter in "ABCD" for row in [one for one in short if one.gold == letter][:2]]
    items, _ = questions(rows, "plain", tokenizer, task.metric, task.choices)
    told = score(model, tokenizer, items, task.metric, stops=[1])
    assert [one.score for one in told] == [0, 0, 0, 0, 1, 1, 0, 0]


# Names


def test_a_hub_that_cannot_be_reached_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A data set that isn't there, offline: the error names it and the way around."""
    from orchestrator.tasks.hub import hub_rows

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"task: the data set nobody/no-such-set .* --data DIR"):
        hub_rows("nobody/no-such-set", "main", "test")


def test_tasks_are_found_by_their_names() -> None:
    """Against each task's own name."""
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    assert set(TASKS) == {"demo", "gsm8k", "mmlu", "super_ni", "alpaca", "humaneval", "mbpp"}


def test_more_seed_examples_than_are_set_aside_are_training_rows(tmp_path: Path) -> None:
    """From one to 128: the seeds first, none twice, and none that is validated or tested on; a user's file stays."""
    splits = TASKS["demo"].splits(None)
    fields = {"teacher": "demo-teacher", "student": "demo-student"}
    asked = {count: Recipe(**fields, measure={"examples": count}) for count in (1, 32, 128)}
    found = {count: used_rows(recipe, splits, "seed") for count, recipe in asked.items()}
    assert [len(rows) for rows in found.values()] == [1, 32, 128]
    assert found[32] == splits["seed"] == found[128][:32]
    assert len({question(row) for row in found[128]}) == 128
    assert {question(row) for row in found[128][32:]} <= {question(row) for row in splits["train"]}
    own = Recipe(**fields, measure={"examples": 128, "seeds": "mine.jsonl"})
    assert used_rows(own, splits, "seed") == splits["seed"]
