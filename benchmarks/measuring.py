"""How a figure is taken: interleaved repetitions, the median, and the peak of this process's own memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def medians(works: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each, run in turn, so that a machine that slows down slows all of them."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()  # not counted: caches, lazy imports, first allocations
    for _ in range(repeats):
        for work, taken in zip(works, times, strict=True):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]


def ratio(work: Callable[[], Any], reference: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of `work`, and the median over pairs of its time by the reference's; an even number of pairs.

    Which of the two goes first alternates: the second one may find memory that the first has made ready.
    """
    pairs = []
    for number in range(repeats + 1):
        taken = {}
        for name in ("reference", "work")[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            (work if name == "work" else reference)()
            taken[name] = time.perf_counter() - began
        pairs.append((taken["work"], taken["reference"]))
    pairs = pairs[1:]  # the first is not counted: caches, lazy imports, first allocations
    return statistics.median(own for own, _ in pairs), statistics.median(own / other for own, other in pairs)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most resident memory that `work` takes above what is there before it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is freed and still held would hide what is taken
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    work()
    return status("VmHWM") - before


def status(field: str) -> int:
    """A field of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table on stdout."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row) + " |")
