"""What an arm is given by the steps that it needs; and a new arm is one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from trainings import recipe

from orchestrator import pipeline
from orchestrator.models import adapters
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.prepare.ready import prepare
from orchestrator.step import lacking, materialise
from orchestrator.store import Store
from orchestrator.student.finetune import adapted
from orchestrator.student.given import read
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import encode
from orchestrator.transfer.arms import ARMS, BaseArm, Need, Transfer
from orchestrator.verdict.asked import OF_TEACHER


@pytest.fixture
def shared_directions() -> Iterator[type[BaseArm]]:
    class SharedDirections(BaseArm):
        """Directions of the student's states in which the teacher's vary with them: one class, and nothing else."""

        kind: Literal["shared_directions"] = "shared_directions"
        needs: ClassVar[tuple[Need, ...]] = ("teacher_states", "student_states")
        starts_at: ClassVar[str] = "directions of the student that vary with the teacher's"

        def starts(self, given: Mapping[Need, Any], rank: int, generator: torch.Generator) -> dict[str, Any]:
            teacher, student = (given[need] - given[need].mean(1, keepdim=True) for need in self.needs)
            found = {}
            for layer in range(len(student) - 1):
                at = layer * (len(teacher) - 1) // (len(student) - 1)
                vh = torch.linalg.svd(teacher[at].T @ student[layer], full_matrices=False).Vh
                a0 = vh[:rank]
                found[f"model.layers.{layer}.self_attn.q_proj"] = (torch.ones(a0.shape[1], rank) * 1e-2, a0)
            return found

    yield SharedDirections
    del ARMS["shared_directions"]


def _states(folder: str, examples: list[Any]) -> Tensor:
    """By hooks on a plain model, one example at a time."""
    model, tokenizer, seen = load(folder), load_tokenizer(folder), []
    for example in examples:
        row, layers = encode(example, "plain", tokenizer, 2048), []
        last = next(place for place, label in enumerate(row.labels) if label != -100) - 1
        hooks = [
            part.register_forward_hook(
                lambda _, __, out, last=last, layers=layers: layers.append(
                    (out[0] if isinstance(out, tuple) else out)[0, last] if out[0].dim() == 3 else out[0, last]
                )
            )
            for part in (model.model.embed_tokens, *model.model.layers[:-1], model.model.norm)
        ]
        with torch.no_grad():
            model(torch.tensor([row.ids]))
        for hook in hooks:
            hook.remove()
        seen.append(torch.stack(layers))
    return torch.stack(seen, 1)


def test_an_arm_that_needs_both_models_states_is_one_class(
    shared_directions: type[BaseArm], demo_models: dict[str, Path], tmp_path: Path
) -> None:
    store, arm = Store(tmp_path), shared_directions()
    assert arm.of_teacher()
    asked = recipe(measure={"examples": 12}).model_copy(update={"arm": arm}).settled()
    ready = prepare(asked)
    step = pipeline.finetune_step(asked, ready)
    assert {name for name in step.inputs if name != "rows"} == {"teacher_states", "student_states"}
    folder = materialise(step, store)
    given = {need: materialise(step.inputs[need], store) for need in arm.needs}
    found = read(given)
    examples = data.read(materialise(step.inputs["teacher_states"].inputs["seeds"], store))
    for need, model in (("teacher_states", ready.teacher), ("student_states", ready.student)):
        assert torch.allclose(found[need], _states(model.folder, examples), atol=1e-4)
    model = adapted(load(ready.student.folder), arm, 4, 4.0, 0.0, 0, found)
    up, down = adapters.factors_of(adapters.lora_layers(model)["model.layers.1.self_attn.q_proj"])
    assert torch.equal(down[:4], arm.starts(found, 4, torch.Generator())["model.layers.1.self_attn.q_proj"][1])
    assert torch.equal(up[:, :4], -up[:, 4:])
    trained = adapters.read_start(folder)["model.layers.1.self_attn.q_proj"]
    assert not torch.equal(trained[1][:4], down[:4]) and torch.equal(trained[1][4:], down[4:])


def test_what_plain_lora_changes_of_the_teacher_is_given(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """By PEFT's own merged model; made before a trial, once for all its random seeds."""

    class OfUpdate(BaseArm):
        kind: Literal["of_update"] = "of_update"
        needs: ClassVar[tuple[Need, ...]] = ("teacher_update",)
        starts_at: ClassVar[str] = "plain LoRA"

    try:
        store, arm = Store(tmp_path), OfUpdate()
        asked = (
            recipe(finetune={"examples": 48, "epochs": 2, "batch_size": 16, "alpha": 12.0})
            .model_copy(update={"arm": arm})
            .settled()
        )
        ready = prepare(asked)
        trials = [pipeline.trial(asked.model_copy(update={"seed": seed, "arm": arm}), ready, "test") for seed in (1, 2)]
        (waits,), (other,) = (lacking(one, store) for one in trials)
        assert waits.fingerprint == other.fingerprint and waits.identity == {"student": ready.teacher.sha256}
        folder = materialise(waits, store)
        assert lacking(trials[0], store) == []
        found = read({"teacher_update": folder})["teacher_update"]
        stock = load(ready.teacher.folder).state_dict()
        merged = PeftModel.from_pretrained(load(ready.teacher.folder), str(folder)).merge_and_unload().state_dict()
        assert {f"{name}.weight" for name in found} == {
            name for name, weight in merged.items() if not torch.equal(weight, stock[name])
        }
        for name, (b, a) in found.items():
            assert torch.allclose(b @ a, merged[f"{name}.weight"] - stock[f"{name}.weight"], atol=1e-5), name
        assert arm.of_teacher()
    finally:
        del ARMS["of_update"]


