"""A short training of the demo pair, and what it came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from orchestrator.recipe import Recipe, Sweep
from orchestrator.step import Step
from orchestrator.sweep.groups import trained
from orchestrator.sweep.presets import complete
from orchestrator.sweep.sweep import Plan


def recipe(arm: Any = "transfer", **fields: Any) -> Recipe:
    short = {"examples": 144, "epochs": 2, "batch_size": 16, "dropout": 0.1}
    document = {"recipe": {"rank": 4, "lr": 1e-2, "finetune": short, "arm": arm, "layers": "last", **fields}}
    return Sweep.model_validate(complete(document)).recipe.settled()


def shared_of(plan: Plan) -> list[Step]:
    """What ranks do for a sweep, each step once."""
    trials = [
        cell.trial(plan.ready, "test", lr=1, seed=seed, stage="trial") for cell, seed in trained(plan.sweep, plan.cells)
    ]
    return list(
        {one.fingerprint: one for trial in trials for one in trial.step.ancestors() if one.needs == "ranks"}.values()
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")
