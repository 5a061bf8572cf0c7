"""What tests have ranks do. A module of its own, since a rank's process imports by name what it is to run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cluster.ranks import Member
from orchestrator.cluster.sharding import sharded
from orchestrator.errors import UserError
from orchestrator.models.freed import give_back
from orchestrator.teacher.measure import Measuring, measuring
from orchestrator.teacher.teacher_pass import opened


def die() -> None:
    """As the kernel ends a process for want of memory."""
    print("about to be killed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def dying_once(job: Measuring, member: Member) -> Iterator[Any]:
    """Measures; rank 1 is killed after its second round, the first time."""
    mark = job.partial / "died"
    for number, event in enumerate(measuring(job, member)):
        yield event
        if member.rank == 1 and number == 1 and not mark.exists():
            mark.touch()
            die()


def dying_at_the_third(job: Measuring, member: Member) -> Iterator[Any]:
    """Measures two rounds, and then the whole group is gone."""
    for number, event in enumerate(measuring(job, member)):
        yield event
        if number == 1:
            die()


def shards_or_not(job: Measuring, member: Member) -> Iterator[bool]:
    """Whether a rank's parameters lie elsewhere than on itself: DeepSpeed leaves empty tensors in their places."""
    with opened(job, member) as model:
        yield any(parameter.numel() == 0 for parameter in model.parameters())


def square(item: int) -> int:
    """Anything but 13."""
    if item == 13:
        raise UserError("data: 13 brings bad luck")
    return item * item


def process(_: int) -> int:
    """Who does it."""
    return os.getpid()


def node(_: int) -> str:
    """Where it is done."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def memory_of_shards(folder: str, member: Member) -> Iterator[tuple[int, int]]:
    """Bytes of anonymous memory above what is there before: the most while loading, and after. Mapped files aside."""
    import deepspeed  # noqa: F401  (so that its own size is in what is there before)
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401

    give_back()
    before = anonymous()
    with watching() as most, sharded(folder, member, dtype=torch.float32):
        yield most[0] - before, anonymous() - before


@contextmanager
def watching() -> Iterator[list[int]]:
    """The most anonymous memory while open, looked at all the time: the kernel keeps no high-water mark of it."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def anonymous() -> int:
    """This process's own memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
