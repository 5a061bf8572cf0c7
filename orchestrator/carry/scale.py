"""How much of a carried update the student is given: as much as lowers its loss on validation rows, or nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.models import adapters
from orchestrator.models.borrowed import borrowed
from orchestrator.models.loading import load_tokenizer
from orchestrator.scoring.engine import gold_losses
from orchestrator.step import Track, silent
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import TemplateName, fitted
from orchestrator.transfer.lowrank import product_svd

SCALE = "scale.json"
SCALES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the carried update; Theseus looks between 0 and 5


def scale(
    folder: Path,
    *,
    carried: Path,
    rows: Path,
    model: str,
    template: TemplateName,
    max_tokens: int,
    dtype: str,
    scales: Sequence[float],
    rank: int,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write the adapter, its strongest directions at the `rank` of the trial, at the one of `scales` of least mean loss
    of gold answers, and all their losses (scale.json). The smaller scale wins a tie.
    """
    _write(folder, carried, rank, 1.0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, losses = load_tokenizer(model), {}
    encoded = fitted(data.read(rows), template, tokenizer, max_tokens).rows
    with borrowed(model, dtype=dtype, device=device) as base, adapters.wearing(base, folder) as network:
        layers = adapters.lora_layers(network).values()
        whole = [layer.scaling["default"] for layer in layers]
        for factor in track(sorted(scales), "choosing a scale", len(scales)):
            for layer, one in zip(layers, whole, strict=True):
                layer.scaling["default"] = one * factor
            losses[factor] = statistics.fmean(gold_losses(network, encoded, tokenizer.pad_token_id))
    best = _least(losses)
    _write(folder, carried, rank, best)
    (folder / SCALE).write_text(json.dumps({str(factor): loss for factor, loss in losses.items()}) + "\n")
    return {"scale": best, "losses": losses}


def as_scaled(folder: Path, *, carried: Path, scaled: Path, rank: int) -> dict[str, Any]:
    """Write a control's adapter at the scale that its arm was given (`scaled`), so that both are of one norm.

    A scale of its own would be chosen before any step, where a random update of four times the size may happen to lower
    the loss that it then never learns to lower further: to beat such a control is nothing.
    """
    losses = json.loads((scaled / SCALE).read_text())
    best = _least({float(factor): loss for factor, loss in losses.items()})
    _write(folder, carried, rank, best)
    return {"scale": best}


def _least(losses: dict[float, float]) -> float:
    return min(losses, key=lambda factor: (losses[factor], factor))


def _write(folder: Path, carried: Path, rank: int, factor: float) -> None:
    """The strongest directions of a carried update, times a factor."""
    name = json.loads((carried / "adapter_config.json").read_text())["base_model_name_or_path"]
    starts = {}
    for module, start in adapters.read_update(carried).items():
        kept = product_svd(*start).truncate(rank)
        starts[module] = (factor * kept.u * kept.s, kept.vh)
    embeddings = adapters.embeddings_of(carried)
    adapters.write_start(folder, adapters.of_one_rank(starts), base_name=name, embeddings=embeddings)
