"""Every parameter's gradient, example by example and module by module, without holding one of the model's size.

    with watched(model, sinks): loss.backward()     # sinks[name].matrix(weight, gy, x) for each matrix, and so on

Every parameter is frozen. What a module puts out passes through an autograd function that keeps the module's input;
in the backward pass its parameters' sinks get the two factors of each gradient, which nobody has multiplied yet.

Nothing reads a parameter outside its module's own forward and backward pass: under ZeRO-3 it is empty there. So a
function keeps the module, not the weight, and what a norm gives without its weight is asked of a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass
class Lookup:
    """An embedding's gradient: rows of `gy` that belong to the rows `ids` of the matrix, not yet added up."""

    ids: Int[Tensor, "b t"]
    gy: Float[Tensor, "b t d"]

    def add_into(self, grad: Float[Tensor, "slab d"], start: int, b: int) -> None:
        """Add example b's part to the gradient's rows from `start`."""
        inside = (self.ids[b] >= start) & (self.ids[b] < start + grad.shape[0])
        grad.index_add_(0, self.ids[b][inside] - start, self.gy[b][inside].to(grad.dtype))


@runtime_checkable  # so that a run which checks every signature can check this one
class Sink(Protocol):
    """What takes one parameter's gradients; b counts the rows of the batch, and no method may keep the weight."""

    def matrix(
        self, weight: Tensor, gy: Float[Tensor, "b *t n"], x: Float[Tensor, "b *t m"], lookup: Lookup | None
    ) -> None:
        """G_b = gy_bᵀ x_b, and where head and embedding are one matrix, the embedding's part."""

    def rows(self, weight: Tensor, lookup: Lookup) -> None:
        """G_b has the sums of gy_b by token."""

    def vector(self, weight: Tensor, grads: Float[Tensor, "b n"]) -> None:
        """G_b itself."""


@dataclass
class Context:
    """What a patched module hands to its autograd function; not a tensor, so autograd leaves it alone."""

    module: Any
    sinks: dict[str, Sink]
    points: tuple[float, ...]
    norm_offset: float
    held: list[tuple[Tensor, Tensor]] | None = None  # a tied matrix: the head's factors, until the embedding's come
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))  # has autograd record it at all

    def fractions(self, y: Tensor) -> Tensor | None:
        """What each row of the batch multiplies its parameters by, (b, 1, …); None where that is 1 everywhere."""
        if self.points == (1.0,):
            return None
        if y.shape[0] % len(self.points):
            raise ValueError(f"a batch of {y.shape[0]} rows doesn't hold every example {len(self.points)} times")
        each = torch.tensor(self.points, device=y.device, dtype=y.dtype)
        return each.repeat(y.shape[0] // len(self.points)).view(-1, *[1] * (y.ndim - 1))


@contextmanager
def watched(
    model: nn.Module, sinks: dict[str, Sink], *, points: tuple[float, ...] = (1.0,), norm_offset: float = 0.0
) -> Iterator[None]:
    """While open, each backward pass tells `sinks`, by parameter name, the gradients of every row of the batch.

    A module without a sink is left as it is, and nothing below the first that has one is differentiated.
    Row i of a batch runs through the model with every parameter multiplied by points[i % len(points)], and its
    gradients are those with respect to the multiplied parameters. Raises TypeError for a module whose parameters
    it has no rule for, and KeyError for a sink whose name the model doesn't have.
    """
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    names = {id(p): name for name, p in model.named_parameters()}  # a tied matrix has one name: its first
    if unknown := sorted(set(sinks) - set(names.values())):
        raise KeyError(f"the model has no parameter {unknown[0]}")
    held: dict[int, list[tuple[Tensor, Tensor]]] = {
        id(m.weight): [] for m in model.modules() if isinstance(m, nn.Embedding)
    }
    patched: list[nn.Module] = []
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for module in model.modules():
            own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False)}
            its_sinks = {key: sinks[name] for key, name in own.items() if name in sinks}
            if not its_sinks:
                continue
            waiting = held.get(id(module.weight)) if "weight" in own else None
            rule = RULES[kind(module)]
            module.forward = rule(Context(module, its_sinks, points, norm_offset, waiting))
            patched.append(module)
        yield
    finally:
        for module in patched:
            del module.forward
        for parameter, trained in frozen:
            parameter.requires_grad_(trained)


