"""ASHA and Optuna by the command: as many settings for every arm, the test split for the compared trials alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_sweep_end_to_end import mlflow_of, pkt

pytestmark = [pytest.mark.long, pytest.mark.cluster]
SWEEP = {
    "recipe": {
        "finetune": {"examples": 72, "batch_size": 36, "epochs": 2}, "evaluate": {"examples": 10}, "layers": "last",
    },
    "axes": {"arm": ["lora", "transfer"], "rank": [2, 4]},
    "lr": [1.0e-3, 3.0e-2],
    "repeats": 2,
    "tuned_teacher": False,
    "tuning_seeds": 1,
    "trials": 12,
    "gate": None,
}  # fmt: skip


@pytest.mark.parametrize("search", [{"kind": "asha", "rungs": 2, "reduction": 2}, {"kind": "optuna"}])
def test_every_arm_tries_as_much_and_the_same_command_again_nothing(
    demo_models: dict[str, Path], tmp_path: Path, search: dict[str, object]
) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SWEEP, "name": "searched", "search": search}))
    done = pkt(tmp_path, "sweep", "sweep.yaml", "--trials-at-once", "1")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "pkt-store/sweeps/searched/sweep.json").read_text())
    assert record["tried"] == {"lora": 4, "transfer": 4}
    client, experiment = mlflow_of(tmp_path)
    compared = client.search_runs([experiment], "params.split = 'test'")
    assert len(compared) == 2 + 2 * 2  # the untouched models; two arms by two seeds
    best = {row["label"]: row for row in record["rows"] if row["validation"]}
    tuned = client.search_runs([experiment], "params.stage = 'tune' and params.share = '1.0'")
    for arm, row in best.items():
        own = [run.data.metrics for run in tuned if run.data.params["arm"] == arm]
        assert tuple(row["validation"]) == pytest.approx(max((one["score"], -one["gold_loss"]) for one in own))
    every = client.search_runs([experiment], "params.stage = 'tune'")
    assert len({run.info.run_name for run in every}) == len(every)  # an early rung isn't called what the last one is
    for run in every:
        whole = run.data.params["share"] == "1.0"
        names = {Path(one.path).name for one in client.list_artifacts(run.info.run_id)}
        assert "adapter" not in names  # its score is all that is kept of it
        (scored,) = client.get_metric_history(run.info.run_id, "score")
        assert scored.step == (4 if whole else 2)
    trained = (tmp_path / "pkt-store/finetune").glob("*/manifest.json")
    weights = [path.with_name("adapter_model.safetensors").exists() for path in trained]
    assert (sum(weights), len(weights)) == (2 * 2, 2 * 2 + len(every))
    assert not list((tmp_path / "pkt-store/finetune").glob("*/rung"))
    again = pkt(tmp_path, "sweep", "sweep.yaml", "--trials-at-once", "1")
    assert again.stdout == done.stdout
    assert "searching" not in again.stderr
    assert len(client.search_runs([experiment])) == 1 + len(compared) + len(
        client.search_runs([experiment], "params.stage = 'tune'")
    )
