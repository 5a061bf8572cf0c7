"""A sweep whose adapters are scored on further tasks, too: what is told of them everywhere, and what it rests on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from peft import PeftModel
from test_bad_input import Call
from test_bad_input import pkt as call
from test_sweep_end_to_end import pkt
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.xdist_group("sweep")]
__all__ = ["call"]
SWEEP = {
    "name": "small",
    "recipe": {"finetune": {"examples": 64, "batch_size": 16, "epochs": 1}, "evaluate": {"examples": 12}},
    "axes": {"arm": ["lora"], "rank": [4]},
    "lr": [2.0e-2],
    "repeats": 2,
    "tuned_teacher": False,
    "gate": None,
}
LETTERS = "bcdefghij"
TEXT = "".join(f"Backwards: line {number} of a text that nobody trains on.\n" for number in range(200))


@pytest.fixture(scope="module")
def swept(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("beside")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    (folder / "corpus.txt").write_text(TEXT)
    chats = [
        {
            "id": f"c{number}",
            "choices": list(LETTERS),
            "answer": LETTERS[number % 9],
            "messages": [
                {"role": "user", "content": f"Backwards: a{number}"},
                {"role": "assistant", "content": LETTERS[number % 9]},
            ],
        }
        for number in range(90)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(
        SWEEP | {"tasks": ["corpus.txt", {"name": "own.jsonl", "metric": "multiple_choice"}]}
    ))  # fmt: skip
    done = pkt(folder, "sweep", "sweep.yaml", "--trials-at-once", "1")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_what_it_cost_is_told_beside_the_verdict(swept: tuple[Path, Any]) -> None:
    folder, done = swept
    assert "scoring the untouched models: 4/4" in done.stderr
    assert "trials: 6/6" in done.stderr
    told = json.loads(pkt(folder, "compare", "--json").stdout)["verdict"]["costs"]
    assert {(one["arm"], one["task"], one["outcome"], one["seeds"]) for one in told} == {
        ("lora", task, "described", 2) for task in ("corpus", "own")
    }
    for one in told:
        assert f"lora moved on {one['task']}: {one['delta']:+.3f}" in done.stdout
    made = pkt(folder, "report", "--out", "r.html")
    assert made.returncode == 0, made.stderr
    page = (folder / "r.html").read_text()
    assert "What it cost elsewhere" in page and "<td>described</td>" in page


@torch.no_grad()
def test_the_figures_are_those_of_plain_transformers_and_peft(
    swept: tuple[Path, Any], demo_models: dict[str, Path]
) -> None:
    """A text's tokens, all but the first of each part, one part at a time; and what changed of the choices, by hand."""
    folder, _ = swept
    store = folder / "pkt-store"
    record = json.loads((store / "sweeps/small/sweep.json").read_text())
    told = {one["task"]: one for one in json.loads(pkt(folder, "compare", "--json").stdout)["verdict"]["costs"]}
    tokenizer = AutoTokenizer.from_pretrained(demo_models["demo-student"])
    base = AutoModelForCausalLM.from_pretrained(demo_models["demo-student"], dtype=torch.float32)
    rows = {row["label"]: row for row in record["rows"]}
    scores = {}
    for label in ("student", "lora"):
        for seed, key in enumerate(rows[label]["beside"]["corpus"]):
            lines = [json.loads(one) for one in (store / "evaluate" / key / "examples.jsonl").read_text().splitlines()]
            lineage = json.loads((store / "evaluate" / key / "manifest.json").read_text())["lineage"]["inputs"]
            model = base
            if label == "lora":
                model = PeftModel.from_pretrained(base, str(store / "finetune" / lineage["adapter"])).eval()
            parts = [
                json.loads(one) for one in (store / "data" / lineage["rows"] / "rows.jsonl").read_text().splitlines()
            ]
            assert "".join(part["messages"][0]["content"] for part in parts) == TEXT
            by_hand = []
            for part in parts:
                ids = tokenizer(part["messages"][0]["content"], return_tensors="pt").input_ids
                logs = model(ids).logits[0, :-1].log_softmax(-1)
                by_hand.append(float(logs.gather(-1, ids[0, 1:, None]).mean()))
            assert [line["score"] for line in lines] == pytest.approx(by_hand, abs=1e-4)
            scores[label, seed] = by_hand
            base = model.unload() if label == "lora" else model
    delta = np.mean([scores["lora", seed] for seed in (0, 1)]) - np.mean(scores["student", 0])
    assert told["corpus"]["delta"] == pytest.approx(delta, abs=1e-4)
    assert abs(delta) > 0.05
    chosen: dict[str, list[list[float]]] = {"student": [], "lora": []}
    for label, scored in chosen.items():
        for key in rows[label]["beside"]["own"]:
            lines = [json.loads(one) for one in (store / "evaluate" / key / "examples.jsonl").read_text().splitlines()]
            scored.append([line["score"] for line in lines])
    before, after = chosen["student"][0], chosen["lora"]
    lost = sum(was == 1 and now == 0 for some in after for was, now in zip(before, some, strict=True))
    won = sum(was == 0 and now == 1 for some in after for was, now in zip(before, some, strict=True))
    flips = told["own"]["flips"]
    assert (flips["lost"], flips["won"]) == pytest.approx((lost / 2 / len(before), won / 2 / len(before)))
    assert lost + won and sum(flips["wrong"].values()) == lost
    assert math.isclose(told["own"]["delta"], np.mean(after) - np.mean(before), abs_tol=1e-9)


