"""What a start's split changes: balanced (√S on both halves) beside left (all of S in B0), at one rate at a time.

    python experiments/demo/split.py STORE                        # the demo
    python experiments/demo/split.py STORE known-answer           # the known-answer pair (../known_answer/build.py)

Prints mean test scores over three random seeds. Nothing is chosen here, and nothing is claimed.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from orchestrator import pipeline
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Recipe
from orchestrator.scoring.evaluate import read_metrics
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete

SEEDS = range(3)
ARMS, SPLITS = ("transfer", "spectrum_control"), ("balanced", "left")
DEMO, KNOWN = (8e-3, 2e-2), (3e-3, 8e-3, 2e-2)  # rates: below and at the best ones with all of S in B0


def main(store: Path, known: Path | None = None) -> None:
    """One line a rank and a rate."""
    torch.set_num_threads(1)
    fields, ranks, rates = recipe(known)
    print(f"{'rank':>4} {'lr':>6} " + " ".join(f"{f'{arm}, {split}':>26}" for arm in ARMS for split in SPLITS))
    for rank, lr in itertools.product(ranks, rates):
        found = []
        for arm, split in itertools.product(ARMS, SPLITS):
            own = {**fields, "rank": rank, "lr": lr, "arm": {"kind": arm, "split": split}}
            scores = [score(store, {**own, "seed": seed}) for seed in SEEDS]
            found.append(f"{np.mean(scores):.3f} ({', '.join(f'{one:.2f}' for one in scores)})")
        print(f"{rank:>4} {lr:>6g} " + " ".join(f"{one:>26}" for one in found), flush=True)


def recipe(known: Path | None) -> tuple[dict[str, Any], tuple[int, ...], tuple[float, ...]]:
    """What all trials share, the ranks and the rates."""
    if known is None:
        return complete({})["recipe"], (4, 8), DEMO
    sweep = yaml.safe_load((known / "sweep.yaml").read_text())
    return {**sweep["recipe"], "structure": sweep["axes"]["structure"][0]}, (8,), KNOWN


def score(store: Path, fields: dict[str, Any]) -> float:
    """A trial's on the test split."""
    asked = Recipe.model_validate(fields).settled()
    return float(read_metrics(materialise(pipeline.trial(asked, prepare(asked), "test"), Store(store)))["score"])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
