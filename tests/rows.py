"""Rows of chats, real ones and made-up ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.tasks.base import Example

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
