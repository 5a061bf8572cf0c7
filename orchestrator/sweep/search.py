"""Which setting of each group goes on to the test split: the best one on the validation split.

    choices = choose(sweep, ready, groups, runner)      # per group its cell and learning rate, or None where all failed

Every group tries as many settings as its likes, by the same random seeds. What was tried, and how it ended, is kept in
the sweep's folder, so that a search that was interrupted goes on, and one that ended isn't made again.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.cluster.searches import FAILED, Halving, Proposals
from orchestrator.prepare.ready import Ready
from orchestrator.recipe import Asha, Grid, Optuna, Sweep
from orchestrator.store.files import appearing
from orchestrator.sweep.cells import Cell, check_rungs, seeds_of, tuning_of
from orchestrator.sweep.groups import Group, fine_tunings, rates_of
from orchestrator.sweep.runner import Runner
from orchestrator.sweep.stages import Stage
from orchestrator.sweep.trial import Trial

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
    tried: int  # settings that it was chosen from


def table_of(group: Group) -> list[Setting]:
    """Every setting that a group could try, cell by cell."""
    return [Setting(cell, lr) for cell in group.cells for lr in group.rates]


def sampled(sweep: Sweep, group: Group) -> list[Setting]:
    """The settings that a group tries where nothing is learnt on the way: all in a grid, else so many at random.

    Groups that could try the same try the same, a way and its control above all: rates that one had and the other
    hadn't would pass for a difference between them.
    """
    table = table_of(group)
    if isinstance(sweep.search, Grid) or group.searched >= len(table):
        return table
    draw = random.Random(sweep.search.seed)
    return draw.sample(table, group.searched)  # in no order: ASHA goes by who ends first


def rungs_of(sweep: Sweep, ready: Ready, setting: Setting) -> Rungs:
    """The trainings by which a setting is judged."""
    seeds, search = tuning_of(sweep), sweep.search
    check_rungs(sweep, setting.cell, len(ready.splits["train"]))
    shares = (
        [search.reduction ** -float(k) for k in reversed(range(search.rungs))] if isinstance(search, Asha) else [1.0]
    )
    return [
        [setting.cell.trial(ready, "validation", lr=setting.lr, seed=seed, stage="tune", shares=shares[: k + 1])
         for seed in seeds]
        for k in range(len(shares))
    ]  # fmt: skip


def choose(
    sweep: Sweep,
    ready: Ready,
    groups: Sequence[Group],
    runner: Runner,
    finals: Callable[[Choice], list[Trial]],
    before: Iterable[Stage] = (),
    ended: Callable[[Trial], object] = id,
) -> list[Choice | None]:
    """The choice of each group, with its `finals` run, `before` first.

    What the teacher's own row tells comes before the others', by `ended`.
    """
    order = sorted(range(len(groups)), key=lambda place: groups[place].cells[0].who != "teacher")
    if isinstance(sweep.search, Asha | Optuna):
        runner.go(before)
        found = _searched(sweep, ready, groups, runner)
        compared = [trial for place in order if (one := found[place]) for trial in finals(one)]
        runner.go([Stage("trials", compared, len(compared), lambda trial: (ended(trial), ())[1])])
        return found
    tried = [
        [(one, rungs_of(sweep, ready, one)[-1]) for one in sampled(sweep, group)] if group.searched else []
        for group in groups
    ]
    left = [{trial.step.fingerprint for _, trials in some for trial in trials} for some in tried]
    choices: list[Choice | None] = [None] * len(groups)

    def chosen(place: int) -> list[Trial]:
        choices[place] = _best(
            sweep,
            [(setting, _score(trials, runner)) for setting, trials in tried[place] if not runner.lost(trials)],
        )
        return finals(choice) if (choice := choices[place]) else []

    def then(trial: Trial) -> list[Trial]:
        """A group whose last setting has its score goes on, whatever the others do."""
        ended(trial)
        ready = [place for place, keys in enumerate(left) if keys and not keys - {trial.step.fingerprint}]
        for keys in left:
            keys.discard(trial.step.fingerprint)
        return [final for place in ready for final in chosen(place)]

    first: list[Trial] = []
    for place in order:
        group = groups[place]
        if group.searched:
            first += [trial for _, trials in tried[place] for trial in trials]
        else:
            choices[place] = sole = _sole(group)
            first += finals(sole)
    total = fine_tunings(sweep, [cell for group in groups for cell in group.cells])
    own = (group.cells[0] for group in groups if group.cells[0].who == "student")
    total += sum((len(ready.beside) + cell.recipe.arm.injects) * len(seeds_of(sweep, cell)) for cell in own)
    runner.go(itertools.chain(before, [Stage("trials", first, total, then)]))
    return choices


def _sole(group: Group) -> Choice:
    """Where there is nothing to choose."""
    return Choice(Setting(group.cells[0], group.rates[0]), None, at_edge=False, tried=1)


def _searched(sweep: Sweep, ready: Ready, groups: Sequence[Group], runner: Runner) -> list[Choice | None]:
    """By Tune's ASHA or Optuna, for all groups side by side."""
    found = {place: _Search.of(sweep, ready, group, runner) for place, group in enumerate(groups) if group.searched}
    left = [one for one in found.values() if one.left]
    owners = [(one, place) for one in left for place in range(len(one.items))]

    def told(index: int, rung: int, score: float | None) -> None:
        one, place = owners[index]
        one.log.write(place, rung, score)

    if left:
        ends = itertools.pairwise(itertools.accumulate((len(one.items) for one in left), initial=0))
        searches = [one.begun(range(*own)) for one, own in zip(left, ends, strict=True)]
        runner.search([one.items[place] for one, place in owners], searches, told)
    return [found[place].choice(runner) if place in found else _sole(group) for place, group in enumerate(groups)]


