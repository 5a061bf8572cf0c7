"""Rows, splits and golds, on the real rows wherever there are some: read a second time with `json` alone, and scored
with `re` alone.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny

from orchestrator.errors import UserError
from orchestrator.models import demo
from orchestrator.steps import data
from orchestrator.tasks import TASKS, chat_task, gsm8k, mmlu
from orchestrator.tasks.base import Example, Message, draw, read_jsonl
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.scoring import Item, score
from orchestrator.tasks.template import encode, prompt_of

REAL = ("gsm8k", "mmlu")


def raw(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def ids(rows: list[Example]) -> list[str]:
    return [row.id for row in rows]


def question(row: Example) -> str:
    return row.messages[0].content


def chat(number: int, **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    return {"messages": turns, **fields}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def judge(metric: Metric, output: str, gold: str) -> bool:
    """lm-eval's strict match by hand: the last match's group, what is ignored taken out of both, equality."""
    found = re.findall(str(metric.pattern), output)
    answer = found[-1].strip() if found else "[invalid]"
    for ignored in metric.ignore:
        answer, gold = re.sub(ignored, "", answer), re.sub(ignored, "", gold)
    return answer == gold


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


# GSM8K


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
    items = [Item(row.id, prompt_of(row, "plain", tokenizer), row.gold, task.choices) for row in rows]
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list("ABCD")))
    picks = []
    for item in items:
        with torch.no_grad():
            logs = model(torch.tensor([tokenizer(item.prompt).input_ids])).logits[0, -1].log_softmax(-1)[letters]
        assert logs.topk(2).values.diff().abs() > 1e-4  # no tie that rounding could turn
        picks.append("ABCD"[int(logs.argmax())])
    scored = score(model, tokenizer, items, task.metric, batch_size=4)
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
    items = [Item(row.id, prompt_of(row, "plain", tokenizer), row.gold, task.choices) for row in rows]
    assert [one.score for one in score(model, tokenizer, items, task.metric)] == [0, 0, 0, 0, 1, 1, 0, 0]


# Any chat file


@pytest.mark.parametrize(
    ("count", "sizes"), [(10, (2, 1, 7)), (11, (2, 1, 8)), (57, (11, 9, 37)), (2000, (400, 200, 1400))]
)
def test_chat_file_is_split_in_fifths(count: int, sizes: tuple[int, int, int], tmp_path: Path) -> None:
    """Against the sizes worked out by hand: test, validation, train; and against the rows written."""
    rows = [chat(number, id=f"r{number}") for number in range(count)]
    task, splits = chat_task(write(tmp_path / "my chats.jsonl", rows))
    assert tuple(len(splits[name]) for name in ("test", "validation", "train")) == sizes  # type: ignore[index]
    parts = [row.id for name in ("test", "validation", "train") for row in splits[name]]  # type: ignore[index]
    assert sorted(parts) == sorted(row["id"] for row in rows)
    assert len(splits["seed"]) == min(32, sizes[2])
    assert set(ids(splits["seed"])) <= set(ids(splits["train"]))
    assert all(row.gold == row.id.replace("r", "a") for part in splits.values() for row in part)
    assert chat_task(tmp_path / "my chats.jsonl")[1] == splits
    assert (task.name, task.metric.pattern, task.choices) == ("my chats", None, ())


def test_chat_file_needs_ten_rows(tmp_path: Path) -> None:
    """The error has the file, the number of its rows, and ten."""
    path = write(tmp_path / "few.jsonl", [chat(number) for number in range(9)])
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} has 9 rows; at least 10"):
        chat_task(path)


GOOD = [json.dumps(chat(number, id=f"r{number}")) for number in range(1, 12)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"messages": [', "not JSON"),
        ('{"messages": []', "not JSON"),
        ("nonsense", "not JSON"),
        ('["messages"]', "not a JSON object"),
        ("3", "not a JSON object"),
        ("{}", "messages: field required"),
        ('{"message": []}', "messages: field required"),
        ('{"messages": []}', "messages: .* at least 1"),
        ('{"messages": "hello"}', "messages: "),
        ('{"messages": [{"role": "assistant"}]}', r"messages\.0\.content: field required"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', r"messages\.0\.role: .*'assistant'"),
        ('{"messages": [{"role": "assistant", "content": 3}]}', r"messages\.0\.content: .*string"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "answer": 72}', "answer: .*string"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "not an assistant's turn"),
        ('{"messages": [{"role": "assistant", "content": " \\n"}]}', "not an assistant's turn"),
        # Half of an emoji, as cutting by UTF-16 units leaves it: no UTF-8 file or tokenizer can take it.
        ('{"messages": [{"role": "assistant", "content": "ok \\ud83d"}]}', "is not JSON"),
        (GOOD[2], "another row has the id"),
    ],
)
def test_a_bad_line_is_named(line: str, says: str, tmp_path: Path) -> None:
    """Against the number of the line in the file: blank lines and line ends of both kinds are before it."""
    path = tmp_path / "chats.jsonl"
    path.write_bytes("\n".join([*GOOD[:4], "", "  \r", *GOOD[4:6], line, *GOOD[6:], ""]).encode())
    with pytest.raises(UserError, match=rf"^data: {re.escape(str(path))}:9\b.*{says}"):
        read_jsonl(path)
    with pytest.raises(UserError, match=rf"^data: {re.escape(str(path))}:9\b"):
        chat_task(path)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "has no rows"),
        (b"\n \n\r\n", "has no rows"),
        ("\n".join(GOOD).replace("a3", "é").encode("latin-1").replace(b"\\u00e9", b"\xe9"), "UTF-8"),
        ("\n".join(GOOD).encode("utf-16"), "UTF-8"),
        (None, "can't be read"),
    ],
)
def test_a_bad_file_is_named(contents: bytes | None, says: str, tmp_path: Path) -> None:
    """The error has the file's path and what is wrong with it."""
    path = tmp_path / "chats.jsonl"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*{says}"):
        chat_task(path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        chat_task(tmp_path)


def test_rows_without_ids_are_named_by_what_they_say(tmp_path: Path) -> None:
    """A row has one name in every file and at every place; a given id stays, a number as its digits."""
    path = tmp_path / "chats.jsonl"
    write(path, [chat(1), chat(2), chat(1), chat(3, id=17)])
    first = {row.id: question(row) for row in read_jsonl(path)}
    assert list(first.values()) == ["q1", "q2", "q1", "q3"]
    assert "17" in first
    write(path, [chat(2), chat(1), chat(1)])
    assert {row.id: question(row) for row in read_jsonl(path)}.items() <= first.items()


def test_no_question_of_the_test_is_learnt(tmp_path: Path) -> None:
    """Rows that stand in two splits, by their words and not their ids, leave the side that learns."""
    write(tmp_path / "train.jsonl", [chat(number) for number in range(40)])
    write(tmp_path / "test.jsonl", [chat(number, id=f"other-{number}") for number in range(30, 50)])
    splits = TASKS["gsm8k"].splits(str(tmp_path))
    questions = {name: {question(row) for row in rows} for name, rows in splits.items()}
    assert questions["test"] == {f"q{number}" for number in range(30, 50)}
    assert not questions["test"] & (questions["train"] | questions["validation"] | questions["seed"])
    assert not questions["validation"] & (questions["train"] | questions["seed"])
    assert len(questions["train"] | questions["validation"]) == 30
    write(tmp_path / "test.jsonl", [chat(number) for number in range(40)])
    with pytest.raises(UserError, match="no row is left for train that the test doesn't have too"):
        TASKS["gsm8k"].splits(str(tmp_path))


SEPARATORS = "one\u2028two\u2029three\x85four"


def test_line_separators_within_a_string_are_text(tmp_path: Path) -> None:
    """Against the row written and the line number of a fault after it: only \\n ends a line."""
    path = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": SEPARATORS}, {"role": "assistant", "content": "a" + SEPARATORS}]}
    write(path, [row, row])
    assert [question(one) for one in read_jsonl(path)] == [SEPARATORS] * 2
    assert read_jsonl(path)[0].gold == "a" + SEPARATORS
    with path.open("a") as file:
        file.write("{")
    with pytest.raises(UserError, match=r"chats\.jsonl:3 is not JSON"):
        read_jsonl(path)


@pytest.mark.parametrize("text", [SEPARATORS, "a\nb\r\nc\x0b\x0cd\x1ce", 'René’s ✓ 𝄞 \\ " \x00', "plain"])
def test_kept_rows_come_back(text: str, tmp_path: Path) -> None:
    """Against the rows handed to the data step: what is read is what was written."""
    turns = [Message(role="user", content=text), Message(role="assistant", content=f"b{text}e")]
    rows = [Example(id=f"x{number}{text}", messages=turns, answer=text) for number in range(3)]
    assert data.write(tmp_path, rows=[row.model_dump() for row in rows]) == {"rows": 3}
    assert data.read(tmp_path) == rows


@pytest.mark.parametrize("name", REAL)
def test_kept_real_rows_come_back(name: str, shared: Path, tmp_path: Path) -> None:
    """Against all real training rows, one of which has U+2028 in it."""
    rows = read_jsonl(shared / name / "train.jsonl")
    data.write(tmp_path, rows=[row.model_dump() for row in rows])
    assert data.read(tmp_path) == rows


# Names


def test_a_hub_that_cannot_be_reached_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A data set that isn't there, offline: the error names it and the way around."""
    from orchestrator.tasks.hub import hub_rows

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"task: the data set nobody/no-such-set .* --data DIR"):
        hub_rows("nobody/no-such-set", "main", "test")


def test_tasks_are_found_by_their_names() -> None:
    """Against each task's own name."""
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in ("demo", "gsm8k", "mmlu")}
