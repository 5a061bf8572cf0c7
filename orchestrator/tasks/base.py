"""What a task is: rows in chat form, split once and for all, and how an answer is scored.

    examples = task.split("train", data=None)        # list[Example]
    prompt_of(examples[0], PLAIN)                    # "<|user|>\nBackwards: kdmz\n\n<|assistant|>\n"

Seeds, training and evaluation use one rendering, so that what is measured, learnt and asked is the same text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
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
        return (self.answer or self.messages[-1].content).strip()


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
        """Fill in the splits that are missing; every example adapted."""
        train, seed = raw["train"], raw.get("seed")
        validation = raw.get("validation")
        if validation is None:
            kept_out = {example.id for example in seed or ()}
            validation = draw(train, min(self.validation_rows, len(train) // 5), without=kept_out)
        ids = {example.id for example in validation}
        train = [example for example in train if example.id not in ids]
        seed = draw(train, self.seed_rows) if seed is None else seed
        parts: dict[Split, list[Example]] = {
            "seed": seed, "train": train, "validation": validation, "test": raw["test"],
        }  # fmt: skip
        return {name: [self.adapt(example) for example in rows] for name, rows in parts.items()}


def draw(rows: Sequence[Example], count: int, without: Iterable[str] = ()) -> list[Example]:
    """`count` rows by a fixed random draw, in their order; ids in `without` are left out."""
    barred = set(without)
    places = [place for place, row in enumerate(rows) if row.id not in barred]
    chosen = sorted(random.Random(231011451).sample(places, min(count, len(places))))
    return [rows[place] for place in chosen]


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
        except json.JSONDecodeError as error:
            raise UserError(f"data: {path}:{number} is not JSON ({error.msg}); one object a line") from error
        if not isinstance(rows[-1], dict):
            raise UserError(f"data: {path}:{number} is not a JSON object; it needs a list `messages`")
    if not rows:
        raise UserError(f"data: {path} has no rows; give one chat a line, {{'messages': [...]}}")
    numbers = [number for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return _parse(rows, str(path), numbers)


def _parse(rows: list[dict[str, Any]], where: str, lines: Sequence[int] | None = None) -> list[Example]:
    examples = []
    for place, row in enumerate(rows):
        at = f"{where}:{lines[place]}" if lines else f"{where} row {place + 1}"
        try:
            example = Example.model_validate({**row, "id": str(row.get("id") or f"row-{place + 1}")})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(f"data: {at}: {field}: {first['msg'].lower()}") from error
        if example.messages[-1].role != "assistant" or not example.messages[-1].content.strip():
            raise UserError(
                f"data: {at}: the last message is not an assistant's turn with text; add the answer to learn"
            )
        examples.append(example)
    if len({example.id for example in examples}) != len(examples):
        raise UserError(f"data: {where}: two rows have the same id; make ids unique or leave them out")
    return examples
