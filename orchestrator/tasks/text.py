"""A plain text as a task: how likely a model finds it, which is what perplexity is made of; nothing is asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Message, Task
from orchestrator.tasks.metric import Metric

CHARACTERS = 2000  # of a part, at the least: some hundred tokens, so that parts are many and their means steady


def text_task(path: Path) -> tuple[Task, list[Example]]:
    """The task, and the text's parts, which end with a line. UserError for a file that is no text or has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tasks: {path} can't be read ({error}); give a text in UTF-8") from error
    parts = [""]
    for line in text.splitlines(keepends=True):
        parts = [*parts, ""] if len(parts[-1]) >= CHARACTERS else parts
        parts[-1] += line
    rows = [
        Example(id=f"{path.stem}_{place}", messages=(Message(role="assistant", content=part),))
        for place, part in enumerate(parts)
        if part.strip()
    ]
    if not rows:
        raise UserError(f"tasks: {path} is empty; give a text")
    return Task(path.stem, f"the text {path.name}", Metric("loss", "text"), dict, str(path), template="text"), rows


def windows(rows: Sequence[Example], tokenizer: Any, tokens: int) -> list[Example]:
    """The same text in parts of no more tokens than a model's context has, cut between tokens."""
    found = []
    for row in rows:
        text = row.messages[-1].content
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        starts = [start for start, _ in encoded["offset_mapping"]][:: max(1, tokens - 1)]  # with room for a first token
        if len(starts) < 2:
            found.append(row)
            continue
        for place, (start, end) in enumerate(pairwise([0, *starts[1:], len(text)])):
            part = Message(role="assistant", content=text[start:end])
            found.append(row.model_copy(update={"id": f"{row.id}.{place}", "messages": (part,)}))
    return found
