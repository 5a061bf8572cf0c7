"""Ray: a session on this machine or a cluster, and jobs on a remote one."""

import os

if not os.environ.get("RAY_ADDRESS"):
    # A session of this machine's own is for this machine alone, and Ray has no argument that says so: by this variable,
    # read when it is imported, its processes listen on loopback, as they do by themselves on macOS.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
