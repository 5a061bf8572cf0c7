"""What verbs import before they say a word: seconds of it, on two cores, whatever a sweep holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.recipe import Sweep
from orchestrator.report.record import write_record
from orchestrator.store import Store
from orchestrator.sweep.presets import complete

HEAVY = ("torch", "transformers", "ray", "datasets", "peft", "lm_eval", "mlflow", "scipy.stats")
CALL = """
import sys
from cli.main import app
code = app(sys.argv[1:], standalone_mode=False)
print("imported:", *(name for name in {heavy} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """A store with one sweep of two rows."""
    sweep = Sweep.model_validate(complete({"name": "small", "axes": {"arm": ["lora"], "rank": [2, 4]}, "lr": [0.02]}))
    store, rows = Store(tmp_path / "store"), []
    for rank in (2, 4):
        trials = [f"{rank}{seed}" * 32 for seed in range(2)]
        for place, key in enumerate(trials):
            with store.writing(
                "evaluate", key, {"versions": {}, "lineage": {"identity": {"model": "0"}, "inputs": {}}}
            ) as folder:
                scores = (rank == 4, place == 1, True)
                lines = (f'{{"id": "{at}", "score": {float(score)}}}\n' for at, score in enumerate(scores))
                (folder / "examples.jsonl").write_text("".join(lines))
        recipe = sweep.recipe.model_copy(update={"rank": rank}).model_dump(mode="json")
        recipe |= {"arm": {"kind": "lora"}, "layers": None, "structure": None, "modules": None}
        rows.append(
            {"label": "lora", "adapted": True, "lr_at_edge": False, "validation": [0.5, -1.0], "recipe": recipe,
             "trials": trials}
        )  # fmt: skip
    gate = {"set": False, "least": 0.0, "score": 0.5, "of": "teacher", "passed": True}
    write_record(store, {
        "name": "small", "key": "k", "task": "demo", "metric": "exact_match,whole-answer", "baseline": "lora",
        "gate": gate, "sweep": sweep.model_dump(mode="json"), "rows": rows, "tried": {"lora": 2}, "failed": {},
    })  # fmt: skip
    return store.root


@pytest.mark.parametrize("words", [["compare"], ["compare", "--json"], ["report"]], ids=" ".join)
def test_a_verb_that_reads_imports_nothing_that_computes(words: list[str], swept: Path) -> None:
    env = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", CALL.format(heavy=HEAVY), *words, "--store", str(swept)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout or "report.html" in done.stdout
    assert done.stderr.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    "words",
    [["plan", "--teacher", "llama2-70b"], ["sweep", "--teacher", "qwen3-8b", "--dry-run"], ["strategies"], ["models"]],
    ids=" ".join,
)
def test_a_verb_that_counts_imports_nothing_that_computes(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", CALL.format(heavy=HEAVY), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "imported:"
