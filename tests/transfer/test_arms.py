"""Where an arm that has singular values starts: one product, whichever way its size is shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import TypeAdapter, ValidationError
from tiny import saved, tiny

from orchestrator import pipeline
from orchestrator.models import adapters
from orchestrator.models.families import FAMILIES
from orchestrator.models.loading import load
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Recipe
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.student.finetune import adapted
from orchestrator.student.given import read
from orchestrator.transfer.arms import ARMS, Arm
from orchestrator.transfer.lowrank import truncated_svd

SMOLLM2 = Path(__file__).resolve().parents[3] / "real" / "smollm2-135m"
RANK = 8


@pytest.mark.parametrize("kind", [kind for kind, arm in ARMS.items() if "factors" in arm.needs])
def test_the_halves_share_the_size_as_is_said(kind: str) -> None:
    factors = truncated_svd(torch.randn(40, 30, generator=torch.Generator().manual_seed(0)), RANK)
    found = {}
    for split in ("balanced", "left"):
        arm = TypeAdapter(Arm).validate_python({"kind": kind, "split": split})
        found[split] = arm.start(factors, RANK, torch.Generator().manual_seed(1))
    (b, a), (left, right) = found["balanced"], found["left"]
    assert torch.allclose(b @ a, left @ right, atol=1e-5)
    root = factors.s.sqrt()
    assert torch.allclose(b.norm(dim=0), root, rtol=1e-4) and torch.allclose(a.norm(dim=1), root, rtol=1e-4)
    assert torch.allclose(left.norm(dim=0), factors.s, rtol=1e-4)
    assert torch.allclose(right.norm(dim=1), torch.ones(RANK), rtol=1e-4)
    assert TypeAdapter(Arm).validate_python(kind).split == "balanced"


def test_a_split_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'balanced' or 'left'"):
        TypeAdapter(Arm).validate_python({"kind": "transfer", "split": "right"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        TypeAdapter(Arm).validate_python({"kind": "pissa", "split": "left"})


def starts(folder: Path, store: Path, **recipe: object) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The live half of the transfer arm's adapter, of a teacher that is the student."""
    task = {"teacher": str(folder), "student": str(folder), "task": "demo", "rank": RANK, "arm": "transfer"}
    asked = Recipe.model_validate({**task, "measure": {"granularity": 1, "examples": 2, "dtype": "float32"}, **recipe})
    start = materialise(pipeline.extract_step(asked, prepare(asked)), Store(store))
    model = adapted(load(str(folder), dtype="float32"), asked.arm, RANK, float(RANK), 0.0, 0, read({"factors": start}))
    layers = {name: adapters.factors_of(layer) for name, layer in adapters.lora_layers(model).items()}
    extracted = adapters.read_start(start)
    return {
        name: (b[:, :RANK].detach(), a[:RANK].detach()) for name, (b, a) in layers.items() if name in extracted
    }  # fmt: skip


def check_against_pissa(found: dict[str, tuple[torch.Tensor, torch.Tensor]], model: torch.nn.Module) -> None:
    """PEFT's own, by the full decomposition; half by half up to the signs of the directions."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(found), init_lora_weights="pissa")
    for name, layer in adapters.lora_layers(get_peft_model(model, config)).items():
        (b, a), (right_b, right_a) = found[name], (factor.detach() for factor in adapters.factors_of(layer))
        product = right_b @ right_a
        assert float((b @ a - product).norm() / product.norm()) < 1e-4, name
        signs = (b * right_b).sum(0).sign()
        assert float((b * signs - right_b).norm() / right_b.norm()) < 1e-2, name
        assert float((a * signs[:, None] - right_a).norm() / right_a.norm()) < 1e-2, name


def test_a_teacher_that_is_the_student_starts_where_pissa_does(tmp_path: Path) -> None:
    """Its exact window is the whole matrix. Embeddings too are extracted, where PEFT's PiSSA would start plainly."""
    model = saved(tmp_path / "model", "llama", vocab_size=104)
    found = starts(tmp_path / "model", tmp_path / "store")
    row = FAMILIES["llama"]
    assert len(found) == 3 * 7 + 2
    embedding = row.module("embed", None)
    b, a = found.pop(embedding)
    best = truncated_svd(model.get_input_embeddings().weight.detach(), RANK)
    assert torch.allclose(b @ a, (best.u * best.s) @ best.vh, atol=1e-4)
    check_against_pissa(found, tiny("llama", vocab_size=104))


@pytest.mark.slow
def test_the_real_student_as_its_own_teacher(tmp_path: Path) -> None:
    if not (SMOLLM2 / "config.json").is_file():
        pytest.skip(f"no SmolLM2 at {SMOLLM2}")
    found = starts(SMOLLM2, tmp_path / "store", modules="attention,ffn", measure={"examples": 1, "granularity": 1})
    first = {name: both for name, both in found.items() if name.startswith("model.layers.4.")}
    assert len(first) == 7
    check_against_pissa(first, load(str(SMOLLM2), dtype="float32"))
