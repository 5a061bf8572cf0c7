"""What one of the two models has at each matrix when it reads the tokens that were drawn: teacher or student.

Inputs are all that is written down: a matrix's outputs are W·x, which whoever needs them has as soon as it reads W.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.carry.pairs import USES, read_pairs
from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.families import FAMILIES, Geometry
from orchestrator.models.loading import load_tokenizer, read_config
from orchestrator.step import Track, silent
from orchestrator.store.files import appearing
from orchestrator.tasks import rows as data
from orchestrator.tasks.aligned import read_by
from orchestrator.tasks.template import Encoded, TemplateName
from orchestrator.teacher.by_example import by_example, file_of
from orchestrator.teacher.teacher_pass import Job, Passed, Progress, device, follow
from orchestrator.teacher.teacher_pass import inputs as tensors_of

SITES = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "up", "up": "up", "down": "down"}  # roles that read the same
OUTER = "outer.safetensors"  # of the embedding what comes out of it, of the head what goes in


@dataclass(frozen=True)
class Looking(Job):
    """What the ranks have to know: of each text the tokens that were drawn."""

    drawn: dict[str, list[int]] | None = None


def inputs(
    folder: Path,
    *,
    pairs: Path,
    texts: Path,
    model: str,
    side: int,
    template: TemplateName,
    max_tokens: int,
    dtype: str,
    partial: Path,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write a file a layer with (k, m) tensors by site ("q", "o", "up", "down"), and one for embedding and head.

    Rows are the drawn tokens, those that maps are made of first. `side`: 0 for a pair's first token, 1 for its second.
    """
    chosen, tokenizer = read_pairs(pairs), load_tokenizer(model)
    drawn: dict[str, list[int]] = {}
    for use in USES:
        for id, some in chosen[use].items():
            drawn[id] = [pair[side] for pair in some]  # a text has one use
    rows = [read_by(row, template, tokenizer, max_tokens) for row in data.read(texts) if row.id in drawn]
    with placement.settled() as settled:
        job = Looking(model, rows, tokenizer.pad_token_id, dtype, partial, settled, drawn=drawn)
        follow(looking, job, track, "reading texts")
    order = [partial / file_of(id) for use in USES for id in chosen[use]]
    config = read_config(Path(model), "model")
    for name, keys in _files(Geometry.of(config).layers):
        save_file({key.split(".")[-1]: torch.cat([_one(path, key) for path in order]) for key in keys}, folder / name)
    return {"tokens": sum(map(len, drawn.values())), **settled.facts}


def _one(path: Path, key: str) -> Tensor:
    """Of a text's file this layer's alone: all of them at every layer would be read as often as there are layers."""
    with safe_open(path, framework="pt") as tensors:
        return tensors.get_tensor(key)


def _files(layers: int) -> Iterator[tuple[str, list[str]]]:
    sites = sorted({*SITES.values()})
    for layer in range(layers):
        yield file_for(layer), [f"{layer}.{site}" for site in sites]
    yield OUTER, ["embed", "head"]


def file_for(layer: int) -> str:
    """A layer's."""
    return f"layer-{layer}.safetensors"


def looking(job: Looking, member: Member) -> Iterator[Progress]:
    """One rank's part."""
    yield from by_example(job, member, _look)


@torch.no_grad()
def _look(job: Job, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
    assert isinstance(job, Looking) and job.drawn is not None
    tensors = {name: tensor.to(device()) for name, tensor in tensors_of(job, batch).items() if name != "labels"}
    places = [(row, place) for row, example in enumerate(batch) for place in job.drawn[example.id]]
    rows, columns = (list(side) for side in zip(*places, strict=True)) if places else ([], [])
    seen: dict[str, Tensor] = {}
    with _watched(model, rows, columns, seen):
        model(**tensors, use_cache=False, logits_to_keep=1)
    at = 0
    for example in batch:
        count = len(job.drawn[example.id])
        with appearing(job.partial / file_of(example.id)) as file:
            save_file({name: tensor[at : at + count].contiguous() for name, tensor in seen.items()}, file)
        at += count
    return batch, set()


@contextmanager
def _watched(model: Any, rows: list[int], columns: list[int], seen: dict[str, Tensor]) -> Iterator[None]:
    """While open, a forward pass leaves what these places have at each site."""
    family = FAMILIES[model.config.model_type]

    def kept(name: str, found: Tensor) -> None:
        seen[name] = found[rows, columns].cpu()

    with ExitStack() as stack:
        for layer in range(Geometry.of(model.config).layers):
            for site in {*SITES.values()}:
                module = model.get_submodule(family.module(site, layer))
                hook = module.register_forward_pre_hook(lambda _, given, name=f"{layer}.{site}": kept(name, given[0]))
                stack.callback(hook.remove)
        name = family.module("embed", None)
        embed, body = model.get_submodule(name), model.get_submodule(name.rsplit(".", 1)[0])
        by = getattr(embed, "embed_scale", 1.0)  # Gemma's, which an adapter's product has, too
        stack.callback(embed.register_forward_hook(lambda _, __, out: kept("embed", out / by)).remove)
        stack.callback(body.register_forward_hook(lambda _, __, out: kept("head", out[0])).remove)
        yield
