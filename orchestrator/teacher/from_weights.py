"""Scores that need no gradient, formed from the checkpoint a parameter at a time: magnitude, and Wanda's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.cluster.ranks import Member
from orchestrator.models.families import FAMILIES, Geometry
from orchestrator.models.loading import Weights, outline, read_config
from orchestrator.step import Track
from orchestrator.tasks.template import Encoded
from orchestrator.teacher.checkpoints import sum_over_ranks
from orchestrator.teacher.scores import write_scores
from orchestrator.teacher.teacher_pass import (
    Job,
    Passed,
    Progress,
    check_losses,
    device,
    inputs,
    opened,
    passes,
    progress,
)
from orchestrator.transfer.moments import collect_inputs, from_weights
from orchestrator.transfer.scores import Scores
from orchestrator.transfer.sensitivity import example_losses

MOMENTS = "moments.safetensors"


def count_inputs(job: Any, member: Member) -> Iterator[Progress]:
    """One rank's part of Wanda's: forward passes, and the sum over ranks of each parameter's squared inputs."""
    family = FAMILIES[read_config(Path(job.teacher), "teacher").model_type]
    with opened(job, member) as model, collect_inputs(model, norm_offset=family.norm_offset) as moments:
        for round in passes(job, member, model, set(), forward):
            yield progress(round)
        if sum_over_ranks(moments.values(), member):
            save_file({name: moment.cpu() for name, moment in moments.items()}, job.out / MOMENTS)


def forward(job: Job, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
    """One forward pass over some examples; an empty batch goes through as a token that isn't counted."""
    tensors = {name: tensor.to(device()) for name, tensor in inputs(job, batch).items()}
    labels = tensors.pop("labels")
    if not batch:
        tensors["attention_mask"].zero_()
    with torch.no_grad():
        losses = example_losses(model(**tensors, use_cache=False).logits, labels)
    check_losses(batch, losses, "leave it out")  # what a bad example added can't be taken back
    return batch, set()


def score_weights(job: Any, track: Track[Any]) -> None:
    """Write S of every parameter, and each layer's total, from the weights and what was counted of their inputs."""
    config, weights = read_config(Path(job.teacher), "teacher"), Weights(Path(job.teacher))
    names = [name for name, _ in outline(config).named_parameters()]
    scores = {
        name: score_weight(job.out, name, weights.get(name), job.granularity)
        for name in track(names, "scoring the teacher's weights", len(names))
    }
    write_scores(scores, job.out, FAMILIES[config.model_type].layer, Geometry.of(config).layers)


def score_weight(measured: Path, name: str, weight: Tensor, granularity: int) -> Scores:
    """S of one parameter; `measured` has what was counted, or nothing where only the weight matters."""
    moments = None
    if (measured / MOMENTS).is_file():
        with safe_open(measured / MOMENTS, framework="pt") as tensors:
            moments = tensors.get_tensor(name)
    return from_weights(weight, moments, granularity)
