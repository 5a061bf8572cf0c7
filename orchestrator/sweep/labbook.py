"""What people look at afterwards: a sweep and its trials as records, from what they left in the store."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.prepare.ready import Ready
from orchestrator.prepare.rows import used_rows
from orchestrator.recipe import Recipe
from orchestrator.scoring.evaluate import read_metrics
from orchestrator.step import Step, versions
from orchestrator.store import MANIFEST, Store
from orchestrator.sweep.work import samples_of
from orchestrator.tasks import TASKS
from orchestrator.tasks.rows import data_step
from orchestrator.tracking import system_metrics
from orchestrator.tracking.run_record import Record
from orchestrator.verdict.asked import BOUNDS
from orchestrator.verdict.words import plain

CURVES = ("loss", "learning_rate", "grad_norm")
COLUMNS = ("id", "gold", "answer", "score", "loss")  # of the table of examples; prompts are in the artifacts


def sweep_record(
    key: str, name: str, params: dict[str, Any], plan: dict[str, Any], ready: Ready, recipe: Recipe
) -> Record:
    """The parent's: what was asked for, what it takes by the plan, on which models and rows, by which code."""
    planned = {f"plan.{name}": value for name, value in plan.items() if isinstance(value, int)}
    planned |= {f"plan.{name}": value for name, value in plan["cost"].items()}
    tags = {
        "mlflow.source.name": "pkt sweep",
        "mlflow.source.git.commit": commit(),
        "teacher.sha256": ready.teacher.sha256,
        "student.sha256": ready.student.sha256,
        **{f"version.{library}": version for library, version in versions().items()},
    }
    datasets = [
        _dataset(recipe.task.name, split, data_step(used_rows(recipe, ready.splits, split)), recipe.task.data)
        for split in ready.splits
    ]
    tags = {name: value for name, value in tags.items() if value}
    return Record(key, name, params=params | planned, tags=tags, datasets=datasets, status="RUNNING")


def _dataset(task: str, split: str, rows: Step, data: Any) -> dict[str, str]:
    """The rows of a split that were used: the same in the sweep's own run and in its trials'."""
    known = TASKS.get(task)
    name, source = (task, known.source) if known else (Path(task).stem, task)
    return {"name": f"{name} {split}", "digest": rows.fingerprint, "source": str(data or source), "context": split}


def with_verdict(record: Record, rows: list[dict[str, Any]], lines: list[str], failed: int) -> Record:
    """The parent's at its end: the verdict is its description, the leaderboard a table."""
    columns = [name for name in rows[0] if name not in ("other", "also")] if rows else []
    table = {"columns": columns, "data": [[_cell(row[name]) for name in columns] for row in rows]}
    best = max((row["mean"] for row in rows if row["arm"] not in BOUNDS), default=0.0)
    note = "\n\n".join(line.strip() for line in lines).replace("|\n\n|", "|\n|")  # rows of one table
    return replace(
        record,
        tags={**record.tags, "mlflow.note.content": note},
        metrics={"best_score": best, "rows": len(rows), "failed": failed},
        tables={"leaderboard.json": table},
    )


def _cell(value: Any) -> Any:
    return " to ".join(f"{one:.3f}" for one in value) if isinstance(value, list) else value


def trial_record(
    store: Store, sweep: str, label: str, params: dict[str, Any], step: Step, *, weights: bool = True
) -> Record:
    """A finished trial's: parameters, figures, training curves, every example; with its `weights`, adapter and card."""
    folder = store.find(step.name, step.fingerprint)
    assert folder is not None
    figures = read_metrics(folder)
    metrics = {"evaluate_seconds": _seconds(folder), **plain(figures.get("also", {}))}
    artifacts, curves, steps = [(str(folder), "evaluation")], {}, 0
    lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    examples = {"columns": list(COLUMNS), "data": [[line.get(name) for name in COLUMNS] for line in lines]}
    adapter = step.inputs.get("adapter")
    if adapter and adapter.name == "finetune":  # else it was made elsewhere
        trained = store.find(adapter.name, adapter.fingerprint, bare=True)
        assert trained is not None
        history = json.loads((trained / "history.json").read_text())
        for name in CURVES:
            curves[f"train_{name}"] = [(point["step"], point[name]) for point in history]
        curves |= system_metrics.read(samples_of(store, adapter))
        metrics["finetune_seconds"] = _seconds(trained)
        facts = json.loads((trained / MANIFEST).read_text())["facts"]
        metrics["training_seconds"], steps = facts["training_seconds"], facts["steps"]
        metrics["clipped"], metrics["grad_norm_median"] = facts["clipped"], facts["grad_norm"]
        if (
            weights and params["share"] == 1.0
        ):  # that of an early rung is no adapter to use, and has its optimizer with it
            artifacts.append((str(trained), "adapter"))
    curves |= {"score": [(steps, figures["score"])], "gold_loss": [(steps, figures["loss"])]}
    used = {str(params.get("split", "")): step, "train": adapter}
    datasets = [
        _dataset(str(params["task.name"]), split, of.inputs["rows"], params.get("task.data"))
        for split, of in used.items() if of and "rows" in of.inputs
    ]  # fmt: skip
    params = {name: "-" if value is None else value for name, value in params.items()}
    return Record(
        f"{sweep}/{step.fingerprint}", label, sweep, params,
        metrics=metrics, curves=curves, artifacts=artifacts, tables={"examples.json": examples},
        datasets=datasets,
        seconds=metrics["evaluate_seconds"] + metrics.get("finetune_seconds", 0.0),
        time_ms=int((folder / MANIFEST).stat().st_mtime * 1000),  # when it ended, and the same whenever told
    )  # fmt: skip


def beside_record(store: Store, sweep: str, trial: str, params: dict[str, Any], step: Step) -> Record:
    """What the run of a trial has to add, once its adapter is scored on another task."""
    folder, task = store.find(step.name, step.fingerprint), str(params["task.name"])
    assert folder is not None
    figures = read_metrics(folder)
    told = {"score": figures["score"], "loss": figures["loss"], **plain(figures.get("also", {}))}
    metrics = {f"{task}/{name}": value for name, value in told.items()}
    time_ms = int((folder / MANIFEST).stat().st_mtime * 1000)
    return Record(
        f"{sweep}/{trial}", str(params["run"]), sweep, metrics=metrics, artifacts=[(str(folder), task)], time_ms=time_ms
    )


def _seconds(folder: Path) -> float:
    return float(json.loads((folder / MANIFEST).read_text())["seconds"])


def commit() -> str:
    """Of the repository from which the sweep was started; nothing where that is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
