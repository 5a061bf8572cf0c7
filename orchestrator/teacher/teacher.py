"""The teacher as extraction sees it: one matrix and its scores at a time, in the form that blocks are cut from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from orchestrator.models.families import FAMILIES, Geometry, ModelFamily, Pair
from orchestrator.models.loading import Weights, read_config
from orchestrator.teacher.exact import Exact
from orchestrator.teacher.scores import read_scores
from orchestrator.transfer.scores import Scores


@dataclass
class Teacher:
    """A teacher's matrices and their scores, one at a time: the model itself is never loaded.

    A matrix that several roles share comes out as if each had its own.
    """

    family: ModelFamily
    geometry: Geometry
    weights: Weights
    measured: Path
    exact: Exact | None = None  # where the layers' single weights are scored, not their tiles
    tokens: Int[Tensor, " v"] | None = None  # for each of the student's tokens the teacher's row, or -1

    @classmethod
    def open(cls, folder: Path, measured: Path, exact: Exact | None = None, tokens: Tensor | None = None) -> Teacher:
        """From its folder and its measured sensitivities."""
        config = read_config(folder, "teacher")
        return cls(FAMILIES[config.model_type], Geometry.of(config), Weights(folder), measured, exact, tokens)

    def weight(self, pair: Pair, layer: int | None) -> Tensor:
        """The matrix to cut from: K/V heads repeated for their groups, embeddings in the student's order of tokens."""
        matrix = self.weights.get(self._name(pair, layer))
        if layer is None:
            return self._by_token(matrix)
        return self._repeated(matrix[self.family.rows(pair.role, self.geometry)], pair)

    def scores(self, pair: Pair, layer: int | None) -> Scores:
        """Its S, in the same places.

        A repeated head's scores are divided by the group's size: a lower bound of what the repeated parameters would
        score (1.1 to 1.8 times that), since the absolute value is taken of the group's summed gradient. An
        embedding's column sums are those over all of the teacher's tokens. Where tiles are all that is known of a
        matrix that roles share, a role's column sums are spread evenly over each tile.
        """
        name = self._name(pair, layer)
        if layer is None:
            return self._of_tokens(read_scores(self.measured, name))
        scores = self.exact.scores(name, self.weights.get(name)) if self.exact else read_scores(self.measured, name)
        g, rows = scores.granularity, self.family.rows
        tiles = self._shared(scores.tiles[rows(pair.role, self.geometry, g)], pair, g)
        if g == 1:
            return Scores(tiles, scores.rows, scores.cols, 1)
        each = self._shared(scores.rows[rows(pair.role, self.geometry)][:, None], pair)[:, 0]
        alone = len(self.family.sharers(pair.role)) == 1
        cols = scores.cols if alone else (tiles.sum(0) / g).repeat_interleave(g)[: len(scores.cols)]
        return Scores(tiles, each, cols, g)

    def _name(self, pair: Pair, layer: int | None) -> str:
        name = self.family.parameter(pair.role, layer)
        return name if name in self.weights else self.family.parameter("embed", None)  # a tied head

    def _shared(self, scores: Tensor, pair: Pair, granularity: int = 1) -> Tensor:
        repeated = self._repeated(scores, pair, granularity)
        return repeated / pair.repeats if pair.repeats > 1 else repeated

    def _repeated(self, matrix: Tensor, pair: Pair, granularity: int = 1) -> Tensor:
        if pair.repeats == 1:
            return matrix  # as it is, since it may be large
        heads = matrix.unflatten(0, (-1, self.geometry.head_dim // granularity))
        return heads.repeat_interleave(pair.repeats, 0).flatten(0, 1)

    def _of_tokens(self, scores: Scores) -> Scores:
        """An embedding's: every row is kept, so that sums tell all that a choice of columns needs."""
        if scores.granularity > 1:
            return Scores(scores.tiles, self._by_token(scores.rows), scores.cols, scores.granularity)
        tiles = self._by_token(scores.tiles)
        return Scores(tiles, tiles.sum(1), scores.tiles.sum(0), 1)

    def _by_token(self, rows: Tensor) -> Tensor:
        """The teacher's rows in the student's order; nothing where the teacher lacks the token."""
        assert self.tokens is not None
        found = rows[self.tokens.clamp(min=0)]
        found[self.tokens < 0] = 0
        return found
