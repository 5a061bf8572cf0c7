"""In which numbers a model computes: the checkpoint's own where the machine is fast in them.

    dtype_of(config, "auto", native=has_bfloat16())      # torch.bfloat16 on a GPU, torch.float32 on most laptops

A CPU without bfloat16 units takes 34 s for a product of 512 x 8960 by 8960 x 1536 in bfloat16 and 0.10 s in float32
(AMD Zen 3, torch 2.13). What a machine has is read from its flags and not timed: a busy machine would decide otherwise
than an idle one, and a sweep that goes on would find none of what it has finished.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a plan needs no torch
    import torch

AMPERE = 8  # the first major compute capability with bfloat16
EMULATED = ("AVX512_CORE", "AVX512_CORE_VNNI")  # what ONEDNN_MAX_CPU_ISA may leave of a CPU that has it
BESIDE_AMX = (
    "AVX512_CORE_BF16",
    "AVX512_CORE_FP16",
)  # the other units of such a CPU: slower than float32's (1.4 to 1.7 times)
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # bytes


def dtype_name(config: Any, asked: str, *, native: bool = True) -> str:
    """What was asked for, as recipes write it. "auto" is the checkpoint's own type, and bfloat16 for float16, whose
    gradients would vanish; float32 in place of bfloat16 where that isn't `native` to the machine.
    """
    if asked != "auto":
        return asked
    stored = name_of(config.dtype or "float32")
    if WIDTHS.get(stored, 1) > 2:
        return stored
    return "bfloat16" if native else "float32"


def dtype_of(config: Any, asked: str, *, native: bool = True) -> torch.dtype:
    """The same as torch's own."""
    import torch

    return getattr(torch, dtype_name(config, asked, native=native))


def name_of(dtype: torch.dtype | str) -> str:
    """As recipes write it."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def has_bfloat16() -> bool:
    """Whether this machine's GPUs, or else its CPU, multiply in bfloat16 at least as fast as in float32."""
    import torch

    return gpu_has_bfloat16() if torch.cuda.device_count() else cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """What torch reads of the CPU, as far as its kernels use it: on ARM by ARM's own library alone (not on macOS)."""
    import torch

    supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # what oneDNN may use, which is not yet what is fast
    arm, most = torch.backends.mkldnn.is_acl_available(), os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    flags = torch.cpu.get_capabilities()
    spared = flags.get("amx_bf16") and most in BESIDE_AMX
    return supported and most not in EMULATED and not spared and has_units(flags, arm=arm)


def has_units(flags: Mapping[str, Any], *, arm: bool) -> bool:
    """Whether a CPU with these flags has units for bfloat16 that are used. `arm`: torch was built with ARM's library.

    With AVX512 alone oneDNN emulates it: twice as slow as float32.
    """
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or (arm and flags.get("bf16")))


def gpu_has_bfloat16() -> bool:
    """By the driver's own tool: asking torch would open a context that stays."""
    if not (tool := shutil.which("nvidia-smi")):
        return True
    asked = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    found = [float(line) for line in told.stdout.split() if line.replace(".", "").isdigit()]
    return all(one >= AMPERE for one in found)
