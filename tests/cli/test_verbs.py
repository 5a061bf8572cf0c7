"""The verbs that only tell, and `run` and `extract`, as a user calls them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel
from test_bad_input import chat, chats, pkt  # noqa: F401  (a fixture)
from transformers import AutoModelForCausalLM

from cli.screen import Terminal
from orchestrator.transfer.arms import ARMS

Call = Callable[..., tuple[int, str, str]]


def test_models_tasks_and_strategies_say_what_there_is(pkt: Call) -> None:  # noqa: F811
    code, out, err = pkt("models")
    assert (code, err) == (0, "")
    assert "llama2-70b       meta-llama/Llama-2-70b-hf" in out
    assert json.loads(pkt("models", "--json")[1])["llama2-70b"]["student"] == "llama2-7b"
    tasks = json.loads(pkt("tasks", "--json")[1])
    assert set(tasks) == {"demo", "gsm8k", "mmlu", "super_ni", "alpaca", "humaneval", "mbpp"}
    assert tasks["mmlu"]["loss_covers"] == "the answer letter and the end-of-sequence token"
    assert "exact_match,strict-match" in pkt("tasks")[1]
    listed = json.loads(pkt("strategies", "--json")[1])
    assert list(listed["layers"]) == ["sensitivity", "random", "first", "last", "uniform", "explicit"]
    ours = ["window", "head_aligned", "consistent", "given", "row_column", "neuron", "random", "random_window"]
    assert list(listed["structure"]) == ours
    baselines = ["lora", "pissa", "olora", "orthogonal", "eva", "lora_ga"]
    arms = list(listed["arms"])
    assert arms[:7] == [*baselines, "lora_equal"] and arms == list(ARMS)
    for kind, arm in ARMS.items():  # a control stands below what it is one of
        assert not arm.is_control or arms.index(arm.control_of) < arms.index(kind)
    assert list(listed["search"]) == ["grid", "random", "optuna", "asha"]
    assert listed["fields"]["finetune.epochs"] == "3"
    shown = pkt("strategies")[1]
    assert all(one in shown for one in ("finetune.epochs", "    gate ", "    tuned_teacher ", "rows: "))


def test_doctor_finds_this_machine(pkt: Call) -> None:  # noqa: F811
    code, out, _ = pkt("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["ok"] is True
    assert "torch 2." in found["versions"]
    assert set(found) == {"ok", "system", "versions", "devices", "memory", "store", "hub", "ray"}


def test_doctor_elsewhere_than_on_linux(pkt: Call, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """As on macOS: no affinities, and said what is not supported."""
    assert "tested" not in pkt("doctor")[1]
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    code, out, _ = pkt("doctor")
    assert code == 0
    assert re.search(rf"^system +Darwin \w+, {os.cpu_count()} cores \(tested on Linux alone", out, re.MULTILINE)


def test_extract_leaves_a_folder_that_peft_loads(
    pkt: Call,  # noqa: F811
    demo_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    seeds = chats(tmp_path / "seeds.jsonl", [chat(f"Write {word} backwards.", word[::-1]) for word in ("abcd", "xyzt")])
    words = ["--teacher", "demo-teacher", "--seeds", seeds, "--rank", "8", "--layers", "0,1,4,5", "--out", "deep/out"]
    code, out, _ = pkt("extract", *words, "--structure", "row_column", "--modules", "attention")
    assert code == 0
    assert out.startswith("deep/out: factors of rank 8 for demo-student")
    record = json.loads((tmp_path / "deep/out/transfer.json").read_text())
    assert record["layers"] == [0, 1, 4, 5]
    assert record["rank"] == 8
    assert len(record["indices"]) == 16
    stock = AutoModelForCausalLM.from_pretrained(demo_models["demo-student"])
    loaded = PeftModel.from_pretrained(stock, str(tmp_path / "deep/out"))
    assert loaded.peft_config["default"].r == 8


def test_extract_needs_no_rows_but_its_seeds(
    pkt: Call,  # noqa: F811
    demo_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Those of gsm8k are on a hub that tests can't reach."""
    seeds = chats(tmp_path / "seeds.jsonl", [chat(f"Write {word} backwards.", word[::-1]) for word in ("abcd", "xyzt")])
    words = ["--teacher", "demo-teacher", "--student", "demo-student", "--task", "gsm8k", "--template", "plain"]
    words += ["--layers", "last", "--rank", "4", "--out", "out"]
    code, _, err = pkt("extract", *words)
    assert code == 2 and "gsm8k" in err
    code, _, err = pkt("extract", *words, "--seeds", seeds)
    assert (code, err.count("warning")) == (0, 0), err
    assert json.loads((tmp_path / "out/transfer.json").read_text())["layers"]


@pytest.mark.slow
def test_run_says_the_score_and_where_the_adapter_is(
    pkt: Call,  # noqa: F811
    demo_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    rows = [chat(f"Write {word}q backwards.", f"q{word[::-1]}") for word in map("{:04d}".format, range(30))]
    task = chats(tmp_path / "mine.jsonl", rows)
    words = ["--task", task, "--rank", "4", "--lr", "1e-2", "--set", "finetune.epochs=1"]
    code, out, err = pkt("run", *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["examples"] == 6
    assert found["metric"] == "exact_match,none"
    assert found["loss"] > 0
    assert (Path(found["adapter"]) / "adapter_model.safetensors").is_file()
    code, out, again = pkt("run", *words)
    assert f"adapter: {found['adapter']}" in out
    assert "measure" not in again


@pytest.mark.parametrize(("verb", "status"), [("tasks", 0), ("nonsense", 2)])
def test_nothing_after_the_last_word_changes_the_status(verb: str, status: int) -> None:
    """The interpreter takes a second to end after a sweep: Ctrl-C comes, a library's thread crashes."""
    code = (
        f"import atexit, os, signal, sys; sys.argv = ['pkt', '{verb}']\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))\n"
        "from cli.main import entry; entry()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("gsm8k" in done.stdout) == (status == 0) and ("nonsense" in done.stderr) == (status == 2)


def test_progress_that_ends_early_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer than were counted on, where every setting of a row failed: the log's last line is not an old one."""
    with Terminal().trials("trials", 3) as tick:
        tick("first")
        tick("second")
    assert capsys.readouterr().err == "trials: 2/3 after 0 s  second\n"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['pkt', '--help']\n"
        "from cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'ray', 'mlflow', 'peft', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sweep" in done.stdout


def test_a_sweep_that_was_begun_alone_is_named(pkt: Call, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "pkt-store/sweeps/half"
    folder.mkdir(parents=True)
    (folder / "asked.json").write_text("{}")
    for words in (["compare"], ["report", "half"]):
        code, _, err = pkt(*words)
        assert code == 2
        assert "sweep: 'half' was begun and has not ended; `pkt sweep --resume half` goes on with it" in err


def test_an_interrupt_that_meets_a_finaliser_is_not_lost() -> None:
    """Python prints what a `__del__` raises, and goes on: so it went on once, when Ray's was what the signal met."""
    code = (
        "import os, signal, sys, time\nfrom cli import main\n"
        "class Mine:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(0.01)\n"
        "def app(**how):\n    Mine()\n    time.sleep(300)\n"
        "main.app = app\nmain.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "Exception ignored" not in done.stderr and done.stderr.startswith("pkt: stopped;")