def test_arms_know_what_they_build_on() -> None:
    """Whose doing a result was is asked of every published way, by a control that differs in one thing."""
    cut = {"transfer", "random_window", "shuffled_seeds", "consistent_transfer", "consistent_transfer_random"}
    maps = {"ridge", "ridge_bounded", "theseus", "theseus_stream", "theseus_scaled", "theseus_roles", "cross_lora"}
    carrying = {*maps, "transport_merge", "merged"}
    learning = {"distil", "distil_tuned", "titok", "distil_titok", "distil_titok_random", "semalign"}
    assert cut | carrying | learning | {"laten"} == OF_TEACHER  # another control has its size
    assert Transfer().extracts and Transfer().needs == ("factors",)
    twins = {f"{way}_{twin}": way for way in carrying for twin in ("random_map", "spectrum", "shuffled_texts")}
    del twins["cross_lora_shuffled_texts"], twins["merged_shuffled_texts"]  # of which one reads none
    neurons = {"laten", "laten_random"}
    assert {kind for kind, arm in ARMS.items() if arm.needs == ("carried",)} == carrying | twins.keys() | neurons
    assert {kind: arm.control_of for kind, arm in ARMS.items() if kind in twins} == twins
    ways = {kind for kind, arm in ARMS.items() if arm.judged_by}
    assert ways == {
        "transfer",
        "consistent_transfer",
        *carrying,
        *learning - {"distil", "distil_tuned", "distil_titok_random"},
        "laten",
        "spectral",
        "sta",
    }
    for kind, arm in ARMS.items():
        assert arm.is_control == (
            kind
            in {other for way in ways for other in ARMS if ARMS[other].control_of == way and ARMS[other].is_control}
        )
        if arm.judged_by:
            control = ARMS[arm.judged_by]
            assert control.control_of == kind and control.takes_update == arm.takes_update
    updating = {kind for kind, arm in ARMS.items() if arm.takes_update and not arm.is_control}
    assert updating == {*maps, "merged", "titok", "distil_titok", "distil_tuned"}
