"""The teacher as extraction sees it: one matrix and its scores at a time, in the form that blocks are cut from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.models.families import FAMILIES, Geometry, ModelFamily, Pair
from orchestrator.models.loading import Weights, read_config
from orchestrator.steps.exact import Exact
from orchestrator.steps.scores import read_scores
from orchestrator.transfer.sensitivity import Scores


@dataclass
class Teacher:
    """A teacher's matrices and their scores, one at a time: the model itself is never loaded."""

    family: ModelFamily
    geometry: Geometry
    weights: Weights
    measured: Path
    exact: Exact | None = None  # where the layers' single weights are scored, not their tiles

    @classmethod
    def open(cls, folder: Path, measured: Path, exact: Exact | None = None) -> Teacher:
        """From its folder and its measured sensitivities."""
        config = read_config(folder, "teacher")
        return cls(FAMILIES[config.model_type], Geometry.of(config), Weights(folder), measured, exact)

    def weight(self, pair: Pair, layer: int | None) -> Tensor:
        """The matrix to cut from: K/V heads repeated for their groups, rows filled up to a longer padded vocabulary."""
        matrix = self.weights.get(self._name(pair, layer))
        return self._fitted(matrix, pair, self.geometry.head_dim)

    def scores(self, pair: Pair, layer: int | None) -> Scores:
        """Its S, in the same places.

        A repeated head's scores are divided by the group's size: a lower bound of what the repeated parameters would
        score (1.1 to 1.8 times that), since the absolute value is taken of the group's summed gradient.
        """
        scores = self._raw(self._name(pair, layer), layer)
        g = scores.granularity
        tiles = self._fitted(scores.tiles, pair, self.geometry.head_dim // g, g) / pair.repeats
        if g == 1:
            return Scores(tiles, scores.rows, scores.cols, 1)
        rows = self._fitted(scores.rows[:, None], pair, self.geometry.head_dim)[:, 0] / pair.repeats
        return Scores(tiles, rows, scores.cols, g)

    def _raw(self, name: str, layer: int | None) -> Scores:
        """As measured. Embedding and head keep all rows, and of their columns the sums are exact at any tile."""
        if self.exact and layer is not None:
            return self.exact.scores(name, self.weights.get(name))
        return read_scores(self.measured, name)

    def _name(self, pair: Pair, layer: int | None) -> str:
        name = self.family.parameter(pair.role, layer)
        return name if name in self.weights else self.family.parameter("embed", None)  # a tied head

    def _fitted(self, matrix: Tensor, pair: Pair, head_rows: int, granularity: int = 1) -> Tensor:
        if pair.repeats > 1:
            heads = matrix.view(-1, head_rows, matrix.shape[1])
            return heads.repeat_interleave(pair.repeats, 0).flatten(0, 1)
        if pair.role in ("embed", "head"):
            rows = -(-pair.teacher[0] // granularity)
            return torch.nn.functional.pad(matrix[:rows], (0, 0, 0, max(0, rows - len(matrix))))
        return matrix
