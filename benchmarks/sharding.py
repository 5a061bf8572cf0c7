"""What each of 1, 2 and 4 ranks holds of a model, and what crosses between them while it is measured."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import status, table

CONFIG = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 512}
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 512}
EXAMPLES, LENGTH, TOKENS = 32, 64, 128


def main() -> None:
    """Both tables, from one run of each number of ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, sizes in (("model", CONFIG), ("small", SMALL)):
            model = LlamaForCausalLM(LlamaConfig(**sizes))
            model.save_pretrained(folder / name, max_shard_size="60MB")
        whole = sum(p.numel() * 4 for p in LlamaForCausalLM(LlamaConfig(**CONFIG)).parameters())
        held: dict[int, list[int]] = {}
        sent = []
        for ranks in (1, 2, 4):
            libraries = [max(column) for column in zip(*_spawn(_held, ranks, str(folder / "small")), strict=True)]
            found = [max(column) for column in zip(*_spawn(_held, ranks, str(folder / "model")), strict=True)]
            held[ranks] = [part - base for part, base in zip(found, libraries, strict=True)]
            if ranks > 1:
                sent.append((ranks, *_traffic(_spawn(_sent, ranks, str(folder / "model")), whole)))
    table(
        f"Memory of a rank's own above a tiny model's, {whole / 1e6:.0f} MB of float32 parameters (gloo, one machine)",
        ("ranks", "after loading", "÷ (model / ranks)", "most while loading (sampled)"),
        [(n, f"{after / 1e6:.0f} MB", after * n / whole, f"{most / 1e6:.0f} MB") for n, (most, after) in held.items()],
    )
    table(
        f"Bytes that a rank receives in one micro-batch of {TOKENS} tokens, ÷ the parameters it doesn't hold",
        ("ranks", "gathered", "reduce-scattered", "other collectives a pass", "statistics, once"),
        sent,
    )
    print("\nTargets: 1 / N; gathers alone (forward, recomputed forward, backward), nothing reduce-scattered.")


def _traffic(ranks: list[dict[str, int]], whole: int) -> tuple[float, str, str, str]:
    counted = ranks[0]
    rounds = EXAMPLES * LENGTH // TOKENS // len(ranks) - 1
    elsewhere = whole * (len(ranks) - 1) / len(ranks)
    return (
        counted["gather"] / rounds / elsewhere,
        f"{counted['reduce_scatter']} B",
        f"{counted['other']} B",
        f"{counted['reduce'] / 1e6:.1f} MB",
    )


def _spawn(work: Callable[..., Any], ranks: int, folder: str) -> list[Any]:
    """What each rank's work returns; each in a process of its own."""
    import torch.multiprocessing as processes

    with socket.socket() as free:
        free.bind(("", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    results = processes.get_context("spawn").SimpleQueue()
    processes.spawn(_rank, (ranks, address, work, folder, results), nprocs=ranks)
    return [results.get() for _ in range(ranks)]


def _rank(rank: int, ranks: int, address: str, work: Callable[..., Any], folder: str, results: Any) -> None:
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", WORLD_SIZE=str(ranks), RANK=str(rank))
    import torch

    from orchestrator.cluster.ranks import Member
    from orchestrator.models.freed import give_back

    torch.set_num_threads(1)
    for stream in (sys.stdout, sys.stderr):  # libraries' notices; an error comes back as one
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    give_back()
    results.put(work(folder, Member(rank, ranks, address)))


def _held(folder: str, member: Any) -> tuple[int, int]:
    """Anonymous bytes: the most while loading, and after."""
    import threading

    import torch

    from orchestrator.cluster.sharding import sharded

    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], status("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    with sharded(folder, member, dtype=torch.float32):
        after = status("RssAnon")
        over.set()
        thread.join()
        return max(most[0], after), after


def _sent(folder: str, member: Any) -> dict[str, int]:
    """Bytes received in measuring, by kind of collective."""
    counted: Counter[str] = Counter()
    _count(counted, member.world)
    from orchestrator.cluster import sharding
    from orchestrator.cluster.ranks import Placement
    from orchestrator.tasks.template import Encoded
    from orchestrator.teacher.measure import Measuring, measuring

    sharding.GATHERED = 12_000_000  # one layer of eight, so that none waits gathered for its backward pass
    rows = [list(range(number, number + LENGTH)) for number in range(EXAMPLES)]
    encoded = [Encoded(str(number), row, row) for number, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as made:
        job = Measuring(
            folder, encoded, 0, "float32", Path(made), Placement(member.world, tokens=TOKENS),
            out=Path(made), granularity=64, checkpoint_every=EXAMPLES,
        )  # fmt: skip
        rounds = measuring(job, member)
        next(rounds)  # loading and the first round, whose gathers are those of each of the others
        counted.clear()
        for _ in rounds:
            pass
    return {kind: counted[kind] for kind in ("gather", "reduce_scatter", "reduce", "other")}


def _count(counted: Counter[str], ranks: int) -> None:
    """Have every collective say how many bytes it brings; before DeepSpeed looks the functions up."""
    import torch.distributed as dist

    kinds = {
        "all_gather_into_tensor": "gather", "all_gather_single": "gather", "all_gather": "gather",
        "reduce_scatter_tensor": "reduce_scatter", "reduce_scatter": "reduce_scatter", "reduce": "reduce",
        "all_reduce": "other", "broadcast": "other",
    }  # fmt: skip
    inside = [0]

    def counting(name: str, kind: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if not inside[0]:
                first = args[0] if args else next(iter(options.values()))
                tensors = first if isinstance(first, list) else [first]
                size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
                counted[kind] += size * (ranks - 1) // ranks if kind == "gather" else size
            inside[0] += 1
            try:
                return plain(*args, **options)
            finally:
                inside[0] -= 1

        return call

    for name, kind in kinds.items():
        if hasattr(dist, name):
            setattr(dist, name, counting(name, kind, getattr(dist, name)))
