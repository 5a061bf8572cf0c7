"""What an error says about the process that it happened in: whether that can be given another piece of work."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator

# Of what raises a plain RuntimeError: cuBLAS and others in torch, and Triton.
CUDA = ("CUDA error", "CUDA driver error", "cuDNN error", "Triton Error [CUDA]")
REMEDY = "take a smaller finetune.micro_batch_size or max_tokens, or a larger GPU (see `pkt plan`)"
_out_of_memory = itertools.count(1)  # how often this process has been


class Broken(Exception):
    """Raised out of a worker: its process can do nothing more, and its work is to be begun again in another."""


def remedy(error: Exception) -> str | None:
    """For a GPU whose memory didn't do, which is the work's own fault; None for other errors.

    Broken where the process has to end.
    After a CUDA error each further use of CUDA fails, whatever it is for. Out of memory a second time may be the fault
    of what the process holds: in a new one it will be the first time.
    """
    import torch

    for one in _chain(error):
        line = f"{type(one).__name__}: {one}".splitlines()[0]
        if isinstance(one, torch.OutOfMemoryError):
            if next(_out_of_memory) > 1:
                raise Broken(line) from error
            return REMEDY
        if isinstance(one, torch.AcceleratorError) or (isinstance(one, RuntimeError) and str(one).startswith(CUDA)):
            raise Broken(line) from error
    return None


def give_back() -> None:
    """Let go of what an error's frames held, once it has been told, and of what torch keeps for later."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or beside."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__
