"""An adapter in its student's weights, for whoever has no use for PEFT; and a tied student untied, which that needs.

A tied student's embedding and head are adapted apart. Who merges, or ties them anew as lm-eval does, has to be given
a student whose head has a matrix of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.models import adapters


def untie(model: nn.Module, folder: Path) -> bool:
    """Give a tied head a copy of the matrix where the adapter in the folder changes either end; whether it did."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    ends = {name for name, module in model.named_modules() if module is embedding or module is head}
    shared = embedding.weight is head.weight and not ends.isdisjoint(adapters.read_start(folder))
    if shared:
        head.weight = nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return shared


def merged(model: nn.Module, folder: Path) -> tuple[Any, bool]:
    """The model with the adapter added to its weights, by PEFT, and whether its embedding and head had to be untied.

    Give it in float32: PEFT rounds an embedding's update to the model's dtype before it adds it. Merged as they are,
    both updates of a tied student would land in the one matrix that its embedding and head share.
    ValueError where the adapter is another model's, of which PEFT would drop what finds no place with a warning.
    """
    untied = untie(model, folder)
    try:
        whole = adapters.load_adapter(model, folder)
    except RuntimeError as error:  # shapes
        raise ValueError(str(error)) from error
    if lost := set(adapters.read_start(folder)) ^ set(adapters.lora_layers(whole)):
        raise ValueError(f"{min(lost)} is in one of both alone")
    with adapters.without_own_warnings():
        return whole.merge_and_unload(), untied
