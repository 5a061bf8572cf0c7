"""The model card of a portable adapter: what it is, from what, and how to load it without this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARD = """---
base_model: {student}
library_name: peft
tags: [lora, parametric-knowledge-transfer]
---

# {task}: {arm} adapter for {student}

A LoRA adapter for the untouched student. An arm that starts away from zero keeps its start in a second, frozen half, so
that the file has twice the trained rank.

    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{student}"), "<this folder>")

| | |
|---|---|
"""


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """README.md, with every fact a row of its table."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    (folder / "README.md").write_text(CARD.format(**facts) + rows)
