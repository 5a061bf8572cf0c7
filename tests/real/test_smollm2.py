"""The whole path on a real model with a real tokenizer and real rows, and what strangers' tools make of its results.

The teacher is the student: whatever a sweep says of it, the path has to be right, and its exact window is the whole.
All is in float32: in bfloat16 lm-eval's own choices fall otherwise from one batch size to another.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_bad_input import Call, pkt  # noqa: F401  (a fixture)
from test_lm_eval import lm_eval
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from orchestrator.models.adapters import read_start
from orchestrator.tasks import TASKS

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("real")]
RANK, NEW = 4, 160
FIELDS = ["measure.examples=2", "measure.dtype=float32", "finetune.examples=8", "finetune.epochs=1"]
FIELDS += ["finetune.batch_size=4", "finetune.dtype=float32"]


@pytest.mark.parametrize(
    ("task", "template", "rows", "modules"),
    [("mmlu", "plain", 8, "attention,ffn,embedding"), ("gsm8k", "chat", 2, "attention")],
)
def test_from_teacher_to_lm_evals_own_number(
    task: str,
    template: str,
    rows: int,
    modules: str,
    smollm: Path,
    shared: Path,
    pkt: Call,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`pkt run`, `pkt export`, and `lm_eval run` in a process of its own: the score to the last digit, row by row.

    With all matrices where choices are made, and with fewer where answers are written: those have fewer tokens than a
    sweep allows, since a model that repeats itself writes all of them.
    """
    metric = replace(TASKS[task].metric, max_new_tokens=min(NEW, TASKS[task].metric.max_new_tokens))
    monkeypatch.setitem(TASKS, task, replace(TASKS[task], metric=metric))
    pair = ["--teacher", str(smollm), "--student", str(smollm), "--task", task, "--data", str(shared / task)]
    more = ["--template", template, "--arm", "transfer", "--rank", str(RANK), "--lr", "1e-3", "--store", "kept"]
    more += ["--modules", modules]
    more += [word for field in [*FIELDS, f"evaluate.examples={rows}"] for word in ("--set", field)]
    code, out, err = pkt("run", *pair, *more, "--json")
    assert code == 0, err
    told = json.loads(out)
    code, out, err = pkt("export", told["adapter"], "--lm-eval", "task", "--lora", "lora", "--store", "kept", "--json")
    assert code == 0, err
    written = json.loads(out)["written"]["lm_eval"]
    result, by_task = lm_eval(tmp_path, written["command"])
    samples = by_task[written["task"]]
    name = "acc,none" if task == "mmlu" else "exact_match,strict-match"
    assert result[written["task"]][name] == told["score"]
    ours = [json.loads(line) for line in Path(told["examples_file"]).read_text().splitlines()]
    assert len(ours) == rows
    assert [sample[name.split(",")[0]] for sample in samples] == [row["score"] for row in ours]
    assert [sample["doc"]["id"] for sample in samples] == [row["id"] for row in ours]
    assert [_answer(sample["resps"]) for sample in samples] == [row["output"] for row in ours]
    if "embedding" in modules:
        _starts_where_pissa_does(Path(told["adapter"]), smollm)
        _loads_with_plain_peft(tmp_path / "lora", smollm, tmp_path / "task/student")


def _answer(responses: list[Any]) -> str:
    """What lm-eval was answered: the one text, or the letter that it found likeliest."""
    if len(responses) == 1:
        return responses[0][0]
    return "ABCD"[max(range(4), key=lambda at: float(responses[at][0][0]))]


def _starts_where_pissa_does(adapter: Path, model: Path) -> None:
    """Of a teacher that is the student each window is the matrix itself; PEFT's own PiSSA is the oracle."""
    lineage = json.loads((adapter / "manifest.json").read_text())["lineage"]
    start = adapter.parents[1] / "extract" / lineage["inputs"]["factors"]
    told = json.loads((start / "transfer.json").read_text())
    assert told["layers"] == list(range(30))
    assert all(corner == [0, 0] for corner in told["windows"].values())
    starts, weights = read_start(start), load_file(model / "model.safetensors")
    assert len(starts) == 30 * 7 + 2
    for name, stored in (
        ("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.k_proj"),
        ("model.layers.17.mlp.down_proj", "model.layers.17.mlp.down_proj"),
        ("model.embed_tokens", "model.embed_tokens"),
        ("lm_head", "model.embed_tokens"),  # tied
    ):
        up, down = starts[name]
        want = _pissa(weights[f"{stored}.weight"].float())
        assert torch.dist(up[:, :RANK] @ down[:RANK], want) < 1e-3 * want.norm(), name


def _pissa(weight: Tensor) -> Tensor:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"], init_lora_weights="pissa")
    adapted: Any = get_peft_model(nn.Sequential(layer), config).base_model.model[0]  # type: ignore[arg-type]
    return (adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight).detach()


@torch.no_grad()
def _loads_with_plain_peft(adapter: Path, stock: Path, untied: Path) -> None:
    """On the tied student as it is published, and on the one that the export untied for lm-eval: the same numbers."""
    ids = torch.arange(100, 120)[None]
    before, adapted = [], []
    for folder in (stock, untied):
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        before.append(base(ids).logits)
        adapted.append(PeftModel.from_pretrained(base, str(adapter)).eval()(ids).logits)
    assert torch.equal(*before) and torch.equal(*adapted)
    assert float((adapted[0] - before[0]).abs().max()) > 1e-3