def kind(module: nn.Module) -> str:
    """Which rule a module with parameters falls under; TypeError where none does, as leaving it out would be wrong."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.Embedding) and set(own) == {"weight"}:
        return "embedding"
    if type(module).forward is nn.Linear.forward:
        return "linear"
    called_norm = "norm" in type(module).__name__.lower()  # PReLU's one weight is a vector too
    if called_norm and "weight" in own and set(own) <= {"weight", "bias"} and len(shape_of(own["weight"])) == 1:
        return "norm"
    raise TypeError(f"no rule for the parameters {sorted(own)} of {type(module).__name__}")


def shape_of(parameter: Tensor) -> torch.Size:
    """A parameter's whole shape, which a ZeRO-3 shard knows by another name."""
    return getattr(parameter, "ds_shape", parameter.shape)


def normalised(module: nn.Module, x: Float[Tensor, "*t n"], norm_offset: float) -> Float[Tensor, "*t n"]:
    """A norm's x̂, in float32: what it gives with a weight that changes nothing and no bias, whatever its formula."""
    neutral = {key: torch.zeros(x.shape[-1:], device=x.device) for key, _ in module.named_parameters(recurse=False)}
    neutral["weight"] += 1 - norm_offset
    return type(module).forward(_twin(module, neutral), x.float())


def _twin(module: nn.Module, parameters: dict[str, Tensor]) -> Any:
    """The same module with other parameters, leaving its own alone."""
    twin: Any = copy.copy(module)
    twin.__dict__["_parameters"] = {**dict.fromkeys(module._parameters), **parameters}
    return twin


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, context: Context) -> Tensor:
        ctx.save_for_backward(x)
        ctx.context = context
        y = F.linear(x, context.module.weight, context.module.bias)
        fractions = context.fractions(y)
        return y if fractions is None else y * fractions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (gy,), (x,), context = grads, ctx.saved_tensors, ctx.context
        module, sinks = context.module, context.sinks
        if context.held is not None:
            context.held.append((gy, x))
        elif "weight" in sinks:
            sinks["weight"].matrix(module.weight, gy, x, None)
        if "bias" in sinks:
            sinks["bias"].vector(module.bias, _over_tokens(gy.float()))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        fractions = context.fractions(gy)
        return (gy if fractions is None else gy * fractions) @ module.weight, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ids: Tensor, context: Context) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.context = context
        y = F.embedding(ids, context.module.weight)
        fractions = context.fractions(y)
        return y if fractions is None else y * fractions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (gy,), (ids,), context = grads, ctx.saved_tensors, ctx.context
        sink, weight = context.sinks["weight"], context.module.weight
        if context.held:  # tied: one gradient, the sum of the head's part and this one, before any absolute value
            head_gy, head_x = context.held.pop()
            sink.matrix(weight, head_gy, head_x, Lookup(ids, gy))
        else:
            sink.rows(weight, Lookup(ids, gy))
        return None, None, None


class _Norm(torch.autograd.Function):
    """Looks at the gradient that a norm's output gets, and hands it on."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, context: Context) -> Tensor:
        ctx.save_for_backward(x)
        ctx.context = context
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gy,), (x,), context = grads, ctx.saved_tensors, ctx.context
        module, sinks = context.module, context.sinks
        if "weight" in sinks:
            sinks["weight"].vector(module.weight, _over_tokens(gy * normalised(module, x, context.norm_offset)))
        if "bias" in sinks:
            sinks["bias"].vector(module.bias, _over_tokens(gy.float()))
        return gy, None, None


def _over_tokens(gradient: Float[Tensor, "b *t n"]) -> Float[Tensor, "b n"]:
    return gradient.flatten(1, -2).sum(1)


def _linear(context: Context) -> Callable[[Tensor], Tensor]:
    return lambda x: _Linear.apply(x, context.anchor, context)


def _embedding(context: Context) -> Callable[[Tensor], Tensor]:
    """What is looked up is then the matrix of the module's own forward, which may scale it (Gemma)."""
    module = context.module

    def forward(ids: Tensor) -> Tensor:
        rows = _Embedding.apply(context.anchor, ids, context)
        if type(module).forward is nn.Embedding.forward:
            return rows
        twin = _twin(module, {"weight": rows.flatten(0, -2)})
        twin.padding_idx = None  # a position now, not a token
        return type(module).forward(twin, torch.arange(ids.numel(), device=ids.device).view(ids.shape))

    return forward


def _norm(context: Context) -> Callable[[Tensor], Tensor]:
    module, plain, offset = context.module, context.module.forward, context.norm_offset

    def forward(x: Tensor) -> Tensor:
        y = plain(x)
        fractions = context.fractions(y)
        if fractions is not None:
            y = y * fractions
            if offset:  # the part of the weight that is no parameter is not multiplied
                y = y + ((1 - fractions) * offset * normalised(module, x, offset)).to(y.dtype)
        return _Norm.apply(y, x, context)

    return forward


RULES = {"linear": _linear, "embedding": _embedding, "norm": _norm}
