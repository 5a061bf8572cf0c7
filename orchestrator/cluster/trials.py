"""Many independent pieces of work over a cluster: Ray Tune as a queue with resources, and its searches where asked for.

Tune places, bounds, reuses and proposes; what a piece of work computes goes into the store, so that Tune's own state is
never needed to resume.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune

from orchestrator.cluster.broken import Broken, give_back, remedy
from orchestrator.cluster.searches import FAILED, RETRIES, Apart, Bundles, Halving, Proposals, Queue
from orchestrator.errors import UserError, passes

T = TypeVar("T")
Rungs = Sequence[Sequence[T]]  # an item's works: those of a rung together make its score, and the next goes further
# Index, rung and what each work of the rung returned → items that this one makes possible
Done = Callable[[int, int, list[dict[str, Any]]], Sequence[Rungs[T]]]
TIE = 1e-6  # of the loss, off the score: it decides among equal scores alone
PATIENCE = 15.0  # seconds before what may have passed by then is tried again
WAITING = {"memory": 2.0**20}  # of a worker that waits for others: Tune wants it to ask for something
MANY = 200  # items at once where the cluster alone decides: as for Tune, enough to make one grow


def run_trials(
    work: Callable[[T], dict[str, Any]],
    items: Sequence[Rungs[T]],
    done: Done[T],
    *,
    cpus: float,
    gpus: float,
    at_once: int | None = None,
    searches: Sequence[Halving | Proposals] = (),
    patience: float = PATIENCE,
    asks: Callable[[Rungs[T]], Bundles | None] = lambda item: None,
    ready: Callable[[Rungs[T]], bool] = lambda item: True,
    near: bool = False,
) -> None:
    """Call `work` on every item's rungs in worker processes that are reused; `done(index, rung, results)` as each ends.

    What `done` returns joins the queue, so that the workers of one stage are those of the next. `searches` run side by
    side, and the score of a result decides for its own alone. An exception in `work` ends its item alone: the result is
    {"error": one line, "words": its own, "traceback": all of it, "judged": whether it is a UserError}. An item whose
    process dies, or has to end (`broken.py`), is begun again in another, and so, after `patience` seconds, is one that
    met a disk or a network at a bad moment; after RETRIES its rung is -1.

    Each item has `cpus` and `gpus`; without `cpus`, `work` has others do it, who ask for their own. An item for which
    `asks` names bundles has these, set aside before it is begun, for it and for those that it starts (`near`: on one
    node). One that isn't `ready`, as others have to be done before, is begun after them.

    Needs a running Ray session. KeyboardInterrupt stops all workers and is raised again.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would finish what runs, and hide Ctrl-C from the caller
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer output prints a table whatever `verbose` says
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # no csv, json and TensorBoard copies of what the store has
    # Of a worker's death Ray says a line, and the caller one once it is final: no traceback of Tune's besides.
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    halved = [one for one in searches if isinstance(one, Halving)]
    usual = [{"CPU": cpus, "GPU": gpus} if cpus else WAITING]
    queue = Queue(
        items, halved, [one for one in searches if isinstance(one, Proposals)], lambda item: asks(item) or usual, ready
    )
    told = _Done(done, queue)
    scratch = tempfile.mkdtemp(prefix="pkt-tune-")
    trainable = tune.with_parameters(_trainable, work=work, patience=patience)
    strategy = "STRICT_PACK" if near else "PACK"
    tuner = tune.Tuner(
        tune.with_resources(trainable, lambda config: tune.PlacementGroupFactory(config["asks"], strategy=strategy)),
        tune_config=tune.TuneConfig(
            reuse_actors=True, metric="score", mode="max", search_alg=queue, scheduler=Apart(halved, items),
            # Without a bound Tune asks for one worker, waits until it is there, and asks for the next.
            num_samples=-1, max_concurrent_trials=at_once or MANY,
        ),
        run_config=tune.RunConfig(
            name="trials", storage_path=scratch, verbose=0, callbacks=[told],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )  # fmt: skip
    try:
        tuner.fit()
    except RuntimeError as error:  # Tune knows workers that died, but not those that Ray ended to save the rest
        if not isinstance(error.__cause__, ray.exceptions.OutOfMemoryError):
            raise
        used = re.search(r"[\d.]+GB used / [\d.]+GB limit", str(error.__cause__))
        raise UserError(
            f"trials: a machine has no memory left ({used[0] if used else 'says Ray'}), and a worker was ended; what"
            " was finished is kept: free some, or take fewer --trials-at-once, and the same command goes on from there"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if told.error is not None:
        raise told.error
    if queue.left:
        raise RuntimeError(f"{queue.left} items were never begun: what they wait for was not made")


class _Done(tune.Callback):
    """Hands each finished rung to the caller. Tune pickles it with its own state, which nobody reads again."""

    def __init__(self, done: Done[Any], queue: Queue) -> None:
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

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if (last := _last_words(trial)) and (reason := last.partition(f"{_Passing.__name__}: ")[2]):
            logging.getLogger("pkt").warning("%s; it is tried again", reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.num_failures <= RETRIES and self._queue.again(trial.config["index"]):
            return
        last = _last_words(trial) or "the worker died"
        if reason := last.partition(f"{_Passing.__name__}: ")[2]:
            reason = f"{RETRIES + 1} times: {reason}"
        else:
            last = "killed, or out of memory" if "actor is dead" in last else last  # Ray goes on for six lines
            last = last.removeprefix(f"{Broken.__module__}.{Broken.__name__}: ")
            reason = f"its process died {RETRIES + 1} times: {last}"
        text = Path(trial.error_file).read_text() if trial.error_file else last
        told = {"error": reason, "words": reason, "traceback": text, "judged": False}
        self._tell(trial.config["index"], -1, [told])


def _last_words(trial: Any) -> str:
    """The last line of what Tune wrote down of a trial's failures."""
    text = Path(trial.error_file).read_text().strip() if trial.error_file else ""
    return text.splitlines()[-1] if text else ""


class _Passing(Exception):
    """What went wrong may have passed when the item is begun again."""


def _trainable(config: dict[str, Any], work: Callable[[Any], dict[str, Any]], patience: float) -> None:
    for rung, works in enumerate(ray.get(config["item"])):
        outcomes = [_guarded(work, one, patience) for one in works]
        failed = any("error" in outcome for outcome in outcomes)
        values = [outcome.get("score", 0.0) - TIE * outcome.get("loss", 0.0) for outcome in outcomes]
        score = FAILED if failed else sum(values) / len(values)
        place = {"index": config["index"], "rung": rung, "budget": config["reduction"] ** rung}
        tune.report({**place, "outcomes": outcomes, "score": score})
        if failed:
            return


def _guarded(work: Callable[[Any], dict[str, Any]], item: Any, patience: float) -> dict[str, Any]:
    try:
        return work(item)
    except Broken:  # those that it had do the work
        raise
    except Exception as error:  # whatever it is, it is this item's result and not the sweep's end
        memory = remedy(error)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        line = f"{kind}{error}".splitlines()[0] + (f"; {memory}" if memory else "")
        if passes(error):
            time.sleep(patience)
            raise _Passing(line) from error
        judged = isinstance(error, UserError)  # what was asked for can't be done, however often it is begun
        told = {"error": line, "words": str(error), "traceback": traceback.format_exc(), "judged": judged}
    if memory:
        give_back()
    return told
