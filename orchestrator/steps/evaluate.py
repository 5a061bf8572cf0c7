"""Scores, example by example: what every comparison is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import UserError
from orchestrator.models.adapters import load_adapter
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.steps import data
from orchestrator.tasks.base import Example
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.scoring import Item, Scored, score
from orchestrator.tasks.template import Encoded, TemplateName, collate, encode, prompt_of
from orchestrator.transfer.sensitivity import example_losses


def evaluate(
    folder: Path,
    *,
    rows: Path,
    model: str,
    template: TemplateName,
    metric: dict[str, Any],
    choices: list[str],
    batch_size: int,
    max_tokens: int,
    dtype: str,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Write examples.jsonl (id, prompt, output, answer, gold, score, loss) and metrics.json.

    An adapter is loaded from its folder onto the stock model, so that what is scored is what leaves the product.
    UserError where a loss is not finite.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(model)
    network = load(model, dtype=dtype, device=device)
    if adapter is not None:
        network = load_adapter(network, adapter)
    items, judged, encoded = asked(rows, template, tokenizer, metric, choices, max_tokens)
    scored = score(network, tokenizer, items, judged, batch_size=batch_size)
    losses = gold_losses(network, encoded, tokenizer.pad_token_id, batch_size)
    return write(folder, scored, losses, metric, trained=adapter is not None)


def asked(
    rows: Path, template: TemplateName, tokenizer: Any, metric: dict[str, Any], choices: list[str], max_tokens: int
) -> tuple[list[Item], Metric, list[Encoded]]:
    """The questions of some rows, how their answers are judged, and the rows as the loss wants them."""
    examples = data.read(rows)
    items, judged = questions(examples, template, tokenizer, metric_of(metric), choices)
    return items, judged, [encode(example, template, tokenizer, max_tokens) for example in examples]


def write(
    folder: Path, scored: Sequence[Scored], losses: Sequence[float], metric: dict[str, Any], *, trained: bool
) -> dict[str, Any]:
    """The files of an evaluation. UserError where a loss is not finite: training broke the model, or it was broken."""
    for row, loss in zip(scored, losses, strict=True):
        if not math.isfinite(loss):
            raise UserError(
                f"lr: after training the loss on example {row.id!r} is {loss}; take a smaller one" if trained else
                f"dtype: untrained, the model's loss on example {row.id!r} is {loss}; take a wider one"
            )  # fmt: skip
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as file:
        for row, loss in zip(scored, losses, strict=True):
            file.write(json.dumps({**asdict(row), "loss": loss}, ensure_ascii=False) + "\n")
    result = {
        "score": sum(row.score for row in scored) / len(scored),
        "loss": sum(losses) / len(losses),
        "examples": len(scored),
        "metric": f"{metric['kind']},{metric['filter_name']}",
    }
    (folder / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def questions(
    examples: list[Example], template: TemplateName, tokenizer: Any, metric: Metric, choices: Sequence[str]
) -> tuple[list[Item], Metric]:
    """What to ask, and how long to listen: a whole answer can only be wrong beyond the longest gold one."""
    prompts = [prompt_of(example, template, tokenizer) for example in examples]
    items = [Item(one.id, prompt, one.gold, tuple(choices)) for one, prompt in zip(examples, prompts, strict=True)]
    if metric.kind == "exact_match" and metric.pattern is None:
        longest = max(len(tokenizer(item.gold, add_special_tokens=False).input_ids) for item in items)
        metric = replace(metric, max_new_tokens=min(metric.max_new_tokens, longest + 1))
    return items, metric


@torch.no_grad()
def gold_losses(
    model: Any, encoded: list[Encoded], pad: int, batch_size: int, device: torch.device | None = None
) -> list[float]:
    """Per example, the mean cross-entropy of its gold answer's tokens."""
    device = device or model.device
    losses: list[float] = []
    for first in range(0, len(encoded), batch_size):
        batch = collate(encoded[first : first + batch_size], pad)
        labels = batch.pop("labels").to(device)
        logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits
        losses += example_losses(logits, labels).tolist()
    return losses


def metric_of(fields: dict[str, Any]) -> Metric:
    """The metric of a step's config."""
    return Metric(**{**fields, "ignore": tuple(fields["ignore"])})


def read_metrics(folder: Path) -> dict[str, Any]:
    """The figures of a finished evaluation."""
    return json.loads((folder / "metrics.json").read_text())
