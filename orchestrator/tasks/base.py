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
SCORED = ("validation", "test")
OF_A_ROW = ("messages", "answer", "references", "choices", "category")  # besides its id; a task reads what else it has


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: str


class Probe(BaseModel):
    """A prompt besides an example's own, and the answer at whose tokens a model is looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    of: Literal["success", "portability", "locality"]  # the figure
    kind: str  # among those of its figure
    prompt: str
    answer: str


class Example(BaseModel):
    """One row: turns that end with the assistant's, and the gold answer where it differs from the last turn."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str = ""
    messages: tuple[Message, ...] = Field(min_length=1)
    answer: str = ""
    references: tuple[str, ...] = ()  # all answers that are right, where there are several
    choices: tuple[str, ...] = ()  # of which one is right, where each question has its own
    category: str = ""  # a subject: scores are told by it, too
    before: str = ""  # Python that an answer goes on with, where it is a program
    tests: str = ""  # Python that runs after it, and ends where the answer is right
    contexts: tuple[str, ...] = ()  # what is asked with each choice, where that isn't one question for all of them
    doc: str = ""  # JSON of lm-eval's own row, which its own figures are of
    probes: tuple[Probe, ...] = ()  # by which it is scored, where it is an edit

    @property
    def gold(self) -> str:
        """What the scored answer has to be."""
        return self.answer.strip() or self.messages[-1].content.strip()

    def answered_as(self, other: Example) -> Example:
        """This question with another example's answer."""
        return self.model_copy(update={"messages": (*self.messages[:-1], other.messages[-1]), "answer": other.answer})

    def asked_as(self, context: str) -> Example:
        """Another question with this one's answer."""
        asked = self.messages[-2].model_copy(update={"content": context})
        return self.model_copy(update={"messages": (*self.messages[:-2], asked, self.messages[-1])})


Adapt = Callable[[Example, dict[str, Any]], Example]


def chat(identity: str, question: str, said: str, answer: str, **more: Any) -> dict[str, Any]:
    """A row as files have it: one question, what is said to it, and the answer in that."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    return {"id": identity, "messages": turns, "answer": answer, **more}


def as_it_is(example: Example, row: dict[str, Any]) -> Example:
    """A row that needs no other form."""
    return example


def as_turns(example: Example, shots: Sequence[Example]) -> Example:
    """Solved examples as earlier turns of the chat."""
    turns = [message for shot in shots for message in shot.messages]
    return example.model_copy(update={"messages": (*turns, *example.messages)})


@dataclass(frozen=True)
class Task:
    """A benchmark: where its rows come from, what it asks for, and how that is scored.

    `load` gives the raw rows by split, from the hub or made on the spot; a folder with `train.jsonl` and `test.jsonl`
    can take its place. Both may leave out seed and validation. `adapt` turns a row's example, and the row as it was
    read, into the one that the loss and the score see; `needs` are fields without which a row can't be scored.
    `shown` puts solved examples before a question, those of `solved` where others' are published.
    """

    name: str
    about: str
    metric: Metric
    load: Callable[[], dict[str, list[dict[str, Any]]]]
    source: str
    loss_covers: str = "the assistant's turns, end-of-sequence token included"
    adapt: Adapt = as_it_is
    needs: tuple[str, ...] = ()
    shown: Callable[[Example, Sequence[Example]], Example] = as_turns
    solved: Callable[[], list[Example]] | None = None
    choices: tuple[str, ...] = ()
    template: Literal["text", "raw"] | None = None  # how its rows are always shown
    judge: tuple[str, str] | None = None  # of a win rate: an endpoint's address, empty for a model here, and the model
    validation_rows: int = 200
    instead: str = "or score it beside another task with --tasks"  # where there is nothing to train on
    test_rows: int = 1000  # as published: for a plan before they are fetched
    seed_rows: int = 32

    def splits(self, data: str | None, shots: int = 0) -> dict[Split, list[Example]]:
        """All four splits. Where there is no validation or seed file they are drawn, by a fixed rule, from train.

        Validation rows leave the training rows; seed rows are training rows, as in the paper. `shots`: solved examples
        before each question that is scored. UserError where a folder's training rows have a question of its test.
        """
        raw = self._read(data)
        if missing := {"train", "test"} - set(raw):
            instead = f"; {self.instead}" if "train" in missing and "test" in raw else ""
            where = f"{data} has no {sorted(missing)[0]}.jsonl; it needs train.jsonl and test.jsonl{instead}"
            raise UserError(f"data: {where if data else f'{self.name} has no rows to train on{instead}'}")
        if data:
            _refuse_overlap(raw, "train", "test", "a score on what was learnt says nothing")
        return self.asked(self.divide(raw), raw, shots)

    def asked(
        self, parts: dict[Split, list[Example]], raw: dict[str, list[Example]], shots: int
    ) -> dict[Split, list[Example]]:
        """The splits with solved examples before each question that is scored."""
        raw = raw | {"train": parts["train"]}  # without the rows that are validated on
        return {name: self.with_shots(parts[name], raw, shots) if name in SCORED else parts[name] for name in SPLITS}

    def test(self, data: str | None, shots: int = 0) -> list[Example]:
        """The test rows alone, as a model is asked them that was not trained on this task."""
        raw = self._read(data)
        if "test" not in raw:
            raise UserError(f"data: {data} has no test.jsonl, whose rows are scored")
        return self.with_shots(raw["test"], raw, shots)

    def _read(self, data: str | None) -> dict[str, list[Example]]:
        if data is None:
            return {name: self.parse(rows, f"task {self.name} {name}") for name, rows in self.load().items()}
        folder = Path(data).expanduser()
        needs = {name: () if name == "seed" else self.needs for name in ("seed", "dev", *SPLITS)}
        there = sorted(path for path in folder.glob("*.jsonl") if path.stem in needs)
        return {path.stem: read_jsonl(path, self.adapt, needs[path.stem]) for path in there}

    def parse(self, rows: list[dict[str, Any]], where: str) -> list[Example]:
        """Rows that were fetched or made."""
        return _parse(rows, where, None, self.adapt, self.needs)

    def with_shots(self, rows: Sequence[Example], raw: dict[str, list[Example]], shots: int) -> list[Example]:
        """Each question with so many solved examples before it: those that are published, those of a dev file, or
        training rows; of its own category, where rows have one. UserError for one that is asked itself, or too few.
        """
        if not shots:
            return list(rows)
        if self.solved:
            pool = self.solved()
        elif "dev" in raw:
            _refuse_overlap(raw, "dev", "test", "an answer that stands above its question is none")
            pool = raw["dev"]
        else:
            pool = draw(_without(raw.get("train", []), raw["test"]), shots)
        shown = []
        for row in rows:
            mine = [one for one in pool if one.category == row.category] if "dev" in raw and not self.solved else pool
            if len(mine) < shots:
                of = f" of {row.category}" if row.category and len(mine) < len(pool) else ""
                raise UserError(f"task: {self.name} has {len(mine)} solved examples{of} to show, not {shots}")
            shown.append(self.shown(row, mine[:shots]))
        return shown

    def divide(self, raw: dict[str, list[Example]]) -> dict[Split, list[Example]]:
        """Fill in the splits that are missing.

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
        return {"seed": seed, "train": train, "validation": validation, "test": test}


