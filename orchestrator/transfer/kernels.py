"""The inner loop of the sensitivities as one GPU kernel, so that no gradient is ever written to memory.

    if supported(g, gy.device):
        add_scores(sink, weight, gy, x)     # the same sums as sensitivity.score_matrix, for a matrix without a lookup

In plain torch, G = gyᵀ x goes to memory as float32 and is read back by each sum: on a GPU that takes longer than the
product. Here each program holds one block of G in registers, adds up |G| over the examples of the batch, multiplies
once by |W| and writes block sums. Each output has one writer, and torch adds up the blocks' rows and columns in a
fixed order: the same bits on each run, which atomic additions would not give.

Triton is imported at first use, as most installations have no GPU; under TRITON_INTERPRET=1 the kernel runs on a CPU.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.transfer.scores import Scores

if TYPE_CHECKING:
    import triton.language as tl
else:
    tl = None  # triton.language, once `_compiled` has imported it: the kernel's source looks it up by this name

BLOCK = 128  # rows and columns of G that one program holds
GRANULARITIES = (1, 16, 32, 64, 128)  # each divides BLOCK, so that a tile lies in one block
DEVICES = ((8, 0), (9, 0), (10, 0))  # A100, H100 and H200, B200: the loads in flight don't fit in smaller ones
SHARED_MEMORY = 160 << 10  # bytes that each of these has for them; a test holds the kernel to it
GROUP = 8  # blocks of rows that share their columns of x while these are in the L2 cache


class Launch(NamedTuple):
    """How a block's product runs: tokens at a time, warps, and loads in flight."""

    tokens: int
    warps: int
    stages: int


TENSOR_CORES = Launch(tokens=64, warps=8, stages=4)  # 16-bit inputs: 32 KiB a stage
PLAIN_CORES = Launch(tokens=16, warps=8, stages=3)  # float32 as IEEE has it: tensor cores would round it to tf32


def supported(granularity: int, device: torch.device) -> bool:
    """Whether `add_scores` can stand in for plain torch: one of GRANULARITIES, one of DEVICES, and Triton installed."""
    if device.type != "cuda" or torch.version.cuda is None or granularity not in GRANULARITIES:
        return False  # an AMD device is called cuda too
    return torch.cuda.get_device_capability(device) in DEVICES and importlib.util.find_spec("triton") is not None


def add_scores(
    sink: Scores,
    weight: Float[Tensor, "n m"],
    gy: Float[Tensor, "b t n"],
    x: Float[Tensor, "b t m"],
    *,
    squared: bool = False,
) -> None:
    """Add the sum over examples b of |G_b * W|, or of G_b² if `squared`, where G_b = gy_bᵀ x_b.

    bfloat16 and float16 are multiplied as they are, all else as float32; every sum is float32. Tokens where gy is 0
    (padding) add nothing. Raises ValueError for a granularity that isn't in GRANULARITIES.
    """
    g, (n, m) = sink.granularity, weight.shape
    if g not in GRANULARITIES:
        raise ValueError(f"granularity: {g} has no kernel; one of {GRANULARITIES} has")
    gy, x = _operands(gy, x)
    launch = PLAIN_CORES if gy.dtype == torch.float32 else TENSOR_CORES
    blocks = -(-m // BLOCK), -(-n // BLOCK)  # across, down: so many parts each row's and column's sum comes in
    rows, cols = (torch.empty(a, b if g > 1 else 0, device=gy.device) for a, b in zip(blocks, (n, m), strict=True))
    with torch.cuda.device_of(gy):  # Triton launches on the current device
        _compiled()[(blocks[0] * blocks[1],)](
            gy, x, weight.contiguous(), sink.tiles, rows, cols, gy.shape[0], gy.shape[1], n, m,
            G=g, SQUARED=squared, BLOCK=BLOCK, TOKENS=launch.tokens, GROUP=GROUP,
            num_warps=launch.warps, num_stages=launch.stages, enable_fp_fusion=True,
        )  # fmt: skip
    if g > 1:
        sink.rows += rows.sum(0)
        sink.cols += cols.sum(0)


def _operands(gy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype that the kernel multiplies, each token's row in one piece.

    The interpreter takes bfloat16's bits for integers in a product, so on a CPU all is float32.
    """
    dtype = torch.promote_types(gy.dtype, x.dtype)
    if dtype not in (torch.bfloat16, torch.float16) or gy.device.type == "cpu":
        dtype = torch.float32
    return gy.to(dtype).contiguous(), x.to(dtype).contiguous()


@functools.cache
def _compiled() -> Any:
    """The kernel, compiled for a kind of input when it is first launched with that."""
    global tl
    import triton
    import triton.language as tl

    return triton.jit(_kernel)


def _kernel(
    gy: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    tiles: tl.tensor,
    row_sums: tl.tensor,
    col_sums: tl.tensor,
    examples: int,
    length: int,
    n: int,
    m: int,
    G: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """One program: S of BLOCK x BLOCK weights. Offsets are 64 bits wide: n * m or t * n may exceed 2^31."""
    down, across = tl.cdiv(n, BLOCK), tl.cdiv(m, BLOCK)
    i, j = tl.swizzle2d(tl.program_id(0) // across, tl.program_id(0) % across, down, across, GROUP)
    row = (i * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    col = (j * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    token = tl.arange(0, TOKENS).to(tl.int64)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for example in range(examples):
        grad = tl.zeros((BLOCK, BLOCK), tl.float32)
        for start in range(0, length, TOKENS):
            inside = (start + token < length)[:, None]
            place = (token + (example * length + start))[:, None]
            left = tl.load(gy + place * n + row[None, :], inside & (row < n)[None, :], other=0.0)
            right = tl.load(x + place * m + col[None, :], inside & (col < m)[None, :], other=0.0)
            grad = tl.dot(tl.trans(left), right, grad, input_precision="ieee")
        total += grad * grad if SQUARED else tl.abs(grad)
    block = row[:, None] * m + col[None, :]
    inside = (row < n)[:, None] & (col < m)[None, :]
    if not SQUARED:
        total *= tl.abs(tl.load(weight + block, inside, other=0.0).to(tl.float32))
    if G == 1:
        tl.store(tiles + block, tl.load(tiles + block, inside) + total, inside)
    else:
        tl.store(row_sums + j.to(tl.int64) * n + row, tl.sum(total, 1), row < n)
        tl.store(col_sums + i.to(tl.int64) * m + col, tl.sum(total, 0), col < m)
        side: tl.constexpr = BLOCK // G
        sums = tl.sum(tl.sum(tl.reshape(total, (side, G, side, G)), 3), 1)
        high = i * side + tl.arange(0, side)
        wide = j * side + tl.arange(0, side)
        tile = high[:, None] * tl.cdiv(m, G) + wide[None, :]
        within = (high < tl.cdiv(n, G))[:, None] & (wide < tl.cdiv(m, G))[None, :]
        tl.store(tiles + tile, tl.load(tiles + tile, within) + sums, within)
