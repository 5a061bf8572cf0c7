"""Files of rows: what is read is what was written, and what is wrong with one is told with its line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from rows import REAL, chat, ids, question, write

from orchestrator.errors import UserError
from orchestrator.store import fingerprint
from orchestrator.tasks import TASKS, chat_task
from orchestrator.tasks import rows as data
from orchestrator.tasks.base import Example, Message, read_jsonl


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
    """Rows that stand in two splits, by their words and not their ids: of files they are named, others leave train."""
    write(tmp_path / "train.jsonl", [chat(number, id=f"t{number}") for number in range(40)])
    write(tmp_path / "test.jsonl", [chat(number, id=f"other-{number}") for number in range(30, 50)])
    with pytest.raises(
        UserError, match=r"train\.jsonl has questions of test\.jsonl \(t30, t31, t32, t33, t34 and 5 more\)"
    ):
        TASKS["gsm8k"].splits(str(tmp_path))
    fetched = {name: read_jsonl(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    splits = TASKS["gsm8k"].divide(fetched)
    questions = {name: {question(row) for row in rows} for name, rows in splits.items()}
    assert questions["test"] == {f"q{number}" for number in range(30, 50)}
    assert not questions["test"] & (questions["train"] | questions["validation"] | questions["seed"])
    assert not questions["validation"] & (questions["train"] | questions["seed"])
    assert len(questions["train"] | questions["validation"]) == 30
    with pytest.raises(UserError, match="no row is left for train that the test doesn't have too"):
        TASKS["gsm8k"].divide(fetched | {"test": fetched["train"]})


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


def test_fields_that_came_later_give_no_row_another_name(tmp_path: Path) -> None:
    """The name of a row without one and that of all rows, from JSON that is written out by hand."""
    path = write(tmp_path / "chats.jsonl", [chat(1)])
    turns = '[{"role":"user","content":"q1"},{"role":"assistant","content":"a1"}]'
    left_open = '"answer":"","references":[],"choices":[],"category":"","before":"","tests":""'
    content = hashlib.sha256(f'{{"id":"","messages":{turns},{left_open}}}'.encode()).hexdigest()[:12]
    rows = read_jsonl(path)
    assert rows[0].id == f"{content}-1"
    kept = [{"id": rows[0].id, "messages": json.loads(turns), "answer": ""}]
    assert data.data_step(rows).identity == {"rows": fingerprint(kept)}


@pytest.mark.parametrize("name", REAL)
def test_kept_real_rows_come_back(name: str, shared: Path, tmp_path: Path) -> None:
    """Against all real training rows, one of which has U+2028 in it."""
    rows = read_jsonl(shared / name / "train.jsonl")
    data.write(tmp_path, rows=[row.model_dump() for row in rows])
    assert data.read(tmp_path) == rows
