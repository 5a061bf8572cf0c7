"""A task that needs no download: write a string backwards, asked for in words that the demo models have never seen.

    rows("train")[0]    # {"id": "demo_train_0", "messages": [{"role": "user", "content": "Backwards: kdmz"}, ...

The demo models (made by experiments/demo/make_models.py) can reverse strings, but in another prompt format: what a
teacher has to hand over is known to be there, and an untouched model still scores about zero. Validation and test take
held-out strings alone, which the pre-training text leaves out by the same rule on its own side; so no state is shared.
"""

from __future__ import annotations

import random
import string
import zlib
from typing import Any, Literal

from orchestrator.tasks.base import Task, chat
from orchestrator.tasks.metric import Metric

ROWS = {"seed": 32, "train": 1000, "validation": 200, "test": 200}
LENGTHS = (4, 6)  # letters, both ends included: those of the pre-training text


def held_out(text: str) -> bool:
    """Whether a string is kept for validation and test; the pre-training text has the same rule."""
    return zlib.crc32(text.encode()) % 10 == 0


def rows(split: Literal["seed", "train", "validation", "test"]) -> list[dict[str, Any]]:
    """The chat rows of a split, the same at every call; no string is in two splits."""
    draw = random.Random(20231011)
    taken: set[str] = set()
    for name, count in ROWS.items():
        strings = [_new_string(draw, taken, held=name in ("validation", "test")) for _ in range(count)]
        if name == split:
            return [_row(f"demo_{name}_{place}", text) for place, text in enumerate(strings)]
    raise KeyError(split)


def _new_string(draw: random.Random, taken: set[str], *, held: bool) -> str:
    while True:
        text = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(*LENGTHS)))
        if held_out(text) == held and text not in taken:
            taken.add(text)
            return text


def _row(identity: str, text: str) -> dict[str, Any]:
    return chat(identity, f"Backwards: {text}", text[::-1], text[::-1])


def load() -> dict[str, list[dict[str, Any]]]:
    """All four splits."""
    return {"seed": rows("seed"), "train": rows("train"), "validation": rows("validation"), "test": rows("test")}


TASK = Task(
    name="demo",
    about="strings written backwards, in a prompt format new to the demo models",
    source="generated",
    load=load,
    metric=Metric("exact_match", filter_name="whole-answer", max_new_tokens=12),
)
