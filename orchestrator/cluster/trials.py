"""Many independent pieces of work over a cluster: Ray Tune as a queue with resources, and its searches where asked for.

Tune places, bounds, reuses and proposes; what a piece of work computes goes into the store, so that Tune's own state is
never needed to resume.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.errors import UserError

T = TypeVar("T")
Rungs = Sequence[Sequence[T]]  # an item's works: those of a rung together make its score, and the next goes further
# Index, rung and what each work of the rung returned → items that this one makes possible
Done = Callable[[int, int, list[dict[str, Any]]], Sequence[Rungs[T]]]
TIE = 1e-6  # of the loss, off the score: it decides among equal scores alone
FAILED = -1.0
RETRIES = 3  # of an item whose process died
MANY = 200  # items at once where the cluster alone decides: as for Tune, enough to make one grow


@dataclass(frozen=True)
class Proposals:
    """Items that a sampler picks from, in place of all in turn: `items[row * columns + column]`."""

    rows: int
    columns: int
    count: int
    seed: int
    told: Sequence[tuple[int, float]] = ()  # items that were tried before, with their scores


def run_trials(
    work: Callable[[T], dict[str, Any]],
    items: Sequence[Rungs[T]],
    done: Done[T],
    *,
    cpus: float,
    gpus: float,
    at_once: int | None = None,
    reduction: int | None = None,
    proposals: Proposals | None = None,
) -> None:
    """Call `work` on every item's rungs in worker processes that are reused; `done(index, rung, results)` as each ends.

    What `done` returns joins the queue, so that the workers of one stage are those of the next. With `reduction` ASHA
    lets one in so many go on to its next rung; the score of a result decides. An exception in `work` ends its item
    alone: the result is {"error": one line, "traceback": all of it}. An item whose process dies is begun again; after
    RETRIES its rung is -1. Needs a running Ray session. KeyboardInterrupt stops all workers and is raised again.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would finish what runs, and hide Ctrl-C from the caller
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer output prints a table whatever `verbose` says
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # no csv, json and TensorBoard copies of what the store has
    # Of a worker's death Ray says a line, and the caller one once it is final: no traceback of Tune's besides.
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    queue = _Queue(items)
    told = _Done(done, queue)
    # Without a bound Tune asks for one worker, waits until it is there, and asks for the next.
    options: dict[str, Any] = {"search_alg": queue, "num_samples": -1, "max_concurrent_trials": at_once or MANY}
    space: dict[str, Any] = {}
    if reduction:
        depth = max(len(item) for item in items)
        options["scheduler"] = tune.schedulers.ASHAScheduler(
            time_attr="budget", max_t=reduction ** (depth - 1), grace_period=1, reduction_factor=reduction
        )
    if proposals:
        space = {"row": tune.choice(list(range(proposals.rows))), "column": tune.randint(0, proposals.columns)}
        options |= {"search_alg": _sampler(proposals, queue), "num_samples": proposals.count}
        options["max_concurrent_trials"] = at_once or max(1, proposals.count // 4)  # or all would be proposed blindly
    scratch = tempfile.mkdtemp(prefix="pkt-tune-")
    trainable = tune.with_parameters(_trainable, work=work, reduction=reduction or 1)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus}),
        param_space=space,
        tune_config=tune.TuneConfig(reuse_actors=True, metric="score", mode="max", **options),
        run_config=tune.RunConfig(
            name="trials", storage_path=scratch, verbose=0, callbacks=[told],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )  # fmt: skip
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if told.error is not None:
        raise told.error


