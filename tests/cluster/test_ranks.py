"""Real processes: one rank, two and four must agree with brute force, and a death must cost nothing but time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rank_side import dying_at_the_third, dying_once, memory_of_shards, process, shards_or_not, square
from safetensors.torch import load_file
from tiny import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.cluster.ranks import Member, Placement, RankDied, spread, stream
from orchestrator.errors import UserError
from orchestrator.tasks.template import Encoded
from orchestrator.teacher.from_weights import MOMENTS, count_inputs
from orchestrator.teacher.measure import LEFT_OUT, Measuring, measuring
from orchestrator.teacher.scores import FILE, LAYERS, read_scores
from orchestrator.teacher.teacher_pass import follow
from orchestrator.transfer.blocks import Window
from orchestrator.transfer.layers import Sensitivity
from orchestrator.transfer.metrics import Fisher, GradientMetric, IntegratedGradients, Wanda
from orchestrator.transfer.place import Place
from orchestrator.transfer.scores import Scores

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("ray")]


def rows(count: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(2, 90, (5 + 3 * number,), generator=generator).tolist()
        made.append(Encoded(f"example-{number}", ids, [-100] * (2 + number % 2) + ids[2 + number % 2 :]))
    return made


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    tiny("qwen3-tied").save_pretrained(folder)  # tied, grouped queries, norms on q and k, a head_dim of its own
    return folder


def brute_force(encoded: list[Encoded]) -> dict[str, torch.Tensor]:
    model = tiny("qwen3-tied")
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for row in encoded:
        model.zero_grad()
        model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss.backward()
        for name, parameter in model.named_parameters():
            total[name] += (parameter * parameter.grad).abs().double().detach()
    return total


def job(teacher: Path, encoded: list[Encoded], folder: Path, **more: Any) -> Measuring:
    folder.mkdir()
    where = {name: more.pop(name) for name in ("offload", "tokens", "replicate") if name in more}
    placement = Placement(more.pop("ranks", 1), **where)
    return Measuring(str(teacher), encoded, 0, "float32", folder / "partial", placement, out=folder, **more)


def distance(folder: Path, right: dict[str, torch.Tensor], granularity: int) -> float:
    worst = 0.0
    for name, exact in right.items():
        scores = read_scores(folder / FILE, name)
        if exact.ndim == 2 and granularity > 1:
            exact = torch.stack([part.sum(0) for part in exact.split(granularity)])
            exact = torch.stack([part.sum(1) for part in exact.split(granularity, 1)], 1)
        worst = max(worst, float((scores.tiles.double() - exact).norm() / exact.norm()))
    return worst


@pytest.mark.parametrize(
    ("ranks", "granularity", "count", "replicate"),
    [
        (2, 1, 7, False),
        (2, 16, 1, True),
        pytest.param(4, 16, 3, False, marks=pytest.mark.long),
        pytest.param(4, 16, 7, True, marks=pytest.mark.long),
    ],
)
def test_any_number_of_ranks_equals_brute_force(
    lasting: None, teacher: Path, tmp_path: Path, ranks: int, granularity: int, count: int, replicate: bool
) -> None:
    """In shards and whole, each with fewer examples than ranks, and with examples that don't divide by them."""
    encoded = rows(count)
    work = job(teacher, encoded, tmp_path / "out", granularity=granularity, ranks=ranks, replicate=replicate)
    told = list(stream(work.placement, measuring, work, work.partial))
    assert {rank for rank, _ in told} == set(range(ranks))
    assert sum(event.examples for _, event in told) == count
    assert distance(tmp_path / "out", brute_force(encoded), granularity) < 1e-5


@pytest.mark.parametrize("metric", [Fisher(), IntegratedGradients(steps=3)], ids=lambda metric: metric.kind)
def test_two_ranks_measure_by_any_metric_as_one(
    lasting: None, teacher: Path, tmp_path: Path, metric: GradientMetric
) -> None:
    two = job(teacher, rows(5), tmp_path / "two", granularity=16, ranks=2, metric=metric)
    one = job(teacher, rows(5), tmp_path / "one", granularity=16, metric=metric, tokens=7)
    list(stream(two.placement, measuring, two, two.partial))
    list(measuring(one, Member()))
    assert apart(tmp_path / "one", tmp_path / "two") < 1e-5


