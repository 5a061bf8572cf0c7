"""Exact scores in two passes are those of one pass that had room for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.models.loading import Weights
from orchestrator.steps.activations import activations
from orchestrator.steps.data import data_step
from orchestrator.steps.exact import Exact
from orchestrator.steps.measure import measure
from orchestrator.steps.scores import FILE, read_scores
from orchestrator.steps.step import materialise
from orchestrator.store import Store
from orchestrator.tasks import TASKS
from orchestrator.transfer.metrics import Fisher, Taylor

MATRICES = ["model.layers.{}.self_attn.k_proj.weight", "model.layers.{}.mlp.down_proj.weight"]


@pytest.mark.parametrize("metric", [Taylor(), Fisher()], ids=lambda metric: metric.kind)
def test_two_passes_give_what_one_gives(demo_models: dict[str, Path], tmp_path: Path, metric: Taylor | Fisher) -> None:
    teacher = str(demo_models["demo-teacher"])
    seeds = materialise(data_step(TASKS["demo"].splits(None)["seed"][:6]), Store(tmp_path / "store"))
    about = {"seeds": seeds, "teacher": teacher, "template": "plain", "max_tokens": 2048, "dtype": "float32"}
    about |= {"skip_bad": False, "partial": tmp_path / "partial"}
    for name, granularity in (("tiles", 16), ("exact", 1)):
        (tmp_path / name).mkdir()
        measure(tmp_path / name, metric=metric.model_dump(), granularity=granularity, **about)
    (tmp_path / "recorded").mkdir()
    facts = activations(
        tmp_path / "recorded", measured=tmp_path / "tiles", matrices=MATRICES, count=2, layers={"kind": "last"}, **about
    )
    weights = Weights(Path(teacher))
    assert facts["matrices"] == 4
    for path in (tmp_path / "recorded").iterdir():
        one = read_scores(tmp_path / "exact" / FILE, path.name)
        two = Exact(metric, tmp_path / "tiles", tmp_path / "recorded").scores(path.name, weights.get(path.name))
        assert two.granularity == 1
        assert float((one.tiles - two.tiles).norm() / one.tiles.norm()) < 1e-5
        assert not torch.equal(one.tiles, torch.zeros_like(one.tiles))