class _Queue(Searcher):
    """Items in turn, for as long as any that runs may add others."""

    def __init__(self, items: Sequence[Any]) -> None:
        super().__init__(metric="score", mode="max")
        self._items, self._next = list(items), 0
        self._running: set[str] = set()
        self._again: list[int] = []
        self._lost: Counter[int] = Counter()

    def add(self, items: Sequence[Any]) -> None:
        """At the end."""
        self._items += items

    def again(self, index: int) -> bool:
        """Whether an item that never began will be begun: the process that was kept for it had died."""
        self._lost[index] += 1
        if not self._next or self._lost[index] > RETRIES:  # a sampler hands its own items out
            return False
        self._again.append(index)
        return True

    def stop(self) -> None:
        """What has not begun is not wanted any more."""
        self._next, self._again = len(self._items), []

    def item(self, index: int) -> dict[str, Any]:
        """A trial's configuration: Ray's store holds the work itself, since Tune writes each configuration down."""
        return {"index": index, "item": ray.put([tuple(works) for works in self._items[index]])}

    def suggest(self, trial_id: str) -> Any:
        """The next one; None while there may be another."""
        if self._again:
            index = self._again.pop()
        elif self._next < len(self._items):
            index, self._next = self._next, self._next + 1
        else:
            return None if self._running else Searcher.FINISHED
        self._running.add(trial_id)
        return self.item(index)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """After its results were told."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is never needed to resume."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


def _sampler(proposals: Proposals, queue: _Queue) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "search: optuna is not installed; pip install 'pkt[search]', or take --search random"
        ) from error
    from ray.tune.search.optuna import OptunaSearch

    class Sampler(OptunaSearch):
        def suggest(self, trial_id: str) -> Any:
            point = super().suggest(trial_id)
            return point and queue.item(point["row"] * proposals.columns + point["column"])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
    before = [{"row": index // proposals.columns, "column": index % proposals.columns} for index, _ in proposals.told]
    sampler = optuna.samplers.TPESampler(n_startup_trials=max(2, proposals.count // 4), seed=proposals.seed)
    return Sampler(
        metric="score", mode="max", sampler=sampler,
        points_to_evaluate=before or None, evaluated_rewards=[score for _, score in proposals.told] or None,
    )  # fmt: skip


class _Done(tune.Callback):
    """Hands each finished rung to the caller. Tune pickles it with its own state, which nobody reads again."""

    def __init__(self, done: Done[Any], queue: _Queue) -> None:
        self._done, self._queue = done, queue
        self._told: set[tuple[int, int]] = set()
        self.error: Exception | None = None

    def _tell(self, index: int, rung: int, outcomes: list[dict[str, Any]]) -> None:
        if self.error or (index, rung) in self._told:  # one that was begun again finds its first rungs in the store
            return
        self._told.add((index, rung))
        try:
            self._queue.add(self._done(index, rung, outcomes))
        except Exception as error:  # here it would end Tune's loop and all that still runs; the caller gets it after
            self.error = error
            self._queue.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._tell(result["index"], result["rung"], result["outcomes"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.num_failures <= RETRIES and self._queue.again(trial.config["index"]):
            return
        text = Path(trial.error_file).read_text() if trial.error_file else "the worker died"
        last = text.strip().splitlines()[-1]
        self._tell(
            trial.config["index"],
            -1,
            [{"error": f"its process died {RETRIES + 1} times: {last}", "traceback": text}],
        )


def _trainable(config: dict[str, Any], work: Callable[[Any], dict[str, Any]], reduction: int) -> None:
    for rung, works in enumerate(ray.get(config["item"])):
        outcomes = [_guarded(work, one) for one in works]
        failed = any("error" in outcome for outcome in outcomes)
        values = [outcome.get("score", 0.0) - TIE * outcome.get("loss", 0.0) for outcome in outcomes]
        score = FAILED if failed else sum(values) / len(values)
        place = {"index": config["index"], "rung": rung, "budget": reduction**rung}
        tune.report({**place, "outcomes": outcomes, "score": score})
        if failed:
            return


def _guarded(work: Callable[[Any], dict[str, Any]], item: Any) -> dict[str, Any]:
    try:
        return work(item)
    except Exception as error:  # whatever it is, it is this item's result and not the sweep's end
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return {"error": f"{kind}{error}".splitlines()[0], "traceback": traceback.format_exc()}
