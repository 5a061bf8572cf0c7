"""Starts that PEFT makes: the baselines that another project's code defines, and that nobody should write again.

    starts = initialised(model, targets, "olora", rank=8, alpha=8.0, batches=batches)      # module name → (B0, A0)

PEFT's initialisers write into the base model, and fall back to plain LoRA on embeddings without a word. So each matrix
is put alone into a linear layer that stands in for its module, whatever that is, and PEFT initialises the stand-in:
embeddings get what matrices get, and the model stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import UserError

Batch = dict[str, Tensor]  # input_ids, attention_mask and labels, each (examples, longest)
Start = tuple[Tensor, Tensor]
WITH_ROWS = ("eva", "lora_ga")  # these look at what rows do in the model


def initialised(
    model: Any, targets: Sequence[str], how: str, *, rank: int, alpha: float, batches: Sequence[Batch]
) -> dict[str, Start]:
    """B0 (n, r) and A0 (r, m) of every target, by PEFT's `init_lora_weights=how`.

    EVA's directions are those of a layer's inputs, which tokens don't have: embeddings are left out, and start plainly.
    """
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.config import LoraGAConfig

    more = {"lora_ga": {"lora_ga_config": LoraGAConfig()}, "eva": {"eva_config": EvaConfig(rho=1.0)}}
    options = {"r": rank, "lora_alpha": alpha, "init_lora_weights": how, **more.get(how, {})}
    if how == "eva":
        return _input_directions(model, LoraConfig(target_modules=list(targets), **options), batches)
    config = LoraConfig(target_modules=["matrix"], **options)
    matrices = {name: module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in targets and name}
    gradients = _gradients(model, matrices, batches) if how == "lora_ga" else {}
    made: dict[str, Start] = {}
    for name, module in matrices.items():
        with _whole(module.weight):
            made[name] = _stand_in(module.weight, config, gradients.get(name))
    return made


def _whole(weight: Tensor) -> AbstractContextManager[Any]:
    """While open, a weight of which DeepSpeed keeps shards is all here."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight])


def _stand_in(weight: Tensor, config: Any, gradient: Tensor | None) -> Start:
    """What PEFT makes of this matrix as a linear layer's."""
    from peft import inject_adapter_in_model

    holder = nn.ModuleDict({"matrix": nn.Linear(1, 1, bias=False)})
    linear: Any = holder["matrix"]
    linear.weight = nn.Parameter(weight.detach().float().clone())
    linear.out_features, linear.in_features = weight.shape
    if gradient is not None:
        linear._peft_loraga_grad = gradient
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PEFT is initializing LoRA-GA|lora_ga", UserWarning)
        layer: Any = inject_adapter_in_model(config, holder)["matrix"]
    return layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()


def _gradients(model: Any, matrices: dict[str, Any], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Of the mean loss over the batches, for every matrix: what LoRA-GA factorises (arXiv 2407.05000)."""
    device = next(model.parameters()).device
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    tied: list[tuple[Any, nn.Parameter]] = []
    seen: set[int] = set()
    for module in matrices.values():
        if id(module.weight) in seen:  # a tied head, which is adapted apart and has a gradient of its own
            tied.append((module, module.weight))
            module.weight = nn.Parameter(module.weight.detach().clone())
        seen.add(id(module.weight))
    weights = {name: module.weight for name, module in matrices.items()}
    totals: dict[str, Tensor] = {}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False).loss
            found = torch.autograd.grad(loss, list(weights.values()))
            for name, gradient in zip(weights, found, strict=True):
                totals[name] = totals.get(name, 0) + gradient.float() / len(batches)
    finally:
        for module, weight in tied:
            module.weight = weight
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
    return totals


def _input_directions(model: Any, config: Any, batches: Sequence[Batch]) -> dict[str, Start]:
    """EVA (arXiv 2410.07170): A0 is the principal directions of a layer's inputs, B0 is zero.

    UserError where no batch has as many answer tokens as the rank: PEFT would look for directions for ever.
    """
    from peft.tuners.lora.eva import get_eva_state_dict

    most = max(int((batch["labels"] != config.eva_config.label_mask_value).sum()) for batch in batches)
    if most < config.r:
        raise UserError(
            f"rank: eva looks for {config.r} directions among {most} answer tokens; take a smaller rank, or a larger"
            " finetune.batch_size"
        )
    with torch.no_grad():
        found = get_eva_state_dict(model, list(batches), config, show_progress_bar=False)
    return {
        name: (torch.zeros(model.get_submodule(name).out_features, config.r), directions.float().cpu())
        for name, directions in found.items()
    }
