"""The teacher's sensitivities on the seed examples: the one pass that all trials of a sweep share."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from orchestrator.errors import UserError
from orchestrator.models.families import FAMILIES, Geometry
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.steps import data
from orchestrator.steps.step import Track, silent
from orchestrator.tasks.template import Encoded, TemplateName, collate, encode
from orchestrator.transfer.sensitivity import Scores, collect, example_losses

FILE = "sensitivities.safetensors"
TOKENS_AT_ONCE = 4096


def measure(
    folder: Path,
    *,
    seeds: Path,
    teacher: str,
    template: TemplateName,
    max_tokens: int,
    granularity: int,
    dtype: str,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write S of every parameter of the teacher, and each layer's total.

    UserError where an example's loss is not finite, with the example's id.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(teacher)
    encoded = [encode(example, template, tokenizer, max_tokens) for example in data.read(seeds)]
    model = load(teacher, dtype=dtype, device=device)
    row = FAMILIES[model.config.model_type]
    with collect(model, granularity=granularity, norm_offset=row.norm_offset) as scores:
        for batch in track(batches(encoded), "measuring the teacher", len(batches(encoded))):
            backward(model, batch, tokenizer.pad_token_id)
    save_scores(scores, folder / FILE)
    layers = layer_scores(scores, row.layer, Geometry.of(model.config).layers)
    (folder / "layers.json").write_text(json.dumps(layers) + "\n")
    return {"examples": len(encoded), "tokens": sum(len(example.ids) for example in encoded)}


def backward(model: nn.Module, batch: list[Encoded], pad: int) -> None:
    """One forward and backward pass over some examples; what it leaves is in whoever collects."""
    device = next(model.parameters()).device
    tensors = {name: tensor.to(device) for name, tensor in collate(batch, pad).items()}
    labels = tensors.pop("labels")
    losses = example_losses(model(**tensors, use_cache=False).logits, labels)
    for example, loss in zip(batch, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise UserError(
                f"data: the teacher's loss on seed example {example.id!r} is {loss}; leave that example out"
            )
    losses.sum().backward()


def batches(encoded: list[Encoded]) -> list[list[Encoded]]:
    """Examples of like length together, at most TOKENS_AT_ONCE padded tokens at once; S doesn't depend on it."""
    groups: list[list[Encoded]] = []
    for example in sorted(encoded, key=lambda example: -len(example.ids)):
        if groups and len(groups[-1][0].ids) * (len(groups[-1]) + 1) <= TOKENS_AT_ONCE:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


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
