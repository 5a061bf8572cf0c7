"""Many independent pieces of work over a cluster: Ray Tune as a queue with resources, and nothing else of it.

Tune places, bounds and reuses; what a piece of work computes goes into the store, so that Tune's own state is never
needed to resume.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ray import tune

from orchestrator.errors import UserError

T = TypeVar("T")


def run_trials(
    work: Callable[[T], dict[str, Any]],
    items: Sequence[T],
    done: Callable[[int, dict[str, Any]], None],
    *,
    cpus: float,
    gpus: float,
    at_once: int | None = None,
) -> None:
    """Call `work` on every item in worker processes that are reused; `done(index, result)` here as each ends.

    An exception in `work` ends its item alone: its result is {"error": one line, "traceback": all of it}. Needs a
    running Ray session. KeyboardInterrupt stops all workers and is raised again.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would finish what runs, and hide Ctrl-C from the caller
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer output prints a table whatever `verbose` says
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # no csv, json and TensorBoard copies of what the store has
    told = _Done(done)
    scratch = tempfile.mkdtemp(prefix="pkt-tune-")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trainable, work=work, items=list(items)), {"cpu": cpus, "gpu": gpus}),
        param_space={"index": tune.grid_search(list(range(len(items))))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=at_once, metric="index", mode="max"),
        run_config=tune.RunConfig(name="trials", storage_path=scratch, verbose=0, callbacks=[told]),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if told.error is not None:
        raise told.error


class _Done(tune.Callback):
    """Hands each finished trial to the caller. Tune pickles it with its own state, which nobody reads again."""

    def __init__(self, done: Callable[[int, dict[str, Any]], None]) -> None:
        self._done = done
        self.error: Exception | None = None

    def _tell(self, index: int, outcome: dict[str, Any]) -> None:
        try:
            self._done(index, outcome)
        except Exception as error:  # here it would end Tune's loop and all that still runs; the caller gets it after
            self.error = self.error or error

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial.config["index"], trial.last_result["outcome"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file else "the worker died"
        self._tell(trial.config["index"], {"error": text.strip().splitlines()[-1], "traceback": text})


def _trainable(config: dict[str, Any], work: Callable[[Any], dict[str, Any]], items: list[Any]) -> None:
    try:
        outcome = work(items[config["index"]])
    except Exception as error:  # whatever it is, it is this trial's result and not the sweep's end
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        outcome = {"error": f"{kind}{error}".splitlines()[0], "traceback": traceback.format_exc()}
    tune.report({"outcome": outcome, "index": config["index"]})
