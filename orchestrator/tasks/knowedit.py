"""Edits of what a model knows, in the form of KnowEdit's files (arXiv 2401.01286), scored by its four figures.

    task, rows = edit_task(Path("edits.json"))      # one row an edit, with the prompts by which it is looked at
    splits = splits_of(task, rows)                  # all of them are learnt

A file is a JSON list or JSONL of `prompt` and `target_new` (WikiBio's: `text`, `labels`), and where there are some
`rephrase_prompt`, and `portability` and `locality` by kind, each a list of `prompt` and `ground_truth`. Of an answer
that is given with others that are right, listed or in lists of lists, the first counts, as EasyEdit takes it; a prompt
whose answer is empty says nothing, and is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Message, Probe, Split, Task, draw, read_lines
from orchestrator.tasks.metric import Metric

METRIC = Metric("edit_success", "teacher-forced", max_new_tokens=100)  # tokens after a prompt, of which fluency is told
LEAST = 5  # edits, of which a fifth chooses settings


def _first(value: Any) -> Any:
    """The first of texts that are listed, once or twice over; nothing is an empty text, and a number its digits."""
    while isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else "" if value is None else value


def _listed(value: Any) -> Any:
    return [] if value is None else value if isinstance(value, list) else [value]


def _rowwise(value: Any) -> Any:
    """A kind's prompts one by one: EasyEdit itself has them in columns."""
    if not (isinstance(value, dict) and isinstance(value.get("prompt"), list)):
        return _listed(value)
    columns = value["prompt"], _listed(value.get("ground_truth"))
    if len(columns[0]) != len(columns[1]):
        raise ValueError("there are not as many answers as prompts")
    return [{"prompt": prompt, "ground_truth": answer} for prompt, answer in zip(*columns, strict=True)]


Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Answer = Annotated[str, BeforeValidator(_first)]


class _Asked(BaseModel):
    """A prompt of a kind, and its answer."""

    model_config = ConfigDict(extra="ignore")
    prompt: Line
    ground_truth: Answer = ""


Some = Annotated[list[_Asked], BeforeValidator(_rowwise)]
Kinds = Annotated[dict[str, Some], BeforeValidator(lambda kinds: kinds or {})]


class _Edit(BaseModel):
    """A row of a file."""

    model_config = ConfigDict(extra="ignore")
    prompt: Line = Field(validation_alias=AliasChoices("prompt", "text"))
    target_new: Answer = Field(min_length=1, validation_alias=AliasChoices("target_new", "labels"))
    rephrase_prompt: Annotated[list[str], BeforeValidator(_listed)] = Field(
        [], validation_alias=AliasChoices("rephrase_prompt", "rephrase")
    )
    portability: Kinds = Field({})
    locality: Kinds = Field({})

    def example(self, number: int) -> Example:
        """What is learnt, and all that is looked at afterwards."""
        same = [("prompt", self.prompt), *(("rephrase", one.strip()) for one in self.rephrase_prompt if one.strip())]
        probes = [Probe(of="success", kind=kind, prompt=prompt, answer=self.target_new) for kind, prompt in same]
        for of, kinds in (("portability", self.portability), ("locality", self.locality)):
            probes += [
                Probe.model_validate({"of": of, "kind": kind, "prompt": one.prompt, "answer": one.ground_truth})
                for kind, some in kinds.items() for one in some if one.ground_truth
            ]  # fmt: skip
        turns = (Message(role="user", content=self.prompt), Message(role="assistant", content=self.target_new))
        return Example(id=f"edit_{number}", messages=turns, probes=tuple(probes))


def is_edits(path: Path) -> bool:
    """Whether a file has edits: a list of objects, or lines of which the first says what is to be said from now on."""
    try:
        text = path.read_text(encoding="utf-8").lstrip()
        listed = text.startswith("[") and (path.suffix == ".json" or text[1:].lstrip().startswith("{"))
        return listed or bool({"target_new", "labels"} & {*json.loads(text.partition("\n")[0])})
    except (OSError, ValueError, TypeError, RecursionError):
        return False  # whoever reads it as what else it may be says what is wrong with it


def edit_task(path: Path, metric: str | None = None, shots: int = 0) -> tuple[Task, list[Example]]:
    """The task and its edits. UserError with the file, the row and the field for whatever is wrong with them."""
    if metric not in (None, METRIC.kind) or shots:
        asked = f"metric: {metric!r}" if metric not in (None, METRIC.kind) else f"task: {shots} solved examples"
        raise UserError(f"{asked}: {path.name} has edits, which are scored by {METRIC.kind} and asked as they are")
    rows = [_parsed(row, where).example(number) for number, (row, where) in enumerate(_rows(path), 1)]
    return Task(path.stem, f"the edits of {path.name}", METRIC, dict, str(path)), rows


def splits_of(task: Task, rows: list[Example]) -> dict[Split, list[Example]]:
    """All edits are learnt, a fifth of them chooses settings, and the others are compared.

    Elsewhere no question of the test is learnt. Here that can't hold: whether an edit took is asked of what was edited,
    and whether more was learnt than its words by other prompts, which are not. UserError for too few to choose by.
    """
    if len(rows) < LEAST:
        raise UserError(f"task: {task.source} has {len(rows)} edits; at least {LEAST} are needed to choose settings by")
    chosen = draw(rows, min(task.validation_rows, len(rows) // 5))
    ids = {row.id for row in chosen}
    learnt = [row.model_copy(update={"probes": ()}) for row in rows]  # a training is the same whatever is asked later
    rest = [row for row in rows if row.id not in ids]
    return {"seed": draw(learnt, task.seed_rows), "train": learnt, "validation": chosen, "test": rest}


def _rows(path: Path) -> list[tuple[Any, str]]:
    """Each row, and where it stands."""
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):
        rows, name, numbers = read_lines(path)
        return [(row, f"{name}:{number}") for row, number in zip(rows, numbers, strict=True)]
    try:
        listed = json.loads(text)
        json.dumps(listed, ensure_ascii=False).encode()  # half a surrogate pair is JSON, and no text
    except (ValueError, RecursionError) as error:
        where = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UserError(f"data: {path}{where} is not JSON ({reason}); give a list of edits, in UTF-8") from error
    if not listed:
        raise UserError(f"data: {path} has no rows; give edits, [{{'prompt': ..., 'target_new': ...}}]")
    return [(row, f"{path} row {number}") for number, row in enumerate(listed, 1)]


def _parsed(row: Any, where: str) -> _Edit:
    try:
        return _Edit.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        told = f"{field}: {first['msg'].lower()}" if field else "it is no JSON object"
        raise UserError(f"data: {where}: {told}; an edit has `prompt` and `target_new`, both texts") from error
