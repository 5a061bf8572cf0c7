"""What a sweep is when little is said: `pkt sweep --teacher llama2-70b` is a complete command."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import UserError
from orchestrator.models.aliases import ALIASES
from orchestrator.verdict.asked import CONTROLLED, NEEDED

PLAIN = ("lora", "pissa")
ARMS = (*PLAIN, "transfer", NEEDED["transfer"])
EVERY = "all"  # in place of an arm: every published way, and what it has to be better than


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what it leaves open filled in. UserError where a teacher has no natural student.

    Four arms, one rank and one layer strategy, three learning rates and six random seeds make 36 fine-tunings. The
    demo's own teacher brings the demo's protocol.
    """
    for field in ("recipe", "axes"):
        if not isinstance(document.setdefault(field, {}), dict):
            raise UserError(f"{field}: {document[field]!r} is no mapping of fields to values; see `pkt strategies`")
    recipe = document["recipe"]
    teacher = recipe.get("teacher", "demo-teacher")
    if not isinstance(teacher, str):
        raise UserError(f"teacher: {teacher!r} is no name; give an alias, a folder or a hub id")
    base: dict[str, Any] = {"recipe": {"teacher": teacher, "task": {"name": "gsm8k"}}, "axes": {"arm": list(ARMS)}}
    if teacher == "demo-teacher":
        base = yaml.safe_load((files("orchestrator") / "demo.yaml").read_text())
    if "student" not in recipe and "student" not in base["recipe"]:
        alias = ALIASES.get(teacher)
        if alias is None and "/" not in teacher and not Path(teacher).expanduser().is_dir():
            alike = get_close_matches(teacher, ALIASES, n=1)
            hint = f"did you mean {alike[0]}? " if alike else ""
            raise UserError(f"teacher: {teacher!r} is not known; {hint}`pkt models` lists the names; or give a folder")
        if alias is None or alias.student is None:
            raise UserError(f"student: {teacher!r} has no natural student; name one with --student (see `pkt models`)")
        base["recipe"]["student"] = alias.student
    for axis in document["axes"]:
        if (said := _said(recipe, axis)) is not None:
            raise UserError(f"axes: {axis} is an axis, and recipe.{axis} is fixed to {said!r}; say one of the two")
    base["axes"] = {axis: values for axis, values in base["axes"].items() if axis not in recipe}  # said, so fixed
    if "lr" in recipe:
        base["lr"] = [recipe["lr"]]
    whole = _merged(base, document)
    if isinstance(arms := whole["axes"].get("arm"), list | tuple):
        whole["axes"]["arm"] = _with_twins(arms)
    return whole


def _with_twins(arms: Sequence[Any]) -> list[Any]:
    """Each arm that is judged by a control of its own followed by it, where none of its controls was asked for.

    Without one nobody could say whose doing it was.
    """
    every = [*PLAIN, "lora_equal", "distil", "distil_tuned", *(one for pair in NEEDED.items() for one in pair)]
    arms = [one for arm in arms for one in (every if arm == EVERY else [arm])]
    kinds = [str(arm.get("kind") if isinstance(arm, dict) else arm) for arm in arms]
    found: list[Any] = []
    for arm, kind in zip(arms, kinds, strict=True):
        found.append(arm)
        if kind in NEEDED and kind != "transfer" and not any(CONTROLLED.get(other) == kind for other in kinds):
            found.append({**arm, "kind": NEEDED[kind]} if isinstance(arm, dict) else NEEDED[kind])
    return found


def _said(recipe: dict[str, Any], path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
