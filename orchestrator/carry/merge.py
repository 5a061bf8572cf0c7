"""Several carried updates as one adapter, by PEFT's own merges."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orchestrator.carry.carry import CARRIED
from orchestrator.models import adapters
from orchestrator.models.borrowed import borrowed
from orchestrator.step import Track, silent

# Each one's weight by how many there are, at which n copies of an update are merged into that update: PEFT takes the
# root of a weight for each half, adds halves up in two of its ways, and takes their mean in another.
WEIGHTS: dict[str, Callable[[int], float]] = {
    "cat": lambda n: 1 / n, "linear": lambda n: 1 / n**2, "dare_linear": lambda n: 1 / n**2, "ties": lambda n: 1.0
}  # fmt: skip


def merge(
    folder: Path,
    *,
    student: str,
    student_name: str,
    by: str,
    density: float,
    partial: Path | None = None,
    track: Track[Any] = silent,
    **carried: Path,
) -> dict[str, Any]:
    """Write the merge of the adapters `carried`, all of one weight; which layers it is of is taken from the first."""
    from peft import PeftModel

    sources = [carried[name] for name in sorted(carried)]
    names = [f"from_{place}" for place in range(len(sources))]
    options = {"density": density} if by in ("ties", "dare_linear") else {}
    with borrowed(student, dtype="float32", device="cpu") as base, adapters.without_own_warnings():
        model = PeftModel.from_pretrained(base, str(sources[0]), adapter_name=names[0])
        for name, source in zip(names[1:], sources[1:], strict=True):
            model.load_adapter(str(source), adapter_name=name)
        torch.manual_seed(0)  # dare's
        weight = WEIGHTS[by](len(names))
        model.add_weighted_adapter(names, [weight] * len(names), "default", combination_type=by, **options)
        starts = {
            name: tuple(
                layer.scaling["default"] ** 0.5 * factor.detach().clone() for factor in adapters.factors_of(layer)
            )
            for name, layer in adapters.lora_layers(model).items()
        }
        adapters.take_off(model)
    embeddings = adapters.embeddings_of(sources[0])
    adapters.write_start(folder, adapters.of_one_rank(starts), base_name=student_name, embeddings=embeddings)
    shutil.copy(sources[0] / CARRIED, folder / CARRIED)
    return {"modules": len(starts), "adapters": len(sources)}
