"""From trials to scores: what the store has is taken, the rest is made on Ray, and each trial is told to the tracker.

`sweep.py` says which trials there are, `hands.py` what each step is given of the machines, `work.py` what a worker does
with it.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.cluster.searches import FAILED, Halving, Proposals, judged
from orchestrator.cluster.session import session
from orchestrator.cluster.trials import Rungs, run_trials
from orchestrator.errors import UserError, disk_is_full
from orchestrator.run import Run
from orchestrator.scoring.evaluate import read_metrics
from orchestrator.step import Step, lacking
from orchestrator.store import Store
from orchestrator.store.directory import LATE
from orchestrator.sweep.hands import Hands
from orchestrator.sweep.kept import Weights
from orchestrator.sweep.labbook import beside_record, trial_record
from orchestrator.sweep.screen import Screen
from orchestrator.sweep.stages import Stage, Stages
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.work import under_way
from orchestrator.tasks.rows import light
from orchestrator.tracking.run_record import Record, Status
from orchestrator.tracking.tracker import NullTracker, Tracker


@dataclass
class Runner:
    """Has a sweep's trials done: in one Ray session for all that the store lacks, in none where it lacks nothing."""

    store: Store
    run: Run
    key: str  # the sweep's, under which its trials are tracked
    screen: Screen
    folder: Path  # the sweep's own
    tracker: Tracker = field(default_factory=NullTracker)
    told: Record | None = None  # the sweep's own record, once it is under way
    failed: dict[str, dict[str, str]] = field(default_factory=dict)  # fingerprint → label and reason
    late: float = LATE  # seconds for which a worker's result may not be seen here

    def __enter__(self) -> Runner:
        self._stack = ExitStack()
        self._gpus: float | None = None
        self._labels: dict[str, str] = {}  # of the trials that are asked for, by fingerprint
        self._shares: set[str] = set()  # of what many build on: asked for
        self._notes = self.folder.with_name(f".{self.folder.name}.running")  # how far each of them is
        self._under_way = partial(under_way, self._notes, self._labels)
        self._stack.callback(shutil.rmtree, self._notes, ignore_errors=True)
        shutil.rmtree(self._notes, ignore_errors=True)  # of a process that was killed
        self._notes.mkdir(parents=True)
        self._weights = Weights(self.store, self.folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if self.told and kind:
            self.end("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED", seconds=2)
        self._stack.close()

    def begin(self, tracker: Tracker, record: Record) -> None:
        """The sweep's own run is under way: its trials go below it."""
        self.tracker, self.told = tracker, record
        tracker.put(record)

    def end(self, status: Status, *, folder: Path | None = None, seconds: float) -> None:
        """The sweep's own run has ended. What can't be told within the time waits on disk, and that is said."""
        assert self.told is not None
        artifacts = [(str(folder), "sweep")] if folder else []
        self.tracker.put(replace(self.told, status=status, artifacts=artifacts, time_ms=int(time.time() * 1000)))
        self.told = None
        try:
            self._send(seconds)
        except KeyboardInterrupt:  # whoever won't wait is told what waits
            self._send(0)
            raise

    def _send(self, seconds: float) -> None:
        left = self.tracker.flush(seconds)
        if left.records:
            reason = left.reason or "no answer yet"
            self.screen.warn(f"{left.records} records wait for MLflow ({reason}); the same command again sends them")

    def go(self, stages: Iterable[Stage]) -> None:
        """Have every trial's score and tell the tracker: stage by stage, in one queue.

        A failed one is noted with its reason, unless it only tried a setting that can't be trained.
        """
        with Stages(stages, self._there, self._taken, self.screen, self._under_way) as those:
            self._run(those.next(), those.tick, those.after, those.next)

    def _there(self, trial: Trial) -> bool:
        return self._folder(trial) is not None

    def _taken(self, trial: Trial) -> bool:
        """Whether it was finished before."""
        self._note(trial)
        if not self._there(trial):
            return False
        self._weights.let_go(trial.step)
        self.tell(trial)
        return True

    def search(
        self,
        settings: Sequence[Rungs[Trial]],
        searches: Sequence[Halving | Proposals],
        told: Callable[[int, int, float | None], None],
    ) -> None:
        """Let Tune decide which settings are tried and how far.

        `told` gets index, rung and score: FAILED of a setting that can't be trained, None where the try was lost.
        """

        def after(*result: Any) -> Sequence[Rungs[Trial]]:
            told(*result)
            return ()

        trials = [trial for rungs in settings for rung in rungs for trial in rung]
        for trial in trials:
            self._note(trial)
        with self.screen.trials("searching", sum(one.count for one in searches), self._under_way) as tick:
            self._run(settings, tick, after, searches=searches)
        for trial in trials:
            self._weights.let_go(trial.step)

    def metrics(self, trial: Trial) -> dict[str, Any] | None:
        """The finished trial's figures, None where it failed."""
        folder = self._folder(trial)
        return read_metrics(folder) if folder else None

    def lost(self, trials: Iterable[Trial]) -> bool:
        """Whether one of them failed for no fault of its setting, which is not to be judged by it."""
        return any(trial.step.fingerprint in self.failed for trial in trials)

    def _session(self) -> float:
        """A trial's share of GPUs, once Ray runs."""
        if self._gpus is None:
            cpus, gpus, workers = self.run.cpus_per_trial, self.run.gpus_per_trial, self.run.workers
            self._gpus = self._stack.enter_context(session(cpus=cpus, gpus=gpus, workers=workers))
        return self._gpus

    def _run(
        self,
        first: Sequence[Rungs[Trial]],
        tick: Callable[[str], None],
        after: Callable[[int, int, float | None], Sequence[Rungs[Trial]]],
        more: Callable[[], Sequence[Rungs[Trial]]] = tuple,
        searches: Sequence[Halving | Proposals] = (),
    ) -> None:
        """Have these done, and those that `after` names, and `more` once none is left: all in one queue, with the
        teacher's steps that they wait for.
        """
        if not first:
            return
        gpus = self._session()
        hands = Hands(self.store, self.run, gpus, self._notes)
        items: list[tuple[int | None, Rungs[Trial]]] = []  # with the caller's numbers; what is shared has none
        numbers = itertools.count()
        left: set[int] = set()  # of the items, those that haven't ended

        def works(new: Sequence[Rungs[Trial]]) -> list[Rungs[Step]]:
            shared = self._before(trial for rungs in new for trial in rungs[0])
            added = [*((None, [[one]]) for one in shared), *((next(numbers), rungs) for rungs in new)]
            asked: list[Rungs[Step]] = [
                [[light(trial.step, self.store) for trial in rung] for rung in rungs] for _, rungs in added
            ]
            hands.expect(asked, alone=not left)
            left.update(range(len(items), len(items) + len(added)))
            items.extend(added)
            return asked

        def done(index: int, rung: int, outcomes: list[dict[str, Any]]) -> list[Rungs[Step]]:
            number, rungs = items[index]
            if rung in (-1, len(rungs) - 1):
                left.discard(index)  # told twice of one whose process dies after its last rung
            if number is None:
                self._shared(rungs[0][0], rung, outcomes[0])
                hands.look_again()
                return []
            outcomes = [self._done(*one) for one in zip(rungs[max(rung, 0)], outcomes, strict=False)]
            scores = [outcome["score"] for outcome in outcomes if "score" in outcome]
            whole = len(scores) == len(outcomes)
            score = sum(scores) / len(scores) if whole else FAILED if judged(outcomes) else None
            spent = rungs[rung - 1] if rung > 0 else ()  # the next rung has gone on from them
            for trial in (*spent, *(rungs[rung] if rung == len(rungs) - 1 else ())):
                self._weights.let_go(trial.step)
            if rung <= 0:
                name = rungs[0][0].label
                tick(f"{score:.3f} {name}" if whole else name)
            return works(after(number, rung, score) or (() if left else more()))

        asked = works(first)
        shift = len(asked) - len(first)
        run_trials(
            hands.work,
            asked,
            done,
            cpus=0 if hands.group else self.run.cpus_per_trial,
            gpus=0 if hands.group else gpus,
            at_once=hands.at_once,
            searches=[replace(one, items=range(one.items.start + shift, one.items.stop + shift)) for one in searches],
            asks=hands.asks,
            ready=hands.ready,
            near=self.store.apart,  # no file system joins the nodes: what ranks write is where the worker is
        )

    def _before(self, trials: Iterable[Trial]) -> list[Trial]:
        """The teacher's steps that these wait for and nobody has asked for yet, inputs first."""
        found: dict[str, Trial] = {}
        for trial in trials:
            for step in lacking(trial.step, self.store):
                if step.fingerprint not in self._shares:
                    found[step.fingerprint] = Trial(step.name, step)
        self._shares |= found.keys()
        self._labels |= dict.fromkeys(found, "")
        return list(found.values())

    def _shared(self, trial: Trial, rung: int, outcome: dict[str, Any]) -> None:
        """A teacher's step has ended. Where it failed nothing more is begun, and the sweep ends with the reason."""
        outcome = self._seen(trial, outcome)
        if "error" not in outcome:
            return
        self.screen.warn(f"{trial.label} failed; what runs now is waited for, and kept")
        if outcome["judged"]:
            raise UserError(outcome["words"])
        if rung < 0:
            raise UserError(
                f"{trial.label}: {outcome['error']}; what was finished is kept, and the same command goes on from there"
            )
        raise RuntimeError(f"{trial.label}: {outcome['error']}\n{outcome['traceback']}")

    def _done(self, trial: Trial, outcome: dict[str, Any]) -> dict[str, Any]:
        """Record what came of a trial, and return it: a score counts once its files are seen in the store from here."""
        outcome = self._seen(trial, outcome)
        if reason := outcome.get("error"):
            if trial.params.get("stage") == "trial" or not outcome.get("judged"):
                self.failed[trial.step.fingerprint] = {"label": trial.label, "reason": reason}
            self.screen.warn(f"{trial.label} failed: {reason}")
            (self.store.root / "failures").mkdir(parents=True, exist_ok=True)
            (self.store.root / "failures" / f"{trial.step.fingerprint}.txt").write_text(outcome["traceback"])
        elif trial.step.name == "evaluate":
            self.tell(trial)
        return outcome

    def _seen(self, trial: Trial, outcome: dict[str, Any]) -> dict[str, Any]:
        """The outcome, once the step's folder is seen from here. A full disk ends the sweep: nothing could be kept."""
        self._labels.pop(trial.step.fingerprint, None)
        for line in outcome.get("warnings", ()):
            self.screen.warn(line)
        for line in outcome.get("ended", ()):
            self.screen.say(line)
        if "error" not in outcome and not self.store.awaited(trial.step.name, trial.step.fingerprint, self.late):
            self.late = 0.0  # the store isn't shared, and nothing is gained by waiting for others
            unseen = self.store.not_shared()
            return {"error": unseen, "words": unseen, "traceback": unseen, "judged": False}
        if disk_is_full(outcome.get("error", "")):
            raise OSError(f"{trial.label}: {outcome['error']}")
        return outcome

    def _folder(self, trial: Trial) -> Path | None:
        return self.store.find(trial.step.name, trial.step.fingerprint)

    def tell(self, trial: Trial) -> None:
        """Record a finished trial, once."""
        if self._folder(trial) is None or self.tracker.finished(f"{self.key}/{trial.step.fingerprint}"):
            return
        weights, made = self._weights.needed(trial.step), (trial.params, trial.step)
        if trial.of:
            self.tracker.put(beside_record(self.store, self.key, trial.of, *made))
        else:
            self.tracker.put(trial_record(self.store, self.key, trial.label, *made, weights=weights))

    def _note(self, trial: Trial) -> None:
        self._labels[trial.step.fingerprint] = trial.label
        self._weights.note(trial.step, tried=trial.params.get("stage") == "tune" and not self.run.keep_tuned)
