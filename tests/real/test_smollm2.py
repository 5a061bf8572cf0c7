"""The whole path on a real model with a real tokenizer and real rows, and what strangers' tools make of its results.

The teacher is the student: whatever a sweep says of it, the path has to be right, and its exact window is the whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from smollm2 import smollm2
from test_bad_input import Call, pkt  # noqa: F401  (a fixture)
from test_lm_eval import lm_eval
from transformers import AutoModelForCausalLM

from orchestrator.models.adapters import read_start

pytestmark = pytest.mark.long
SMALL = ["--set", "measure.examples=4", "--set", "finetune.examples=24", "--set", "finetune.epochs=1"]
SMALL += ["--set", "finetune.batch_size=8", "--set", "finetune.dropout=0", "--rank", "4", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2(tmp_path_factory.mktemp("real"))


@pytest.mark.parametrize(
    ("task", "template", "rows"), [("mmlu", "plain", 24), ("mmlu", "chat", 12), ("gsm8k", "plain", 6)]
)
def test_from_teacher_to_lm_evals_own_number(
    task: str,
    template: str,
    rows: int,
    model: Path,
    shared: Path,
    pkt: Call,  # noqa: F811
    tmp_path: Path,
) -> None:
    """`pkt run`, `pkt export`, and `lm_eval run` in a process of its own: the score to the last digit, row by row."""
    pair = ["--teacher", str(model), "--student", str(model), "--task", task, "--data", str(shared / task)]
    more = ["--template", template, "--arm", "transfer", *SMALL, "--set", f"evaluate.examples={rows}"]
    code, out, err = pkt("run", *pair, *more, "--store", "kept", "--json")
    assert code == 0, err
    told = json.loads(out)
    code, out, err = pkt("export", told["adapter"], "--lm-eval", "task", "--lora", "lora", "--store", "kept", "--json")
    assert code == 0, err
    written = json.loads(out)["written"]["lm_eval"]
    result, samples = lm_eval(tmp_path, written["command"])
    name = "acc,none" if task == "mmlu" else "exact_match,strict-match"
    assert result[written["task"]][name] == told["score"]
    ours = [json.loads(line) for line in Path(told["examples_file"]).read_text().splitlines()]
    assert [sample[name.split(",")[0]] for sample in samples] == [row["score"] for row in ours]
    assert [sample["doc"]["id"] for sample in samples] == [row["id"] for row in ours]
    _starts_at_the_whole(Path(told["adapter"]), model)
    _loads_with_plain_peft(Path(told["adapter"]), model)


def _starts_at_the_whole(adapter: Path, model: Path) -> None:
    """Of a teacher that is the student each window is the matrix itself: its start is the best of that rank."""
    lineage = json.loads((adapter / "manifest.json").read_text())["lineage"]
    start = adapter.parents[1] / "extract" / lineage["inputs"]["start"]
    told = json.loads((start / "transfer.json").read_text())
    assert told["layers"] == list(range(30))
    weights: dict[str, Any] = load_file(model / "model.safetensors")
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.17.mlp.down_proj"):
        assert told["windows"][f"{name}.weight"] == [0, 0]
        up, down = read_start(start)[name]
        u, s, vh = torch.linalg.svd(weights[f"{name}.weight"].float(), full_matrices=False)
        best = u[:, :4] * s[:4] @ vh[:4]
        assert torch.dist(up[:, :4] @ down[:4], best) < 1e-2 * best.norm()


def _loads_with_plain_peft(adapter: Path, model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(100, 120)[None]
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(adapter))(ids).logits
    assert bool(torch.isfinite(adapted).all()) and not torch.allclose(before, adapted, atol=1e-3)