def test_two_ranks_count_inputs_as_one(lasting: None, teacher: Path, tmp_path: Path) -> None:
    """Three examples, so that in the second round one rank has none."""
    by_one, by_two = (
        job(teacher, rows(3), tmp_path / name, ranks=ranks, tokens=1, metric=Wanda())
        for name, ranks in (("one", 1), ("two", 2))
    )
    list(count_inputs(by_one, Member()))
    list(stream(by_two.placement, count_inputs, by_two, by_two.partial))
    one, two = (load_file(tmp_path / name / MOMENTS) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=1e-5) for name in one)


def test_in_bfloat16_the_same_is_chosen(lasting: None, teacher: Path, tmp_path: Path) -> None:
    """The same layers, and windows whose scores are within half a percent of the best."""
    encoded = rows(7)
    list(measuring(job(teacher, encoded, tmp_path / "exact"), Member()))
    half = replace(job(teacher, encoded, tmp_path / "half", granularity=4, ranks=2), dtype="bfloat16")
    list(stream(half.placement, measuring, half, half.partial))
    totals = [json.loads((tmp_path / name / LAYERS).read_text()) for name in ("exact", "half")]
    keep = len(totals[0]) // 2
    assert Sensitivity().select(totals[0], keep) == Sensitivity().select(totals[1], keep)
    place = Place("", (16, 32), ("ffn", "residual"), (8, 8), 0)
    for layer in range(len(totals[0])):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        exact, own = (read_scores(tmp_path / which / FILE, name) for which in ("exact", "half"))
        best = Window().select(tiled(exact, 4), place)
        found = Window().select(own, place)
        assert found.take(exact.tiles).sum() > 0.995 * best.take(exact.tiles).sum()


def tiled(scores: Scores, granularity: int) -> Scores:
    """Exact scores as tiles, whose best window is the best at that granularity."""
    made = Scores.zeros(scores.tiles.shape, granularity, scores.tiles.device)
    made.add(0, scores.tiles)
    return made


@pytest.mark.long
def test_ranks_that_hold_the_whole_teacher_know_nothing_of_shards(lasting: None, teacher: Path, tmp_path: Path) -> None:
    """Where each holds shards, their parameters are empty between two gathers."""
    for replicate in (True, False):
        made = job(teacher, rows(2), tmp_path / str(replicate), ranks=2, replicate=replicate)
        told = [event for _, event in stream(made.placement, shards_or_not, made, made.partial)]
        assert told == [not replicate] * 2


@pytest.mark.long
def test_a_bad_example_is_left_out_on_every_rank(lasting: None, tmp_path: Path) -> None:
    """One whose token has no finite embedding, beside good ones in its batch and on the other rank."""
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[95] = torch.nan
    model.save_pretrained(tmp_path / "teacher")
    encoded = rows(6)
    bad = replace(encoded[2], ids=[*encoded[2].ids[:-1], 95], id="the bad one")
    given = [*encoded[:2], bad, *encoded[3:]]
    made = job(tmp_path / "teacher", given, tmp_path / "made", granularity=16, ranks=2, skip_bad=True)
    list(stream(made.placement, measuring, made, made.partial))
    good = job(tmp_path / "teacher", [row for row in given if row is not bad], tmp_path / "good", granularity=16)
    list(measuring(good, Member()))
    assert apart(tmp_path / "good", tmp_path / "made") < 1e-5
    assert json.loads((tmp_path / "made" / LEFT_OUT).read_text()) == ["the bad one"]
    with pytest.raises(UserError, match=r"'the bad one' is nan; leave it out, or let --skip-bad-examples do it"):
        list(stream(made.placement, measuring, replace(made, skip_bad=False, partial=tmp_path / "other"), tmp_path))


def test_parameters_that_wait_in_memory_give_the_same(ray_here: None, teacher: Path, tmp_path: Path) -> None:
    """One rank whose shard is the whole model, offloaded."""
    work = job(teacher, rows(3), tmp_path / "out", granularity=16, offload="cpu", tokens=30)
    assert {rank for rank, _ in stream(work.placement, measuring, work, work.partial)} == {0}
    assert distance(tmp_path / "out", brute_force(rows(3)), 16) < 1e-5


def test_a_folder_that_cannot_take_parameters_is_told(ray_here: None, teacher: Path, tmp_path: Path) -> None:
    work = job(teacher, rows(3), tmp_path / "out", offload=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"offload: .*nowhere is no folder on this rank's machine"):
        list(stream(work.placement, measuring, work, work.partial))


