"""`pkt export` as a user calls it; its task is run by lm-eval's own command, in a process that has no part of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_bad_input import pkt  # noqa: F401  (a fixture)
from tiny import saved
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.models import adapters
from orchestrator.models.loading import load_tokenizer, source_of

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of rank 4 that no store knows, beside its student."""
    model = saved(tmp_path / "student", "llama")
    peft_model = adapters.attach(
        model, ["q_proj", "lm_head"], rank=4, alpha=4, dropout=0, changes_base=False, starts={}
    )
    adapters.save(peft_model, tmp_path / "adapter", str(tmp_path / "student"))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["./adapter"],
            "export: nothing to write was named; give --merged DIR, --lora DIR, --pack DIR or --lm-eval DIR",
        ),
        (["./adapter", "--rank", "2"], "export: nothing to write was named"),
        (["./adapter", "--merged", "student"], "merged: student exists and is not empty; name a folder that doesn't"),
        (["./adapter", "--lora", "out", "--lm-eval", "file"], "lm-eval: file exists and is not empty"),
        (["./adapter", "--merged", "out", "--lora", "./out"], "lora: out is named twice; name a folder for each"),
        (["./adapter", "--merged", "out", "--rank", "2"], "rank: 2 is for a LoRA, and none is written; add --lora DIR"),
        (["./adapter", "--lora", "out", "--rank", "5"], "rank: 5 is larger than the adapter's, 4; take at most 4"),
        (["./adapter", "--lora", "out", "--rank", "0"], "'--rank': Input should be greater than or equal to 1"),
        (
            ["./adapter", "--lora", "out", "--arm", "lora"],
            "arm: 'lora' chooses from a sweep, and ./adapter is a folder",
        ),
        (["./adapter", "--lora", "out", "--seed", "0"], "seed: 0 chooses from a sweep, and ./adapter is a folder"),
        (
            ["./adapter", "--lm-eval", "out"],
            "lm-eval: no store has the rows that adapter was scored on; give a sweep's",
        ),
        (["./adapter", "--merged", "out", "--student", "nobody"], "student: 'nobody' is no alias (see `pkt models`)"),
        (["student", "--lora", "out"], "source: student has no adapter_config.json; give a folder with a LoRA adapter"),
        (["./nowhere", "--lora", "out"], "source: ./nowhere has no adapter_config.json"),
        (["nowhere", "--lora", "out"], "sweep: the store"),
        (["--lora", "out"], "has none yet; run `pkt sweep`, or name another --store"),
        (
            ["./adapter", "--lora", "/proc/none/out"],
            "lora: /proc/none/out can't be written (No such file or directory)",
        ),
    ],
)
def test_bad_words(pkt: Call, adapter: Path, tmp_path: Path, words: list[str], message: str) -> None:  # noqa: F811
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = pkt("export", *words)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_adapters_that_are_more_than_plain_lora(pkt: Call, adapter: Path) -> None:  # noqa: F811
    config = json.loads((adapter / "adapter_config.json").read_text())
    for changes, message in (
        ({"use_dora": True}, "rank: the adapter has use_dora = True; only plain LoRA is compressed, leave it out"),
        ({"rank_pattern": {"q_proj": 2}}, "rank: the adapter has rank_pattern = {'q_proj': 2}"),
        ({"peft_type": "LOHA"}, "is LOHA, no LoRA; give a LoRA adapter"),
        ({"base_model_name_or_path": None}, "doesn't say which model it is for; name it with --student"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
        code, out, err = pkt("export", "./adapter", "--lora", "out", "--rank", "2")
        assert (code, out) == (2, "")
        assert message in err


def test_adapters_that_are_broken_or_another_models(pkt: Call, adapter: Path, tmp_path: Path) -> None:  # noqa: F811
    saved(tmp_path / "wider", "llama", hidden_size=96)
    saved(tmp_path / "shorter", "llama", num_hidden_layers=2)
    saved(tmp_path / "longer", "llama", num_hidden_layers=4)
    for name in ("wider", "shorter", "longer"):
        code, out, err = pkt("export", "./adapter", "--merged", "out", "--student", f"./{name}")
        assert (code, out) == (2, "")
        assert f"student: the adapter doesn't fit ./{name} (" in err.splitlines()[-1]
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    for content, message in (
        (weights[: len(weights) // 2], "adapter_model.safetensors can't be read"),
        (b"\x02" + b"\x00" * 7 + b"{}", "adapter_model.safetensors has no LoRA factors; give a LoRA adapter"),
    ):
        (adapter / "adapter_model.safetensors").write_bytes(content)
        code, out, err = pkt("export", "./adapter", "--lora", "out")
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]
    (adapter / "adapter_config.json").write_text("{")
    code, out, err = pkt("export", "./adapter", "--lora", "out")
    assert (code, out) == (2, "")
    assert "source: adapter/adapter_config.json is not JSON" in err
    assert not (tmp_path / "out").exists()


def test_any_adapter_in_a_folder_of_two_lines_and_for_machines(
    pkt: Call,  # noqa: F811
    adapter: Path,
    tmp_path: Path,
) -> None:
    code, out, err = pkt("export", "./adapter", "--merged", "deep/merged", "--lora", "small", "--rank", "2")
    assert (code, err.split("taking ")[1]) == (0, "adapter\n")  # before it: the fixture's own progress
    assert out.splitlines()[0] == f"deep/merged: {tmp_path / 'student'} with the adapter merged in, float32"
    assert f"small: LoRA of rank 2 for {tmp_path / 'student'}, compressed from 4" in out
    assert "energy kept" in out
    (tmp_path / "empty").mkdir()  # gives way
    code, out, _ = pkt("export", "./adapter", "--lora", "empty", "--rank", "2", "--json")
    told = json.loads(out)["written"]["lora"]
    assert (told["folder"], told["rank"], told["of_rank"]) == ("empty", 2, 4)
    assert (tmp_path / "empty/README.md").is_file()
    assert not list(tmp_path.rglob(".pkt-*"))


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.xdist_group("first")
def test_the_best_row_of_a_sweep_or_of_an_arm(
    pkt: Call,  # noqa: F811
    swept: Path,
    demo_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    store = ["--store", str(swept)]
    board = json.loads(pkt("compare", "--json", *store)[1])["rows"]
    record = json.loads((swept / "sweeps/first/sweep.json").read_text())
    for at, (words, among) in enumerate(
        (
            ([], ("lora", "transfer")),
            (["--arm", "lora"], ("lora",)),
            (["first", "--arm", "transfer", "--seed", "1"], ("transfer",)),
        )
    ):
        code, out, err = pkt("export", *words, "--lora", f"out{at}", "--json", *store)
        assert code == 0, err
        told = json.loads(out)
        rows = [row for row in record["rows"] if row["label"] in among]
        chosen = max(rows, key=lambda row: row["validation"])
        same = (chosen["label"], chosen["recipe"]["rank"])
        best = next(row for row in board if (row["arm"], row["rank"]) == same)
        seed = 1 if "--seed" in words else 0
        facts = told["facts"]
        assert (facts["arm"], facts["rank"], facts["lr"], facts["seed"]) == (
            best["arm"],
            best["rank"],
            best["lr"],
            seed,
        )
        assert f"{best['arm']}, rank {best['rank']}, lr 0.02, seed {seed} of sweep first" in err
        assert f"the best validation score, {chosen['validation'][0]:.3f}" in err
        (row,) = [row for row in record["rows"] if (row["label"], row["recipe"]["rank"]) == (best["arm"], best["rank"])]
        scores = json.loads((swept / "evaluate" / row["trials"][seed] / "metrics.json").read_text())
        assert facts["score"] == f"{scores['score']:.4g} exact_match,whole-answer on 60 test examples"
        assert facts["mean over seeds"] == f"{best['mean']:.3f} (2)"
        assert f"| mean over seeds | {best['mean']:.3f} (2) |" in (tmp_path / f"out{at}/README.md").read_text()
        manifest = json.loads((swept / "evaluate" / row["trials"][seed] / "manifest.json").read_text())
        trained = swept / "finetune" / manifest["lineage"]["inputs"]["adapter"] / "adapter_model.safetensors"
        assert (tmp_path / f"out{at}/adapter_model.safetensors").read_bytes() == trained.read_bytes()
    code, out, err = pkt("export", "--lm-eval", "task", "--merged", "whole", *store)
    assert code == 0, err
    assert out.splitlines()[2].startswith("task: task pkt_demo, 60 examples, exact_match,whole-answer 0.")
    assert f",peft={swept / 'finetune'}" in out.splitlines()[3]
    own = load_tokenizer(source_of("demo-student", "student"))  # the process' own, which export has read, too
    assert own.get_vocab() == AutoTokenizer.from_pretrained(demo_models["demo-student"]).get_vocab()
    stock = AutoModelForCausalLM.from_pretrained(demo_models["demo-student"])
    ids = torch.randint(5, 100, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = stock(ids).logits
        assert float((PeftModel.from_pretrained(stock, "out0")(ids).logits - before).abs().max()) > 0.1


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.xdist_group("first")
def test_what_a_sweep_lacks_is_told_with_what_it_has(pkt: Call, swept: Path, tmp_path: Path) -> None:  # noqa: F811
    for words, message in (
        (["fist"], f"sweep: 'fist' is not in {swept}; there: first"),
        (["--arm", "pissa"], "arm: 'pissa' has no row in first; rows: lora, transfer"),
        (["--arm", "teacher"], "arm: 'teacher' has no row in first; rows: lora, transfer"),
        (["--seed", "2", "--arm", "lora"], "seed: 2 has no finished trial in first's best row of lora; there: 0, 1"),
        (["--student", "demo-teacher"], "student: 'demo-teacher' isn't the model that was trained"),
    ):
        code, out, err = pkt("export", *words, "--merged", "out", "--store", str(swept))
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
