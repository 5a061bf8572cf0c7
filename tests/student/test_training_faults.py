"""A training that was torn, or whose loss leaves the finite: what is kept is whole, and what is told is the step."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import recipe, weights

from orchestrator import pipeline
from orchestrator.errors import UserError
from orchestrator.prepare.ready import prepare
from orchestrator.step import Step, materialise
from orchestrator.store import MANIFEST, Store
from orchestrator.student import training
from orchestrator.student.batches import steps_of

KILLED = 9  # the step in whose save a training is killed
STEPS = 18


class Killed(Exception):
    pass


def finetune(**fields: Any) -> Step:
    asked = recipe("lora", **fields)
    return pipeline.finetune_step(asked, prepare(asked))


def same(one: Path, other: Path) -> bool:
    right, found = weights(one), weights(other)
    return right.keys() == found.keys() and all(torch.equal(right[name], found[name]) for name in right)


@pytest.fixture(scope="module")
def uninterrupted(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return materialise(finetune(), Store(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def killed(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a training that was killed once its checkpoint of step KILLED was saved."""
    store = Store(tmp_path_factory.mktemp("killed"))

    class Dying(training.Watch):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.every = 0.0

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == KILLED:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Watch", Dying)
        with pytest.raises(Killed):
            materialise(finetune(), store)
    return store.root


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The optimizer steps of a training from here on."""
    steps: list[int] = []

    class Watched(training.Watch):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            super().on_step_end(args, state, control, **more)
            steps.append(state.global_step)

    monkeypatch.setattr(training, "Watch", Watched)
    return steps


def cut(file: str, share: float = 0.5) -> Callable[[Path], None]:
    def tear(checkpoint: Path) -> None:
        path = checkpoint / file
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return tear


def never(file: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / file).unlink()


def blank(file: str) -> Callable[[Path], None]:
    """As a machine without power leaves what it hadn't written: as long as it should be, and nothing in it."""
    return lambda checkpoint: (checkpoint / file).write_bytes(bytes((checkpoint / file).stat().st_size))


