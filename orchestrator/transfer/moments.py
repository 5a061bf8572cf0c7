"""How large each parameter's inputs are, and the scores that need no more than that.

    with torch.no_grad(), collect_inputs(model) as moments:
        model(ids, attention_mask=mask)
    from_weights(weight, moments["model.layers.0.self_attn.q_proj.weight"], granularity=64)     # wanda
    from_weights(weight, None, granularity=64)                                                  # magnitude

Sun et al. (arXiv 2306.11695) score a weight by |W_ij| · ‖x_j‖₂, x_j the j-th input over all tokens of all examples.
That is one vector a matrix, so scores can be formed later, matrix by matrix, from a checkpoint on disk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from orchestrator.transfer.gradients import kind, normalised, shape_of
from orchestrator.transfer.scores import SLAB, Scores


@contextmanager
def collect_inputs(model: nn.Module, *, norm_offset: float = 0.0) -> Iterator[dict[str, Tensor]]:
    """While open, each forward pass adds the sums of squared inputs, over the tokens of its `attention_mask`.

    By parameter name, in float32, of a shape that broadcasts over the parameter's: (m,) for a matrix (n, m); (v, 1)
    for an embedding, whose input is one-hot, so that this counts tokens; (n,) for a norm's weight, from x̂; () for a
    bias, whose input is 1. A matrix that is both head and embedding has the head's. The mask (b, t) is read off the
    call of `model` itself; without one all tokens count. Meant for torch.no_grad: gradient checkpointing would count
    twice. `norm_offset` and TypeError as in `collect`.
    """
    names = {id(p): name for name, p in model.named_parameters()}  # a tied matrix has one name: its first
    modules = {module: kind(module) for module in model.modules() if [*module.parameters(recurse=False)]}
    heads = {id(module.weight) for module, rule in modules.items() if rule == "linear"}
    counter = _Counter(norm_offset, {})
    hooks = [model.register_forward_pre_hook(counter.see_mask, with_kwargs=True)]
    try:
        for module, rule in modules.items():
            own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False)}
            if rule == "embedding" and id(module.weight) in heads:
                continue
            for key, p in module.named_parameters(recurse=False):
                shape = {"embedding": (shape_of(p)[0], 1), "bias": ()}.get(rule if key == "weight" else key)
                counter.sums[own[key]] = torch.zeros(shape_of(p)[-1:] if shape is None else shape, device=p.device)
            hooks.append(module.register_forward_pre_hook(counter.see_input(rule, own)))
        yield counter.sums
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _Counter:
    """The sums so far, and the mask of the forward pass under way."""

    norm_offset: float
    sums: dict[str, Tensor]
    mask: Bool[Tensor, "b t"] | None = None

    def see_mask(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """However the mask is given: by position or by name."""
        mask = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments.get("attention_mask")
        self.mask = None if mask is None else mask.bool()

    def see_input(self, rule: str, own: dict[str, str]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """The hook of one module whose parameters are called `own`."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = self._counted(inputs[0])
            if rule == "embedding":
                squares = torch.bincount(x.flatten(), minlength=len(self.sums[own["weight"]])).unsqueeze(1)
            else:
                x = normalised(module, x, self.norm_offset) if rule == "norm" else x.float()
                squares = x.flatten(0, -2).square().sum(0)
            self._add(own["weight"], squares)
            if "bias" in own:
                self._add(own["bias"], torch.tensor(x.shape[:-1].numel()))

        return hook

    def _counted(self, x: Tensor) -> Tensor:
        """The tokens that the mask leaves. Gemma 3 normalises heads as (b, h, t, d), Qwen 3 as (b, t, h, d).

        Where h = t the sizes don't tell, but both are views of a projection's (b, t, h·d): memory runs over t last.
        """
        if self.mask is None or x.shape == self.mask.shape:
            return x if self.mask is None else x[self.mask]
        axes = [axis for axis in range(1, x.ndim - 1) if x.shape[axis] == self.mask.shape[1]]
        if not axes:
            raise ValueError(f"inputs of shape {[*x.shape]} have no axis for a mask of shape {[*self.mask.shape]}")
        return x.movedim(max(axes, key=x.stride), 1)[self.mask]

    def _add(self, name: str, part: Tensor) -> None:
        self.sums[name] += part.to(self.sums[name].device)


def from_weights(weight: Float[Tensor, "*n m"], moments: Float[Tensor, "*some"] | None, granularity: int = 1) -> Scores:
    """S = |W| · √moments of one parameter, or |W| without moments, in slabs of rows and in float32.

    `moments` as `collect_inputs` gives them: whatever broadcasts over the weight.
    """
    scores = Scores.zeros(weight.shape, granularity, weight.device)
    norms = torch.ones((), device=weight.device) if moments is None else moments.float().sqrt().to(weight.device)
    if weight.ndim == 1:
        scores.tiles += weight.float().abs() * norms
        return scores
    g = scores.granularity
    height = max(g, SLAB // weight.shape[1] // g * g)
    norms = norms.expand(weight.shape)
    for start in range(0, len(weight), height):
        scores.add(start, weight[start : start + height].float().abs() * norms[start : start + height])
    return scores
