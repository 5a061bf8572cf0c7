"""In which numbers the machines that do a sweep's work are fast: a plan asks as what it plans for does."""

from __future__ import annotations

from orchestrator.cluster.workers import everywhere
from orchestrator.models.dtypes import cpu_has_bfloat16, gpu_has_bfloat16, has_bfloat16


def workers_have_bfloat16() -> bool:
    """Whether those are fast in bfloat16: a cluster's nodes, or this machine."""
    told = everywhere(gpu_has_bfloat16, cpu_has_bfloat16)
    return has_bfloat16() if told is None else told
