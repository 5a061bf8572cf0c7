"""What a trial does to its machine, sampled while it runs: MLflow's own monitors, under MLflow's own names.

    with sampled(path): train()      # path: one JSON line a sample, for the tracker to send when the trial is told

MLflow's thread for this writes to the server from wherever the work is; here only the driver writes, so that samples go
into a file like everything else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 5.0  # between two samples


def monitors() -> list[Any]:
    """CPU, memory, disk and network, and the GPUs where there are any."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except (ImportError, RuntimeError):  # no GPU here, or nothing to ask it with
        return found
    return found


@contextmanager
def sampled(path: Path, every: float = SECONDS) -> Iterator[None]:
    """Write a sample now, one every so many seconds, and a last one at the end."""
    ended, watched = threading.Event(), monitors()
    path.parent.mkdir(parents=True, exist_ok=True)

    def sample() -> None:
        values: dict[str, float] = {}
        for monitor in watched:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        with path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def go_on() -> None:
        sample()
        while not ended.wait(every):
            sample()
        sample()

    thread = threading.Thread(target=go_on, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def read(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Each figure's curve by sample; nothing where none was asked for."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if path.is_file():
        for step, line in enumerate(path.read_text().splitlines()):
            for name, value in json.loads(line).items():
                curves.setdefault(name, []).append((step, value))
    return curves
