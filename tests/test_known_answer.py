"""That experiments/known_answer makes what it says: models between which it is known what corresponds to what."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import tiny

from orchestrator import pipeline
from orchestrator.errors import UserError
from orchestrator.models import adapters
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.prepare.ready import check, prepare
from orchestrator.recipe import Recipe, Sweep
from orchestrator.report.record import read_scores
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.cells import expand
from orchestrator.sweep.presets import complete
from orchestrator.sweep.sweep import Plan
from orchestrator.tasks import TASKS
from orchestrator.verdict.estimates import Result
from orchestrator.verdict.verdict import ENOUGH_SEEDS, judge

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments" / "known_answer"
NAMES = ("sweeps", "build", "near", "update")


@pytest.fixture(scope="module")
def known() -> Iterator[Any]:
    """The experiment's scripts, which are in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(known: Any, demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair as the experiment makes it, in about half a minute."""
    folder = tmp_path_factory.mktemp("known")
    known.build.make(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def recipe(teacher: Path, given: dict[str, list[int]], **fields: Any) -> Recipe:
    document = {"teacher": str(teacher), "student": "demo-student", "task": "demo", "layers": "0,1,2,3", "rank": 8}
    document |= {"structure": {"kind": "given", **given}, "finetune": SHORT}
    return Recipe.model_validate(document | fields)


SHORT = {"examples": 576, "batch_size": 36, "dropout": 0.0}


def test_widening_keeps_the_function(known: Any) -> None:
    """Of a student with grouped queries and norms that are not all ones, as the other's demo pair has them."""
    student = tiny("llama")
    teacher = known.build.widened(student)
    assert teacher.config.num_key_value_heads == 4 and teacher.config.head_dim == 16
    rows = torch.randint(5, 99, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float((teacher(rows).logits - student(rows).logits).abs().max()) < 1e-4
        teacher.model.layers[1].self_attn.k_proj.weight[:16] *= 2  # one copy of one head: the halves no longer agree
        assert float((teacher(rows).logits - student(rows).logits).abs().max()) > 1e-3
    with pytest.raises(UserError, match="its embedding is its head"):
        known.build.widened(tiny("llama-tied"))


def test_the_random_teacher_has_the_same_singular_values_and_no_direction(known: Any) -> None:
    model = tiny("llama")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model = known.build.turn(model)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, before[name])
            continue
        assert torch.allclose(torch.linalg.svdvals(weight), torch.linalg.svdvals(before[name]), rtol=1e-4, atol=1e-5)
        assert abs(float(torch.cosine_similarity(weight.detach().flatten(), before[name].flatten(), 0))) < 0.1


def test_the_known_block_is_the_student_itself(
    known: Any, demo_models: dict[str, Path], store: Store, tmp_path: Path
) -> None:
    """Without noise and tuning: each weight as it was, halved where widening halved it, and its best factors."""
    student = load(str(demo_models["demo-student"]), dtype="float32")
    teacher = known.build.widened(student)
    teacher.save_pretrained(tmp_path / "teacher")
    load_tokenizer(str(demo_models["demo-student"])).save_pretrained(tmp_path / "teacher")
    asked = recipe(tmp_path / "teacher", known.build.indices(student.config))
    ready = prepare(asked)
    check(asked, ready)
    folder = materialise(pipeline.extract_step(asked, ready, rank=32), store)
    places, starts = json.loads((folder / "transfer.json").read_text())["indices"], adapters.read_start(folder)
    matrices = {name: weight.detach() for name, weight in student.named_parameters() if weight.ndim == 2}
    assert places.keys() == matrices.keys()
    for name, weight in matrices.items():
        half = 1 if "embed_tokens" in name else 2
        block = teacher.get_parameter(name).detach()[places[name]["rows"]][:, places[name]["columns"]]
        assert torch.equal(block * half, weight), name
        u, s, vh = torch.linalg.svd(weight / half, full_matrices=False)
        b0, a0 = starts[name.removesuffix(".weight")]
        assert torch.allclose(b0 @ a0, u[:, :32] * s[:32] @ vh[:32], atol=1e-4), name


def test_units_in_their_place(known: Any) -> None:
    """Of six units, or of three heads of two; the teacher has twice as many."""
    assert known.near.of_units([0, 7, 2, 9, 4, 5], 1) == (1.0, 1.0)  # copies do the same
    assert known.near.of_units([3, 4, 5, 6, 7, 8], 1) == (
        0.0,
        1.0,
    )  # a window begins elsewhere: all there, none in place
    assert known.near.of_units([0, 0, 2, 9, 4, 4], 1) == pytest.approx((4 / 6, 4 / 6))
    assert known.near.of_units([0, 1, 8, 9, 6, 7], 2) == pytest.approx((2 / 3, 2 / 3))
    assert known.near.of_units([1, 2, 3, 4, 5, 6], 2) == (0.0, 0.0)  # heads cut apart


@pytest.mark.long
def test_every_sweep_is_one_that_the_product_takes(known: Any, made: Path) -> None:
    for path in sorted(made.glob("*.yaml")):
        sweep = Sweep.model_validate(complete(yaml.safe_load(path.read_text())))
        assert len(expand(sweep)) * (len(sweep.lr) + sweep.repeats) <= sweep.max_trials
        assert Plan.of(sweep).cells


@pytest.mark.long
def test_the_update_at_the_known_indices_is_the_skill(known: Any, made: Path, demo_models: dict[str, Path]) -> None:
    """Untrained, the student does with it what the tuned teacher does; with as much in random directions, nothing."""
    source = str(demo_models["demo-student"])
    student, widened, tuned = (load(str(path)) for path in (source, made / "widened", made / "tuned"))
    tokenizer = load_tokenizer(source)
    rows = known.build.encoded(TASKS["demo"].splits(None)["test"], tokenizer)
    generator = torch.Generator().manual_seed(1)
    scores = [known.build.exact_match(model, rows, tokenizer) for model in (student, widened, tuned)]
    assert max(scores[:2]) < 0.05 and scores[2] > 0.9
    for form in (known.update.folded, known.update.one_copy):
        assert known.build.exact_match(known.update.updated(student, widened, tuned, form), rows, tokenizer) > 0.8
    turned = known.update.updated(
        student, widened, tuned, lambda name, delta: known.build.turned(known.update.one_copy(name, delta), generator)
    )
    assert known.build.exact_match(turned, rows, tokenizer) < 0.05


@pytest.fixture(scope="module")
def small_rate(known: Any, made: Path, store: Store) -> Callable[[str, str], Result]:
    """An arm's scores at a rate that leaves the start its weight: six seeds, through all steps."""
    given = json.loads((made / "indices.json").read_text())

    def scores(arm: str, teacher: str) -> Result:
        rows = []
        for seed in range(ENOUGH_SEEDS):
            asked = recipe(made / teacher, given, arm=arm, lr=3e-3, seed=seed)
            step = pipeline.trial(asked, prepare(asked), "test")
            rows.append(read_scores(materialise(step, store)))
        return Result(
            arm=arm, layers=None, structure=None, rank=8, scores=np.array(rows), seeds=tuple(range(ENOUGH_SEEDS))
        )

    return scores


@pytest.mark.long
def test_the_verdict_tells_the_known_block_from_its_spectrum(small_rate: Any) -> None:
    """At a small rate: at each row's best one the block's lead is gone (see the notes)."""
    arms = ("lora", "transfer", "spectrum_control")
    told = judge([small_rate(arm, "tuned") for arm in arms], "lora")
    assert {one.against: one.outcome for one in told.comparisons}["spectrum_control"] == "better"


@pytest.mark.long
def test_of_a_random_teacher_of_the_same_spectrum_nothing_good_is_said(small_rate: Any) -> None:
    arms = ("lora", "transfer", "spectrum_control")
    told = judge([small_rate(arm, "random") for arm in arms], "lora")
    outcomes = {one.against: one.outcome for one in told.comparisons}
    assert outcomes["spectrum_control"] == "can't tell"
    assert outcomes["lora"] != "better"
