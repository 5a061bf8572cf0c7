"""Window search and truncated SVD, against the ways that they replace."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import medians, peak_bytes, table
from orchestrator.models.loading import Weights, source_of
from orchestrator.transfer.blocks import Window, best_window
from orchestrator.transfer.lowrank import truncated_svd
from orchestrator.transfer.place import Place
from orchestrator.transfer.scores import Scores


def main() -> None:
    torch.set_num_threads(2)
    window()
    svd()
    large()


def window() -> None:
    scores = torch.rand(5120, 5120, generator=torch.Generator().manual_seed(0))

    def loop_sample() -> None:
        """The published loop on a prefix-sum table, over one position in a hundred."""
        sums = torch.zeros(5121, 5121, dtype=torch.float64)
        sums[1:, 1:] = scores.double().cumsum(0).cumsum(1)
        best = -1.0
        for row in range(0, 1025, 10):
            for col in range(0, 1025, 10):
                total = float(
                    sums[row + 4096, col + 4096] - sums[row, col + 4096] - sums[row + 4096, col] + sums[row, col]
                )
                best = max(best, total)

    def full_table() -> None:
        sums = torch.zeros(5121, 5121, dtype=torch.float64)
        sums[1:, 1:] = scores.double().cumsum(0).cumsum(1)
        (sums[4096:, 4096:] - sums[:-4096, 4096:] - sums[4096:, :-4096] + sums[:-4096, :-4096]).argmax()

    ours, full, sample = medians([lambda: best_window(scores, (4096, 4096)), full_table, loop_sample], 3)
    loop = full + (sample - full) * (1025 * 1025) / (103 * 103)
    rows = [
        ("pkt", ours, 1.0),
        ("2-D prefix sums", full, full / ours),
        ("loop over positions (extrapolated from 1 %)", loop, loop / ours),
    ]
    table("Best 4096 x 4096 window of 5120 x 5120, 2 threads", ("way", "s", "÷ pkt"), rows)
    print("\nTarget: ≤ 0.2 s.")


def svd() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(4096, 4096, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(4096, 4096, generator=generator)).Q
    slow = u * torch.arange(1, 4097).float().pow(-0.25) @ v.T
    weights = Weights(Path(source_of("demo-teacher", "teacher")))
    names = ("model.layers.3.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight")
    rows = [("4096², σ_i ∝ i^(-1/4), rank 16", *_against_full(slow, 16, repeats=3))]
    rows += [(f"demo teacher's {name}, rank 16", *_against_full(weights.get(name), 16, repeats=20)) for name in names]
    table("Truncated SVD, 2 threads", ("matrix", "pkt s", "full s", "full ÷ pkt", "share of the best energy"), rows)
    print("\nTargets at 4096²: ≥ 50 x faster, ≥ 99.9 % of the best energy. Small matrices are decomposed in full.")


def large() -> None:
    """A feed-forward matrix of a 70B model for a 7B one, as extraction does it: window, block, factors."""
    shape, wanted = (28672, 8192), (11008, 4096)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).bfloat16()
    rows = []
    for g in (1, 128):
        scores = Scores.zeros(torch.Size(shape), g, weight.device)
        scores.tiles = torch.rand(scores.tiles.shape, generator=generator)

        def cut(scores: Scores = scores) -> None:
            block = Window().select(scores, Place("up", wanted, ("ffn", "residual")))
            truncated_svd(block.take(weight).float(), 64)

        peak = peak_bytes(cut)
        (seconds,) = medians([cut], 1)
        held = peak + scores.tiles.numel() * 4 + weight.numel() * 2
        rows.append((g, seconds, f"{peak / 1e9:.2f} GB", f"{held / 1e9:.2f} GB", held / (4 * weight.numel())))
    table(
        "Window 11008 x 4096 of 28672 x 8192 and factors of rank 64, 2 threads",
        ("granularity", "s", "above weight and scores", "in all", "÷ the matrix in float32"),
        rows,
    )
    print("\nTargets: ≤ 15 s; ≤ 3 times the matrix in float32.")


def _against_full(matrix: Tensor, rank: int, *, repeats: int) -> tuple[float, float, float, str]:
    (ours,) = medians([lambda: truncated_svd(matrix, rank)], repeats)
    began = time.perf_counter()
    best = torch.linalg.svd(matrix, full_matrices=False).S[:rank]
    full = time.perf_counter() - began
    kept = float(truncated_svd(matrix, rank).s.square().sum() / best.square().sum())
    return ours, full, full / ours, f"{kept:.5f}"
