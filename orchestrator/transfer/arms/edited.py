"""Plain LoRA that is changed once it is trained, by how much the loss asks of each part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.transfer.arms.base import BaseArm, control

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from orchestrator.transfer.arms.base import Start


AT_RANDOM = {"at_random": True, "has_content": False}


class Edited(BaseArm):
    """Trained as plain LoRA is; a control has the same done to it at random places."""

    changes_base: ClassVar[bool] = False
    at_random: ClassVar[bool] = False
    examples: int = Field(32, ge=1)  # training rows of which the loss is asked

    def edit(self, start: Start, gradient: Float[Tensor, "n m"], rank: int, generator: torch.Generator) -> Start:
        """What becomes of one module's trained B·A; `gradient` is the loss' with respect to its W."""
        raise NotImplementedError


class Spectral(Edited):
    """Plain LoRA whose singular values are reweighted by the loss' gradient, in their directions as they are.

    Spectral Surgery (arXiv 2603.03995), reconstructed: g_k = u_kᵀ·(∂L/∂W)·v_k says what the loss does as σ_k grows; σ_k
    is multiplied by 1 - strength·tanh(σ_k·g_k / their mean size in the matrix), and all are rescaled to the sum that
    they had. Published: up to +4.4 on CommonsenseQA, from about a thousand numbers.
    """

    kind: Literal["spectral"] = "spectral"
    starts_at: ClassVar[str] = "plain LoRA, whose singular values are reweighted at the end"
    strength: float = Field(0.5, gt=0, lt=1)

    def edit(self, start: Start, gradient: Float[Tensor, "n m"], rank: int, generator: torch.Generator) -> Start:
        """Of each matrix."""
        import torch

        from orchestrator.transfer.lowrank import product_svd

        factors = product_svd(*start)
        asked = factors.s * ((factors.u.t() @ gradient.float()) * factors.vh).sum(1)
        weights = 1 - self.strength * torch.tanh(asked / asked.abs().mean().clamp_min(torch.finfo(asked.dtype).tiny))
        if self.at_random:
            weights = weights[torch.randperm(len(weights), generator=generator)]
        s = factors.s * weights
        s = s * (factors.s.sum() / s.sum().clamp_min(torch.finfo(s.dtype).tiny))
        root = s.sqrt()
        return factors.u * root, root[:, None] * factors.vh


control(Spectral, "random", "plain LoRA, whose singular values are reweighted at random", **AT_RANDOM)


class Sta(Edited):
    """Plain LoRA of which each matrix keeps the entries of largest Taylor importance |ΔW · ∂L/∂W|, and no others.

    STA (arXiv 2411.16139): its exact mask isn't known here. What is left has not the LoRA's rank and is cut to it
    again; with all entries kept it is the LoRA.
    """

    kind: Literal["sta"] = "sta"
    starts_at: ClassVar[str] = "plain LoRA, of which the entries of largest importance stay"
    kept: float = Field(0.5, gt=0, le=1)

    def edit(self, start: Start, gradient: Float[Tensor, "n m"], rank: int, generator: torch.Generator) -> Start:
        """Of each matrix."""
        import torch

        from orchestrator.transfer.lowrank import truncated_svd

        whole = (start[0] @ start[1]).float()
        if self.at_random:
            importance = torch.rand(whole.shape, generator=generator)
        else:
            importance = (whole * gradient.float()).abs()
        count = max(1, round(self.kept * whole.numel()))
        mask = torch.zeros(whole.numel(), dtype=torch.bool)
        mask[importance.flatten().topk(count).indices.cpu()] = True
        factors = truncated_svd(whole * mask.view(whole.shape).to(whole.device), min(rank, *whole.shape))
        root = factors.s.sqrt()
        return factors.u * root, root[:, None] * factors.vh


control(Sta, "random", "plain LoRA, of which as many entries at random stay", **AT_RANDOM)
