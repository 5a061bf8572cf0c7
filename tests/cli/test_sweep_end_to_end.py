"""The main job as a user runs it: a real Ray, a real MLflow, the demo pair; then the same again, and with a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from peft import PeftModel
from test_bad_input import Call
from test_bad_input import pkt as call
from transformers import AutoModelForCausalLM

from orchestrator.verdict.estimates import interval

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.xdist_group("sweep")]
__all__ = ["call"]
PKT = [str(Path(sys.executable).with_name("pkt"))]
SWEEP = {
    "name": "small",
    "recipe": {"finetune": {"examples": 320, "batch_size": 16, "epochs": 2}, "evaluate": {"examples": 40}},
    "axes": {"arm": ["lora", "transfer"], "rank": [4], "layers": ["sensitivity", "0,2,3,5"]},
    "lr": [5.0e-3, 2.0e-2],
    "repeats": 2,
    "tuned_teacher": False,
    "gate": None,
    "tuning_seeds": 1,
}


def pkt(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.run(
        [*PKT, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=400, env=environment
    )


def until_a_trial_ended(running: subprocess.Popen[str], folder: Path, more: int = 0) -> None:
    """Wait for a sweep's first score after those of the untouched models, which come before MLflow hears of it.

    `more` scores are waited for besides those that are there.
    """
    scores = folder / "pkt-store"
    wanted = len(list(scores.glob("evaluate/*/manifest.json"))) + more if more else 3
    deadline = time.monotonic() + 300  # two minutes were too few on one core of a busy machine
    while len(list(scores.glob("evaluate/*/manifest.json"))) < wanted:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def swept(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    done = pkt(folder, "sweep", "sweep.yaml", "--trials-at-once", "2")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def compared(swept: tuple[Path, Any]) -> Any:
    """What `pkt compare --json` says of it."""
    return json.loads(pkt(swept[0], "compare", "small", "--json").stdout)


def test_the_leaderboard_and_its_line(swept: tuple[Path, Any]) -> None:
    folder, done = swept
    assert "small: demo, exact_match,whole-answer" in done.stdout
    for label in ("lora", "transfer", "student", "teacher", "sensitivity", "0,2,3,5"):
        assert label in done.stdout
    assert "One task and one pair of models: no evidence for others." in done.stdout
    assert "pkt compare small --json   |   pkt ui" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert all(line.split(":")[0] in NOISE_FREE for line in done.stderr.splitlines() if line.strip()), done.stderr
    assert "trials: 14/14" in done.stderr
    told = done.stderr.index("the untouched student 0.00 (difference, 95 %: -0.088 to +0.088): it may have nothing")
    assert done.stderr.index("scoring the untouched models: 2/2") < told < done.stderr.index("trials: ")
    assert pkt(folder, "compare").stdout == done.stdout


NOISE_FREE = {"small", "measuring the teacher", "extracting blocks", "scoring the untouched models", "trials"} | {
    "warning",  # of the gate, below
    "finding demo-teacher and demo-student ...",  # on a busy machine
    "14 fine-tunings",
    "Shared by all of them",
    "2 random seeds can describe, not claim",
}


def test_compare_is_the_arithmetic_of_the_kept_examples(swept: tuple[Path, Any], compared: Any) -> None:
    folder, _ = swept
    assert (compared["baseline"], compared["metric"]) == ("lora", "exact_match,whole-answer")
    assert len(compared["rows"]) == 5
    record = json.loads((folder / "pkt-store/sweeps/small/sweep.json").read_text())
    scores = {}
    for row in record["rows"]:
        folders = [folder / "pkt-store/evaluate" / key for key in row["trials"]]
        lines = [[json.loads(line) for line in (one / "examples.jsonl").read_text().splitlines()] for one in folders]
        assert len({tuple(line["id"] for line in trial) for trial in lines}) == 1
        layers = row["recipe"]["layers"]
        name = layers and (layers["kind"] if layers["kind"] != "explicit" else "0,2,3,5")
        scores[row["label"], name] = np.array([[line["score"] for line in trial] for trial in lines])
    assert scores["lora", None].max() == 1.0  # else all that follows would compare nothing with nothing
    for row in compared["rows"]:
        matrix = scores[row["arm"], row["layers"]]
        assert row["mean"] == pytest.approx(matrix.mean())
        assert row["seeds"] == len(matrix)
        if row["arm"] == "transfer":
            assert [row["delta"], *row["delta_ci95"]] == pytest.approx(interval(matrix - scores["lora", None]))


def test_the_learning_rate_is_the_best_on_validation(swept: tuple[Path, Any]) -> None:
    folder, _ = swept
    client, experiment = mlflow_of(folder)
    record = json.loads((folder / "pkt-store/sweeps/small/sweep.json").read_text())
    tuned = client.search_runs([experiment], "params.stage = 'tune' and params.arm = 'lora'")
    assert {run.data.params["split"] for run in tuned} == {"validation"}
    best = max(tuned, key=lambda run: (run.data.metrics["score"], -run.data.metrics["gold_loss"]))
    (row,) = [row for row in record["rows"] if row["label"] == "lora"]
    assert float(best.data.params["lr"]) == row["recipe"]["lr"]
    assert {run.data.params["seed"] for run in tuned} == {"1000"}


def mlflow_of(folder: Path) -> tuple[MlflowClient, str]:
    client = MlflowClient(f"sqlite:///{folder}/pkt-store/mlflow.db")
    return client, client.get_experiment_by_name("pkt").experiment_id


def test_mlflow_has_one_parent_and_every_trial_once(swept: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = swept
    client, experiment = mlflow_of(folder)
    runs = client.search_runs([experiment], max_results=1000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("small", "FINISHED")
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len(children) == 2 + (4 + 2 + 2) + 3 * 2  # untouched models, learning rates, trials
    assert len({frozenset(run.data.params) for run in children}) == 1  # the same columns in every run
    trial = next(
        run for run in children if run.data.params["arm"] == "transfer" and run.data.params["stage"] == "trial"
    )
    assert trial.data.params["layers"] in ("sensitivity", "0,2,3,5")
    assert len(client.get_metric_history(trial.info.run_id, "train_loss")) == 40
    (scored,) = client.get_metric_history(trial.info.run_id, "score")
    assert scored.step == client.get_metric_history(trial.info.run_id, "train_loss")[-1].step
    assert 0 < trial.data.metrics["training_seconds"] < trial.data.metrics["finetune_seconds"]
    adapter = client.download_artifacts(trial.info.run_id, "adapter", str(tmp_path))
    assert (Path(adapter) / "README.md").read_text().startswith("---\nbase_model: demo-student")


def test_mlflow_is_the_lab_book(swept: tuple[Path, Any], compared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lineage and verdict above; below them what a trial was, took and answered, in columns that mean one thing."""
    folder, done = swept
    client, experiment = mlflow_of(folder)
    (parent,) = [run for run in client.search_runs([experiment]) if run.info.run_name == "small"]
    assert parent.data.tags["mlflow.note.content"].splitlines()[0] in done.stdout
    assert len(parent.data.tags["teacher.sha256"]) == 64 and parent.data.tags["version.torch"].startswith("2.")
    of_all = {(one.dataset.name, one.dataset.digest, one.dataset.source) for one in parent.inputs.dataset_inputs}
    assert {name for name, *_ in of_all} == {f"demo {split}" for split in ("seed", "train", "validation", "test")}
    assert parent.data.params["axes.lr"] == "0.005 | 0.02"
    plan = {name: parent.data.params[f"plan.{name}"] for name in ("fine_tunings", "teacher_passes", "extractions")}
    assert plan == {"fine_tunings": "14", "teacher_passes": "1", "extractions": "2"}
    assert float(parent.data.params["plan.gpu_hours"]) > 0
    assert not {"recipe.rank", "recipe.lr", "recipe.arm"} & set(parent.data.params)
    best = max(row["mean"] for row in compared["rows"] if row["rank"])
    assert parent.data.metrics["best_score"] == pytest.approx(best)
    assert {one.path for one in client.list_artifacts(parent.info.run_id)} == {"leaderboard.json", "sweep"}
    inside = {Path(one.path).name for one in client.list_artifacts(parent.info.run_id, "sweep")}
    assert {"asked.json", "sweep.json", "leaderboard.png"} <= inside and "lock" not in inside
    trial = client.search_runs([experiment], "params.arm = 'transfer' and params.stage = 'trial'")[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/pkt-store/mlflow.db")
    table = client.load_table(experiment, "examples.json", run_ids=[trial.info.run_id])
    assert len(table) == 40
    assert table["score"].mean() == pytest.approx(trial.data.metrics["score"])
    own = {(one.dataset.name, one.dataset.digest, one.dataset.source) for one in trial.inputs.dataset_inputs}
    assert own == {one for one in of_all if one[0] in ("demo test", "demo train")}
    took = trial.data.metrics["finetune_seconds"] + trial.data.metrics["evaluate_seconds"]
    assert trial.info.end_time - trial.info.start_time == pytest.approx(1000 * took, abs=2)
    (student,) = client.search_runs([experiment], "params.arm = 'student'")
    assert {student.data.params[name] for name in ("rank", "lr", "seed")} == {"-"}


def test_the_artifact_is_a_portable_adapter(
    swept: tuple[Path, Any], demo_models: dict[str, Path], tmp_path: Path
) -> None:
    folder, _ = swept
    client, experiment = mlflow_of(folder)
    run = client.search_runs([experiment], "params.arm = 'transfer' and params.stage = 'trial'")[0]
    adapter = client.download_artifacts(run.info.run_id, "adapter", str(tmp_path))
    stock = AutoModelForCausalLM.from_pretrained(demo_models["demo-student"])
    assert PeftModel.from_pretrained(stock, adapter).peft_config["default"].r == 8  # 2r: the start rides along


def test_what_was_only_tried_keeps_its_score_and_curve_and_not_its_weights(
    swept: tuple[Path, Any], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = swept
    client, experiment = mlflow_of(folder)
    tuned = client.search_runs([experiment], "params.stage = 'tune'")
    assert len(tuned) == 4 * 2  # as many for each arm: LoRA, with one row of two, has four rates
    for run in tuned:
        assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"evaluation", "examples.json"}
        assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 40
        assert 0 <= run.data.metrics["clipped"] <= 1 and run.data.metrics["grad_norm_median"] > 0
    whole = {True: 0, False: 0}
    for manifest in (folder / "pkt-store/finetune").glob("*/manifest.json"):
        files = json.loads(manifest.read_text())["files"]
        there = {path.name for path in manifest.parent.iterdir()} - {"manifest.json", "let-go.json"}
        compared = json.loads(manifest.read_text())["lineage"]["config"]["seed"] < 1000
        assert there == set(files) - (set() if compared else {"adapter_model.safetensors"})
        whole[compared] += 1
    assert whole == {True: 3 * 2, False: 4 * 2}
    run = client.search_runs([experiment], "params.stage = 'trial' and params.arm = 'lora'")[0]
    lies = Path(run.info.artifact_uri.removeprefix("file://")) / "adapter/adapter_model.safetensors"
    assert lies.stat().st_nlink == 2  # the store's own
    monkeypatch.setenv("PKT_STORE", str(folder / "pkt-store"))
    gc, du = (json.loads(call("store", verb, "--json")[1]) for verb in ("gc", "du"))
    assert gc == {"removed": False, "bytes": 0, "clutter": []}
    assert du["of_no_sweep"] == 0


def test_the_same_command_again_runs_nothing_and_adds_no_run(swept: tuple[Path, Any]) -> None:
    folder, first = swept
    client, experiment = mlflow_of(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "pkt-store").glob("*/*/manifest.json")}
    runs = {run.info.run_id for run in client.search_runs([experiment], max_results=1000)}
    again = pkt(folder, "sweep", "sweep.yaml", "--trials-at-once", "2")
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert "trials: 14/14" in again.stderr  # found, as the times below prove
    assert {path: path.stat().st_mtime_ns for path in (folder / "pkt-store").glob("*/*/manifest.json")} == before
    assert {run.info.run_id for run in client.search_runs([experiment], max_results=1000)} == runs


def test_a_failed_trial_is_a_line_and_not_the_end(swept: tuple[Path, Any]) -> None:
    folder, _ = swept
    words = ["--lr", "1e20", "--name", "broken", "--layers", "sensitivity", "--set", "axes.arm=[lora, pissa]"]
    done = pkt(folder, "sweep", "sweep.yaml", *words, "--repeats", "1", "--trials-at-once", "1")
    assert done.returncode == 1
    assert "lora r4 lr 1e+20 seed 0 failed: lr: the loss is nan" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2 failed; the first: " in done.stdout  # whichever of the two ended first
    assert " r4 lr 1e+20 seed 0: lr: the loss is nan" in done.stdout
