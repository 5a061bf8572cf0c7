"""Exact scores in two passes are those of one pass that had room for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny

from orchestrator.cluster.ranks import Member
from orchestrator.models.loading import Weights
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.tasks import TASKS
from orchestrator.tasks.rows import data_step
from orchestrator.tasks.template import Encoded
from orchestrator.teacher.activations import Recording, activations, recording
from orchestrator.teacher.exact import Exact
from orchestrator.teacher.measure import measure
from orchestrator.teacher.scores import FILE, read_scores
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


def test_a_bad_example_is_left_out_of_the_second_pass(tmp_path: Path) -> None:
    """Beside good ones in its batch: their rows stay theirs."""
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[95] = torch.nan
    model.save_pretrained(tmp_path / "teacher")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 90, (8,), generator=generator).tolist() for _ in range(4)]
    given = [Encoded(str(number), row, row) for number, row in enumerate(ids)]
    bad = Encoded("bad", [*ids[0][:-1], 95], ids[0])
    name = "model.layers.1.mlp.up_proj.weight"
    found = {}
    for kind, rows in (("with", [*given[:1], bad, *given[1:]]), ("without", given)):
        names, folder = frozenset([name]), str(tmp_path / "teacher")
        job = Recording(folder, rows, 0, "float32", tmp_path / kind, skip_bad=True, names=names)
        list(recording(job, Member()))
        found[kind] = {path.name: load_file(path) for path in (tmp_path / kind / name).iterdir()}
    assert found["with"].keys() == found["without"].keys() and len(found["with"]) == 4
    for path, tensors in found["without"].items():
        assert all(torch.allclose(tensors[key], found["with"][path][key], atol=1e-6) for key in ("gy", "x"))


def test_a_recorded_pass_survives_the_end_of_its_step(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """As after Ctrl-C while the store was writing it down: the next try finds all it needs."""
    teacher = str(demo_models["demo-teacher"])
    seeds = materialise(data_step(TASKS["demo"].splits(None)["seed"][:2]), Store(tmp_path / "store"))
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "layers.json").write_text("[1, 2, 3, 4, 5, 6]")
    about = {"seeds": seeds, "teacher": teacher, "template": "plain", "max_tokens": 2048, "dtype": "float32"}
    about |= {"skip_bad": False, "partial": tmp_path / "partial", "measured": tmp_path / "measured"}
    for attempt in ("first", "second"):
        (tmp_path / attempt).mkdir()
        activations(tmp_path / attempt, matrices=MATRICES, count=1, layers={"kind": "last"}, **about)
        assert len(list(tmp_path.glob(f"{attempt}/*/*.safetensors"))) == 4
        shutil.rmtree(tmp_path / attempt)