def stale(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").write_text("{}")


WAYS = {
    "no state": never("trainer_state.json"),
    "empty state": cut("trainer_state.json", 0),
    "half a state": cut("trainer_state.json"),
    "another state": stale,
    "no optimizer": never("optimizer.pt"),
    "half an optimizer": cut("optimizer.pt"),
    "blank optimizer": blank("optimizer.pt"),
    "nearly a scheduler": cut("scheduler.pt", 0.99),
    "no adapter": never("adapter_model.safetensors"),
    "half an adapter": cut("adapter_model.safetensors"),
    "no randomness": never("rng_state.pth"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_torn_checkpoint_is_skipped_for_the_one_before(
    way: str, uninterrupted: Path, killed: Path, seen: list[int], tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "store")
    store, step = Store(tmp_path / "store"), finetune()
    partial = store.root / "finetune" / f".{step.fingerprint}.partial"
    assert sorted(path.name for path in partial.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (8, 9)]
    WAYS[way](partial / f"checkpoint-{KILLED}")
    folder = materialise(step, store)
    assert seen == list(range(KILLED, STEPS + 1))
    assert same(folder, uninterrupted)
    assert not partial.exists()


def test_a_whole_one_is_gone_on_from_and_of_torn_ones_alone_none(
    uninterrupted: Path, killed: Path, seen: list[int], tmp_path: Path
) -> None:
    for name in ("whole", "torn"):
        shutil.copytree(killed, tmp_path / name)
    step = finetune()
    assert same(materialise(step, Store(tmp_path / "whole")), uninterrupted)
    assert seen == list(range(KILLED + 1, STEPS + 1))
    seen.clear()
    for checkpoint in (tmp_path / "torn/finetune").glob(".*/checkpoint-*"):
        (checkpoint / "trainer_state.json").unlink()
    assert same(materialise(step, Store(tmp_path / "torn")), uninterrupted)
    assert seen == list(range(1, STEPS + 1))


def test_a_rung_whose_state_is_torn_is_made_up_for(uninterrupted: Path, seen: list[int], tmp_path: Path) -> None:
    asked = recipe("lora")
    ready, store = prepare(asked), Store(tmp_path)
    first = materialise(pipeline.finetune_step(asked, ready, shares=(1 / 3,)), store)
    assert [path.name for path in (first / training.RUNG).iterdir()] == ["checkpoint-6"]
    WAYS["half an optimizer"](first / training.RUNG / "checkpoint-6")
    seen.clear()
    assert same(materialise(pipeline.finetune_step(asked, ready, shares=(1 / 3, 1.0)), store), uninterrupted)
    assert seen == list(range(1, STEPS + 1))
    assert (first / training.RUNG / "checkpoint-6").is_dir()  # another step's


def test_a_loss_that_is_not_finite_ends_the_training_at_that_step(
    demo_models: dict[str, Path], seen: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the curve has a point every fourth step, and in a batch of several parts, of which one is infinite."""
    monkeypatch.setattr(training, "LOGGED_POINTS", 4)
    computed: list[int] = []

    def compute(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        computed.append(1)
        loss = usual(self, model, inputs, *args, **options)
        return loss * math.inf if len(computed) == 2 * 6 + 1 else loss

    usual = training.Training.compute_loss
    monkeypatch.setattr(training.Training, "compute_loss", compute)
    half = {"examples": 144, "epochs": 2, "batch_size": 16, "micro_batch_size": 8}
    with pytest.raises(UserError, match=r"^lr: the loss is inf at step 7; take a smaller one than 0\.01$"):
        materialise(finetune(finetune=half), Store(tmp_path))
    assert seen == [*range(1, 7)]


def test_a_learning_rate_that_is_too_large_is_told_at_once(
    demo_models: dict[str, Path], seen: list[int], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^lr: the loss is nan at step 3; take a smaller one than 1e\+20$"):
        materialise(finetune(lr=1e20), Store(tmp_path))
    assert seen == [1, 2]


@pytest.mark.parametrize("epochs", [0.3, 1.0, 1.25, 2.5, 2.9])
@pytest.mark.parametrize(("examples", "batch", "micro"), [(10, 16, 4), (100, 16, 16), (144, 16, 8), (97, 12, 3)])
def test_the_steps_that_are_counted_are_the_trainers(
    epochs: float, examples: int, batch: int, micro: int, tmp_path: Path
) -> None:
    model = torch.nn.Linear(1, 1)
    args = training.arguments(
        tmp_path, steps=(steps := steps_of(examples, batch, epochs)), lr=1.0, epochs=epochs, batch=batch, micro=micro,
        warmup=0.1, max_grad_norm=1.0, recompute=False, seed=0,
    )  # fmt: skip
    trainer = training.Training(torch.sum, {}, 0, model=model, args=args, train_dataset=[0] * examples)
    told = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    assert told[-1] == steps
    assert args.warmup_steps == math.ceil(0.1 * steps)


def test_each_steps_gradient_is_measured_and_what_was_clipped_is_counted(
    demo_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By plain torch, just before the optimizer's step: as it was, and as it is cut down to."""
    monkeypatch.setattr(training, "LOGGED_POINTS", 4)
    taken: list[float] = []

    class Looking(training.Watch):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **more: Any) -> None:
            squares = [one.grad.square().sum() for one in model.parameters() if one.grad is not None]
            taken.append(float(torch.stack(squares).sum().sqrt()))

    monkeypatch.setattr(training, "Watch", Looking)
    found = {}
    for most in (0.0, 10.0):
        taken.clear()
        more = {"examples": 144, "epochs": 2, "batch_size": 16, "max_grad_norm": most}
        folder = materialise(finetune(finetune=more), Store(tmp_path))
        history = json.loads((folder / "history.json").read_text())
        norms = [norm for point in history for norm in point["grad_norms"]]
        assert len(norms) == len(taken) == STEPS > len(history)
        found[most] = norms, list(taken), json.loads((folder / MANIFEST).read_text())["facts"]
    norms, as_they_are, facts = found[0.0]
    assert norms == pytest.approx(as_they_are, rel=1e-5)
    assert facts["clipped"] == 0
    norms, cut_down, facts = found[10.0]
    over = [norm > 10 for norm in norms]
    assert [norm <= 10.001 for norm in cut_down] == [True] * STEPS
    assert [one < two * 0.9999 for one, two in zip(cut_down, norms, strict=True)] == over
    assert facts["clipped"] == sum(over) / STEPS
    assert 0 < facts["clipped"] < 1
    assert facts["grad_norm"] == pytest.approx(sum(sorted(norms)[STEPS // 2 - 1 : STEPS // 2 + 1]) / 2)
