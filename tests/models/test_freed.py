"""Memory that large tensors leave is the system's again, whatever sizes come and go."""

import subprocess
import sys

import pytest

HOLES = """
import sys, torch
from orchestrator.models.freed import give_back, trim
if sys.argv[1] == "given back":
    give_back()
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
torch.ones(7 << 20)  # of 28 MB: glibc goes by the largest that was freed, up to 32
before = resident()
pairs = [(torch.ones(4 << 20), torch.ones(1 << 18)) for _ in range(20)]  # 16 MB each, with 1 MB above it
kept = [small for _, small in pairs]
del pairs
if sys.argv[1] == "trimmed":
    trim()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's and Linux's own")
def test_what_is_freed_between_things_that_are_kept_is_returned():
    def left(how: str) -> float:
        done = subprocess.run([sys.executable, "-c", HOLES, how], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert left("kept") > 250  # megabytes; else there would be nothing to mend
    assert left("given back") < 100
    assert left("trimmed") < 100
