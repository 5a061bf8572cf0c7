"""What becomes of a trained adapter where its arm changes it: each matrix, by the loss' gradient of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models import adapters
from orchestrator.scoring.engine import evaluating
from orchestrator.tasks.template import labelled
from orchestrator.transfer.arms.edited import Edited
from orchestrator.transfer.sensitivity import example_losses


def edit(peft_model: Any, arm: Edited, batches: Sequence[Mapping[str, Tensor]], seed: int, recompute: bool) -> None:
    """Give every adapted matrix the factors that the arm makes of what was trained, in place.

    The gradients of all matrices are held at once, in the model's own number type: as much memory as the model again.
    With `recompute` a layer keeps its inputs alone, as in the training.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = adapters.lora_layers(peft_model)
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    with _gradients(layers), evaluating(peft_model) as settings:
        if recompute:  # which layers do in training alone: all but the dropouts are
            for module in peft_model.modules():
                module.training = not isinstance(module, nn.Dropout)
        for parameter in trained:
            settings.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for batch in batches:
            tensors = {name: tensor.to(peft_model.device) for name, tensor in batch.items()}
            labels = tensors.pop("labels")
            span = labelled(labels)
            logits = peft_model(**tensors, use_cache=False, logits_to_keep=span).logits
            example_losses(logits, labels[:, span]).sum().backward()
        with torch.no_grad():
            for name in sorted(layers):
                _set(layers[name], arm, generator)


def _set(layer: Any, arm: Edited, generator: torch.Generator) -> None:
    up, down = adapters.factors_of(layer)
    scale = layer.scaling["default"]
    gradient = layer.base_layer.weight.grad
    if gradient is None:  # rows that don't reach it ask nothing of it
        gradient = torch.zeros_like(layer.base_layer.weight)
    b, a = arm.edit((scale * up.detach().float(), down.detach().float()), gradient, len(down), generator)
    up.zero_()
    down.zero_()
    up[:, : b.shape[1]], down[: len(a)] = b / scale, a


@contextmanager
def _gradients(layers: Mapping[str, Any]) -> Iterator[None]:
    """While open, each adapted matrix has a gradient, one that shares its memory with another has its own."""
    before = {name: layer.base_layer.weight for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach())
        yield
    finally:
        for name, layer in layers.items():
            layer.base_layer.weight = before[name]
