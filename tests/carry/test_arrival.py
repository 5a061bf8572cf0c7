"""How an update arrives: at which scale, in the trained adapter, and beside twins of its own norm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from trainings import recipe

from orchestrator import pipeline
from orchestrator.carry.carry import CARRIED
from orchestrator.carry.merge import merge
from orchestrator.carry.scale import SCALE, scale
from orchestrator.carry.site import Site
from orchestrator.models import adapters
from orchestrator.models.families import FAMILIES
from orchestrator.models.loading import load, load_tokenizer, source_of
from orchestrator.pipeline.carried import carry_step
from orchestrator.prepare.ready import prepare
from orchestrator.scoring.engine import gold_losses
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.student.finetune import adapted
from orchestrator.student.given import read
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import fitted
from orchestrator.teacher.states import read_states
from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.arms.carried import OTHERS, SCALES, Carried
from orchestrator.transfer.lowrank import product_svd
from orchestrator.transfer.matching import monotone, similarity
from orchestrator.transfer.sides import norm_of

IDS = torch.arange(5, 60).view(1, -1)
SHORT = {"examples": 48, "epochs": 1, "batch_size": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def asked(arm: Any, seed: int = 0, **fields: Any) -> Any:
    more = {"update": {"rank": 4, "lr": 1e-2}, "carry": {"examples": 40, "tokens": 300}, "evaluate": {"examples": 20}}
    return recipe(arm=arm, **{"finetune": SHORT, **more, **fields}).model_copy(update={"seed": seed})


def logits(folder: Path) -> torch.Tensor:
    student = load(source_of("demo-student", "student"))
    with torch.no_grad():
        return torch.as_tensor(PeftModel.from_pretrained(student, str(folder)).eval()(IDS).logits)


@pytest.mark.parametrize("alpha", [4.0, 12.0])
@pytest.mark.parametrize("kind", ["theseus", "cross_lora"])
def test_an_injected_update_is_what_the_adapter_does_before_any_step(
    kind: str, alpha: float, store: Store, demo_models: dict[str, Path]
) -> None:
    """Whatever alpha is: by plain PEFT, from what the step before left."""
    one = asked(kind, finetune=SHORT | {"alpha": alpha})
    ready = prepare(one)
    folder = materialise(pipeline.carried_step(one, ready), store)
    worn = adapted(load(ready.student.folder), one.arm, 4, alpha, 0.0, 0, read({"carried": folder}))
    with torch.no_grad():
        torch.testing.assert_close(worn.eval()(IDS).logits, logits(folder), rtol=1e-4, atol=1e-4)


def test_as_a_start_it_leaves_the_students_function(store: Store, demo_models: dict[str, Path]) -> None:
    one = asked({"kind": "theseus", "arrives": "start"})
    ready = prepare(one)
    step = pipeline.carried_step(one, ready)
    assert step.name == "carry" and pipeline.given_step(one, ready) is None
    found = read({"carried": materialise(step, store)})
    stock = load(ready.student.folder)
    with torch.no_grad():
        before = stock(IDS).logits
        worn = adapted(stock, one.arm, 4, 4.0, 0.0, 0, found).eval()
        torch.testing.assert_close(worn(IDS).logits, before, rtol=1e-4, atol=1e-4)
    up, _ = adapters.factors_of(adapters.lora_layers(worn)["model.layers.0.mlp.gate_proj"])
    assert up.shape[1] == 8 and float(up.detach().norm()) > 1e-3


def test_more_rank_than_the_update_has_is_plain_lora_s(store: Store, demo_models: dict[str, Path]) -> None:
    one = asked("theseus")
    ready = prepare(one)
    found = read({"carried": materialise(pipeline.carried_step(one, ready), store)})
    starts = one.arm.starts(found, 7, torch.Generator().manual_seed(0))
    for name, (b, a) in found["carried"].items():
        b0, a0 = starts[name]
        assert b0.shape[1] == len(a0) == 7 and not b0[:, 4:].any() and bool(a0[4:].any())
        torch.testing.assert_close(b0 @ a0, b @ a, rtol=1e-4, atol=1e-5)
    two = one.arm.starts(found, 2, torch.Generator())
    b, a = found["carried"]["model.layers.0.mlp.gate_proj"]
    best = product_svd(b, a).truncate(2)
    b0, a0 = two["model.layers.0.mlp.gate_proj"]
    torch.testing.assert_close(b0 @ a0, (best.u * best.s) @ best.vh, rtol=1e-4, atol=1e-6)


def test_the_scale_is_that_of_least_loss_on_validation_rows(store: Store, demo_models: dict[str, Path]) -> None:
    """By adapters that are scaled on disk and loaded anew; nothing is injected where all of it hurts."""
    one = asked("theseus")
    ready = prepare(one)
    step = pipeline.carried_step(one, ready)
    folder, carried = materialise(step, store), materialise(step.inputs["carried"], store)
    losses = {float(factor): loss for factor, loss in json.loads((folder / SCALE).read_text())["losses"].items()}
    rows, tokenizer = data.read(materialise(step.inputs["rows"], store)), load_tokenizer(ready.student.folder)
    encoded = fitted(rows, "plain", tokenizer, 2048).rows
    for factor in (0.0, 0.5, 2.0):
        model = load(ready.student.folder)
        with torch.no_grad():
            for name, (b, a) in adapters.read_update(carried).items():
                model.get_submodule(name).weight += factor * (b @ a)
        own = gold_losses(model, encoded, tokenizer.pad_token_id)
        assert losses[factor] == pytest.approx(sum(own) / len(own), rel=1e-4)
    best = min(losses, key=lambda factor: losses[factor])
    for name, (b, a) in adapters.read_update(folder).items():
        whole = adapters.read_update(carried)[name]
        torch.testing.assert_close(b @ a, best * (whole[0] @ whole[1]), rtol=1e-4, atol=1e-6)


def test_a_scale_may_be_asked_for_and_means_nothing_where_nothing_is_injected(
    store: Store, demo_models: dict[str, Path]
) -> None:
    """Of the whole update and a half of it the half is taken if it is the only one, by the arm and its control."""
    texts = {"examples": 40, "tokens": 300}
    half = asked("theseus", carry=texts | {"scales": 0.5})
    ready = prepare(half)
    step = pipeline.carried_step(half, ready)
    given, whole = (adapters.read_update(materialise(one, store)) for one in (step, step.inputs["carried"]))
    for name, (b, a) in given.items():
        torch.testing.assert_close(b @ a, 0.5 * (whole[name][0] @ whole[name][1]), rtol=1e-4, atol=1e-6)
    twin = half.model_copy(update={"arm": ARMS["theseus_random_map"]()})
    worn = adapters.read_update(materialise(pipeline.carried_step(twin, ready), store))
    for name, (b, a) in given.items():
        assert norm_of(*worn[name]) == pytest.approx(norm_of(b, a), rel=1e-3, abs=1e-9)
    usual = asked("theseus")
    assert pipeline.carried_step(usual, ready).config["scales"] == SCALES != half.carry.scales
    for arm, alike in (("theseus", False), ("laten", False), ({"kind": "theseus", "arrives": "start"}, True)):
        assert (asked(arm, carry=texts | {"scales": [0.5]}) == asked(arm, carry=texts)) == alike, arm
    assert asked("cross_lora", carry=texts) == asked("cross_lora") != asked("cross_lora", carry={"scales": [0.5]})
    with pytest.raises(ValueError, match="scales"):
        asked("theseus", carry={"scales": []})


def test_what_is_written_goes_by_the_map_of_what_reads_it_next(store: Store, demo_models: dict[str, Path]) -> None:
    """The very same map, and not another of the same stream: the teacher has six layers, and the student four."""
    one = asked("theseus_stream")
    ready = prepare(one)
    step = carry_step(one, ready, pipeline.update_step(one, ready))
    found = {name: materialise(given, store) for name, given in step.inputs.items()}
    layers = [[(0, 1.0)], [(2, 1.0)], [(3, 1.0)], [(5, 1.0)]]
    folders = (ready.teacher.folder, ready.student.folder)
    seen = [found[name] for name in ("pairs", "of_teacher", "of_student")]
    for kind, same in (("theseus_stream", True), ("theseus", False)):
        method = ARMS[kind]()
        assert isinstance(method, Carried)
        site = Site.open(*folders, adapters.read_update(found["update"]), method, layers, seen)
        for writer, reader in (
            (("o", 1), ("up", 1, 2)), (("down", 0), ("q", 1, 2)), (("down", 2), ("q", 3, 5)),
            (("down", 3), ("head", None, None)),
        ):  # fmt: skip
            written = site._side(*writer, layers[writer[1]][0][0], "residual", outputs=True)
            assert (written is site._side(*reader, "residual")) == same, (kind, writer)


def test_each_role_has_the_scale_that_lowers_the_loss_most(store: Store, demo_models: dict[str, Path]) -> None:
    """Of the last role that was looked at, all scales by weights that are changed by hand; its control has the same."""
    one = asked("theseus_roles")
    ready = prepare(one)
    step = pipeline.carried_step(one, ready)
    folder, carried = materialise(step, store), materialise(step.inputs["carried"], store)
    said = json.loads((folder / SCALE).read_text())
    best, chosen = min(said["losses"], key=lambda factor: said["losses"][factor]), said["chosen"]
    assert set(chosen) == {*FAMILIES["llama"].targets}
    assert {value / float(best) for value in chosen.values()} - {1.0} <= {*OTHERS}
    rows, tokenizer = data.read(materialise(step.inputs["rows"], store)), load_tokenizer(ready.student.folder)
    encoded = fitted(rows, "plain", tokenizer, 2048).rows

    def loss(scales: dict[str, float]) -> float:
        model = load(ready.student.folder)
        with torch.no_grad():
            for name, (b, a) in adapters.read_update(carried).items():
                model.get_submodule(name).weight += scales[name.rsplit(".", 1)[-1]] * (b @ a)
        own = gold_losses(model, encoded, tokenizer.pad_token_id)
        return sum(own) / len(own)

    last = max(chosen)
    ways = {factor: loss(chosen | {last: float(best) * factor}) for factor in (1.0, *OTHERS)}
    assert chosen[last] == float(best) * min(ways, key=lambda factor: ways[factor])
    assert min(ways.values()) <= said["losses"][best] + 1e-5
    twin = asked("theseus_roles_random_map", 1)
    worn = adapters.read_update(materialise(pipeline.carried_step(twin, ready), store))
    for name, (b, a) in adapters.read_update(folder).items():
        assert norm_of(*worn[name]) == pytest.approx(norm_of(b, a), rel=1e-3, abs=1e-9)


def test_a_control_is_given_the_scale_of_its_arm(store: Store, demo_models: dict[str, Path]) -> None:
    """So that both are of one norm in every matrix, for each random seed and each kind of twin, whatever is cut off."""
    ready, rank = prepare(asked("theseus")), {"rank": 2}
    step = pipeline.carried_step(asked("theseus").model_copy(update=rank), ready)
    own = adapters.read_update(materialise(step, store))
    assert any(norm_of(b, a) > 0 for b, a in own.values())
    for kind, seed in (("random_map", 0), ("random_map", 1), ("spectrum", 0), ("shuffled_texts", 0)):
        one = asked(f"theseus_{kind}", seed).model_copy(update=rank)
        twin = adapters.read_update(materialise(pipeline.carried_step(one, ready), store))
        for name, (b, a) in twin.items():
            assert norm_of(b, a) == pytest.approx(norm_of(*own[name]), rel=1e-3)


def test_an_update_that_only_hurts_is_given_at_scale_zero(
    store: Store, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    one = asked("theseus")
    ready = prepare(one)
    step = pipeline.carried_step(one, ready)
    noise = {name: (50 * torch.randn_like(b), torch.randn_like(a))
             for name, (b, a) in adapters.read_update(materialise(step.inputs["carried"], store)).items()}  # fmt: skip
    for name in ("noise", "scaled"):
        (tmp_path / name).mkdir()
    embeddings = frozenset({"model.embed_tokens"})
    adapters.write_start(tmp_path / "noise", noise, base_name="student", embeddings=embeddings)
    rows = materialise(step.inputs["rows"], store)
    facts = scale(tmp_path / "scaled", carried=tmp_path / "noise", rows=rows, **step.config, **step.where)
    assert facts["scale"] == 0.0 and not any(
        bool(b.any()) for b, _ in adapters.read_update(tmp_path / "scaled").values()
    )


def test_twins_have_the_carried_updates_norm_and_nothing_else_of_it(store: Store, demo_models: dict[str, Path]) -> None:
    ready = prepare(asked("theseus"))
    update = pipeline.update_step(asked("theseus"), ready)
    own = adapters.read_update(materialise(carry_step(asked("theseus"), ready, update), store))
    found = {
        (kind, seed): adapters.read_update(
            materialise(carry_step(asked(f"theseus_{kind}", seed), ready, update), store)
        )
        for kind in ("random_map", "spectrum", "shuffled_texts")
        for seed in (0, 1)
    }
    for (kind, seed), twin in found.items():
        assert twin.keys() == own.keys()
        for name, (b, a) in twin.items():
            assert norm_of(b, a) == pytest.approx(norm_of(*own[name]), rel=1e-3)
            like = float(((own[name][0] @ own[name][1]) * (b @ a)).sum()) / norm_of(b, a) ** 2
            assert abs(like) < 0.5, (kind, seed, name)
            if kind == "spectrum":
                mine, theirs = (product_svd(*pair).s for pair in ((b, a), own[name]))
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    for kind in ("random_map", "spectrum"):
        one, other = (found[kind, seed]["model.layers.0.mlp.gate_proj"] for seed in (0, 1))
        assert not torch.allclose(one[0] @ one[1], other[0] @ other[1], atol=1e-3)


def test_what_does_nothing_at_first_still_learns(store: Store, demo_models: dict[str, Path]) -> None:
    """At scale zero, and in directions that an update hasn't, B is zero and A is not: gradients reach B."""
    one = asked("theseus")
    found = read({"carried": materialise(pipeline.carried_step(one, prepare(one)), store)})
    nothing = {name: (0 * b, a) for name, (b, a) in found["carried"].items()}
    starts = one.arm.starts({"carried": nothing}, 4, torch.Generator().manual_seed(0))
    for b0, a0 in starts.values():
        assert b0.shape[1] == 4 and not b0.any() and bool(a0.any(1).all())