@dataclass(frozen=True)
class _Search:
    """One group's. One that was interrupted begins anew with ASHA, whose trainings are there already."""

    sweep: Sweep
    group: Group
    settings: list[Setting]
    items: list[Rungs]
    log: Log

    @classmethod
    def of(cls, sweep: Sweep, ready: Ready, group: Group, runner: Runner) -> _Search:
        settings = table_of(group) if isinstance(sweep.search, Optuna) else sampled(sweep, group)
        log = Log(runner.folder / f"search-{group.cells[0].label}.jsonl")
        return cls(sweep, group, settings, [rungs_of(sweep, ready, setting) for setting in settings], log)

    @property
    def before(self) -> list[tuple[int, float]]:
        """What an earlier process tried of Optuna's proposals; a lost try is none."""
        if not isinstance(self.sweep.search, Optuna):
            return []
        return [(index, score) for index, (_, score) in self.log.read().items() if score is not None]

    @property
    def left(self) -> int:
        """How many are still to be tried."""
        return 0 if self.log.ended() else max(0, self.group.searched - len(self.before))

    def begun(self, items: range) -> Halving | Proposals:
        """What Tune is to do with these items."""
        search, before = self.sweep.search, self.before
        self.log.keep(before)
        if isinstance(search, Asha):
            return Halving(items, search.reduction)
        assert isinstance(search, Optuna)
        columns = len(items) // len(self.group.cells)
        return Proposals(items, columns, self.group.searched - len(before), search.seed + len(before), before)

    def choice(self, runner: Runner) -> Choice | None:
        """The best of those that came furthest."""
        found = self.log.read()
        lost = sum(score is None for _, score in found.values())
        if found and not lost and not self.log.ended():
            self.log.end()  # a lost try is made again by the same command
        reached = {index: rung for index, (rung, score) in found.items() if score not in (None, FAILED)}
        for index, rung in reached.items():
            for trial in self.items[index][rung]:
                runner.tell(trial)
        most = max(reached.values(), default=0)
        tried = [(self.settings[i], _score(self.items[i][rung], runner)) for i, rung in reached.items() if rung == most]
        best = _best(self.sweep, tried)
        return best and replace(best, tried=self.group.searched - lost)  # those that ended early were tried, too


@dataclass(frozen=True)
class Log:
    """A search's memory: a line for each rung that ended, and one for its own end."""

    path: Path

    def write(self, index: int, rung: int, score: float | None) -> None:
        """One rung of one setting; FAILED where it can't be trained, None where the try was lost."""
        self._append({"index": index, "rung": rung, "score": score})

    def read(self) -> dict[int, tuple[int, float | None]]:
        """Setting → the last rung that it came to, and its score there; None for one that was lost at any."""
        found: dict[int, tuple[int, float | None]] = {}
        for line in self._lines():
            if "index" in line:
                before = found.get(line["index"], (-1, 0.0))
                lost = line["score"] is None or before[1] is None
                score = None if lost else line["score"] if line["rung"] > before[0] else before[1]
                found[line["index"]] = (max(before[0], line["rung"]), score)
        return found

    def keep(self, scored: Sequence[tuple[int, float]]) -> None:
        """These alone, each at its first rung."""
        with appearing(self.path) as file:
            file.write_text("".join(f"{json.dumps({'index': i, 'rung': 0, 'score': score})}\n" for i, score in scored))

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
    rates = rates_of(sweep)
    return Choice(setting, figures, at_edge=len(rates) > 1 and lr in (rates[0], rates[-1]), tried=len(tried))
