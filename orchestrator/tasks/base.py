"""What a task is: rows in chat form, split once and for all, and how an answer is scored.

    examples = task.split("train", data=None)        # list[Example]
    prompt_of(examples[0], PLAIN)                    # "<|user|>\nBackwards: kdmz\n\n<|assistant|>\n"

Seeds, training and evaluation use one rendering, so that what is measured, learnt and asked is the same text.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import UserError
from orchestrator.tasks.metric import Metric

Split = Literal["seed", "train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("seed", "train", "validation", "test")


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: str


class Example(BaseModel):
    """One row: turns that end with the assistant's, and the gold answer where it differs from the last turn."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str = ""
    messages: tuple[Message, ...] = Field(min_length=1)
    answer: str = ""

    @property
    def gold(self) -> str:
        """What the scored answer has to be."""
        return self.answer.strip() or self.messages[-1].content.strip()

    def answered_as(self, other: Example) -> Example:
        """This question with another example's answer."""
        return self.model_copy(update={"messages": (*self.messages[:-1], other.messages[-1]), "answer": other.answer})


@dataclass(frozen=True)
class Task:
    """A benchmark: where its rows come from, what it asks for, and how that is scored.

    `load` gives the raw rows by split, from the hub or made on the spot; a folder with `train.jsonl` and `test.jsonl`
    can take its place. Both may leave out seed and validation. `adapt` turns a row's example into the one that the
    loss and the score see.
    """

    name: str
    about: str
    metric: Metric
    load: Callable[[], dict[str, list[dict[str, Any]]]]
    source: str
    loss_covers: str = "the assistant's turns, end-of-sequence token included"
    adapt: Callable[[Example], Example] = lambda example: example
    choices: tuple[str, ...] = ()
    validation_rows: int = 200
    test_rows: int = 1000  # as published: for a plan before they are fetched
    seed_rows: int = 32

    def splits(self, data: str | None) -> dict[Split, list[Example]]:
        """All four splits. Where there is no validation or seed file they are drawn, by a fixed rule, from train.

        Validation rows leave the training rows; seed rows are training rows, as in the paper.
        """
        if data is None:
            raw = {split: _parse(rows, f"task {self.name} {split}") for split, rows in self.load().items()}
        else:
            folder = Path(data).expanduser()
            raw = {path.stem: read_jsonl(path) for path in sorted(folder.glob("*.jsonl"))}
            if missing := {"train", "test"} - set(raw):
                raise UserError(
                    f"data: {folder} has no {sorted(missing)[0]}.jsonl; it needs train.jsonl and test.jsonl"
                )
        return self.divide(raw)

    def divide(self, raw: dict[str, list[Example]]) -> dict[Split, list[Example]]:
        """Fill in the splits that are missing; every example adapted.

        No question of the test is in another split, and none of the validation in train or seed: what is there twice
        goes from the side that learns. UserError where nothing is left to learn from.
        """
        test = raw["test"]
        train = _without(raw["train"], test)
        seed, validation = raw.get("seed"), raw.get("validation")
        if validation is None:
            free = _without(train, seed or [])
            validation = draw(free, min(self.validation_rows, len(train) // 5))
        validation = _without(validation, test)
        train = _without(train, validation)
        seed = draw(train, self.seed_rows) if seed is None else _without(_without(seed, test), validation)
        for name, rows in (("train", train), ("validation", validation), ("seed", seed)):
            if not rows:
                raise UserError(f"data: no row is left for {name} that the test doesn't have too; give more rows")
        parts: dict[Split, list[Example]] = {
            "seed": seed, "train": train, "validation": validation, "test": test,
        }  # fmt: skip
        return {name: [self.adapt(example) for example in rows] for name, rows in parts.items()}


def draw(rows: Sequence[Example], count: int) -> list[Example]:
    """`count` rows by a fixed random draw, in their order; all of them where there are fewer."""
    chosen = sorted(random.Random(231011451).sample(range(len(rows)), min(count, len(rows))))
    return [rows[place] for place in chosen]


def _without(rows: Sequence[Example], barred: Sequence[Example]) -> list[Example]:
    """The rows whose question is none of the barred ones'."""
    questions = {example.messages[:-1] for example in barred}
    return [example for example in rows if example.messages[:-1] not in questions]


def read_jsonl(path: Path) -> list[Example]:
    """Examples of a chat JSONL. UserError with file and line for whatever is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: {path} can't be read ({error}); give a UTF-8 file of JSON lines") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
            json.dumps(rows[-1], ensure_ascii=False).encode()  # half a surrogate pair is JSON, and no text
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise UserError(f"data: {path}:{number} is not JSON ({reason}); one object a line, in UTF-8") from error
        if not isinstance(rows[-1], dict):
            raise UserError(f"data: {path}:{number} is not a JSON object; it needs a list `messages`")
    if not rows:
        raise UserError(f"data: {path} has no rows; give one chat a line, {{'messages': [...]}}")
    numbers = [number for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _parse(rows, str(path), numbers)


def _parse(rows: list[dict[str, Any]], where: str, lines: Sequence[int] | None = None) -> list[Example]:
    examples = []
    seen: set[str] = set()
    unnamed: Counter[str] = Counter()  # ids from contents: a row is the same row in every file
    for place, row in enumerate(rows):
        at = f"{where}:{lines[place]}" if lines else f"{where} row {place + 1}"
        try:
            example = Example.model_validate({**row, "id": str(row.get("id", ""))})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(f"data: {at}: {field}: {first['msg'].lower()}") from error
        if example.messages[-1].role != "assistant" or not example.messages[-1].content.strip():
            raise UserError(
                f"data: {at}: the last message is not an assistant's turn with text; add the answer to learn"
            )
        if not example.id:
            content = hashlib.sha256(example.model_dump_json().encode()).hexdigest()[:12]
            unnamed[content] += 1
            example = example.model_copy(update={"id": f"{content}-{unnamed[content]}"})
        examples.append(example)
        if example.id in seen:
            raise UserError(
                f"data: {at}: another row has the id {example.id!r}, too; make ids unique or leave them out"
            )
        seen.add(example.id)
    return examples
