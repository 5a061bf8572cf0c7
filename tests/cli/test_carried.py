"""A sweep of ways to carry the teacher's update over: who answers for what, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from peft import PeftModel
from test_bad_input import Call
from test_bad_input import pkt as call
from test_sweep_end_to_end import pkt
from updates import lora_of

from orchestrator.models import adapters
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.report.record import read_examples
from orchestrator.scoring.asking import questions
from orchestrator.scoring.engine import gold_losses, score
from orchestrator.store import Store
from orchestrator.sweep.presets import complete
from orchestrator.tasks import TASKS
from orchestrator.tasks.template import encode, stops
from orchestrator.transfer.arms import ARMS

__all__ = ["call"]
SWEEP = {
    "name": "carried",
    "recipe": {
        "finetune": {"examples": 64, "batch_size": 16, "epochs": 1}, "evaluate": {"examples": 12},
        "carry": {"examples": 40, "tokens": 400},
    },
    "axes": {"arm": ["lora", "theseus", "cross_lora"], "rank": [4]},
    "lr": [1.0e-2],
    "repeats": 2,
    "tuning_seeds": 1,
    "gate": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def swept(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("carried")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    names = ["q_proj", "up_proj", "down_proj", "lm_head"]
    lora_of(load(str(demo_models["demo-teacher"])), folder / "own", target_modules=names)
    done = pkt(folder, "sweep", "sweep.yaml", "--teacher-adapter", "own", "--trials-at-once", "1")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.xdist_group("sweep")
def test_each_way_has_its_twin_and_the_teacher_with_its_adapter_is_asked(swept: tuple[Path, Any]) -> None:
    folder, done = swept
    assert "training 0/" not in done.stderr.split("trials: ")[0]  # nobody trains the teacher
    told = json.loads(pkt(folder, "compare", "--json").stdout)
    rows = {row["arm"]: row for row in told["rows"]}
    assert rows.keys() == {
        "student", "teacher", "teacher_tuned", "lora", "theseus", "theseus_random_map", "cross_lora",
        "cross_lora_random_map",
    }  # fmt: skip
    assert {(one["arm"], one["against"]) for one in told["verdict"]["comparisons"]} == {
        (way, other) for way in ("theseus", "cross_lora") for other in ("lora", f"{way}_random_map")
    }
    assert rows["lora"]["before"] == rows["student"]["mean"] and rows["teacher"]["before"] is None
    assert told["gate"]["of"] in ("teacher", "teacher_tuned")
    again = ("sweep", "sweep.yaml", "--teacher-adapter", "own", "--dry-run")
    assert "2 carried updates" in pkt(folder, *again).stdout
    made = list((folder / "pkt-store" / "scale").glob("[!.]*/scale.json"))
    assert json.loads(pkt(folder, *again, "--json").stdout)["scales_chosen"] == len(made) == 2


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.xdist_group("sweep")
def test_the_score_before_any_step_is_that_of_what_was_carried(
    swept: tuple[Path, Any], demo_models: dict[str, Path]
) -> None:
    """By plain PEFT on the stock student; and the tuned teacher's is that of the user's own LoRA."""
    folder, _ = swept
    record = json.loads((folder / "pkt-store/sweeps/carried/sweep.json").read_text())
    store = Store(folder / "pkt-store")
    labels = {row["label"]: row for row in record["rows"]}
    rows = json.loads(pkt(folder, "compare", "--json").stdout)["rows"]
    for label, model, adapter in (
        ("theseus", "demo-student", None), ("theseus_random_map", "demo-student", None),
        ("teacher_tuned", "demo-teacher", folder / "own"),
    ):  # fmt: skip
        keys = labels[label]["before" if adapter is None else "trials"]
        means = []
        for key in keys:
            found = store.find("evaluate", key)
            assert found
            lineage = json.loads((found / "manifest.json").read_text())["lineage"]["inputs"]
            worn = adapter or store.find("scale", lineage["adapter"])
            assert worn
            network = PeftModel.from_pretrained(load(str(demo_models[model])), str(worn)).eval()
            tokenizer, task = load_tokenizer(str(demo_models[model])), TASKS["demo"]
            items, metric = questions(task.splits(None)["test"][:12], "plain", tokenizer, task.metric, ())
            own = score(network, tokenizer, items, metric, stops=stops("plain", tokenizer))
            means.append(sum(one.score for one in own) / len(own))
        told = next(row for row in rows if row["arm"] == label)
        assert told["mean" if adapter else "before"] == pytest.approx(sum(means) / len(means))
    assert len(set(labels["theseus"]["before"])) == 1 and len(set(labels["theseus_random_map"]["before"])) == 2


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.xdist_group("sweep")
def test_report_and_tracking_tell_it_and_the_same_command_has_nothing_to_do(swept: tuple[Path, Any]) -> None:
    folder, done = swept
    assert pkt(folder, "report", "--out", "r.html").returncode == 0
    page = (folder / "r.html").read_text()
    assert "<th>before</th>" in page and "no longer in the store" not in page
    assert "update</td><td>own</td>" in page
    assert "40 of training rows, 400 tokens" in page and "share of its norm that arrives" in page
    client = MlflowClient(f"sqlite:///{folder}/pkt-store/mlflow.db")
    experiment = client.get_experiment_by_name("pkt")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], "params.stage = 'trial' and params.arm = 'theseus'")
    assert len(runs) == 2 and all("before any step/score" in run.data.metrics for run in runs)
    again = pkt(folder, "sweep", "sweep.yaml", "--teacher-adapter", "own", "--trials-at-once", "1")
    assert again.stdout == done.stdout


EVERY: dict[str, Any] = SWEEP | {"name": "all", "axes": {"arm": ["all"], "rank": [4]}, "repeats": 1}


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.xdist_group("sweep")
def test_every_published_way_in_one_sweep(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Each beside its own control; what leaves is by plain PEFT, on the stock student, what was scored."""
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(EVERY))
    done = pkt(tmp_path, "sweep", "all.yaml", "--set", "measure.examples=8", "--trials-at-once", "1")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "pkt-store/sweeps/all/sweep.json").read_text())
    rows = {row["label"]: row for row in record["rows"] if row["adapted"] and row["label"] != "teacher_tuned"}
    ways = {kind: arm.judged_by for kind, arm in ARMS.items() if arm.judged_by}
    rivals = ("lora", "pissa", "lora_equal", "distil", "distil_tuned")
    assert {row["recipe"]["arm"]["kind"] for row in rows.values()} == {*rivals, *ways, *ways.values()}
    told = json.loads(pkt(tmp_path, "compare", "--json").stdout)["verdict"]
    asked = {(one["arm"], one["against"]) for one in told["comparisons"]}
    assert asked == {(way, other) for way, own in ways.items() for other in (*rivals, own)}
    store, student = Store(tmp_path / "pkt-store"), load(str(demo_models["demo-student"]))
    tokenizer, losses = load_tokenizer(str(demo_models["demo-student"])), {}
    rows_of = {row.id: encode(row, "plain", tokenizer, 2048) for row in TASKS["demo"].splits(None)["test"]}
    for label, row in rows.items():
        found = store.find("evaluate", row["trials"][0])
        assert found
        adapter = store.find(
            "finetune", json.loads((found / "manifest.json").read_text())["lineage"]["inputs"]["adapter"]
        )
        assert adapter
        with adapters.wearing(student, adapter) as network:
            lines = read_examples(found)
            own = gold_losses(network, [rows_of[line["id"]] for line in lines], tokenizer.pad_token_id)
        losses[label] = [line["loss"] for line in lines]
        assert losses[label] == pytest.approx(own, abs=1e-4), label
    told_apart = [
        one for label, one in losses.items() if not label.endswith("random_map")
    ]  # given at a scale of 0, say
    assert len({tuple(one) for one in told_apart}) == len(told_apart)  # no two did the same
    for by in ("composite", "switch"):
        done = pkt(tmp_path, "compose", "--arms", "lora,theseus", "--by", by, "--json")
        told = json.loads(done.stdout)
        assert told["composition"] == f"{by} of lora and theseus" and told["seeds"] == 1
        assert [one["against"] for one in told["differences"]] == ["lora", "theseus"]
    scored = [json.loads((one / "metrics.json").read_text())["loss"] for one in store.root.glob("evaluate/*")]
    known = {round(sum(one) / len(one), 4) for one in losses.values()}
    assert len({round(loss, 4) for loss in scored} - known) >= 2  # the compositions' own


