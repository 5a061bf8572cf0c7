"""The card of what leaves the project: what it is, from what, and how to load it without this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARD = """---
base_model: {student}
library_name: {library}
tags: [lora, parametric-knowledge-transfer]
---

# {title}

{about}

{load}

| | |
|---|---|
"""
ADAPTER = """\
A LoRA adapter for the untouched student. An arm that starts away from zero keeps its start in a second, frozen half, so
that the file has twice the trained rank."""
LOAD = """    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{student}"), "<this folder>")"""


def write_card(folder: Path, facts: dict[str, Any], *, about: str = ADAPTER, load: str = LOAD) -> None:
    """README.md, with every fact a row of its table. A `load` that isn't PEFT's is for a whole model or a task."""
    student = facts["student"]
    what = f"{facts['arm']} adapter for {student}" if "arm" in facts else f"adapter for {student}"
    head = CARD.format(
        student=student,
        library="peft" if load is LOAD else "transformers",
        title=f"{facts['task']}: {what}" if "task" in facts else what,
        about=about,
        load=load.format(student=student),
    )
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    (folder / "README.md").write_text(head + rows)
