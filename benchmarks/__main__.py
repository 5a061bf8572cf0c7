"""`python -m benchmarks [NAME ...]`: sensitivity, blocks, commands, orchestration ...; all of them by default."""

from __future__ import annotations

import os
import sys

from benchmarks import blocks, carrying, commands, gpu_sensitivity, orchestration, plan, scoring, sensitivity, sharding

ALL = {"sensitivity": sensitivity.main, "blocks": blocks.main, "commands": commands.main}
ALL |= {
    "plan": plan.main,
    "sharding": sharding.main,
    "orchestration": orchestration.main,
    "scoring": scoring.main,
    "carrying": carrying.main,
    "gpu_sensitivity": gpu_sensitivity.main,
}

if __name__ == "__main__":
    print(f"{os.cpu_count()} cores; figures are medians, ratios are of works run in turn in one process.")
    for name in sys.argv[1:] or ALL:
        ALL[name]()
