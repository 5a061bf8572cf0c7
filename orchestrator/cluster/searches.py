"""Which piece of work is next, and which goes on: a queue, ASHA and Optuna, any number of searches side by side.

Each search is judged by its own items alone, so that one that does well ends no other's early.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.errors import UserError

FAILED = -1.0  # the score of an item that failed
DRAWS = 100  # of a sampler, until it names an item that wasn't tried
RETRIES = 3  # of an item whose process died
Bundles = list[dict[str, float]]  # each on one node; the first is the process's own, the others are for those it starts


@dataclass(frozen=True)
class Halving:
    """Items of which one in so many goes on to its next rung, judged by these alone (ASHA)."""

    items: range
    reduction: int

    @property
    def count(self) -> int:
        """Of the items that are begun: all."""
        return len(self.items)


@dataclass(frozen=True)
class Proposals:
    """Items that a sampler picks from, in place of all in turn: `items[row * columns + column]` (Optuna)."""

    items: range
    columns: int
    count: int
    seed: int
    told: Sequence[tuple[int, float]] = ()  # places among them that were tried before, with their scores


def judged(outcomes: Sequence[dict[str, Any]]) -> bool:
    """Whether each has its score, or can't be had: none was lost with its process or machine."""
    return all("score" in outcome or outcome.get("judged") for outcome in outcomes)


