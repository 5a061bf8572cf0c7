"""A teacher over several ranks, as it is typed: the real thing in miniature, and what the screen shows of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from test_bad_input import chat, chats
from tiny import saved
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("room")]
PKT = [sys.executable, "-c", "from cli.main import main; main()"]
MINI_70B = {"hidden_size": 128, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
MINI_70B |= {"intermediate_size": 224, "head_dim": 2, "vocab_size": 104}
MINI_7B = {"hidden_size": 64, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
MINI_7B |= {"intermediate_size": 86, "head_dim": 2, "vocab_size": 104}
OURS = re.compile(
    r"(measuring the teacher|extracting blocks|choosing|trials|asking|training|losses of gold answers): "
    r"\d+/\d+ after \d+ s  .*|\w+ \.\.\.|(reading|finding) .*"
)


def test_llama2_70b_to_7b_in_miniature_from_rows_to_a_scored_adapter(tmp_path: Path) -> None:
    """80 layers, grouped queries 64:8, for 32 layers with as many K/V heads as query heads; over two ranks."""
    saved(tmp_path / "llama2-70b-mini", "llama", **MINI_70B)
    saved(tmp_path / "llama2-7b-mini", "llama", 1, **MINI_7B)
    rows = chats(tmp_path / "mine.jsonl", [chat(f"Write {n:04d} backwards.", f"{n:04d}"[::-1]) for n in range(40)])
    words = ["--teacher", "./llama2-70b-mini", "--student", "./llama2-7b-mini", "--task", rows, "--ranks", "2"]
    words += ["--rank", "4", "--lr", "1e-3", "--tokens-at-once", "200", "--set", "measure.granularity=2"]
    words += [
        "--set",
        "measure.examples=8",
        "--set",
        "measure.max_tokens=64",
        "--set",
        "finetune.max_tokens=64",
        "--set",
        "finetune.epochs=1",
    ]
    done = subprocess.run([*PKT, "run", *words, "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    strange = [line for line in done.stderr.splitlines() if line and not OURS.fullmatch(line)]
    assert strange == []
    assert re.search(r"measuring the teacher: .* \d+/\d+ examples, \d+ tokens/s, [\d.]+ GiB a rank", done.stderr)
    adapter = Path(json.loads(done.stdout)["adapter"])
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "llama2-7b-mini")
    assert PeftModel.from_pretrained(stock, str(adapter)).peft_config["default"].r == 8
    measured = json.loads(next(tmp_path.glob("pkt-store/measure/*/manifest.json")).read_text())
    assert measured["facts"]["ranks"] == 2 and measured["facts"]["teacher"] == "whole on each rank"  # there is room
    record = next(tmp_path.glob("pkt-store/extract/*/transfer.json"))
    assert json.loads(record.read_text())["layers"][-1] > 32


@pytest.mark.long
def test_a_teacher_that_no_trial_could_hold_is_scored_by_its_ranks(
    demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """And what a killed process was compiling, which stays locked for ever, is nobody's business but its own."""
    for extension in ("deepspeed_shm_comm", "pin_memory"):
        (tmp_path / "extensions" / extension).mkdir(parents=True)
        (tmp_path / "extensions" / extension / "lock").touch()
    words = ["--set", "axes.arm=[lora, transfer]", "--rank", "4", "--lr", "1e-2", "--repeats", "1", "--name", "large"]
    words += ["--set", "tuned_teacher=false", "--set", "finetune.examples=36", "--set", "evaluate.examples=8"]
    words += ["--set", "gate=null"]
    done = subprocess.run(
        [*PKT, "sweep", *words, "--ranks", "2", "--offload", "cpu"], cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=300, env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"scoring the teacher: .* 8/8 examples, \d+ tokens/s", done.stderr)
    record = json.loads((tmp_path / "pkt-store/sweeps/large/sweep.json").read_text())
    (teacher,) = [row for row in record["rows"] if row["label"] == "teacher"]
    figures = json.loads((tmp_path / "pkt-store/evaluate" / teacher["trials"][0] / "metrics.json").read_text())
    assert record["gate"]["score"] == figures["score"]
    assert not list((tmp_path / "pkt-store").glob("*/.*.partial"))
