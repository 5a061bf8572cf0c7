"""Which trials are wanted next: a stage's, those that its finished ones make possible, and then the next stage's.

All stages are one queue: a worker of one, whose start takes as long as a small training, is one of the next where the
work there is given as much of the machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from orchestrator.cluster.trials import Rungs
from orchestrator.sweep.screen import Screen
from orchestrator.sweep.trial import Trial


@dataclass(frozen=True)
class Stage:
    """Trials that are shown together; `then` names those that a finished one makes possible.

    One that an earlier stage had is not among them again.
    """

    what: str
    trials: Sequence[Trial]
    total: int
    then: Callable[[Trial], Sequence[Trial]] = lambda _: ()


class Stages:
    """What is lacking of stages, each of which is asked for once the one before it has ended: it may depend on it.

    `there` says of a trial whether the store has its score; `taken` does so before it is queued, and has it told. While
    open, the stage under way is on the screen, beside what is `running`.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        there: Callable[[Trial], bool],
        taken: Callable[[Trial], bool],
        screen: Screen,
        running: Callable[[], str],
    ) -> None:
        self._coming, self._there, self._taken = iter(stages), there, taken
        self._screen, self._running = screen, running
        self._queue: list[Trial] = []
        self._asked: set[tuple[str, str | None]] = set()
        self._alike: dict[str, list[Trial]] = {}  # by a step that is on its way: who has the same one, as seeds share
        self._shown = ExitStack()

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def next(self) -> list[Rungs[Trial]]:
        """Of the first stage that lacks anything, all that can be begun; nothing once there is no such stage."""
        self._shown.close()  # what is done before the next may take a while, and has lines of its own
        for stage in self._coming:
            self._then = stage.then
            self._tick = self._shown.enter_context(self._screen.trials(stage.what, stage.total, self._running))
            asked, queued = len(self._asked), len(self._queue)
            if found := self._lacking(stage.trials):
                if before := len(self._asked) - asked - (len(self._queue) - queued):
                    self._screen.say(f"{before} of {stage.total} trials were finished before")
                return found
            self._shown.close()
        return []

    def tick(self, line: str) -> None:
        """One more of the stage under way is done."""
        self._tick(line)

    def after(self, index: int, *_: object) -> list[Rungs[Trial]]:
        """Those that this one makes possible, by its place among all that were named."""
        trial = self._queue[index]
        others = self._alike.pop(trial.step.fingerprint, []) if self._there(trial) else []  # what failed would again
        return self._lacking([*trial.after, *self._then(trial), *others])

    def _lacking(self, trials: Sequence[Trial]) -> list[Rungs[Trial]]:
        """What the store lacks of them, and of those that the others make possible."""
        before, looked = len(self._queue), deque(trials)
        while looked:
            trial = looked.popleft()
            if (one := (trial.step.fingerprint, trial.of)) in self._asked:
                continue
            if one[0] in self._alike:
                self._alike[one[0]].append(trial)
                continue
            self._asked.add(one)
            if self._taken(trial):
                self._tick(trial.label)
                looked.extend([*trial.after, *self._then(trial)])
            else:
                self._alike[one[0]] = []
                self._queue.append(trial)
        return [[[trial]] for trial in self._queue[before:]]
