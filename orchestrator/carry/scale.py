"""How much of a carried update the student is given: as much as lowers its loss on validation rows, or nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
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
from orchestrator.transfer.arms.carried import OTHERS
from orchestrator.transfer.lowrank import product_svd
from orchestrator.transfer.sides import norm_of

SCALE = "scale.json"
TINY = 1e-30  # of nothing nothing is made


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
    by_role: bool = False,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write the adapter, its strongest directions at the `rank` of the trial, at the one of `scales` of least mean loss
    of gold answers, and all their losses (scale.json). The smaller scale wins a tie. `by_role`: from there on, each
    role's matrices (all q, all k, ...) in turn at the one of OTHERS that lowers the loss, if one does.
    """
    _write(folder, carried, rank, {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, losses = load_tokenizer(model), {}
    encoded = fitted(data.read(rows), template, tokenizer, max_tokens).rows
    with borrowed(model, dtype=dtype, device=device) as base, adapters.wearing(base, folder) as network:
        layers = adapters.lora_layers(network)
        whole = {name: layer.scaling["default"] for name, layer in layers.items()}

        def loss(chosen: Mapping[str, float]) -> float:
            for name, layer in layers.items():
                layer.scaling["default"] = whole[name] * chosen[_role(name)]
            return statistics.fmean(gold_losses(network, encoded, tokenizer.pad_token_id))

        roles = sorted({_role(name) for name in layers})
        for factor in track(sorted(scales), "choosing a scale", len(scales)):
            losses[factor] = loss(dict.fromkeys(roles, factor))
        best = min(losses, key=lambda factor: (losses[factor], factor))
        chosen = dict.fromkeys(roles, best)
        if by_role and best:
            least = losses[best]
            for role in track(roles, "choosing a scale for each role", len(roles)):
                for other in (chosen | {role: best * other} for other in OTHERS):
                    if (found := loss(other)) < least:
                        chosen, least = other, found
    _write(folder, carried, rank, chosen)
    told = {"scale": best, "losses": {str(factor): one for factor, one in losses.items()}, "chosen": chosen}
    (folder / SCALE).write_text(json.dumps(told) + "\n")
    return told


def as_scaled(folder: Path, *, carried: Path, scaled: Path, rank: int) -> dict[str, Any]:
    """Write a control's adapter, each matrix at the norm that its arm's was given (`scaled`).

    A scale of its own would be chosen before any step, where a random update of four times the size may happen to lower
    the loss that it then never learns to lower further: to beat such a control is nothing.
    """
    starts, given = _kept(carried, rank), adapters.read_update(scaled)
    for module, (b, a) in starts.items():
        wanted = norm_of(*given[module]) if module in given else 0.0
        starts[module] = (b * (wanted / max(norm_of(b, a), TINY)), a)
    _save(folder, carried, starts)
    told = json.loads((scaled / SCALE).read_text())
    return {name: told[name] for name in ("scale", "chosen")}


def _role(module: str) -> str:
    return module.rsplit(".", 1)[-1]


def _write(folder: Path, carried: Path, rank: int, chosen: Mapping[str, float]) -> None:
    """The strongest directions of a carried update, times a factor for each role."""
    starts = {name: (chosen.get(_role(name), 1.0) * b, a) for name, (b, a) in _kept(carried, rank).items()}
    _save(folder, carried, starts)


def _kept(carried: Path, rank: int) -> dict[str, adapters.Start]:
    found = {}
    for module, start in adapters.read_update(carried).items():
        kept = product_svd(*start).truncate(rank)
        found[module] = (kept.u * kept.s, kept.vh)
    return found


def _save(folder: Path, carried: Path, starts: dict[str, adapters.Start]) -> None:
    name = json.loads((carried / "adapter_config.json").read_text())["base_model_name_or_path"]
    embeddings = adapters.embeddings_of(carried)
    adapters.write_start(folder, adapters.of_one_rank(starts), base_name=name, embeddings=embeddings)