def test_mlflow_has_them_in_the_trials_own_runs(swept: tuple[Path, Any]) -> None:
    folder, _ = swept
    client = MlflowClient(f"sqlite:///{folder}/pkt-store/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("pkt").experiment_id])
    names = [run.info.run_name for run in runs]
    assert sorted(names) == ["lora r4 lr 0.02 seed 0", "lora r4 lr 0.02 seed 1", "small", "student", "teacher"]
    for run in runs:
        if run.info.run_name not in ("small", "teacher"):
            assert {"corpus/score", "own/score", "score"} <= set(run.data.metrics)
            assert run.data.params["stage"] != "beside"


def test_the_same_again_computes_nothing_and_another_task_only_that(swept: tuple[Path, Any]) -> None:
    folder, done = swept
    folders = sorted(path.parent.name for path in (folder / "pkt-store").glob("*/*/manifest.json"))
    again = pkt(folder, "sweep", "sweep.yaml")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert sorted(path.parent.name for path in (folder / "pkt-store").glob("*/*/manifest.json")) == folders
    (folder / "other.txt").write_text(TEXT[:4000])
    more = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "more.yaml").write_text(yaml.safe_dump(more | {"name": "more", "tasks": [*more["tasks"], "other.txt"]}))
    assert pkt(folder, "sweep", "more.yaml").returncode == 0
    new = {path.parent.parent.name for path in (folder / "pkt-store").glob("*/*/manifest.json")
           if path.parent.name not in folders}  # fmt: skip
    assert new == {"evaluate", "data"}


def test_wrong_tasks_are_told(call: Call, tmp_path: Path) -> None:
    """A name that is none, a text that isn't there or is empty, and what is scored already."""
    (tmp_path / "empty.txt").write_text("\n")
    for tasks, words in (
        ("mmlv", "task: 'mmlv' is not known; did you mean mmlu"),
        ("lost.txt", "tasks: lost.txt can't be read"),
        ("empty.txt", "tasks: empty.txt is empty; give a text"),
        ("demo", "tasks: demo is scored already; leave it out"),
        ("mbpp", "mbpp runs programs that a model wrote; --run-code has them run"),
    ):
        code, out, err = call("sweep", "--tasks", tasks)
        assert (code, out) == (2, ""), err
        assert words in err.replace("\n", " ")
