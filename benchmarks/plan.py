"""What `pkt plan` says a teacher's pass takes in memory, beside what it takes: random models, each in its own process.

Measured on the CPU in float32, where one rank keeps every layer's activations; above what the process had before.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import peak_bytes, table

SHAPES = {
    "wide, 3 layers": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 3, "vocab_size": 4096},
    "narrow, 24 layers": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "vocab_size": 4096},
    "large vocabulary": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 128_000}
    | {"tie_word_embeddings": True},  # else rows of the mapped file that no token looks up never come into memory
}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4}
EXAMPLES, LENGTH, TOKENS, GRANULARITY = 4, 256, 1024, 64


def main() -> None:
    """One row a shape."""
    rows = []
    for name in SHAPES:
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan", name], capture_output=True, text=True, check=True
        )
        weights, told, found = map(int, ran.stdout.splitlines()[-1].split())
        rows.append([name, f"{weights / 1e9:.2f} GB", f"{told / 1e9:.2f} GB", f"{found / 1e9:.2f} GB", told / found])
    table(
        f"Memory of measuring, told and found ({TOKENS} tokens at once, float32, tiles of {GRANULARITY})",
        ["model", "weights", "told", "found", "told / found"],
        rows,
    )


def measured(name: str) -> tuple[int, int, int]:
    """Weights, told and found, in bytes; in a process that has done nothing else."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from orchestrator.cluster.ranks import Member, Placement
    from orchestrator.recipe import Recipe
    from orchestrator.sweep.costs import Anatomy, measure_cost
    from orchestrator.sweep.hardware import Hardware
    from orchestrator.tasks.template import Encoded
    from orchestrator.teacher.measure import Measuring, measuring
    from orchestrator.teacher.scale import Scale

    with tempfile.TemporaryDirectory() as made:
        folder, sizes = Path(made), SHAPES[name] | HEADS
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "model")
        ids = torch.randint(0, 4096, (EXAMPLES, LENGTH)).tolist()
        encoded = [Encoded(str(number), row, row) for number, row in enumerate(ids)]
        job = Measuring(
            str(folder / "model"), encoded, 0, "float32", folder, Placement(1, tokens=TOKENS),
            out=folder, granularity=GRANULARITY,
        )  # fmt: skip
        tiny: Any = LlamaForCausalLM(LlamaConfig(**HEADS, hidden_size=64, intermediate_size=64, num_hidden_layers=1))
        tiny(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()  # libraries are no part of it
        found = peak_bytes(lambda: list(measuring(job, Member())))
        teacher = Anatomy.of(str(folder / "model"), "teacher")
    measure = {"examples": EXAMPLES, "max_tokens": LENGTH}
    recipe = Recipe.model_validate({"teacher": "a", "student": "b", "measure": measure})
    told = measure_cost(teacher, recipe, Scale(GRANULARITY), 1, Hardware(tokens=TOKENS, cuda=False))
    return teacher.parameters * teacher.width, told.per_rank.peak_bytes - told.per_rank.process_bytes, found


if __name__ == "__main__":
    print(*measured(sys.argv[1]))