def test_the_scale_is_chosen_at_the_trials_rank(store: Store, demo_models: dict[str, Path]) -> None:
    """What is scored before any step is what the trial begins with, whatever rank the update has."""
    two = asked("theseus", rank=2)
    ready = prepare(two)
    folder = materialise(pipeline.carried_step(two, ready), store)
    found = read({"carried": folder})
    assert {len(a) for _, a in found["carried"].values()} == {2}
    worn = adapted(load(ready.student.folder), two.arm, 2, 2.0, 0.0, 0, found).eval()
    with torch.no_grad():
        torch.testing.assert_close(worn(IDS).logits, logits(folder), rtol=1e-4, atol=1e-4)


def test_layers_are_matched_by_what_both_make_of_the_seed_examples(store: Store, demo_models: dict[str, Path]) -> None:
    """By states that a plain model's hooks would see (test_given), and never back and forth."""
    one = asked({"kind": "theseus", "layers": "cka"}, measure={"examples": 12})
    ready = prepare(one)
    step = pipeline.carry_step(one, ready)
    layers = json.loads((materialise(step, store) / CARRIED).read_text())["layers"]
    states = [read_states(materialise(step.inputs[f"{who}_states"], store))[1:] for who in ("teacher", "student")]
    chosen = [layer for ((layer, share),) in layers if share == 1]
    assert tuple(chosen) == monotone(similarity(*states)) and chosen == sorted(chosen)
    assert step.inputs["student_states"].inputs["seeds"].where["rows"][11:12]
    assert asked({"kind": "theseus"}, measure={"examples": 12}).measure.examples == 32  # which asks nobody


