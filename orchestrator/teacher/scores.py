"""Sensitivities on disk: tiles under the parameter's own name, read back one parameter at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from orchestrator.errors import UserError
from orchestrator.teacher.files import FILE, LAYERS
from orchestrator.transfer.scores import Scores


def write_scores(scores: dict[str, Scores], folder: Path, prefix: str, layers: int) -> None:
    """What measuring leaves: every parameter's scores, and each layer's total. UserError where one isn't finite."""
    totals = layer_scores(scores, prefix, layers)
    if not all(map(math.isfinite, totals)):
        raise UserError("data: the losses are finite and the teacher's scores are not; try --set measure.dtype=float32")
    save_scores(scores, folder / FILE)
    (folder / LAYERS).write_text(json.dumps(totals) + "\n")


def layer_scores(scores: dict[str, Scores], prefix: str, layers: int) -> list[float]:
    """Each layer's sum of S over every parameter in it, norms and biases too."""
    return [
        sum(score.total for name, score in scores.items() if name.startswith(prefix.format(layer)))
        for layer in range(layers)
    ]


def save_scores(scores: dict[str, Scores], path: Path) -> None:
    """Tiles under the parameter's own name, rows and columns beside them where the granularity is above 1."""
    tensors, granularities = {}, {}
    for name, score in scores.items():
        tensors[name] = score.tiles.cpu().contiguous()
        if score.granularity > 1:
            tensors[f"{name}:rows"], tensors[f"{name}:cols"] = score.rows.cpu(), score.cols.cpu()
            granularities[name] = str(score.granularity)
    save_file(tensors, path, metadata=granularities)


def read_scores(path: Path, name: str) -> Scores:
    """One parameter's scores, without reading the others."""
    with safe_open(path, framework="pt") as tensors:
        tiles = tensors.get_tensor(name)
        granularity = int((tensors.metadata() or {}).get(name, 1))
        if granularity == 1:
            return Scores(tiles, torch.zeros(0), torch.zeros(0), 1)
        return Scores(tiles, tensors.get_tensor(f"{name}:rows"), tensors.get_tensor(f"{name}:cols"), granularity)
