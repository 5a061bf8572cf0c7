"""Carrying an update over: reading both models beside plain forward passes, and one layer of a 70B teacher's."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import peak_bytes, ratio, table
from orchestrator.carry.inputs import inputs
from orchestrator.carry.pairs import pairs
from orchestrator.models.loading import load, load_tokenizer, source_of
from orchestrator.tasks import TASKS, rows
from orchestrator.tasks.aligned import read_by
from orchestrator.tasks.template import collate
from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.sides import Matrix, Side
from orchestrator.transfer.transport import averaged, summed

TEACHER = {"residual": 8192, "query": 8192, "key": 1024, "ffn": 28672}  # channels of a 70B Llama 2
STUDENT = {"residual": 4096, "query": 4096, "key": 4096, "ffn": 11008}  # and of a 7B one
SIDES = {  # of a layer, and what their channels count: neurons are compared after their activation
    "before attention": "residual", "queries": "query", "keys": "key", "values": "key", "heads": "query",
    "attention": "residual", "before neurons": "residual", "neurons": "ffn", "after neurons": "residual",
}  # fmt: skip
LAYER = {  # what each matrix of a layer reads and writes
    "q": ("before attention", "queries"), "k": ("before attention", "keys"), "v": ("before attention", "values"),
    "o": ("heads", "attention"), "gate": ("before neurons", "neurons"), "up": ("before neurons", "neurons"),
    "down": ("neurons", "after neurons"),
}  # fmt: skip
RANK = 64
FEW, DEFAULT = 1024, 2560  # tokens: `carry.tokens` and a quarter more to hold out
READ = {"template": "plain", "max_tokens": 512}


def main() -> None:
    torch.set_num_threads(2)
    reading()
    layer()
    plans()


def reading() -> None:
    """The step that writes down what both models have at drawn tokens, and two plain passes over the same rows."""
    name = os.environ.get("PKT_BENCH_MODEL") or source_of("demo-teacher", "teacher")
    data = os.environ.get("PKT_BENCH_DATA")
    task = TASKS["gsm8k" if data else "demo"]
    texts = task.splits(f"{data}/gsm8k" if data else None)["train"][: 32 if data else 400]
    model, tokenizer = load(name, dtype="float32"), load_tokenizer(name)
    encoded = [read_by(text, "plain", tokenizer, 512) for text in texts]
    batches = [collate(encoded[at : at + 8], tokenizer.pad_token_id) for at in range(0, len(encoded), 8)]

    def plain() -> None:
        with torch.no_grad():
            for _ in range(2):
                for batch in batches:
                    model(
                        input_ids=batch["input_ids"],
                        attention_mask=batch["attention_mask"],
                        use_cache=False,
                        logits_to_keep=1,
                    )

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for part in ("texts", "pairs"):
            (folder / part).mkdir()
        rows.write(folder / "texts", rows=[text.model_dump() for text in texts])
        pairs(folder / "pairs", texts=folder / "texts", teacher=name, student=name, tokens=FEW, **READ)  # type: ignore[arg-type]
        turn = iter(range(100))

        def read() -> None:
            at = folder / str(next(turn))
            for side in (0, 1):
                own, partial = at / str(side), at / f"{side}-partial"
                own.mkdir(parents=True)
                partial.mkdir()
                inputs(
                    own, pairs=folder / "pairs", texts=folder / "texts", model=name, side=side, dtype="float32",
                    partial=partial, **READ,  # type: ignore[arg-type]
                )  # fmt: skip

        seconds, share = ratio(read, plain, 4)
    began = time.perf_counter()
    for _ in range(2):
        load(name, dtype="float32")
    loading = time.perf_counter() - began
    table(
        "Activations of two models, 2 threads",
        ("rows", "s", "÷ two forward passes", "of it without loading"),
        [(len(texts), seconds, share, share * (1 - loading / seconds))],
    )
    print("\nTarget: ≤ 1.15.")


def side(axis: str, tokens: int) -> Side:
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(tokens, 256, generator=draw)
    both = [
        shared @ torch.randn(256, width, generator=draw) / 16 + 0.3 * torch.randn(tokens, width, generator=draw)
        for width in (TEACHER[axis], STUDENT[axis])
    ]
    return Side(both[0], both[1], tokens // 5, axis, 0)


def layer() -> None:
    """Every matrix of a layer by each way that reads texts: its maps, and what becomes of an update of rank 64."""
    found = []
    for kind, tokens in (("theseus", FEW), ("theseus", DEFAULT), ("ridge", FEW), ("ridge", DEFAULT)):
        axes = {axis: side(axis, tokens) for axis in TEACHER}

        def carry(method: object = ARMS[kind](), axes: dict[str, Side] = axes) -> None:
            sides = {name: replace(axes[axis], made={}) for name, axis in SIDES.items()}
            for reads, writes in LAYER.values():
                draw = torch.Generator().manual_seed(1)
                b = torch.randn(TEACHER[SIDES[writes]], RANK, generator=draw)
                a = torch.randn(RANK, TEACHER[SIDES[reads]], generator=draw)
                method.carry(Matrix(b, a, sides[reads], sides[writes]))  # type: ignore[attr-defined]

        found.append((kind, tokens, *_taken(carry)))
    axes = {axis: side(axis, FEW) for axis in TEACHER}

    def merge() -> None:
        for reads, writes in ([SIDES[name] for name in LAYER[role]] for role in ("q", "k", "v", "o")):
            weight = torch.randn(TEACHER[writes], TEACHER[reads])
            read, written = axes[reads], axes[writes]
            half = summed(weight, read.teacher, read.student, 0.05)
            averaged(half.t(), written.teacher, written.student, 0.05)

    found.append(("transport_merge, attention", FEW, *_taken(merge)))
    title = f"Maps and transport of one layer, 70B to 7B, rank {RANK}, 2 threads"
    table(title, ("way", "tokens", "s", "GB above what was there"), found)
    print("\nTargets: ≤ 60 s, ≤ 8 GB.")


def plans() -> None:
    """Sinkhorn between the feed-forward channels of both."""
    own = side("ffn", FEW)
    weight: Tensor = torch.randn(8, TEACHER["ffn"])
    found = [("11008 x 28672", *_taken(lambda: averaged(weight, own.teacher, own.student, 0.05)))]
    table("A transport plan of feed-forward channels, 2 threads", ("channels", "s", "GB above what was there"), found)
    print("\nTarget: ≤ 16 GB.")


def _taken(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and GB; the first time is for the memory alone."""
    peak = peak_bytes(work)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began, peak / 1e9
