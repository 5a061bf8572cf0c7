"""`pkt doctor`: what this machine has, and what would stop a sweep."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import typer

from cli import options as o


def doctor(store: o.StoreDir = o.STORE, as_json: o.Json = False, debug: o.Debug = False) -> int:
    """Check versions, devices, memory, the hub and Ray. Exit 1 where a sweep could not run."""
    found = report(store)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for name, value in found.items():
            typer.echo(f"{name:<10} {value}")
    return 0 if found["ok"] else 1


def report(store: Any) -> dict[str, Any]:
    """Every finding, as text for people and machines alike; `ok` says whether a sweep could run."""
    import psutil
    import ray
    import torch

    from orchestrator.cluster.session import cores
    from orchestrator.errors import UserError
    from orchestrator.step import versions
    from orchestrator.store import Store

    memory = psutil.virtual_memory()
    problems = []
    try:
        Store(store).check()
        kept = f"{store}: writable, {shutil.disk_usage(_existing(Store(store).root)).free / 2**30:.0f} GiB free"
    except UserError as error:
        kept = str(error)
        problems.append(kept)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "ok": not problems,
        "system": f"{platform.system()} {platform.machine()}, {cores()} cores{_untried()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "devices": ", ".join(gpus) or "no GPU: everything runs on the CPU",
        "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        "store": kept,
        "hub": _hub(),
        "ray": f"{ray.__version__}, "
        + (f"cluster {os.environ['RAY_ADDRESS']}" if "RAY_ADDRESS" in os.environ else "this machine"),
    }


def _untried() -> str:
    """What differs elsewhere than on Linux, the one system on which all of this runs in tests."""
    if platform.system() == "Linux":
        return ""
    return (
        " (tested on Linux alone: elsewhere a limit on a process's cores isn't known, its memory counts mapped files,"
        " and --offload to a disk isn't supported, nor are GPUs without CUDA)"
    )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _hub() -> str:
    """Whether the model hub answers, and whether there is a token."""
    from urllib.error import URLError
    from urllib.request import urlopen

    from huggingface_hub import constants, get_token

    token = "token set" if get_token() else "no token (HF_TOKEN), gated models can't be fetched"
    if constants.HF_HUB_OFFLINE:
        return f"offline by HF_HUB_OFFLINE; {token}"
    try:
        urlopen(constants.ENDPOINT, timeout=3).close()
    except (URLError, TimeoutError) as error:
        why = f"can't be reached ({getattr(error, 'reason', error)}): only local folders and cached models"
        return f"{constants.ENDPOINT} {why}; {token}"
    return f"{constants.ENDPOINT} answers; {token}"
