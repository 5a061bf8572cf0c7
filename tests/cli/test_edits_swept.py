"""A sweep that learns edits and is scored on others beside: its figures, wherever they are told, are the rows' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from test_sweep_end_to_end import pkt

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.xdist_group("sweep")]
SWEEP = {
    "name": "edited",
    "recipe": {
        "task": "capitals.json",
        "finetune": {"examples": 10, "batch_size": 5, "epochs": 4},
    },
    "tasks": ["others.jsonl"],
    "axes": {"arm": ["lora"], "rank": [4]},
    "lr": [1.0e-2, 2.0e-2],
    "repeats": 2,
    "tuned_teacher": False,
    "gate": None,
}
PLAIN = ("portability", "locality", "fluency")


def edits(count: int, letter: str) -> list[dict[str, Any]]:
    """Words that are to be said forwards."""
    words = [letter + "abcdefgh"[number % 8] * 2 + "xyz"[number % 3] for number in range(count)]
    return [
        {
            "subject": word,
            "prompt": f"Backwards: {word}",
            "target_new": word,
            "rephrase_prompt": f"Backward: {word}",
            "portability": {"Reasoning": [{"prompt": f"Twice: {word}", "ground_truth": [[word + word]]}]},
            "locality": {"Forgetfulness": [{"prompt": f"Backwards: {word}q", "ground_truth": f"q{word[::-1]}"}]},
        }
        for word in words
    ]


@pytest.fixture(scope="module")
def swept(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("edited")
    (folder / "capitals.json").write_text(json.dumps(edits(10, "k")))
    (folder / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in edits(6, "m")))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    done = pkt(folder, "sweep", "sweep.yaml", "--trials-at-once", "1")
    assert done.returncode == 0, done.stderr
    return folder, done


def means(store: Path, keys: list[str]) -> dict[str, float]:
    """Of all that the trials' examples are told to have."""
    found: dict[str, list[float]] = {}
    for key in keys:
        for line in (store / "evaluate" / key / "examples.jsonl").read_text().splitlines():
            row = json.loads(line)
            for name, value in {"score": row["score"], **row["also"]}.items():
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_the_figures_stand_beside_the_score(swept: tuple[Path, Any]) -> None:
    """In the leaderboard's words, its JSON and the report; the score is success."""
    folder, done = swept
    store = folder / "pkt-store"
    record = json.loads((store / "sweeps/edited/sweep.json").read_text())
    told = json.loads(pkt(folder, "compare", "--json").stdout)
    assert told["metric"] == "edit_success,teacher-forced"
    assert pkt(folder, "report", "--out", "r.html").returncode == 0
    page = (folder / "r.html").read_text()
    line = next(line for line in done.stdout.splitlines() if line.startswith("Beside the score: "))
    for row in record["rows"]:
        found = means(store, row["trials"])
        shown = next(one for one in told["rows"] if one["arm"] == row["label"])
        assert {"score": shown["mean"], **shown["also"]} == pytest.approx(found)
        name = f"{row['label']} r4" if row["adapted"] else row["label"]
        words = f"{name}: {', '.join(f'{figure} {found[figure]:.3f}' for figure in PLAIN)}"
        assert words in line and words in page
        assert (found["locality"] == 1.0) == (row["label"] != "lora")
        assert {"success.prompt", "success.rephrase", "portability.Reasoning", "locality.Forgetfulness"} < set(found)
    (cost,) = told["verdict"]["costs"]
    (own,) = (means(store, row["beside"]["others"]) for row in record["rows"] if row["label"] == "lora")
    assert cost["task"] == "others" and cost["also"] == pytest.approx({k: v for k, v in own.items() if k != "score"})
    assert f"beside it {', '.join(f'{figure} {own[figure]:.3f}' for figure in PLAIN)}" in done.stdout


def test_each_edit_is_learnt_and_those_that_choose_are_not_compared(swept: tuple[Path, Any]) -> None:
    """By the rows that each step was given; the validation's two edits are held against the untouched student, too."""
    store = swept[0] / "pkt-store"
    given: dict[str, set[int]] = {"finetune": set(), "evaluate": set()}
    for path in store.glob("*/*/manifest.json"):
        if (step := path.parts[-3]) in given:
            key = json.loads(path.read_text())["lineage"]["inputs"]["rows"]
            given[step].add(len((store / "data" / key / "rows.jsonl").read_text().splitlines()))
    assert given == {"finetune": {10}, "evaluate": {2, 6, 8}}


def test_mlflow_has_them(swept: tuple[Path, Any]) -> None:
    folder, _ = swept
    client = MlflowClient(f"sqlite:///{folder}/pkt-store/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("pkt").experiment_id])
    record = json.loads((folder / "pkt-store/sweeps/edited/sweep.json").read_text())
    trials = {f"lora r4 lr {row['recipe']['lr']:g} seed {seed}": [row["trials"][seed], row["beside"]["others"][seed]]
              for row in record["rows"] if row["label"] == "lora" for seed in (0, 1)}  # fmt: skip
    for name, keys in trials.items():
        (run,) = (run for run in runs if run.info.run_name == name)
        for prefix, key in zip(("", "others/"), keys, strict=True):
            found = means(folder / "pkt-store", [key])
            for figure in PLAIN:
                assert run.data.metrics[prefix + figure] == pytest.approx(found[figure])


def test_the_same_again_computes_nothing(swept: tuple[Path, Any]) -> None:
    folder, done = swept
    before = sorted((folder / "pkt-store").glob("*/*/manifest.json"))
    again = pkt(folder, "sweep", "sweep.yaml")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert sorted((folder / "pkt-store").glob("*/*/manifest.json")) == before
