"""Where a type is chosen nothing is multiplied in another: every operation of every step is looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator import pipeline
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Sweep
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete

MOVES = {"view", "detach", "slice", "index", "index_put_", "lift_fresh", "_to_copy", "clone", "copy_", "empty", "t"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu"}


class Operations(TorchDispatchMode):
    """The names of all operations by the type that they give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[torch.dtype, set[str]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out: Callable[..., Any] = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.seen[value.dtype].add(func.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_bfloat16_checkpoint_is_multiplied_in_the_type_that_was_chosen(
    dtype: str, demo_models: dict[str, Path], tmp_path: Path
) -> None:
    """Both passes of exact windows, extraction, training and scoring; what is stored is only read in bfloat16."""
    for name, folder in demo_models.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / name)
    models = {who: str(tmp_path / f"demo-{who}") for who in ("teacher", "student")}
    parts = {
        "measure": {"dtype": dtype, "examples": 2, "granularity": 1, "passes": 2},
        "finetune": {"dtype": dtype, "examples": 36, "epochs": 1, "batch_size": 36},
        "evaluate": {"examples": 4},
    }
    document = {"recipe": {**models, "task": "demo", "arm": "transfer", "rank": 4, **parts}}
    recipe = Sweep.model_validate(complete(document)).recipe.settled()
    chosen, done = getattr(torch, dtype), set()
    for step in pipeline.trial(recipe, prepare(recipe), "test").ancestors():
        with Operations() as operations:
            materialise(step, Store(tmp_path / "store"))
        assert operations.seen[torch.bfloat16] <= MOVES, step.name
        others = {kind: names & PRODUCTS for kind, names in operations.seen.items() if kind != chosen}
        if step.name != "data" and operations.seen[chosen]:
            done.add(step.name)
            assert operations.seen[chosen] & PRODUCTS or step.name == "extract"
        if step.name in ("finetune", "evaluate"):  # scores and blocks are made in float32 at least
            assert not any(others.values()), (step.name, others)
    assert done == {"measure", "activations", "extract", "finetune", "evaluate"}
