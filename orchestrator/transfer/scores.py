"""S of one parameter, at the granularity that there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # structures, which are chosen without torch, are written in these words
    import torch
    from jaxtyping import Float
    from torch import Tensor

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
        import torch

        return float(self.tiles.sum(dtype=torch.float64))

    @classmethod
    def zeros(cls, shape: torch.Size, granularity: int, device: torch.device) -> Scores:
        """Room for a parameter of this shape, in float32 whatever the model's dtype."""
        import torch

        g = granularity if len(shape) == 2 else 1
        empty = torch.zeros(0, device=device)
        tiles = torch.zeros([-(-size // g) for size in shape], device=device)
        if g == 1:
            return cls(tiles, empty, empty, 1)
        return cls(tiles, torch.zeros(shape[0], device=device), torch.zeros(shape[1], device=device), g)

    def add(self, start: int, scores: Float[Tensor, "slab m"]) -> None:
        """Add one example's S of the rows from `start`, which must be a multiple of g."""
        import torch.nn.functional as F

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
