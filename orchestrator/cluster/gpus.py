"""Which GPUs there are and who has them. Nothing here opens one: whoever does keeps memory of it until it ends."""

from __future__ import annotations

import json
import math
import os


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