def test_a_way_brings_its_random_map_where_it_has_no_control() -> None:
    def arms(*asked: Any) -> list[Any]:
        return list(complete({"axes": {"arm": list(asked)}})["axes"]["arm"])

    assert arms("lora", "ridge") == ["lora", "ridge", "ridge_random_map"]
    assert arms("lora", "ridge", "ridge_spectrum") == ["lora", "ridge", "ridge_spectrum"]
    start = {"kind": "theseus", "arrives": "start"}
    assert arms("lora", start) == ["lora", start, start | {"kind": "theseus_random_map"}]
    assert arms("lora", "transfer") == ["lora", "transfer"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--teacher-adapter", "nowhere"],
            "teacher-adapter: 'nowhere' is no folder and no hub id of the form",
        ),
        (["--teacher-adapter", "a", "--teacher-base", "b"], "an adapter and a base are two updates; name one of them"),
        (["--teacher-adapter", "a", "--set", "update.epochs=2"], "epochs are of a training, and this update is there"),
        (["--teacher-base", "demo-student"], "teacher-base: demo-student has other sizes than demo-teacher; name what"),
        (["--set", "carry.tokens=8"], "carry: the texts give 8 tokens that both models read, and maps need 32"),
    ],
)
def test_an_update_that_can_not_be_had_is_told(
    words: list[str], message: str, call: Call, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    status, _, error = call("sweep", "--arms", "lora,ridge", *words)
    assert status == 2 and message in error
    assert not (tmp_path / "pkt-store").exists() or not list((tmp_path / "pkt-store").glob("finetune/*"))


def test_texts_of_ones_own_hold_no_question_of_the_test(
    call: Call, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """A text or chats; what they hold of validation and test is named, and too few are counted."""
    asked = TASKS["demo"].splits(None)["test"][3]
    (tmp_path / "own.txt").write_text("Some text of nobody's, long enough to be read. " * 40)
    (tmp_path / "held.txt").write_text(f"Once: {asked.messages[-2].content} and so on")
    (tmp_path / "few.txt").write_text("Little")
    for file, message in (
        ("held.txt", f"held.txt has questions of validation or test ({asked.id}); take them out"),
        ("few.txt", "tokens that both models read, and maps need 32"),
        ("none.txt", "carry.texts: there is no file none.txt; give a .jsonl of chats or a .txt"),
    ):
        status, _, error = call("sweep", "--arms", "lora,ridge", "--set", f"carry.texts={file}")
        assert status == 2 and message in error
    status, _, _ = call("sweep", "--arms", "lora,ridge", "--set", "carry.texts=own.txt", "--dry-run")
    assert status == 0
