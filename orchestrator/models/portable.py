"""By which kernels a CPU computes: those that all have, so that a result doesn't depend on whose CPU it is.

portable()      # before anything is computed
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def portable() -> None:
    """Have this process compute by what every x86-64 CPU with AVX2 has, so that all get the same bits.

    Left to themselves, MKL and torch choose by a CPU's maker and its widest vectors in which order sums are taken and
    how an exponential ends. That moves a float32 by 1e-7, which a training makes 1e-4 or, near the largest learning
    rate that works, 1e-1 (experiments/demo/NOTES.md). Takes half as long again. To be called before anything is
    computed: both choose once. A CPU without AVX2 computes as it can.
    """
    if torch.cpu._is_avx2_supported():
        os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ["MKL_CBWR"] = "COMPATIBLE"  # conditional numerical reproducibility, of MKL's Developer Guide
    torch.set_num_threads(1)


class RoundedRoots(TorchFunctionMode):
    """While open, a float32's square root is the float32 next to it.

    MKL's own, which torch takes, ends as the CPU's estimate of the reciprocal root does, and each maker has another.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of torch's."""
        if func in (torch.sqrt, torch.Tensor.sqrt) and args[0].dtype == torch.float32:
            return args[0].double().sqrt().float()
        return func(*args, **(kwargs or {}))
