"""Each of these ends with exit 2 and one line that names the field, the value and the remedy; nothing is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.main import main
from orchestrator.errors import UserError

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pkt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`pkt` in this process, in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cli.screen.SOON", 600.0)  # of a slow machine nothing is to be told

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pkt", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def chats(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(question: str = "q", answer: str = "a", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sweep", "--teacher", "lama2-70b"],
            "teacher: 'lama2-70b' is not known; did you mean llama2-70b? `pkt models`",
        ),
        (["sweep", "--teacher", "some/model"], "student: 'some/model' has no natural student; name one with --student"),
        (["sweep", "--gpus-per-trial", "1.5"], "gpus-per-trial: 1.5 GPUs are not one for each worker; give a whole"),
        (
            ["sweep", "--gpus-per-trial", "4", "--workers-per-trial", "2"],
            "gpus-per-trial: 4 GPUs are not one for each of 2 workers; give 2, or leave it out",
        ),
        (["sweep", "--shard-student"], "shard-student: a training has one worker; give --gpus-per-trial 2 or more"),
        (["sweep", "--tracking", "nonsense"], "tracking: 'nonsense' can't be used: it is no address; give http://"),
        (["sweep", "--set", "arm.rows=all"], "recipe.arm: {'rows': 'all'} doesn't say which kind; write it as {kind:"),
        (["sweep", "--teacher", "lama", "--student", "demo-student"], "teacher: 'lama' is no alias (see `pkt models`)"),
        (
            ["sweep", "--teacher", "llama2-70b", "--task", "demo", "--force"],
            "meta-llama/Llama-2-70b-hf is not in the local cache",
        ),
        (
            ["sweep", "--task", "gms8k"],
            "task: 'gms8k' is not known; did you mean gsm8k?",
        ),
        (["sweep", "--arms", "lora,tranfer"], "arm: 'tranfer' is not known; known: lora, pissa, olora"),
        (["sweep", "--layers", "sensitive"], "layers: 'sensitive' is not known; known: sensitivity, random, first"),
        (["sweep", "--structure", "windw"], "structure: 'windw' is not known; known: window, head_aligned, consistent"),
        (["sweep", "--structure", "given"], "structure.heads: 0 attention heads given, and the student has 4"),
        (["sweep", "--modules", "ffn,attn"], "modules.1: 'attn': input should be 'attention', 'ffn' or 'embedding'"),
        (["sweep", "--rank", "eight"], "rank: 'eight': input should be a valid integer"),
        (["sweep", "--rank", "48"], "rank: 48 is larger than the student's k matrix, 32 x 64; take at most 32"),
        (["sweep", "--lr", "-1"], "lr.0: -1: input should be greater than 0"),
        (["sweep", "--tracking", "http://ada:pw@127.0.0.1:9"], "tracking: http://***@127.0.0.1:9 doesn't answer (Conn"),
        (["sweep", "--set", "finetune.epoch=1"], "finetune.epoch: there is no such field"),
        (["sweep", "--set", "finetune.epochs"], "--set: 'finetune.epochs' has no value; write PATH=VALUE"),
        (
            ["sweep", "--rank", "2,4,8,16,32", "--layers", "first,last,uniform"],
            "fine-tunings, more than 150; say --yes",
        ),
        (["sweep", "--arms", "transfer,pissa"], "baseline: 'lora' is not among the arms transfer, pissa"),
        (
            ["sweep", "--teacher", "demo-student", "--student", "demo-teacher", "--task", "demo"],
            "6 layers, the teacher",
        ),
        (["sweep", "missing.yaml"], "file: missing.yaml can't be read (No such file or directory)"),
        (
            ["sweep", "--store", "/proc/none"],
            "store: /proc/none is not writable (No such file or directory); name another",
        ),
        (["sweep", "--seeds", "missing.jsonl"], "missing.jsonl can't be read"),
        (["sweep", "--data", "nowhere", "--task", "gsm8k"], "data: nowhere has no test.jsonl"),
        (["run", "--arm", "lora", "--rank", "99"], "rank: 99 is larger"),
        (["extract"], "Missing option '--out'"),
        (["extract", "--out", "."], "out: . exists; name a folder that doesn't"),
        (["compare"], "has none yet; run `pkt sweep`"),
        (["ui"], "has no mlflow.db yet; run `pkt sweep` first"),
        (["swep"], "No such command 'swep'"),
        (["sweep", "--rnak", "4"], "No such option: --rnak"),
        (["sweep", "--repeats", "0"], "'--repeats': Input should be greater than or equal to 1"),
    ],
)
def test_bad_words(pkt: Call, words: list[str], message: str, demo_models: dict[str, Path], tmp_path: Path) -> None:
    code, out, err = pkt(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("pkt: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows.jsonl has no rows"),
        ("\n\n", "rows.jsonl has no rows"),
        ('{"messages": []}\n', "rows.jsonl:1: messages: tuple should have at least 1 item"),
        ('{"text": "x"}\n', "rows.jsonl:1: messages: field required"),
        ("[1]\n", "rows.jsonl:1 is not a JSON object"),
        ('\n{"messages": [{"role": "user"\n', "rows.jsonl:2 is not JSON"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "rows.jsonl:1: the last message is not an assistant's"),
        (
            '{"messages": [{"role": "bot", "content": "x"}]}\n',
            "rows.jsonl:1: messages.0.role: input should be 'system'",
        ),
    ],
)
@pytest.mark.parametrize("option", ["--task", "--seeds"])
def test_bad_rows(
    pkt: Call, option: str, content: str, message: str, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    code, out, err = pkt("sweep", option, "rows.jsonl")
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_rows_that_repeat_an_id(pkt: Call, tmp_path: Path) -> None:
    chats(tmp_path / "rows.jsonl", [chat(id="a")] * 12)
    assert "rows.jsonl:2: another row has the id 'a'" in pkt("sweep", "--task", "rows.jsonl")[2]


def test_an_answer_that_truncation_removes(pkt: Call, tmp_path: Path, demo_models: dict[str, Path]) -> None:
    chats(tmp_path / "seeds.jsonl", [chat("long " * 50, id="far")])
    code, _, err = pkt("sweep", "--seeds", "seeds.jsonl", "--set", "measure.max_tokens=100")
    assert code == 2
    assert "example 'far' has no assistant token within its first 100 tokens" in err


def test_different_vocabularies(pkt: Call, tmp_path: Path, demo_models: dict[str, Path]) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from orchestrator.models.loading import load

    student = tmp_path / "other"
    load(str(demo_models["demo-student"])).save_pretrained(student)
    words = {"<eos>": 0, "<unk>": 1, "a": 2}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>").save_pretrained(student)
    code, _, err = pkt("sweep", "--student", "other")
    assert code == 2
    assert "modules: embedding needs tokens that both have, and of other's 104 demo-teacher has 3" in err
    assert "--modules attention,ffn" in err
    code, out, _ = pkt("sweep", "--student", "other", "--modules", "attention,ffn", "--dry-run")
    assert code == 0
    assert "demo-teacher -> other" in out


def test_pickled_and_broken_weights(pkt: Call, tmp_path: Path, demo_models: dict[str, Path]) -> None:
    import shutil

    shutil.copytree(demo_models["demo-student"], tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = pkt("sweep", "--student", "broken")
    assert code == 2
    assert "student: " in err
    assert "model.safetensors is corrupt" in err
    weights.rename(tmp_path / "broken" / "pytorch_model.bin")
    assert "only pickled ones (pytorch_model.bin), which are never opened" in pkt("sweep", "--student", "broken")[2]
    assert not (tmp_path / "pkt-store").exists()


def _saved(device: str) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, device)


def _written(device: str) -> None:
    with open(device, "w") as file:
        file.write("x" * 100_000)


def _wrapped(device: str) -> None:
    raise UserError(f"tracking: sqlite://{device} can't be used (database or disk is full); give another")


@pytest.mark.parametrize("fill", [_saved, _written, _wrapped])
def test_a_full_disk_is_no_bad_input_and_no_fault_of_ours(
    pkt: Call, monkeypatch: pytest.MonkeyPatch, fill: Callable[[str], None]
) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr("cli.main.app", lambda **how: fill("/dev/full"))
    code, _, err = pkt("sweep")
    assert code == 1
    assert err.endswith("; what was finished is kept: make room, and the same command goes on from there\n")
    assert len(err.splitlines()) == 1
