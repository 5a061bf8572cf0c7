"""Which setting of each group goes on to the test split: the best one on the validation split.

    choices = choose(sweep, ready, groups, runner)      # per group its cell and learning rate, or None where all failed

Every group tries as many settings as its likes, by the same random seeds. What was tried, and how it ended, is kept in
the sweep's folder, so that a search that was interrupted goes on, and one that ended isn't made again.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cells import TUNING_SEED, Cell, Group
from orchestrator.cluster.trials import Proposals
from orchestrator.prepare import Ready
from orchestrator.recipe import RATES, Asha, Grid, Optuna, Sweep
from orchestrator.runner import Runner, Trial

Rungs = list[list[Trial]]  # of one setting: the trainings of each rung, one a tuning seed


@dataclass(frozen=True)
class Setting:
    """A cell at a learning rate."""

    cell: Cell
    lr: float


@dataclass(frozen=True)
class Choice:
    """What was taken, and how it did on the validation split: score, and minus the loss among equals."""

    setting: Setting
    validation: tuple[float, float] | None
    at_edge: bool


def rates_of(sweep: Sweep) -> list[float]:
    """The learning rates to choose from: as given for a grid, else RATES of them evenly on a logarithmic scale."""
    low, high = min(sweep.lr), max(sweep.lr)
    if isinstance(sweep.search, Grid) or low == high:
        return sorted(set(sweep.lr))
    step = math.log(high / low) / (RATES - 1)
    return [float(f"{low * math.exp(step * place):.3g}") for place in range(RATES)]


def table_of(sweep: Sweep, group: Group) -> list[Setting]:
    """Every setting that a group could try, cell by cell."""
    return [Setting(cell, lr) for cell in group.cells for lr in rates_of(sweep)]


def sampled(sweep: Sweep, group: Group) -> list[Setting]:
    """The settings that a group tries where nothing is learnt on the way: all in a grid, else so many at random."""
    table = table_of(sweep, group)
    if isinstance(sweep.search, Grid) or group.searched >= len(table):
        return table
    draw = random.Random(f"{sweep.search.seed} {group.cells[0].label}")
    return [table[place] for place in sorted(draw.sample(range(len(table)), group.searched))]


def rungs_of(sweep: Sweep, ready: Ready, setting: Setting) -> Rungs:
    """The trainings by which a setting is judged."""
    seeds = range(TUNING_SEED, TUNING_SEED + sweep.tuning_seeds)
    search = sweep.search
    shares = (
        [search.reduction ** -float(k) for k in reversed(range(search.rungs))] if isinstance(search, Asha) else [1.0]
    )
    return [
        [setting.cell.trial(ready, "validation", lr=setting.lr, seed=seed, stage="tune", shares=shares[: k + 1])
         for seed in seeds]
        for k in range(len(shares))
    ]  # fmt: skip


def choose(
    sweep: Sweep, ready: Ready, groups: Sequence[Group], runner: Runner, extra: list[Trial]
) -> list[Choice | None]:
    """The choice of each group; `extra` trials, which choose nothing, run beside them."""
    if isinstance(sweep.search, Asha | Optuna):
        runner.go("untouched models", extra)
        return [_searched(sweep, ready, group, runner) for group in groups]
    tried = [
        [(setting, rungs_of(sweep, ready, setting)) for setting in sampled(sweep, group)] if group.searched else []
        for group in groups
    ]
    trials = [trial for group in tried for _, rungs in group for trial in rungs[-1]]
    runner.go("choosing settings" if trials else "untouched models", extra + trials)
    return [
        _best(sweep, [(setting, _score(rungs[-1], runner)) for setting, rungs in some])
        if some
        else Choice(Setting(group.cells[0], sweep.lr[0]), None, at_edge=False)
        for group, some in zip(groups, tried, strict=True)
    ]


def _searched(sweep: Sweep, ready: Ready, group: Group, runner: Runner) -> Choice | None:
    """By Tune's ASHA or Optuna."""
    search = sweep.search
    settings = table_of(sweep, group) if isinstance(search, Optuna) else sampled(sweep, group)
    items = [rungs_of(sweep, ready, setting) for setting in settings]
    log = Log(runner.folder / f"search-{group.cells[0].label}.jsonl")
    before = log.read()
    left = group.searched - len(before) if isinstance(search, Optuna) else group.searched
    if left > 0 and not log.ended():
        how: dict[str, Any] = {"reduction": search.reduction} if isinstance(search, Asha) else {}
        if isinstance(search, Optuna):
            rows = len(group.cells)
            told = [(index, score) for index, (_, score) in before.items()]
            how["proposals"] = Proposals(rows, len(settings) // rows, left, search.seed, told)
        runner.search(f"searching {group.cells[0].label}", items, left, told=log.write, **how)
        log.end()
    deepest = {index: rung for index, (rung, _) in log.read().items()}
    for index, rung in deepest.items():
        for trial in items[index][rung]:
            runner.tell(trial)
    most = max(deepest.values(), default=0)
    return _best(sweep, [(settings[i], _score(items[i][rung], runner)) for i, rung in deepest.items() if rung == most])


@dataclass(frozen=True)
class Log:
    """A search's memory: a line for each rung that ended, and one for its own end."""

    path: Path

    def write(self, index: int, rung: int, score: float | None) -> None:
        """One rung of one setting; failures are no figures."""
        if score is not None and rung >= 0:
            self._append({"index": index, "rung": rung, "score": score})

    def read(self) -> dict[int, tuple[int, float]]:
        """Setting → the last rung that it reached, and its score there."""
        found: dict[int, tuple[int, float]] = {}
        for line in self._lines():
            if "index" in line:
                found[line["index"]] = max(found.get(line["index"], (-1, 0.0)), (line["rung"], line["score"]))
        return found

    def end(self) -> None:
        """Nothing more is to be tried."""
        self._append({"ended": True})

    def ended(self) -> bool:
        """Whether that was said."""
        return any("ended" in line for line in self._lines())

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(f"\n{json.dumps(line)}\n")  # after half a line that a killed process left

    def _lines(self) -> list[dict[str, Any]]:
        """All whole ones."""
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines


def _score(trials: Sequence[Trial], runner: Runner) -> tuple[float, float] | None:
    """Means over the tuning seeds; None where one failed."""
    found = [runner.metrics(trial) for trial in trials]
    if not all(found):
        return None
    figures = [(one["score"], -one["loss"]) for one in found if one]
    return sum(score for score, _ in figures) / len(figures), sum(loss for _, loss in figures) / len(figures)


def _best(sweep: Sweep, tried: Sequence[tuple[Setting, tuple[float, float] | None]]) -> Choice | None:
    scored = [(figures, setting.lr, setting) for setting, figures in tried if figures]
    if not scored:
        return None
    figures, lr, setting = max(scored, key=lambda one: one[:2])
    return Choice(setting, figures, at_edge=len(rates_of(sweep)) > 1 and lr in (min(sweep.lr), max(sweep.lr)))
