"""Updates of a teacher, and the steps that carry them over, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from orchestrator.carry.carry import carry
from orchestrator.carry.inputs import inputs
from orchestrator.carry.pairs import pairs
from orchestrator.models import adapters
from orchestrator.tasks import rows as data
from orchestrator.tasks.base import Example, Message

READ: dict[str, Any] = {"template": "plain", "max_tokens": 100}


def lora_of(model: Any, folder: Path, **config: Any) -> Path:
    """Made by PEFT alone, with values in both of its halves."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | config
    with adapters.without_own_warnings():
        worn = get_peft_model(model, LoraConfig(**settings))
        for name, parameter in worn.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        worn.save_pretrained(folder)
    return folder


def texts(count: int = 40) -> list[Example]:
    """Sentences that no two share, of characters that the tokenizer has."""
    draw = torch.Generator().manual_seed(3)
    letters = "".join(map(chr, range(32, 127)))  # more kinds of token than the models are wide

    def some(length: int) -> str:
        return "".join(letters[place] for place in torch.randint(len(letters), (length,), generator=draw).tolist())

    turns = [(("user", some(30)), ("assistant", some(8))) for _ in range(count)]
    return [
        Example(id=f"t{at}", messages=tuple(Message(role=role, content=content) for role, content in turn))
        for at, turn in enumerate(turns)
    ]


def carried(
    tmp_path: Path,
    teacher: Path,
    student: Path,
    arm: dict[str, Any],
    rows: list[Example] | None = None,
    dtype: str = "float64",
    passes: Path | None = None,
    **options: Any,
) -> Path:
    """What becomes in the student of the update in `tmp_path`, or without one of the teacher's weights.

    `passes` is a folder for what the same models make of the same rows whatever is carried: made once, then found.
    """
    places = {name: (passes or tmp_path / arm["kind"]) / name for name in ("texts", "pairs", "theirs", "own")}
    both: dict[str, Any] = {"teacher": str(teacher), "student": str(student)}
    if not places["own"].is_dir():
        for place in places.values():
            place.mkdir(parents=True)
        data.write(places["texts"], rows=[row.model_dump() for row in rows or texts()])
        pairs(places["pairs"], texts=places["texts"], tokens=2000, **both, **READ)
        for side, (name, model) in enumerate((("theirs", teacher), ("own", student))):
            partial = places[name].with_name(f"{name}-partial")
            partial.mkdir()
            inputs(
                places[name], pairs=places["pairs"], texts=places["texts"], model=str(model), side=side, dtype=dtype,
                partial=partial, **READ,
            )  # fmt: skip
    update, found = tmp_path / "update", tmp_path / f"{arm['kind']}-carried"
    found.mkdir()
    carry(
        found, update=update if update.is_dir() else None, pairs=places["pairs"], of_teacher=places["theirs"],
        of_student=places["own"], student_name="student", arm=arm, **both, **options,
    )  # fmt: skip
    return found