@pytest.mark.parametrize("replicate", [False, True], ids=["in shards", "whole on each"])
@pytest.mark.long
def test_a_killed_rank_resumes_from_the_checkpoint_with_the_same_scores(
    ray_here: None, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, replicate: bool
) -> None:
    encoded = rows(7)
    how = {"granularity": 16, "ranks": 2, "tokens": 1, "replicate": replicate}
    whole = job(teacher, encoded, tmp_path / "whole", **how)
    follow(measuring, whole, lambda items, *_: items, "")
    broken = job(teacher, encoded, tmp_path / "broken", checkpoint_every=2, **how)
    follow(dying_once, broken, lambda items, *_: items, "")
    assert (broken.partial / "died").exists()
    assert "rank 1 died" in caplog.text and "about to be killed" in caplog.text
    for name in brute_force(encoded[:1]):
        one, other = (read_scores(tmp_path / which / FILE, name) for which in ("whole", "broken"))
        assert torch.equal(one.tiles, other.tiles) and torch.equal(one.rows, other.rows)
    assert json.loads((tmp_path / "whole" / "layers.json").read_text()) == json.loads(
        (tmp_path / "broken" / "layers.json").read_text()
    )


def test_a_checkpoint_of_two_ranks_serves_one(ray_here: None, teacher: Path, tmp_path: Path) -> None:
    encoded = rows(7)
    made = job(teacher, encoded, tmp_path / "half", granularity=16, ranks=2, tokens=1, checkpoint_every=1)
    with pytest.raises(RankDied, match=r"rank \d died; its last lines"):
        list(stream(made.placement, dying_at_the_third, made, made.partial))
    assert list(made.partial.glob("[0-9]*"))
    told = list(measuring(made, Member()))
    assert 0 < sum(event.examples for event in told) < 7
    assert distance(tmp_path / "half", brute_force(encoded), 16) < 1e-5


def test_works_are_spread_and_come_back_in_order(ray_here: None, tmp_path: Path) -> None:
    assert list(spread(Placement(3), square, range(12), tmp_path)) == [number**2 for number in range(12)]
    with pytest.raises(UserError, match=r"^data: 13 brings bad luck$"):
        list(spread(Placement(2), square, range(14), tmp_path))


def test_a_group_that_can_never_be_placed_is_told_at_once(ray_here: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ranks: 9 ranks of 1 CPUs .* the nodes have 4 CPUs, 0 GPUs.* --ranks 4"):
        list(stream(Placement(9), measuring, None, tmp_path))


def test_a_rank_that_never_began_says_why(ray_here: None, tmp_path: Path) -> None:
    """As on a node that doesn't share the store: its log can't be opened."""
    (tmp_path / "rank-1.log").mkdir()
    with pytest.raises(RankDied, match=r"(?s)rank 1 died.*IsADirectoryError"):
        list(spread(Placement(2), square, range(4), tmp_path))


def test_no_process_outlives_its_group(ray_here: None, tmp_path: Path) -> None:
    pids = list(spread(Placement(2), process, [0, 1], tmp_path))
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in set(pids) if psutil.pid_exists(pid)], timeout=60)
    assert not alive and len(set(pids)) >= 1


@pytest.mark.long
def test_no_rank_ever_holds_the_model(ray_here: None, tmp_path: Path) -> None:
    """Half a gigabyte in eight layers: a rank has its share, and never much more of it at once while loading."""
    config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, vocab_size=512)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    whole = sum(parameter.numel() * 4 for parameter in model.parameters())
    model.save_pretrained(tmp_path / "model", max_shard_size="60MB")
    del model
    most, after = {}, {}
    for ranks in (2, 4):
        told = dict(stream(Placement(ranks), memory_of_shards, str(tmp_path / "model"), tmp_path / "logs"))
        assert len(told) == ranks
        most[ranks], after[ranks] = (max(figures) for figures in zip(*told.values(), strict=True))
        assert most[ranks] < after[ranks] + 0.1 * whole
    assert after[2] - after[4] == pytest.approx(whole / 2 - whole / 4, rel=0.1)  # what doesn't shrink is libraries
    assert after[4] < whole / 4 + 250e6


def apart(one: Path, other: Path) -> float:
    """The largest relative distance of two measurements, over parameters and their rows and columns."""
    worst = 0.0
    left, right = (load_file(folder / FILE) for folder in (one, other))
    assert left.keys() == right.keys()
    for name, exact in left.items():
        worst = max(worst, float((exact - right[name]).norm() / exact.norm()))
    return worst
