"""In which numbers a model computes, and that whoever looks later is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator import pipeline
from orchestrator.models.dtypes import dtype_of, has_units
from orchestrator.prepare import ready as prepare
from orchestrator.recipe import Sweep
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete

STORED = [torch.float32, torch.bfloat16, torch.float16, torch.float64, None]


@pytest.mark.parametrize("stored", STORED)
def test_auto_is_the_checkpoints_own_where_the_machine_is_fast_in_it(stored: torch.dtype | None) -> None:
    """By a table: narrow types are bfloat16 on a machine that has it and float32 on one that hasn't."""
    config = SimpleNamespace(dtype=stored)
    narrow = stored in (torch.bfloat16, torch.float16)
    wide = stored or torch.float32
    assert dtype_of(config, "auto", native=True) == (torch.bfloat16 if narrow else wide)
    assert dtype_of(config, "auto", native=False) == (torch.float32 if narrow else wide)
    for asked in ("float32", "bfloat16", "float64"):
        assert dtype_of(config, asked, native=False) == getattr(torch, asked)


@pytest.mark.parametrize(
    ("flags", "arm", "has"),
    [
        ({"avx2": True, "fma3": True}, False, False),  # AMD Zen 3, most laptops
        ({"avx512_f": True, "avx512_vnni": True}, False, False),  # Intel before Cooper Lake
        ({"avx512_f": True, "avx512_bf16": True}, False, True),  # AMD Zen 4
        ({"avx512_f": True, "amx_tile": True, "amx_bf16": True}, False, True),  # Intel Sapphire Rapids
        ({"neon": True, "bf16": True}, True, True),  # ARM Neoverse V1
        ({"neon": True, "bf16": True}, False, False),  # Apple M2: torch has no kernel for it
        ({}, True, False),
    ],
)
def test_a_cpu_is_taken_at_its_flags(flags: dict[str, bool], arm: bool, has: bool) -> None:
    assert has_units(flags, arm=arm) is has


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="no Linux")
def test_the_flags_are_those_that_the_kernel_lists() -> None:
    listed = set(Path("/proc/cpuinfo").read_text().split())
    flags = torch.cpu.get_capabilities()
    for name in ("avx2", "avx512_bf16", "amx_bf16", "bf16"):
        assert bool(flags.get(name)) is (name in listed)


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "AVX512_CORE_BF16"])
def test_bfloat16_is_chosen_only_where_it_is_no_slower(isa: str) -> None:
    """All three of a layer, by this machine, and by it with what oneDNN may use taken away, as an older CPU has it."""
    script = """
import json, time, torch
from orchestrator.models.dtypes import has_bfloat16
torch.set_num_threads(1)
def seconds(dtype):
    gy, w, x = (torch.randn(sides, dtype=dtype) for sides in ((64, 1024), (1024, 512), (64, 512)))
    works, least = (lambda: x @ w.T, lambda: gy @ w, lambda: gy.T @ x), []
    for work in works:
        work()
        tries = []
        for _ in range(9):
            began = time.process_time()
            work()
            tries.append(time.process_time() - began)
        least.append(min(tries))
    return least
ratios = [own / other for own, other in zip(seconds(torch.bfloat16), seconds(torch.float32))]
print(json.dumps([has_bfloat16(), max(ratios)]))
"""
    env = {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    chosen, ratio = json.loads(done.stdout)
    assert not chosen or ratio < 1.5


def test_steps_and_records_say_the_type_and_not_auto(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bfloat16 checkpoint: float32 on a machine without such units, in fingerprint and manifest."""
    student = AutoModelForCausalLM.from_pretrained(demo_models["demo-student"], dtype=torch.bfloat16)
    student.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(demo_models["demo-student"]).save_pretrained(tmp_path / "student")
    seen: dict[bool, Any] = {}
    short = {"examples": 36, "epochs": 1, "batch_size": 36, "dtype": "auto"}
    fields = {"student": str(tmp_path / "student"), "arm": "lora", "rank": 4, "finetune": short}
    recipe = Sweep.model_validate(complete({"recipe": fields})).recipe.settled()
    for native in (True, False):
        monkeypatch.setattr(prepare, "workers_have_bfloat16", lambda native=native: native)
        step = pipeline.finetune_step(recipe, prepare.prepare(recipe))
        manifest = json.loads((materialise(step, Store(tmp_path)) / "manifest.json").read_text())
        seen[native] = (step.fingerprint, manifest["lineage"]["config"]["dtype"])
    assert [told for _, told in seen.values()] == ["bfloat16", "float32"]
    assert seen[True][0] != seen[False][0]


def test_float64_goes_all_the_way(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Measured, cut, trained and scored; the adapter's numbers are float64, and float32 comes to nearly the same."""
    losses = {}
    for dtype in ("float64", "float32"):
        short = {"examples": 72, "epochs": 1, "batch_size": 36, "dtype": dtype, "dropout": 0.0}
        fields = {"rank": 4, "lr": 1e-3, "finetune": short, "measure": {"dtype": dtype, "examples": 4}}
        recipe = Sweep.model_validate(complete({"recipe": fields | {"evaluate": {"examples": 20}}})).recipe.settled()
        step = pipeline.trial(recipe, prepare.prepare(recipe), "test")
        store = Store(tmp_path)
        losses[dtype] = json.loads((materialise(step, store) / "metrics.json").read_text())["loss"]
        from safetensors.torch import load_file

        adapter = store.find("finetune", step.inputs["adapter"].fingerprint)
        assert adapter
        kept = load_file(adapter / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in kept.values()} == {getattr(torch, dtype)}
    assert losses["float64"] != losses["float32"]
    assert losses["float64"] == pytest.approx(losses["float32"], rel=1e-3)