def _refuse_overlap(raw: dict[str, list[Example]], learns: str, asks: str, why: str) -> None:
    asked = {example.messages[:-1] for example in raw[asks]}
    if both := [example.id for example in raw[learns] if example.messages[:-1] in asked]:
        more = f" and {len(both) - 5} more" if len(both) > 5 else ""
        raise UserError(f"data: {learns}.jsonl has questions of {asks}.jsonl ({', '.join(both[:5])}{more}); {why}")


def draw(rows: Sequence[Example], count: int) -> list[Example]:
    """`count` rows by a fixed random draw, in their order; all of them where there are fewer."""
    chosen = sorted(random.Random(231011451).sample(range(len(rows)), min(count, len(rows))))
    return [rows[place] for place in chosen]


def _without(rows: Sequence[Example], barred: Sequence[Example]) -> list[Example]:
    """The rows whose question is none of the barred ones'."""
    questions = {example.messages[:-1] for example in barred}
    return [example for example in rows if example.messages[:-1] not in questions]


def read_jsonl(path: Path, adapt: Adapt = as_it_is, needs: Sequence[str] = ()) -> list[Example]:
    """Examples of a chat JSONL. UserError with file and line for whatever is wrong with it."""
    return _parse(*read_lines(path), adapt, needs)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], str, list[int]]:
    """The objects of a JSONL, its name, and the line of each. UserError where one is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: {path} can't be read ({error}); give a UTF-8 file of JSON lines") from error
    rows, numbers = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        numbers.append(number)
        try:
            rows.append(json.loads(line))
            json.dumps(rows[-1], ensure_ascii=False).encode()  # half a surrogate pair is JSON, and no text
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise UserError(f"data: {path}:{number} is not JSON ({reason}); one object a line, in UTF-8") from error
        if not isinstance(rows[-1], dict):
            raise UserError(f"data: {path}:{number} is not a JSON object; give one object a line")
    if not rows:
        raise UserError(f"data: {path} has no rows; give one chat a line, {{'messages': [...]}}")
    return rows, str(path), numbers


def _parse(
    rows: list[dict[str, Any]], where: str, lines: Sequence[int] | None, adapt: Adapt, needs: Sequence[str]
) -> list[Example]:
    examples = []
    seen: set[str] = set()
    unnamed: Counter[str] = Counter()  # ids from contents: a row is the same row in every file
    for place, row in enumerate(rows):
        at = f"{where}:{lines[place]}" if lines else f"{where} row {place + 1}"
        try:
            example = Example.model_validate(
                {**{name: row[name] for name in OF_A_ROW if name in row}, "id": str(row.get("id", ""))}
            )
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(f"data: {at}: {field}: {first['msg'].lower()}") from error
        if example.messages[-1].role != "assistant" or not example.messages[-1].content.strip():
            raise UserError(
                f"data: {at}: the last message is not an assistant's turn with text; add the answer to learn"
            )
        if not example.id:
            content = hashlib.sha256(
                example.model_dump_json(exclude={"probes", "contexts", "doc"}).encode()
            ).hexdigest()[:12]
            unnamed[content] += 1
            example = example.model_copy(update={"id": f"{content}-{unnamed[content]}"})
        if lacking := [name for name in needs if not row.get(name)]:
            raise UserError(f"data: {at}: there is no field `{lacking[0]}`, without which no answer can be scored")
        examples.append(adapt(example, row))
        if example.id in seen:
            raise UserError(
                f"data: {at}: another row has the id {example.id!r}, too; make ids unique or leave them out"
            )
        seen.add(example.id)
    return examples
