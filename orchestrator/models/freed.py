"""What becomes of a tensor's memory on a CPU once it is freed. Everything here is without effect but on glibc."""

from __future__ import annotations

import ctypes
import os

LARGE = 2 << 20  # bytes; at 1 MB a small model's training takes a tenth more time, at 4 MB a seventh more memory
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
SPARE = 256 << 20  # bytes that lie free in the heap before it is worth a walk through all of it
FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip
GLIBC = ctypes.CDLL(None) if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) else None


class _Heap(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def give_back() -> None:
    """Have each large tensor's memory returned to the system as soon as it is freed.

    Left to itself glibc puts what has up to 32 MB into a heap, whose holes the next batch's tensors, being of other
    sizes, don't fill: the training of a 0.5B model came to hold 12.5 GiB of which 9 were in use, and a plan that
    counts what is used was wrong.
    """
    if GLIBC:
        GLIBC.mallopt(M_MMAP_THRESHOLD, LARGE)


def trim() -> None:
    """Return what lies free between smaller ones, too: after a step, of which the next will have other sizes."""
    if GLIBC and hasattr(GLIBC, "mallinfo2"):  # since glibc 2.33
        GLIBC.mallinfo2.restype = _Heap
        if GLIBC.mallinfo2().fordblks > SPARE:
            GLIBC.malloc_trim(0)
