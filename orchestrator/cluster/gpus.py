"""Which GPUs there are and who has them. Nothing here opens one: whoever does keeps memory of it until it ends."""

from __future__ import annotations

import json
import math
import os
import subprocess


def local() -> int:
    """GPUs of this machine that this process may use: NVML counts them, and no CUDA context is made."""
    import torch

    return torch.cuda.device_count()


def assigned() -> int:
    """GPUs that Ray gave to this process, or to the job that it is: nobody else can have them meanwhile.

    What a process sees doesn't tell: a job that asked for none is shown every GPU of its node.
    """
    import ray

    own = len(ray.get_runtime_context().get_accelerator_ids()["GPU"])  # a job's own process is given none itself
    about = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
    if job := about.get("job_submission_id"):
        from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE
        from ray.util.state import list_actors

        name = JOB_ACTOR_NAME_TEMPLATE.format(job_id=job)
        for supervisor in list_actors(filters=[("state", "=", "ALIVE"), ("name", "=", name)], detail=True):
            own += math.ceil(supervisor.required_resources.get("GPU", 0))
    return own


def memory(visible: str | None = None) -> float | None:
    """Bytes of the smallest GPU of this machine, or of those named as in CUDA_VISIBLE_DEVICES; None where none tells.

    The driver's tool is asked, since torch would open the GPU to know. It says 1 % more than torch: what ECC takes.
    """
    only = ["-i", visible] if visible else []
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", *only],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return min((int(size) * 2.0**20 for size in told.stdout.split() if size.isdigit()), default=None)


def memory_of_nodes() -> float | None:
    """Bytes of the smallest GPU of a running Ray, told by each node that has any: of a type there are several sizes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = [
        ray.remote(memory).options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")
    ]  # fmt: skip
    return min((size for size in ray.get(asked) if size), default=None)
