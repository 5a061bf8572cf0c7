"""Where and how a sweep runs, as one frozen value."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import UserError


class Run(BaseModel):
    """Where and how: never part of a fingerprint, so that it can differ between a run and its repetition."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: Path | str = "pkt-store"  # a folder that all share, or the URL of an object store
    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: float | None = Field(None, ge=0)  # None: one, or one a worker, where there is one
    workers_per_trial: int | None = Field(None, ge=1)  # that share a fine-tuning; None: one a GPU
    shard_student: bool = False  # each of them holds a part of it
    trials_at_once: int | None = Field(None, ge=1)
    ranks: int | None = Field(None, ge=1)  # over which the teacher is spread; None: one a GPU
    offload: str | None = None  # where a shard's parameters wait: "cpu", or a folder on a local disk
    replicate: bool = False  # each rank holds the whole teacher, as the plan finds room for it
    gradient_checkpointing: bool = False  # where the recipe leaves it open, as the plan finds it needed
    keep_tuned: bool = False  # the weights of settings that were only tried, too
    portable: bool = False  # a sweep's
    system_metrics: bool = False  # sample CPU, memory, disk, network and GPUs while trials train
    # of a machine without GPUs, as the plan says: bytes that a process takes, by what it does
    memory: dict[str, float] = {}
    tokens_at_once: int | None = Field(None, ge=1)  # padded ones, of a rank; no score depends on it
    answers_at_once: int | None = Field(None, ge=1)  # the teacher's, in tokens with their questions

    @property
    def workers(self) -> int:
        """Processes that share a fine-tuning. UserError where they can't have a GPU each, or the student in shards."""
        gpus = self.gpus_per_trial or 0.0
        count = self.workers_per_trial or max(1, int(gpus))
        if gpus and gpus != count and (count > 1 or gpus > 1):
            each, remedy = "worker", "give a whole number, or at most 1"
            if self.workers_per_trial:
                each, remedy = f"of {count} workers", f"give {count}, or leave it out"
            raise UserError(f"gpus-per-trial: {gpus:g} GPUs are not one for each {each}; {remedy}")
        if self.shard_student and count == 1:
            raise UserError("shard-student: a training has one worker; give --gpus-per-trial 2 or more")
        return count
