"""`pkt`: its verbs, and the exit status and the line with which each of them ends."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.exceptions import TyperException

from orchestrator.errors import UserError, disk_is_full

app = typer.Typer(
    name="pkt",
    help="Move what a large language model knows into a small one, as a LoRA adapter, and say whether it helped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register() -> None:
    """One verb a file; each imports what is heavy when it is called."""
    from cli import (
        compare,
        compose,
        doctor,
        export,
        extract,
        jobs,
        models,
        plan,
        report,
        run,
        store,
        strategies,
        sweep,
        tasks,
        ui,
        widen,
    )

    about_results = (compare, compose, report, export, ui)
    for module in (sweep, run, extract, plan, *about_results, widen, models, tasks, strategies, doctor):
        name = module.__name__.rsplit(".", 1)[-1]
        app.command(name)(_stoppable(getattr(module, name)))
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(store.app, name="store")


class Stopped(Exception):
    """Ctrl-C, which typer would turn into a bare exit status."""


def _stoppable(verb: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(verb)
    def call(*args: Any, **options: Any) -> int:
        try:
            return verb(*args, **options)
        except KeyboardInterrupt as stop:
            raise Stopped(*stop.args) from stop

    return call


_register()


def main() -> NoReturn:
    """Exit 0 done, 1 some trial failed or the disk is full, 2 bad input (one line, no traceback), 130 Ctrl-C."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two processes whose threads spin slow each other tenfold
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is Ctrl-C, too
        sys.unraisablehook = _unraisable
        code = app(standalone_mode=False)
    except TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except (Stopped, KeyboardInterrupt) as stop:
        other = f", as does: {stop}" if str(stop) else ""
        _fail(f"stopped; what was finished is kept, and the same command goes on from there{other}", 130)
    except Exception as error:
        if disk_is_full(error) and not debug:
            reason = next(line for line in str(error).splitlines() if disk_is_full(line))
            _fail(f"{reason}; what was finished is kept: make room, and the same command goes on from there", 1)
        if isinstance(error, UserError) and not debug:
            _fail(str(error), 2)
        raise
    else:
        sys.exit(code or 0)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that comes while an object of a library's is cleared away would be printed and lost: it comes again."""
    if what.exc_type is KeyboardInterrupt:
        # a signal to the thread that may be waiting: `interrupt_main` would be noticed once that has ended
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(what)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"pkt: {' '.join(message.split())}", err=True)
    sys.exit(code)


def entry() -> NoReturn:
    """`pkt`: `main` in a process of its own, which ends with the status and without what Python does at its end.

    That takes a second after a sweep, in which a Ctrl-C or a thread of a library's (seen: a segmentation fault after
    Ctrl-C) would put its own status in place of ours. What was opened is closed by then, and nothing runs.
    """
    try:
        main()
    except SystemExit as end:
        with suppress(BrokenPipeError):  # of `pkt ... | head`
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(int(end.code or 0))
