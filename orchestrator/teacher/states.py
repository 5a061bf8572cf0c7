"""Where a model is, after each of its layers, when it begins to answer: teacher or student, on the same examples.

One vector a layer and example is little enough to keep of any model (a 70B one: 84 MB for 32 examples), and what two
models do with the same examples is all that they have in common where widths, depths and tokenizers differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orchestrator.cluster.ranks import HERE, Member, Placement
from orchestrator.models.loading import load_tokenizer
from orchestrator.step import Track, silent
from orchestrator.store.files import appearing
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import Encoded, TemplateName, fitted
from orchestrator.teacher.by_example import by_example, file_of
from orchestrator.teacher.teacher_pass import Job, Passed, Progress, device, follow, inputs

STATES = "states.safetensors"


def states(
    folder: Path,
    *,
    seeds: Path,
    model: str,
    template: TemplateName,
    max_tokens: int,
    dtype: str,
    partial: Path,
    placement: Placement = HERE,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write `states` (layers + 1, examples, hidden) in float32, the embeddings first, at each question's last token."""
    tokenizer = load_tokenizer(model)
    encoded = fitted(data.read(seeds), template, tokenizer, max_tokens).rows
    with placement.settled() as settled:
        job = Job(model, encoded, tokenizer.pad_token_id, dtype, partial, settled)
        follow(looking, job, track, "looking into the model")
    each = [load_file(partial / file_of(example.id))["states"] for example in encoded]
    save_file({"states": torch.stack(each, 1)}, folder / STATES)
    return {"examples": len(encoded), **settled.facts}


def looking(job: Job, member: Member) -> Iterator[Progress]:
    """One rank's part."""
    yield from by_example(job, member, _look)


@torch.no_grad()
def _look(job: Job, member: Member, model: nn.Module, batch: list[Encoded]) -> Passed:
    tensors = {name: tensor.to(device()) for name, tensor in inputs(job, batch).items()}
    labels = tensors.pop("labels")
    layers = model(**tensors, use_cache=False, output_hidden_states=True, logits_to_keep=1).hidden_states
    for place, example in enumerate(batch):
        last = int((labels[place] != -100).nonzero()[0]) - 1
        with appearing(job.partial / file_of(example.id)) as file:
            save_file({"states": torch.stack([layer[place, last].float().cpu() for layer in layers])}, file)
    return batch, set()


def read_states(folder: Path) -> Tensor:
    """(layers + 1, examples, hidden)."""
    return load_file(folder / STATES)["states"]
