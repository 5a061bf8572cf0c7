"""What the orchestration itself costs: trials that do nothing, a sweep against its trials, and each trial alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measuring import table
from orchestrator.recipe import Sweep
from orchestrator.run import Run
from orchestrator.step import Step
from orchestrator.store import Store
from orchestrator.sweep.groups import trained
from orchestrator.sweep.presets import complete
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.stages import Stage
from orchestrator.sweep.sweep import Plan
from orchestrator.sweep.trial import Trial
from orchestrator.tracking.run_record import Record

PKT = str(Path(sys.executable).with_name("pkt"))
SLOTS = 2
SWEEP: dict[str, Any] = {  # 4 rows of 2 learning rates and 4 seeds: 24 fine-tunings of the demo's size
    "name": "bench",
    "axes": {"arm": ["lora", "pissa", "transfer", "spectrum_control"], "rank": [8], "layers": ["sensitivity"]},
    "lr": [8.0e-3, 2.0e-2],
    "repeats": 4,
    "tuned_teacher": False,
    "tuning_seeds": 1,
    "gate": None,
}


class Silent:
    """A screen for nobody."""

    def track(self, items: Any, what: str, total: int) -> Any:
        return items

    def trials(self, what: str, total: int, running: Any) -> Any:
        from contextlib import nullcontext

        return nullcontext(lambda line: None)

    def say(self, line: str) -> None:
        print(line)

    def warn(self, line: str) -> None:
        print(f"warning: {line}")


def nothing(folder: Path, *, number: int) -> None:
    """An evaluation's files, with nothing evaluated."""
    (folder / "metrics.json").write_text(json.dumps({"score": number % 7 / 7, "loss": 1.0}))
    (folder / "examples.jsonl").write_text(json.dumps({"id": "0", "score": 1.0}) + "\n")


def trivial(count: int) -> float:
    """Seconds for so many trials that do nothing, with their records in MLflow, once workers are up."""
    from cli.options import tracker_of

    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        run = Run(store=store.root, trials_at_once=SLOTS)
        with Runner(store, run, "bench", Silent(), store.root) as runner:
            runner.begin(tracker_of(store, None), Record("bench", "bench", status="RUNNING"))
            trials = [
                Trial(f"trial {n}", Step("evaluate", nothing, {"number": n}), {"rank": n, "lr": 0.1})
                for n in range(count + SLOTS)
            ]
            runner.go([Stage("warming up", trials[:SLOTS], SLOTS)])
            began = time.perf_counter()
            runner.go([Stage("trials", trials[SLOTS:], count)])
            runner.end("FINISHED", seconds=600)
            return time.perf_counter() - began


def together(place: str, *commands: tuple[str, ...]) -> float:
    """Seconds until all have ended, begun at once."""
    began = time.perf_counter()
    running = [
        subprocess.Popen([PKT, *words], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for words in commands
    ]
    assert all(process.wait() == 0 for process in running)
    return time.perf_counter() - began


def demo_sweep() -> tuple[float, float, float, float]:
    """Seconds of the 24-trial sweep, of its trainings and scorings alone, and of a trial by `pkt run` in a store of its
    own, as without a sweep: one after another, and two at once.
    """
    with tempfile.TemporaryDirectory() as place:
        Path(place, "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        wall = together(place, ("sweep", "sweep.yaml", "--trials-at-once", str(SLOTS)))
        manifests = [*Path(place).glob("pkt-store/finetune/*/manifest.json")]
        manifests += Path(place).glob("pkt-store/evaluate/*/manifest.json")
        inside = sum(json.loads(path.read_text())["seconds"] for path in manifests)
        arms = ("lora", "pissa", "transfer", "spectrum_control")
        common = ("--rank", "8", "--lr", "0.02", "--layers", "sensitivity")
        words = [("run", "--arm", arm, *common, "--store", f"{n}-{arm}") for n in range(2) for arm in arms]
        alone = sum(together(place, command) for command in words[:4]) / 4
        paired = sum(together(place, *words[4 + first : 6 + first]) for first in (0, 2)) / 4
    return wall, inside, alone, paired


def shared(repeats: int, lrs: int, choices: int) -> tuple[int, Counter[str]]:
    """Fine-tunings of a sweep, and the teacher's steps that they share."""
    kinds = {"layers": ["sensitivity", "last"][:choices], "structure": ["window", "consistent"][:choices]}
    axes = SWEEP["axes"] | kinds
    grid = [0.001 * (number + 1) for number in range(lrs)]
    plan = Plan.of(Sweep.model_validate(complete({**SWEEP, "axes": axes, "lr": grid, "repeats": repeats})))
    trials = [
        cell.trial(plan.ready, "test", lr=1, seed=seed, stage="trial") for cell, seed in trained(plan.sweep, plan.cells)
    ]
    steps = {
        step.fingerprint: step.name for trial in trials for step in trial.step.ancestors() if step.needs == "ranks"
    }
    return plan.trials, Counter(steps.values())


def main() -> None:
    for repeats, lrs, choices in ((4, 2, 1), (14, 6, 2)):
        trials, counted = shared(repeats, lrs, choices)
        print(f"{trials} fine-tunings, {choices} x {choices} choices of layers and structure, share {dict(counted)}")
    hundred, thousand = trivial(100), trivial(1000)
    wall, inside, alone, paired = demo_sweep()
    limit = 1.25 * inside / SLOTS + 15
    rows = [
        ("100 trials that do nothing, each", 1000 * hundred / 100, "ms", "≤ 100"),
        ("1,000 trials that do nothing, each", 1000 * thousand / 1000, "ms", "≤ 100"),
        ("1,000 against 100, each", thousand / 1000 / (hundred / 100), "x", "≤ 1.1"),
        ("the demo pair, 24 fine-tunings", wall, "s", f"≤ {limit:.0f}: 1.25 x {inside:.0f} s of work / {SLOTS} + 15 s"),
        ("each trial by `pkt run`, one after another, against the sweep", 24 * alone / wall, "x", "≥ 3"),
        ("each trial by `pkt run`, two at once, against the sweep", 24 * paired / wall, "x", "≥ 3"),
    ]
    table("Orchestration", ("what", "figure", "unit", "target"), rows)
