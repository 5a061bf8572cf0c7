"""Located neurons, and what is made of them: by plain torch on whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import saved
from trainings import recipe
from updates import READ, texts

from orchestrator import pipeline
from orchestrator.carry.inputs import inputs
from orchestrator.carry.neurons import Chosen, _encoded, _last, adding, answers, best, gains, taught
from orchestrator.carry.site import Model
from orchestrator.models import adapters
from orchestrator.models.families import FAMILIES
from orchestrator.models.loading import load
from orchestrator.prepare.ready import prepare
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.tasks import rows as data

SHORT: dict[str, Any] = {"finetune": {"examples": 32, "epochs": 1, "batch_size": 16, "dropout": 0.0}}


def watched(model: Any, row: Any, final: Any, ids: list[int], at: int) -> dict[Any, torch.Tensor]:
    """What goes into every down and o matrix at a token, and into the last norm."""
    seen: dict[Any, torch.Tensor] = {}
    hooks = [final.register_forward_hook(lambda _, given, out: seen.update(state=given[0][0, at]))]
    for role in ("down", "o"):
        for layer in range(3):
            module = model.get_submodule(row.module(role, layer))
            put = lambda _, given, key=(role, layer): seen.update({key: given[0][0, at]})  # noqa: E731
            hooks.append(module.register_forward_pre_hook(put))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen3-tied", "gpt_neox", "phi3"])
def test_a_neurons_gain_is_what_the_answer_gains_by_its_column(family: str, tmp_path: Path) -> None:
    """By autograd through the last norm and the head of a plain model, example by example."""
    sizes = {"max_position_embeddings": 128, "vocab_size": 104}
    model = saved(tmp_path / "model", family, **sizes)
    rows, name = texts(6), str(tmp_path / "model")
    for folder in ("texts", "answers", "seen", "partial"):
        (tmp_path / folder).mkdir()
    data.write(tmp_path / "texts", rows=[row.model_dump() for row in rows])
    answers(tmp_path / "answers", texts=tmp_path / "texts", teacher=name, student=name, **READ)
    inputs(
        tmp_path / "seen", pairs=tmp_path / "answers", texts=tmp_path / "texts", model=name, side=0, dtype="float32",
        partial=tmp_path / "partial", **READ,
    )  # fmt: skip
    encoded = _encoded(tmp_path / "texts", name, **READ)
    found = gains(Model.open(name, tmp_path / "seen"), torch.tensor([row.ids[_last(row) + 1] for row in encoded]))
    model = load(name)
    row = FAMILIES[model.config.model_type]
    final = next(module for key, module in model.named_modules() if key.endswith("norm") and "layers" not in key)
    wanted = {role: torch.zeros_like(gain) for role, gain in found.items()}
    for example in encoded:
        at = _last(example)
        assert example.ids[at + 1] == example.labels[at + 1] != -100
        seen = watched(model, row, final, example.ids, at)
        state = seen["state"].requires_grad_(True)
        logs = model.get_output_embeddings()(final(state)).log_softmax(-1)[example.ids[at + 1]]
        (gradient,) = torch.autograd.grad(logs, state)
        about = state - state.mean() if row.centred else state
        gradient = gradient * about.square().mean().sqrt().detach()  # the state's length is the text's own
        for role, layer in [key for key in seen if isinstance(key, tuple)]:
            matrix = model.get_submodule(row.module(role, layer)).weight.detach()
            wanted[role][layer] += seen[role, layer] * (gradient @ matrix) / len(encoded)
    for role, gain in found.items():
        torch.testing.assert_close(gain, wanted[role], rtol=1e-3, atol=1e-5)
        chosen = best(Model.open(name, None), role, gain, 5)
        top = sorted(((float(value), at) for at, value in enumerate(gain.flatten())), key=lambda one: -one[0])[:5]
        assert [
            int(layer) * gain.shape[1] + int(place) for layer, place in zip(chosen.layers, chosen.places, strict=True)
        ] == [at for _, at in top]


def test_networks_learn_the_task_by_adding_to_the_chosen_columns(tmp_path: Path) -> None:
    """The loss before the first step is a plain model's with its columns changed; without a penalty it falls."""
    model = saved(tmp_path / "model", "llama", vocab_size=104)
    data.write(tmp_path / "model", rows=[row.model_dump() for row in texts(12)])
    encoded = _encoded(tmp_path / "model", str(tmp_path / "model"), **READ)
    draw = torch.Generator().manual_seed(0)
    chosen = {"down": Chosen(torch.tensor([2, 0, 2]), torch.tensor([7, 3, 90]), torch.zeros(3, 64))}
    columns = {"down": torch.randn(3, 20, generator=draw)}
    settings = {"steps": 6, "step_lr": 1e-2, "penalty": 0.0}
    added, losses = taught(load(str(tmp_path / "model")), chosen, columns, encoded, 0, settings)
    assert losses[-1] < losses[0] and added["down"].shape == (3, 64)
    held, _ = taught(load(str(tmp_path / "model")), chosen, columns, encoded, 0, settings | {"penalty": 1e6})
    assert float(held["down"].norm()) < 0.5 * float(added["down"].norm())
    ids = torch.tensor([encoded[0].ids])
    with torch.no_grad():
        with adding(model, chosen, added):
            found = model(ids).logits
        for layer, place, column in zip([2, 0, 2], [7, 3, 90], added["down"], strict=True):
            model.model.layers[layer].mlp.down_proj.weight[:, place] += column
        torch.testing.assert_close(model(ids).logits, found, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_added_leaves_as_a_lora_of_the_student(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Of few neurons whole; its control is of the same neurons, and of another seed another."""
    store, folders = Store(tmp_path), {}
    for kind, seed in (("laten", 0), ("laten_random", 0), ("laten_random", 1)):
        one = recipe({"kind": kind, "share": 0.02, "examples": 24, "steps": 3}, **SHORT).model_copy(
            update={"seed": seed}
        )
        ready = prepare(one)
        step = pipeline.carried_step(one, ready)
        folders[kind, seed] = materialise(step.inputs["carried"], store)
        finished = materialise(pipeline.finetune_step(one, ready), store)
        PeftModel.from_pretrained(load(ready.student.folder), str(finished))
    found = {key: adapters.read_update(folder) for key, folder in folders.items()}
    changed = {key: {name: (b @ a).norm(dim=0) > 1e-6 for name, (b, a) in one.items()} for key, one in found.items()}
    own, random, _ = changed.values()
    assert own.keys() == random.keys() and all(bool((own[name] == random[name]).all()) for name in own)
    assert {name.rsplit(".", 1)[1] for name in own} == {"down_proj", "o_proj"}
    first, second = found["laten_random", 0], found["laten_random", 1]
    assert any(not torch.allclose(first[name][0] @ first[name][1], second[name][0] @ second[name][1]) for name in first)
