"""A model that no rank ever holds: DeepSpeed ZeRO-3 shards, gathered a layer at a time; or one on each rank.

    with sharded(folder, member, dtype="bfloat16") as model:
        loss(model(ids)).backward()       # the module itself is called; the engine would ask for an optimizer

Sensitivities need no gradient kept, so there is neither an optimizer nor a reduce-scatter: what crosses the network
is the gathering of parameters, and at the end one sum of the statistics.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from orchestrator.cluster.ranks import GATHERED, Member
from orchestrator.errors import UserError


@contextmanager
def joined(member: Member) -> Iterator[None]:
    """This rank's group, where each rank holds a model of its own: they sum at the end, and agree now and then.

    Nothing keeps them in step, so that they may wait for each other for long; that one has died is for Ray to tell.
    """
    if member.world == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", init_method=member.address, rank=member.rank, world_size=member.world,
        timeout=timedelta(days=1), device_id=torch.device("cuda", 0) if cuda else None,  # Ray shows each its own alone
    )  # fmt: skip
    yield
    torch.distributed.destroy_process_group()  # not after an error: it would wait for ranks that know of none


@contextmanager
def sharded(folder: str, member: Member, *, dtype: torch.dtype, offload: str | None = None) -> Iterator[Any]:
    """The checkpoint's model, loaded straight into shards of this rank's group, in evaluation mode.

    `offload` "cpu" keeps a rank's shard in its machine's memory, a folder keeps it on that disk (NVMe).
    """
    os.environ["LOCAL_RANK"] = "0"  # Ray shows each rank its own GPU alone
    deepspeed = _deepspeed()
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        init_method=member.address,
        rank=member.rank,
        world_size=member.world,
    )
    if offload not in (None, "cpu"):
        _check_disk(offload)
    model = in_shards(folder, dtype=dtype, offload=offload)
    try:
        yield model
        torch.distributed.destroy_process_group()  # not after an error: it would wait for ranks that know of none
    finally:
        del model.shards


def in_shards(folder: str, *, dtype: torch.dtype, offload: str | None = None) -> Any:
    """The same over the process group that this process is in already.

    What is added to the model afterwards, as an adapter, is whole on every rank, and its gradients are the rank's own.
    """
    deepspeed = _deepspeed()
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.utils import logging as chatter

    chatter.disable_progress_bar()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    settings = _settings(dtype, offload)
    alive = HfDeepSpeedConfig(settings)  # a weak reference in transformers: without it every rank loads the whole model
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    model.shards = (alive, engine)  # which would take its hooks off the model when it goes
    return model.eval()


def _deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled at each user's first use, for nothing
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def _check_disk(folder: str) -> None:
    """UserError where parameters can't wait on this disk, of which DeepSpeed would tell in a traceback, and late."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not Path(folder).is_dir():
        raise UserError(f"offload: {folder} is no folder on this rank's machine; name one on a local disk, or cpu")
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError("offload: a disk needs libaio and its headers, which this rank's machine lacks; take cpu")


def _settings(dtype: torch.dtype, offload: str | None) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": 3, "stage3_max_live_parameters": GATHERED, "stage3_max_reuse_distance": GATHERED}
    if offload == "cpu":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    elif offload:
        zero["offload_param"] = {"device": "nvme", "nvme_path": offload}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