class Queue(Searcher):
    """Items in turn, and those that samplers propose, for as long as any that runs may add others.

    Those that aren't `ready` yet, as another has to be done before, are passed over meanwhile. `asks` are the bundles
    of resources that an item is placed with.
    """

    def __init__(
        self,
        items: Sequence[Any],
        halved: Sequence[Halving],
        proposals: Sequence[Proposals],
        asks: Callable[[Any], Bundles] = lambda item: [],
        ready: Callable[[Any], bool] = lambda item: True,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._items = list(items)
        self._samplers = [_Sampler(one) for one in proposals]
        self._reductions = {index: one.reduction for one in halved for index in one.items}
        proposed = {index for one in proposals for index in one.items}
        self._waiting = deque(index for index in range(len(items)) if index not in proposed)
        self._running: dict[str, _Sampler | None] = {}
        self._proposed: dict[int, _Sampler] = {}
        self._asks, self._is_ready = asks, ready
        self._blocked: set[int] = set()
        self._look(range(len(items)))
        self._stopped = False
        self._lost: Counter[int] = Counter()

    def add(self, items: Sequence[Any]) -> None:
        """At the end. Something was done, so that others may be ready by now."""
        new = range(len(self._items), len(self._items) + len(items))
        self._waiting.extend(new)
        self._items += items
        self._look({*self._blocked, *new})

    def _look(self, items: Iterable[int]) -> None:
        self._blocked = {index for index in items if not self._is_ready(self._items[index])}

    def again(self, index: int) -> bool:
        """Whether an item that never began will be begun: the process that was kept for it had died."""
        self._lost[index] += 1
        if self._stopped or self._lost[index] > RETRIES:
            return False
        self._waiting.appendleft(index)
        return True

    @property
    def left(self) -> int:
        """Items that nobody has begun."""
        return len(self._waiting)

    def stop(self) -> None:
        """What has not begun is not wanted any more."""
        self._stopped = True
        self._waiting.clear()
        self._samplers.clear()

    def suggest(self, trial_id: str) -> Any:
        """The next one's configuration; None while there may be another."""
        free = [sampler for sampler in self._samplers if sampler.free and not self._blocked & set(sampler.items)]
        index = next((index for index in self._waiting if index not in self._blocked), None)
        if index is not None:
            self._waiting.remove(index)
            if sampler := self._proposed.get(index):
                sampler.repeat(trial_id, index)
        elif free:
            sampler = min(free, key=lambda one: len(one.running))
            index = sampler.propose(trial_id)
            self._proposed[index] = sampler
        else:
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = sampler
        # Ray's store holds the work itself, since Tune writes each configuration down
        item = ray.put([tuple(works) for works in self._items[index]])
        reduction, asks = self._reductions.get(index, 1), self._asks(self._items[index])
        return {"index": index, "item": item, "reduction": reduction, "asks": asks}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """After its results were told."""
        if sampler := self._running.pop(trial_id, None):
            known = result and not error and judged(result["outcomes"])
            sampler.learn(trial_id, result["score"] if result and known else None)

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is never needed to resume."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class _Sampler:
    """Optuna's, for the items of one search, each proposed once: the same seeds would only give the same score.

    With more than a quarter of them at once it would propose blindly.
    """

    def __init__(self, search: Proposals) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "search: optuna is not installed; pip install 'pkt[search]', or take --search random"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        quarter = search.count // 4
        self._untried = set(range(len(search.items))) - {place for place, _ in search.told}
        self.items = search.items
        self._search, self._left, self._most = search, min(search.count, len(self._untried)), max(1, quarter)
        self._draw = random.Random(search.seed)
        self._refused = optuna.trial.TrialState.FAIL
        self._space = {
            "row": optuna.distributions.CategoricalDistribution(range(len(search.items) // search.columns)),
            "column": optuna.distributions.IntDistribution(0, search.columns - 1),
        }
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=max(2, quarter), seed=search.seed),
        )
        for place, score in search.told:
            point = self._point(place)
            self._study.add_trial(optuna.trial.create_trial(params=point, distributions=self._space, value=score))
        self.running: dict[str, Any] = {}

    @property
    def free(self) -> bool:
        """Whether another may be begun now."""
        return self._left > 0 and len(self.running) < self._most

    def _point(self, place: int) -> dict[str, int]:
        return dict(zip(self._space, divmod(place, self._search.columns), strict=True))

    def propose(self, trial_id: str) -> int:
        """The index of an item."""
        for number in range(DRAWS + 1):
            if number == DRAWS:  # it insists on what it knows
                self._study.enqueue_trial(self._point(self._draw.choice(sorted(self._untried))))
            trial = self._study.ask(self._space)
            place = trial.params["row"] * self._search.columns + trial.params["column"]
            if place in self._untried:
                break
            self._study.tell(trial, state=self._refused)
        self._untried.remove(place)
        self._left -= 1
        self.running[trial_id] = trial
        return self._search.items[place]

    def repeat(self, trial_id: str, index: int) -> None:
        """An item that was lost before it began is begun again."""
        self._study.enqueue_trial(self._point(index - self._search.items.start))
        self.running[trial_id] = self._study.ask(self._space)

    def learn(self, trial_id: str, score: float | None) -> None:
        """What it came to; nothing is learnt of one that was lost."""
        trial = self.running.pop(trial_id)
        if score is None:
            self._study.tell(trial, state=self._refused)
        else:
            self._study.tell(trial, score)


class Apart(FIFOScheduler):
    """ASHA for the items of each search by themselves; all others go to their end."""

    def __init__(self, searches: Iterable[Halving], items: Sequence[Any]) -> None:
        super().__init__()
        self._others = FIFOScheduler()
        self._own: dict[int, FIFOScheduler] = {}
        for one in searches:
            depth = max(len(items[index]) for index in one.items)
            asha = ASHAScheduler(
                metric="score", mode="max", time_attr="budget", max_t=one.reduction ** (depth - 1), grace_period=1,
                reduction_factor=one.reduction,
            )  # fmt: skip
            self._own |= dict.fromkeys(one.items, asha)

    def _of(self, trial: Any) -> FIFOScheduler:
        return self._own.get(trial.config["index"], self._others)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """As the other events: told to whom it concerns."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker died."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether it goes on."""
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last rung has ended."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """It never began."""
        self._of(trial).on_trial_remove(tune_controller, trial)
