"""An adapter written into its student's weights: for whoever has no use for PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.models import adapters


def merged(model: nn.Module, folder: Path) -> tuple[Any, bool]:
    """The model with the adapter added to its weights, by PEFT, and whether its embedding and head had to be untied.

    Give it in float32: PEFT rounds an embedding's update to the model's dtype before it adds it. A tied student's
    two modules are adapted apart; merged as they are, both updates would land in the one matrix that they share.
    ValueError where the adapter is another model's, of which PEFT would drop what finds no place with a warning.
    """
    adapted = set(adapters.read_start(folder))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    ends = {name for name, module in model.named_modules() if module is embedding or module is head}
    untied = embedding.weight is head.weight and bool(adapted & ends)
    if untied:
        head.weight = nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    try:
        whole = adapters.load_adapter(model, folder)
    except RuntimeError as error:  # shapes
        raise ValueError(str(error)) from error
    if lost := adapted ^ set(adapters.lora_layers(whole)):
        raise ValueError(f"{min(lost)} is in one of both alone")
    with adapters.without_own_warnings():
        return whole.merge_and_unload(), untied
