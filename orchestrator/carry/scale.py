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
    name = json.loads((carried / "adapter_config.json").read_text())["base_model_name_or_path"]
    embeddings, starts = adapters.embeddings_of(carried), {}
    for module, start in adapters.read_update(carried).items():
        kept = product_svd(*start).truncate(rank)
        starts[module] = (kept.u * kept.s, kept.vh)
    starts = adapters.of_one_rank(starts)
    adapters.write_start(folder, starts, base_name=name, embeddings=embeddings)
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
    best = min(losses, key=lambda factor: (losses[factor], factor))
    chosen = {module: (best * b, a) for module, (b, a) in starts.items()}
    adapters.write_start(folder, chosen, base_name=name, embeddings=embeddings)
    (folder / SCALE).write_text(json.dumps({str(factor): loss for factor, loss in losses.items()}) + "\n")
    return {"scale": best, "losses": losses}
