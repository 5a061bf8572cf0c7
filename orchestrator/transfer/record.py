"""What exact scores of single weights need, kept in place of the scores: a matrix's inputs and output gradients.

    with record(model, {"model.layers.3.mlp.up_proj.weight"}, keep):     # keep(name, gy (b, t, n), x (b, t, m))
        example_losses(model(ids).logits, labels).sum().backward()

An example's gradient of an n x m matrix is gy^T x. At 200 tokens and 28672 x 8192 that is 15 MB in bfloat16 instead
of 940 MB of float32 scores that no rank has room for, and it is scored later, matrix by matrix, by whoever is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Keep = Callable[[str, Tensor, Tensor], None]


@contextmanager
def record(model: nn.Module, names: set[str], keep: Keep) -> Iterator[None]:
    """While open, each backward pass hands gy (b, t, n) and x (b, t, m) of the named matrices to `keep`.

    All parameters are frozen inside and restored at the end, and nothing below the first named matrix is
    differentiated. TypeError for a name that is no linear module's weight.
    """
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    linears = {f"{name}.weight": module for name, module in model.named_modules() if _plain(module)}
    if missing := sorted(names - set(linears)):
        raise TypeError(f"{missing[0]} is no linear module's weight, and only those are recorded")
    anchor = torch.zeros((), requires_grad=True)  # makes autograd record a model that has nothing to train
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for name in names:
            linears[name].forward = _forward(_Context(name, linears[name], keep), anchor)
        yield
    finally:
        for name in names:
            linears[name].__dict__.pop("forward", None)
        for parameter, trained in frozen:
            parameter.requires_grad_(trained)


def _plain(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward


@dataclass
class _Context:
    """What a patched module hands to its autograd function; not a tensor, so autograd leaves it alone."""

    name: str
    module: Any
    keep: Keep


def _forward(context: _Context, anchor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: _Linear.apply(x, anchor, context)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, context: _Context) -> Tensor:
        ctx.save_for_backward(x)
        ctx.context = context  # the module, not its weight: ZeRO-3 may free and gather that meanwhile
        return F.linear(x, context.module.weight, context.module.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (gy,), (x,), context = grads, ctx.saved_tensors, ctx.context
        context.keep(context.name, gy, x)
        return (gy @ context.module.weight if ctx.needs_input_grad[0] else None), None, None
