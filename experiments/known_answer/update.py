"""What the teacher learnt, added to the student at the known indices: the answer that is known.

    python experiments/known_answer/update.py known-answer

The tuned teacher minus the widened one is an update. Its block at the student's indices, added to the student without
any training, has to make the student do what the teacher does; else the indices, or the pair, are wrong. What an arm
of `pkt` starts from is not this but the block of the tuned weights, which is cancelled at the start.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from build import SEED, WIDER, encoded, exact_match, turned
from torch import Tensor

from orchestrator.models.loading import load, load_tokenizer, source_of
from orchestrator.tasks import TASKS

RANK = 8


def main() -> None:
    """Exact match on the test rows, of the student with each form of the update; nothing is trained."""
    parser = argparse.ArgumentParser(description="Add the teacher's update to the student.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    source = source_of("demo-student", "student")
    student, widened, tuned = (
        load(str(path), dtype="float32") for path in (source, folder / "widened", folder / "tuned")
    )
    tokenizer = load_tokenizer(source)
    rows = encoded(TASKS["demo"].splits(None)["test"], tokenizer)
    generator = torch.Generator().manual_seed(SEED)
    forms: dict[str, Callable[[str, Tensor], Tensor]] = {
        "nothing": lambda name, delta: torch.zeros_like(one_copy(name, delta)),
        "both copies, folded": folded,
        "one copy": one_copy,
        f"one copy, rank {RANK}": lambda name, delta: truncated(one_copy(name, delta)),
        "one copy, as the block has it": lambda name, delta: one_copy(name, delta) / leaving(name, delta),
        "one copy, random directions": lambda name, delta: turned(one_copy(name, delta), generator),
    }
    for name, form in forms.items():
        print(f"{name:<32}{exact_match(updated(student, widened, tuned, form), rows, tokenizer):.3f}")


@torch.no_grad()
def updated(student: Any, widened: Any, tuned: Any, form: Callable[[str, Tensor], Tensor]) -> Any:
    """The student with this form of what tuning changed in the teacher."""
    result = copy.deepcopy(student)
    for (name, weight), before, after in zip(
        result.named_parameters(), widened.parameters(), tuned.parameters(), strict=True
    ):
        weight.add_(form(name, after - before))
    return result


def leaving(name: str, weight: Tensor) -> int:
    """By what widening divided a weight."""
    return 1 if weight.ndim == 1 or "embed_tokens" in name else WIDER


def one_copy(name: str, delta: Tensor) -> Tensor:
    """The first copy's block, times what widening divided it by, as if the other copy had learnt the same."""
    block = delta[..., : delta.shape[-1] // WIDER] * leaving(name, delta)
    return block[: len(block) // WIDER] if delta.ndim == 2 and "layers" in name else block  # tokens are there once


def folded(name: str, delta: Tensor) -> Tensor:
    """What all copies do together: the sum over those that send, the mean over those that receive."""
    if delta.ndim == 1 or "embed_tokens" in name:
        return delta.unflatten(-1, (WIDER, -1)).mean(-2)
    sent = delta.unflatten(1, (WIDER, -1)).sum(1)
    return sent if "lm_head" in name else sent.unflatten(0, (WIDER, -1)).mean(0)


def truncated(delta: Tensor) -> Tensor:
    """What a LoRA of this rank can hold of a matrix."""
    if delta.ndim == 1:
        return delta
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :RANK] * s[:RANK] @ vh[:RANK]


if __name__ == "__main__":
    main()
