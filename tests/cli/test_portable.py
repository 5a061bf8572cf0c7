"""The same bits, whatever kernels this machine's CPU would choose; others are had by what torch and MKL let say."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from orchestrator.models.portable import RoundedRoots

pytestmark = [pytest.mark.slow]
Numbers = dict[str, bytes]  # what a command left, by its place in the store
PKT = str(Path(sys.executable).with_name("pkt"))
OTHER = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OMP_NUM_THREADS": "2"}
SHORT = {
    "task": "demo",
    "rank": 4,
    "lr": 0.05,  # near the largest that works, where a training makes most of a difference
    "measure": {"examples": 4},
    "finetune": {"examples": 72, "batch_size": 36, "epochs": 2},
    "evaluate": {"examples": 8},
}


def pkt(folder: Path, environment: dict[str, str], *words: str) -> Numbers:
    """What a command leaves of numbers, by its place in the store."""
    folder.mkdir()
    (folder / "asked.yaml").write_text(yaml.safe_dump({"recipe": SHORT}))
    inherited = {name: value for name, value in os.environ.items() if name not in (*OTHER, "MKL_CBWR")}
    done = subprocess.run(
        [PKT, *words], cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    store = folder / "pkt-store"
    paths = [*store.glob("*/*/*.safetensors"), *store.glob("evaluate/*/examples.jsonl")]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def by_other(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Numbers]:
    """An arm's trial by another CPU's kernels, once for all that are compared with it."""
    place = tmp_path_factory.mktemp("other")
    return functools.cache(lambda arm: pkt(place / arm, OTHER, "run", "asked.yaml", "--arm", arm))


@pytest.mark.long
@pytest.mark.parametrize("arm", ["transfer", "pissa"])
def test_a_trial_has_the_same_bits_by_whatever_kernels(
    arm: str, by_other: Callable[[str], Numbers], tmp_path: Path
) -> None:
    own = pkt(tmp_path / "own", {}, "run", "asked.yaml", "--arm", arm)
    assert {name.split("/")[0] for name in own} >= {"finetune", "evaluate"}
    assert own == by_other(arm)


@pytest.mark.long
def test_it_has_others_where_it_need_not_be_portable(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Else the kernels that are compared above would be the same ones."""
    words = ("run", "asked.yaml", "--arm", "pissa", "--set", "portable=false")
    own, other = pkt(tmp_path / "own", {}, *words), pkt(tmp_path / "other", OTHER, *words)
    assert own.keys() == other.keys()
    assert own != other


@pytest.mark.long
@pytest.mark.cluster
def test_a_sweeps_workers_compute_as_one_process_does(by_other: Callable[[str], Numbers], tmp_path: Path) -> None:
    words = (
        "--set",
        "tuned_teacher=false",
        "--set",
        "gate=null",
        "--arms",
        "transfer",
        "--repeats",
        "1",
        "--trials-at-once",
        "2",
    )
    swept = pkt(tmp_path / "swept", {}, "sweep", "asked.yaml", "--set", "baseline=transfer", *words)
    alone = by_other("transfer")
    assert len(alone) >= 3
    assert {name: swept.get(name) for name in alone} == alone


def test_a_rounded_root_is_the_nearest_number() -> None:
    """Against the root in float64; what torch takes by itself is another on some CPUs."""
    s = torch.arange(1, 5000).float() / 7
    with RoundedRoots():
        found = torch.sqrt(s), s.sqrt(), s.double().sqrt()
    assert torch.equal(found[0], found[1])
    below, above = torch.nextafter(found[0], torch.zeros(())), torch.nextafter(found[0], torch.full((), torch.inf))
    off = (found[0].double() - found[2]).abs()
    assert bool((off <= (below.double() - found[2]).abs()).all() and (off <= (above.double() - found[2]).abs()).all())
    assert found[2].dtype == torch.float64
