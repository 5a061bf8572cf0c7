"""Scores of single weights for a teacher whose scores nobody has room for: one matrix at a time, when it is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from orchestrator.teacher.from_weights import score_weight
from orchestrator.teacher.teacher_pass import device
from orchestrator.transfer.metrics import GradientMetric, Magnitude, SensitivityMetric, Wanda
from orchestrator.transfer.scores import Scores
from orchestrator.transfer.sensitivity import score_factors


@dataclass(frozen=True)
class Exact:
    """Where single weights' scores are made from: the second pass's folder, or the weights themselves."""

    metric: SensitivityMetric
    measured: Path
    recorded: Path | None

    def scores(self, name: str, weight: Tensor) -> Scores:
        """S of every weight of one matrix, as one pass at granularity 1 gives it."""
        if isinstance(self.metric, Magnitude | Wanda):
            return score_weight(self.measured, name, weight, 1)
        assert self.recorded is not None
        return from_recorded(self.recorded / name, weight, self.metric)


def from_recorded(folder: Path, weight: Tensor, metric: GradientMetric) -> Scores:
    """S of every weight (n, m), from the inputs and output gradients of each example."""
    weight = weight.to(device())
    scores = Scores.zeros(weight.shape, 1, weight.device)
    for path in sorted(folder.iterdir()):
        parts = load_file(path, device=str(weight.device))
        score_factors(scores, weight, parts["gy"][None], parts["x"][None], metric)
    scores.tiles = scores.tiles.cpu()
    return scores
