"""What exact scores of single weights need, kept in place of the scores: a matrix's inputs and output gradients.

    with record(model, {"model.layers.3.mlp.up_proj.weight"}, keep):     # keep(name, gy (b, t, n), x (b, t, m))
        example_losses(model(ids).logits, labels).sum().backward()

An example's gradient of an n x m matrix is gy^T x. At 200 tokens and 28672 x 8192 that is 15 MB in bfloat16 instead
of 940 MB of float32 scores that no rank has room for, and it is scored later, matrix by matrix, by whoever is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from orchestrator.transfer.gradients import Lookup, watched

Keep = Callable[[str, Tensor, Tensor], None]


@contextmanager
def record(model: nn.Module, names: Iterable[str], keep: Keep) -> Iterator[None]:
    """While open, each backward pass hands gy (b, t, n) and x (b, t, m) of the named matrices to `keep`.

    Otherwise as `watched`. TypeError, in the backward pass, for a name that is no linear module's weight.
    """
    with watched(model, {name: _Kept(name, keep) for name in names}):
        yield


@dataclass(frozen=True)
class _Kept:
    """The sink of one matrix: its factors as they come."""

    name: str
    keep: Keep

    def matrix(self, weight: Tensor, gy: Tensor, x: Tensor, lookup: Lookup | None) -> None:
        if lookup is not None:
            self.rows(weight, lookup)
        self.keep(self.name, gy, x)

    def rows(self, weight: Tensor, lookup: Lookup) -> None:
        raise TypeError(f"{self.name} is looked up, and only a linear module's weight is recorded")

    def vector(self, weight: Tensor, grads: Tensor) -> None:
        raise TypeError(f"{self.name} is a vector, and only a linear module's weight is recorded")
