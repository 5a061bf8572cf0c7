"""Where the teacher is at each answer token, in the student's channels: composed of what tokens mean in both models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.carry.site import Model
from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.families import FAMILIES
from orchestrator.models.loading import load_tokenizer
from orchestrator.models.watching import outputs_of
from orchestrator.step import Track, silent
from orchestrator.store.files import appearing
from orchestrator.tasks.template import Encoded, TemplateName
from orchestrator.teacher.by_example import by_example, file_of
from orchestrator.teacher.labels import within
from orchestrator.teacher.teacher_pass import Job, Passed, Progress, device, follow, inputs

STATES = "states.safetensors"


@dataclass(frozen=True)
class Looking(Job):
    """What the ranks have to know: after which layer, from 0."""

    layer: int = 0


def aligned_states(
    folder: Path,
    *,
    rows: Path,
    seeds: Path,
    teacher: str,
    student: str,
    layer: int,
    shuffled: int | None,
    passes: int | None,
    template: TemplateName,
    max_tokens: int,
    seed_tokens: int,
    dtype: str,
    partial: Path,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write (t, d_S) of each row's t answer tokens: where the teacher is as it foretells them, after `layer`.

    `passes`: of as many rows as take that many times the seed examples' tokens; None: of all. `shuffled`: a random
    seed; each of the student's tokens then stands for some other one of the teacher's.
    """
    tokenizer = load_tokenizer(teacher)
    encoded = within(passes, rows, seeds, tokenizer, template, max_tokens, seed_tokens)
    with placement.settled() as settled:
        job = Looking(teacher, encoded, tokenizer.pad_token_id, dtype, partial, settled, layer=layer)
        follow(looking, job, track, "looking into the teacher")
    models = (Model.open(name, None) for name in (teacher, student))
    heads = [model.weight("head", None)[: len(tokenizer)].to(device()).float() for model in models]
    order = None
    if shuffled is not None:
        order = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(shuffled))
    between = meanings(heads[0], heads[1], order)
    found = {}
    for example in encoded:
        states = load_file(partial / file_of(example.id))["states"].to(between)
        unit = states / states.norm(dim=1, keepdim=True).clamp_min(torch.finfo(states.dtype).tiny)
        found[file_of(example.id)] = (unit @ between.t()).cpu().contiguous()
    save_file(found, folder / STATES)
    return {"rows": len(encoded), "tokens": sum(map(len, found.values())), **settled.facts}


def meanings(
    teacher: Float[Tensor, "v dt"], student: Float[Tensor, "v ds"], order: Tensor | None = None
) -> Float[Tensor, "ds dt"]:
    """S_S·S_Tᵀ: from the teacher's channels by way of the tokens into the student's, S the unit-norm columns of each
    head's pseudo-inverse (SemAlign, arXiv 2510.24208). `order`: the teacher's token for each of the student's.
    """
    bases = []
    for head in (teacher, student):
        inverse = torch.linalg.solve(_damped(head.t().double() @ head.double()), head.t().double())  # (d, v)
        bases.append(inverse / inverse.norm(dim=0).clamp_min(torch.finfo(inverse.dtype).tiny))
    theirs, own = bases
    return (own @ (theirs if order is None else theirs[:, order.to(theirs.device)]).t()).float()


def _damped(gram: Tensor) -> Tensor:
    """Invertible where the head lacks a direction."""
    gram.diagonal().add_(1e-10 * gram.diagonal().mean())
    return gram


def looking(job: Looking, member: Member) -> Iterator[Progress]:
    """One rank's part."""
    yield from by_example(job, member, _look)


@torch.no_grad()
def _look(job: Any, member: Member, model: Any, batch: list[Encoded]) -> Passed:
    tensors = {name: tensor.to(device()) for name, tensor in inputs(job, batch).items()}
    answers = tensors.pop("labels")[:, 1:] != -100
    layer = model.get_submodule(FAMILIES[model.config.model_type].block(job.layer))
    with outputs_of(layer) as seen:  # the last of its hidden states would be those after the norm
        model(**tensors, use_cache=False, logits_to_keep=1)
    for example, states, own in zip(batch, seen[0][:, :-1], answers, strict=False):
        with appearing(job.partial / file_of(example.id)) as file:
            save_file({"states": states[own].float().cpu()}, file)
    return batch, set()


def read_aligned(folder: Path) -> dict[str, Tensor]:
    """By the file that a row's id names."""
    return load_file(folder / STATES)
