"""An update in few bits: exact with all of them, and otherwise as wrong as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import saved
from torch import Tensor
from updates import lora_of

from orchestrator.export.pack import PACK, quantised, restored, unpack, write_pack
from orchestrator.models import adapters


def packed(tmp_path: Path, energy: float, bits: tuple[int, ...], **more: object) -> tuple[dict, dict, dict]:  # type: ignore[type-arg]
    model = saved(tmp_path / "model", "llama")
    lora = lora_of(model, tmp_path / "lora", r=8, target_modules=["q_proj", "down_proj", "embed_tokens"])
    for name in ("pack", "out"):
        (tmp_path / name).mkdir()
    changed = adapters.read_update(lora)
    options = {"base_name": "student", "embeddings": adapters.embeddings_of(lora), **more}
    facts = write_pack(tmp_path / "pack", changed, energy=energy, bits=bits, **options)  # type: ignore[arg-type]
    unpack(tmp_path / "pack", tmp_path / "out")
    return changed, adapters.read_update(tmp_path / "out"), facts


def off(changed: dict[str, tuple[Tensor, Tensor]], found: dict[str, tuple[Tensor, Tensor]]) -> float:
    whole = sum(float((b @ a).square().sum()) for b, a in changed.values())
    wrong = 0.0
    for name, (b, a) in changed.items():
        own = found[name][0] @ found[name][1] if name in found else torch.zeros(())
        wrong += float((b @ a - own).square().sum())
    return (wrong / whole) ** 0.5


def test_all_of_the_energy_and_all_bits_are_the_update_itself(tmp_path: Path) -> None:
    changed, found, facts = packed(tmp_path, 1.0, (32,))
    for name, (b, a) in changed.items():
        torch.testing.assert_close(found[name][0] @ found[name][1], b @ a, rtol=1e-5, atol=1e-5)
    assert adapters.embeddings_of(tmp_path / "out") == adapters.embeddings_of(tmp_path / "lora")
    assert facts["error"] < 1e-4


@pytest.mark.parametrize(("energy", "bits"), [(1.0, (8,)), (0.9, (8, 4, 2)), (0.5, (32,)), (1.0, (2,))])
def test_the_error_told_is_that_of_the_whole_matrices(energy: float, bits: tuple[int, ...], tmp_path: Path) -> None:
    changed, found, facts = packed(tmp_path, energy, bits)
    assert facts["error"] == pytest.approx(off(changed, found), rel=1e-3)
    assert facts["bytes"] == (tmp_path / "pack" / PACK).stat().st_size
    if bits == (32,):  # nothing but directions is lost, and no more than was allowed
        assert facts["error"] ** 2 <= 1 - energy + 1e-6
    if bits == (8,):
        assert facts["error"] < 0.02


def test_what_is_left_out_counts(tmp_path: Path) -> None:
    changed, found, facts = packed(tmp_path, 1.0, (32,), without=["model.embed_tokens"])
    assert changed.keys() - found.keys() == {"model.embed_tokens"}
    assert facts["error"] == pytest.approx(off(changed, found), rel=1e-3) and facts["error"] > 0.1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_the_nearest_there_are(bits: int) -> None:
    rows = torch.randn(3, 13, generator=torch.Generator().manual_seed(0))
    codes, scale = quantised(rows, bits)
    assert codes.dtype == torch.uint8 and codes.shape == (3, -(-13 * bits // 8))
    found = restored(codes, scale, bits, 13)
    assert bool(((found - rows).abs() <= scale[:, None] / 2 + 1e-6).all())
    levels = torch.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)) * scale[:, None]
    nearest = (rows[:, :, None] - levels[:, None]).abs().argmin(2)
    torch.testing.assert_close(found, levels.gather(1, nearest))
