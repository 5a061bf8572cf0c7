"""What makes a parameter matter: the number that layers and blocks are then chosen by.

    with collect(model, metric=parse("fisher")) as sensitivities: ...       # the metrics of a gradient
    from_weights(weight, moments, granularity=64)                           # magnitude, wanda: no backward pass

Seeking Neural Nuggets (arXiv 2310.11451) measures first-order Taylor scores and nothing else; the others are common in
pruning and attribution, and ask whether that choice matters. A metric is its own configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:  # a metric is chosen without torch
    from jaxtyping import Float
    from torch import Tensor


class _Metric(BaseModel):
    """What is asked of the model where all its parameters are multiplied by each of `points`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def points(self) -> tuple[float, ...]:
        """Once, at the parameters themselves."""
        return (1.0,)

    def repeat(self, rows: Tensor) -> Tensor:
        """A batch (b, ...) as `collect` wants it: each example in as many rows, one after another, as points."""
        return rows.repeat_interleave(len(self.points()), 0) if len(self.points()) > 1 else rows


class Taylor(_Metric):
    """|θ · dL/dθ| of each example, summed: how far the loss moves without a parameter, to first order (the paper)."""

    kind: Literal["taylor"] = "taylor"

    def score(self, grad: Float[Tensor, "... m"], weight: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        """S of one example from its gradient, which is overwritten: it is as large as the weights."""
        return grad.mul_(weight).abs_()


class Fisher(_Metric):
    """(dL/dθ)² of each example, summed: the diagonal of the empirical Fisher information, blind to θ's own size."""

    kind: Literal["fisher"] = "fisher"

    def score(self, grad: Float[Tensor, "... m"], weight: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        """S of one example from its gradient, which is overwritten."""
        return grad.square_()


class IntegratedGradients(_Metric):
    """|θ · mean dL/dθ on the way from 0 to θ|: Taylor's score without its locality, for `steps` times the work.

    Sundararajan et al. (arXiv 1703.01365), applied to weights: every parameter at once is multiplied by
    (k - 1/2) / steps, k = 1 … steps (midpoint rule, baseline 0), and the mean is taken before the absolute value.
    """

    kind: Literal["integrated_gradients"] = "integrated_gradients"
    steps: int = Field(default=8, ge=1)

    def points(self) -> tuple[float, ...]:
        """The middles of `steps` equal parts of (0, 1)."""
        return tuple((k + 0.5) / self.steps for k in range(self.steps))

    def score(self, grad: Float[Tensor, "... m"], weight: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        """S of one example from its mean gradient, which is overwritten."""
        return grad.mul_(weight).abs_()


class Magnitude(_Metric):
    """|θ|: needs no data, and so asks whether the seed examples matter at all."""

    kind: Literal["magnitude"] = "magnitude"


class Wanda(_Metric):
    """|W_ij| · ‖x_j‖₂ over all tokens of the seed examples (Sun et al., arXiv 2306.11695): forward passes only."""

    kind: Literal["wanda"] = "wanda"


GradientMetric = Taylor | Fisher | IntegratedGradients

SensitivityMetric = Annotated[
    Annotated[Taylor | Fisher | IntegratedGradients | Magnitude | Wanda, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]
