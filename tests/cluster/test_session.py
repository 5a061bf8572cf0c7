"""Who can reach a Ray session of this machine's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

LISTENERS = """
import json, psutil
from orchestrator.cluster.session import connected
with connected():
    import ray
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    me = psutil.Process()
    there = [at.laddr.ip for one in (me, *me.children(recursive=True)) for at in one.net_connections("inet")
             if at.status == psutil.CONN_LISTEN]
print(json.dumps(there))
"""


@pytest.mark.cluster
def test_a_session_of_this_machines_own_listens_on_loopback_alone() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", LISTENERS], env=env, capture_output=True, text=True, check=True)
    listeners = json.loads(done.stdout.splitlines()[-1])
    assert len(listeners) >= 5  # the driver, the head's store of facts, its raylet and that one's agents
    assert {place.removeprefix("::ffff:") for place in listeners} == {"127.0.0.1"}
