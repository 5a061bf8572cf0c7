"""How much each parameter matters for a task, without ever holding a gradient of the model's size.

    with collect(model, granularity=1) as sensitivities:
        example_losses(model(ids).logits, labels).sum().backward()
    sensitivities["model.layers.0.self_attn.q_proj.weight"].tiles    # (n, m), S of every weight

The first-order Taylor score of a parameter is S_i = sum over examples j of |theta_i * dL(x_j)/dtheta_i|
(Seeking Neural Nuggets, arXiv 2310.11451). The absolute value is taken per example, so a batch's summed gradient
is of no use, and a gradient averaged over ranks is wrong. Here gradients.py hands over, matrix by matrix in the
backward pass, what a gradient is the product of; one example's gradient of one slab of rows at a time is formed,
|G * W| added up and the rest forgotten. metrics.py has what can stand in the place of |G * W|.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from orchestrator.transfer import kernels
from orchestrator.transfer.gradients import Lookup, Sink, shape_of, watched
from orchestrator.transfer.metrics import Fisher, GradientMetric, Taylor
from orchestrator.transfer.scores import SLAB, Scores

TAYLOR = Taylor()


def example_losses(logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """Per example, the mean next-token cross-entropy over its labelled tokens (label -100: not counted).

    Examples are never pooled over their tokens: S of a batch must be the sum of what each example gives alone.
    """
    labels = labels[:, 1:]
    losses = F.cross_entropy(widened(logits[:, :-1]).transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels != -100).sum(1)


def widened(values: Tensor) -> Tensor:
    """In float32 at least: sums over a vocabulary in bfloat16 make unlike tokens tie."""
    return values if values.dtype == torch.float64 else values.float()


@contextmanager
def collect(
    model: nn.Module, *, metric: GradientMetric = TAYLOR, granularity: int = 1, norm_offset: float = 0.0
) -> Iterator[dict[str, Scores]]:
    """While open, each backward pass through `model` adds to the scores of all its parameters, by name.

    The batch is the first dimension of every activation, and what is differentiated is the *sum over rows* of
    their own losses. Where the metric looks at several points of the parameters (integrated gradients), each example
    must stand in the batch that often, `metric.repeat(ids)`; the mean over its rows is taken here. ValueError
    where the batch can't be such. Parameters are frozen inside and restored, with the forward methods, at the end.
    `norm_offset`: 1 where a norm multiplies by 1 + weight (Gemma). Raises TypeError for a module whose
    parameters it has no rule for, since silently leaving one out would falsify the layers' scores.
    """
    scores = {n: Scores.zeros(shape_of(p), granularity, p.device) for n, p in model.named_parameters()}
    sinks: dict[str, Sink] = {name: _Scored(score, metric) for name, score in scores.items()}
    with watched(model, sinks, points=metric.points(), norm_offset=norm_offset):
        yield scores


@dataclass(frozen=True)
class _Scored:
    """The sink of one parameter: an example's rows in the batch made one gradient, and that a score."""

    scores: Scores
    metric: GradientMetric

    def matrix(self, weight: Tensor, gy: Tensor, x: Tensor, lookup: Lookup | None) -> None:
        gy, x = self._together(gy.flatten(1, -2)), self._mean(x.flatten(1, -2))
        if lookup is None:
            score_factors(self.scores, weight, gy, x, self.metric)
        else:
            score_matrix(self.scores, weight, gy, x, self._lookup(lookup), self.metric)

    def rows(self, weight: Tensor, lookup: Lookup) -> None:
        _score_rows(self.scores, weight, self._lookup(lookup), self.metric)

    def vector(self, weight: Tensor, grads: Tensor) -> None:
        grads = grads.view(-1, len(self.metric.points()), grads.shape[1]).mean(1)
        self.scores.tiles += self.metric.score(grads, weight.expand_as(grads)).sum(0)

    def _together(self, rows: Tensor) -> Tensor:
        """The tokens of an example's rows one after another: a sum over rows is a sum over tokens."""
        return rows.unflatten(0, (-1, len(self.metric.points()))).flatten(1, 2)

    def _mean(self, rows: Tensor) -> Tensor:
        """The same, divided, for one of two factors: their products then add up to the mean."""
        count = len(self.metric.points())
        return self._together(rows) / count if count > 1 else rows

    def _lookup(self, lookup: Lookup) -> Lookup:
        return Lookup(self._together(lookup.ids), self._mean(lookup.gy))


def score_factors(sink: Scores, weight: Tensor, gy: Tensor, x: Tensor, metric: GradientMetric = TAYLOR) -> None:
    """`score_matrix` in one kernel where there is one for this device, which never writes a gradient to memory."""
    if kernels.supported(sink.granularity, gy.device):
        kernels.add_scores(sink, weight, gy, x, squared=isinstance(metric, Fisher))
    else:
        score_matrix(sink, weight, gy, x, metric=metric)


def score_matrix(
    sink: Scores, weight: Tensor, gy: Tensor, x: Tensor, lookup: Lookup | None = None, metric: GradientMetric = TAYLOR
) -> None:
    """Add S of every example b of a batch, from G_b = gy_b^T x_b (+ `lookup`), in slabs of rows.

    gy (b, t, n), x (b, t, m), weight (n, m); sums are float32 whatever the inputs are.
    """
    n, m = weight.shape
    g = sink.granularity
    height = max(g, SLAB // m // g * g)
    slab = torch.empty(min(height, n), m, device=gy.device)
    for b in range(gy.shape[0]):
        left, right = gy[b].float().t(), x[b].float()
        for start in range(0, n, height):
            grad = torch.mm(left[start : start + height], right, out=slab[: n - start])
            if lookup is not None:
                lookup.add_into(grad, start, b)
            sink.add(start, metric.score(grad, weight[start : start + height]))


def _score_rows(sink: Scores, weight: Tensor, lookup: Lookup, metric: GradientMetric) -> None:
    """Add S of every example of an embedding (v, d): no more rows than the example has different tokens."""
    g = sink.granularity
    for ids, gy in zip(lookup.ids, lookup.gy, strict=True):
        tokens, place = ids.unique(return_inverse=True)
        grad = torch.zeros(len(tokens), weight.shape[1], device=gy.device).index_add_(0, place, gy.float())
        part = metric.score(grad, weight[tokens])
        if g == 1:
            sink.tiles[tokens] += part
            continue
        sink.rows[tokens] += part.sum(1)
        sink.cols += part.sum(0)
        by_tile = F.pad(part, (0, -part.shape[1] % g)).view(len(tokens), -1, g).sum(2)
        sink.tiles.index_add_(0, tokens // g, by_tile)