def test_trials_share_what_they_can(demo_models: dict[str, Path]) -> None:
    """Random seeds and learning rates share one carried update; a twin's map is drawn anew for each seed."""
    ready = prepare(asked("theseus"))
    names = {
        pipeline.carried_step(asked("theseus", seed, lr=lr), ready).fingerprint
        for seed in (0, 1)
        for lr in (1e-3, 1e-2)
    }
    assert len(names) == 1
    twins = {pipeline.carried_step(asked("theseus_random_map", seed), ready).fingerprint for seed in (0, 1)}
    assert len(twins) == 2
    inputs = {pipeline.carry_step(asked(kind), ready).inputs["pairs"].fingerprint for kind in ("theseus", "ridge")}
    assert len(inputs) == 1
    assert "pairs" not in pipeline.carry_step(asked("cross_lora"), ready).inputs


@pytest.mark.parametrize("by", ["cat", "linear", "ties", "dare_linear"])
def test_several_ways_are_merged_as_peft_does(by: str, store: Store, demo_models: dict[str, Path]) -> None:
    """`cat` is the mean of the updates; all are what PEFT makes of the adapters' folders."""
    one = asked({"kind": "merged", "of": ["theseus", "cross_lora"], "by": by, "density": 0.7})
    ready = prepare(one)
    step = pipeline.carry_step(one, ready)
    found = adapters.read_update(materialise(step, store))
    folders = [materialise(step.inputs[kind], store) for kind in ("cross_lora", "theseus")]
    if by == "cat":
        first, second = (adapters.read_update(folder) for folder in folders)
        for name, (b, a) in found.items():
            mean = sum((up @ down for up, down in (first[name], second[name])), start=torch.zeros(())) / 2
            torch.testing.assert_close(b @ a, mean, rtol=1e-3, atol=1e-5)
    model = PeftModel.from_pretrained(load(ready.student.folder), str(folders[0]), adapter_name="a")
    model.load_adapter(str(folders[1]), adapter_name="b")
    torch.manual_seed(0)
    density = {} if by in ("cat", "linear") else {"density": 0.7}
    weight = {"cat": 0.5, "linear": 0.25, "dare_linear": 0.25, "ties": 1.0}[by]
    model.add_weighted_adapter(["a", "b"], [weight, weight], "both", combination_type=by, **density)
    model.set_adapter("both")
    with torch.no_grad():
        torch.testing.assert_close(logits(materialise(step, store)), model.eval()(IDS).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("by", ["cat", "linear", "ties", "dare_linear"])
def test_copies_of_an_update_are_merged_into_it(
    by: str, store: Store, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """With every entry kept, however many copies there are."""
    one = asked("theseus")
    ready = prepare(one)
    own = materialise(pipeline.carry_step(one, ready), store)
    places = {"student": ready.student.folder, "student_name": "student", "by": by, "density": 1.0}
    merge(tmp_path, **places, a=own, b=own, c=own)
    wanted, found = adapters.read_update(own), adapters.read_update(tmp_path)
    for name, (b, a) in wanted.items():
        torch.testing.assert_close(found[name][0] @ found[name][1], b @ a, rtol=1e-3, atol=1e-4)


def test_only_what_carries_an_update_over_is_merged() -> None:
    with pytest.raises(
        ValueError, match="'lora' carries no update over; known: cross_lora, ridge, ridge_bounded, theseus"
    ):
        asked({"kind": "merged", "of": ["theseus", "lora"]})
    with pytest.raises(ValueError, match="the same way twice is that way"):
        asked({"kind": "merged", "of": ["theseus", "theseus"]})
