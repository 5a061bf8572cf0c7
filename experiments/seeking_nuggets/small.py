"""The paper's experiments in small: each recipe of this folder as it is, on a pair that two cores can take.

    python experiments/seeking_nuggets/small.py                                       # the package's own pair and task
    python experiments/seeking_nuggets/small.py --teacher DIR --student DIR --data DIR     # a real one, on mmlu

`--only main,rank` runs these alone. Few rows, one learning rate and two random seeds: the tables have the cluster's
form, and are no evidence. What follows `--` goes to each `pkt sweep`, after what is said here: `-- --store /tmp/small`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RECIPES = sorted(Path(__file__).resolve().parent.glob("*.yaml"))
PKT = Path(sys.executable).with_name("pkt")
SMALL = ["--repeats", "2", "--set", "tuning_seeds=1", "--yes"]
DEMO = ["--teacher", "demo-teacher", "--student", "demo-student", "--task", "demo", "--lr", "8e-3", "--tasks", ""]
DEMO += ["--set", "evaluate.examples=50"]
REAL = ["--task", "mmlu", "--lr", "3e-4", "--set", "finetune.examples=16"]
REAL += ["--set", "finetune.batch_size=8", "--set", "finetune.epochs=1", "--set", "evaluate.examples=8"]
FEW_SEEDS = ["--set", "measure.examples=8"]  # but where their number is the question
OTHER_SEEDS = ["--seed-tasks", "gsm8k,mmlu,super_ni"]
BESIDE = ["main", "cross_task"]  # that score other tasks, too


def main() -> int:
    """Run them one after another; the first that fails ends it, with what it said."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--teacher", "--student", "--data"):
        asked.add_argument(name)
    asked.add_argument("--only", default=",".join(recipe.stem for recipe in RECIPES))
    asked.add_argument("more", nargs="*")
    said = asked.parse_args()
    only = said.only.split(",")
    if unknown := {*only} - {recipe.stem for recipe in RECIPES}:
        asked.error(f"--only: there is no recipe {' or '.join(sorted(unknown))}")
    real = said.teacher is not None
    pair = (
        ["--teacher", said.teacher, "--student", said.student, "--data", f"{said.data}/mmlu", *REAL] if real else DEMO
    )
    for recipe in (one for one in RECIPES if one.stem in only):
        cross = recipe.stem == "cross_task"
        if cross and not real:
            continue  # the demo has one task
        beside = ["--tasks", "super_ni"] if real and recipe.stem in BESIDE else []
        few = FEW_SEEDS if real and recipe.stem != "seeds" else []
        words = [*pair, *SMALL, *few, *beside, *(OTHER_SEEDS if cross else []), *said.more]
        print(f"\n## {recipe.stem}\n", flush=True)
        if code := subprocess.run([PKT, "sweep", recipe, *words]).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
