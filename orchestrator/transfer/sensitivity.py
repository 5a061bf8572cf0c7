"""What a parameter matters for a task, without ever holding a gradient of the model's size.

    with collect(model, granularity=1) as sensitivities:
        example_losses(model(ids).logits, labels).sum().backward()
    sensitivities["model.layers.0.self_attn.q_proj.weight"].tiles    # (n, m), S of every weight

The first-order Taylor score of a parameter is S_i = sum over examples j of |theta_i * dL(x_j)/dtheta_i|
(Seeking Neural Nuggets, arXiv 2310.11451). The absolute value is taken per example, so a batch's summed gradient
is of no use, and a gradient averaged over ranks is wrong. Here every parameter is frozen; each matrix multiplies
through an autograd function that keeps its input, and in the backward pass forms one example's gradient of one
slab of rows at a time, |G * W|, adds it up and forgets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

SLAB = 1 << 19  # weights scored at once: a slab of float32 this size stays in a core's cache


@dataclass
class Scores:
    """Accumulated S of one parameter of shape (n, m) or (n,), at a granularity of g x g weights.

    `tiles` (ceil(n/g), ceil(m/g)) are the sums of S over tiles; with g = 1 they are S itself. `rows` (n,) and
    `cols` (m,) are exact at every g. A vector (a norm, a bias) keeps `tiles` (n,) alone, and its g is 1.
    """

    tiles: Tensor
    rows: Tensor
    cols: Tensor
    granularity: int = 1

    @property
    def total(self) -> float:
        """Sum of S over the whole parameter, accumulated in float64."""
        return float(self.tiles.sum(dtype=torch.float64))

    @classmethod
    def zeros(cls, shape: torch.Size, granularity: int, device: torch.device) -> Scores:
        """Room for a parameter of this shape, in float32 whatever the model's dtype."""
        g = granularity if len(shape) == 2 else 1
        empty = torch.zeros(0, device=device)
        tiles = torch.zeros([-(-size // g) for size in shape], device=device)
        if g == 1:
            return cls(tiles, empty, empty, 1)
        return cls(tiles, torch.zeros(shape[0], device=device), torch.zeros(shape[1], device=device), g)

    def add(self, start: int, scores: Float[Tensor, "slab m"]) -> None:
        """Add one example's S of the rows from `start`, which must be a multiple of g."""
        g, (height, width) = self.granularity, scores.shape
        if g == 1:
            self.tiles[start : start + height] += scores
            return
        self.rows[start : start + height] += scores.sum(1)
        if height % g:
            scores = F.pad(scores, (0, 0, 0, -height % g))
        bands = scores.view(-1, g, width).sum(1)  # the tiles' rows first: along memory, and all else is g times smaller
        self.cols += bands.sum(0)
        bands = F.pad(bands, (0, -width % g))
        self.tiles[start // g : -(-(start + height) // g)] += bands.view(len(bands), -1, g).sum(2)


def example_losses(logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """Per example, the mean next-token cross-entropy over its labelled tokens (label -100: not counted).

    Examples are never pooled over their tokens: S of a batch must be the sum of what each example gives alone.
    """
    labels = labels[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels != -100).sum(1)


@contextmanager
def collect(model: nn.Module, *, granularity: int = 1, norm_offset: float = 0.0) -> Iterator[dict[str, Scores]]:
    """While open, each backward pass through `model` adds to the scores of all its parameters, by name.

    The batch is the first dimension of every activation, and what is differentiated is the *sum over examples* of
    their own losses. Parameters are frozen inside and restored, with the forward methods, at the end.
    `norm_offset`: 1 where a norm multiplies by 1 + weight (Gemma). Raises TypeError for a module whose
    parameters it has no rule for, since silently leaving one out would falsify the layers' scores.
    """
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    names = {id(p): name for name, p in model.named_parameters()}  # a tied matrix has one name: its first
    scores = {n: Scores.zeros(_shape(p), granularity, p.device) for n, p in model.named_parameters()}
    patched: list[nn.Module] = []
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    held: dict[int, list[tuple[Tensor, Tensor]]] = {}  # head activations of tied matrices, until their embedding
    anchor = torch.zeros((), requires_grad=True)  # makes autograd record a model that has nothing to train
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for module in model.modules():
            own = dict(module.named_parameters(recurse=False))
            if not own:
                continue
            sinks = {key: scores[names[id(p)]] for key, p in own.items()}
            forward: Callable[..., Tensor]
            if type(module).forward is nn.Embedding.forward:
                forward = _embedding_forward(module, sinks["weight"], anchor, held)
            elif type(module).forward is nn.Linear.forward:
                later = held.setdefault(id(module.weight), []) if id(module.weight) in embeddings else None
                forward = _linear_forward(module, sinks, later)
            elif set(own) <= {"weight", "bias"} and own["weight"].ndim == 1:
                forward = _norm_forward(module, sinks, norm_offset)
            else:
                raise TypeError(f"no rule for the parameters {sorted(own)} of {type(module).__name__}")
            module.forward = forward
            patched.append(module)
        yield scores
    finally:
        for module in patched:
            del module.forward
        for parameter, trained in frozen:
            parameter.requires_grad_(trained)


def _shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # a ZeRO-3 shard knows its whole shape


def _score_matrix(sink: Scores, weight: Tensor, gy: Tensor, x: Tensor, extra: Extra | None = None) -> None:
    """Add |G_b * W| for every example b of a batch, G_b = gy_b^T x_b (+ `extra`), in slabs of rows.

    gy (b, t, n), x (b, t, m), weight (n, m); sums are float32 whatever the inputs are.
    """
    gy, x = gy.flatten(1, -2), x.flatten(1, -2)
    n, m = weight.shape
    g = sink.granularity
    height = max(g, SLAB // m // g * g)
    slab = torch.empty(min(height, n), m, device=gy.device)
    for b in range(gy.shape[0]):
        left, right = gy[b].float().t(), x[b].float()
        for start in range(0, n, height):
            grad = torch.mm(left[start : start + height], right, out=slab[: n - start])
            if extra is not None:
                extra.add_into(grad, start, b)
            sink.add(start, grad.mul_(weight[start : start + height]).abs_())


@dataclass
class Extra:
    """The embedding's part of a tied matrix's gradient: rows of gy added up by token."""

    ids: Int[Tensor, "b t"]
    gy: Float[Tensor, "b t d"]

    def add_into(self, grad: Float[Tensor, "slab d"], start: int, b: int) -> None:
        """Add example b's part to the gradient's rows from `start`."""
        inside = (self.ids[b] >= start) & (self.ids[b] < start + grad.shape[0])
        grad.index_add_(0, self.ids[b][inside] - start, self.gy[b][inside].to(grad.dtype))


def _score_vector(sink: Scores, parts: Float[Tensor, "b n"]) -> None:
    sink.tiles += parts.float().abs().sum(0)


@dataclass
class _Context:
    """What a patched module hands to its autograd function; not a tensor, so autograd leaves it alone."""

    module: Any
    sinks: dict[str, Scores]
    held: list[tuple[Tensor, Tensor]] | None = None
    norm_offset: float = 0.0


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, context: _Context) -> Tensor:
        ctx.save_for_backward(x)
        ctx.context = context  # the module, not its weight: ZeRO-3 may free and gather that meanwhile
        return F.linear(x, context.module.weight, context.module.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gy,), (x,), context = grads, ctx.saved_tensors, ctx.context
        if context.held is not None:
            context.held.append((gy, x))
        else:
            _score_matrix(context.sinks["weight"], context.module.weight, gy, x)
        if context.module.bias is not None:
            _score_vector(context.sinks["bias"], context.module.bias * gy.flatten(1, -2).sum(1))
        return gy @ context.module.weight, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ids: Tensor, context: _Context) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.context = context
        return F.embedding(ids, context.module.weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (gy,), (ids,), context = grads, ctx.saved_tensors, ctx.context
        sink, weight = context.sinks["weight"], context.module.weight
        if context.held:  # tied: one gradient, the sum of the head's part and this one, before any absolute value
            head_gy, head_x = context.held.pop()
            _score_matrix(sink, weight, head_gy, head_x, Extra(ids, gy))
            return None, None, None
        for b in range(ids.shape[0]):
            tokens, place = ids[b].unique(return_inverse=True)
            grad = torch.zeros(len(tokens), weight.shape[1], device=gy.device).index_add_(0, place, gy[b].float())
            part = grad.mul_(weight[tokens]).abs_()
            if sink.granularity == 1:
                sink.tiles[tokens] += part
            else:
                sink.rows[tokens] += part.sum(1)
                sink.cols += part.sum(0)
                by_tile = F.pad(part, (0, -part.shape[1] % sink.granularity))
                by_tile = by_tile.view(len(tokens), -1, sink.granularity).sum(2)
                sink.tiles.index_add_(0, tokens // sink.granularity, by_tile)
        return None, None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, context: _Context) -> Tensor:
        ctx.save_for_backward(y)
        ctx.context = context
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gy,), (y,), context = grads, ctx.saved_tensors, ctx.context
        weight, bias = context.module.weight, getattr(context.module, "bias", None)
        scaled = y if bias is None else y - bias
        part = (gy.float() * scaled.float()).flatten(1, -2).sum(1)  # (weight + offset) * dL/dweight
        if context.norm_offset:
            part = part * (weight / (weight + context.norm_offset)).float()
        _score_vector(context.sinks["weight"], part)
        if bias is not None:
            _score_vector(context.sinks["bias"], bias * gy.flatten(1, -2).sum(1))
        return gy, None


def _linear_forward(
    module: nn.Module, sinks: dict[str, Scores], held: list[tuple[Tensor, Tensor]] | None
) -> Callable[[Tensor], Tensor]:
    context = _Context(module, sinks, held)
    return lambda x: _Linear.apply(x, context)


def _embedding_forward(
    module: nn.Module, sink: Scores, anchor: Tensor, held: dict[int, list[tuple[Tensor, Tensor]]]
) -> Callable[[Tensor], Tensor]:
    context = _Context(module, {"weight": sink}, held.setdefault(id(module.weight), []))
    return lambda ids: _Embedding.apply(anchor, ids, context)


def _norm_forward(module: nn.Module, sinks: dict[str, Scores], norm_offset: float) -> Callable[[Tensor], Tensor]:
    context, plain = _Context(module, sinks, norm_offset=norm_offset), module.forward
    return lambda x: _Norm.apply(plain(x), context)
