"""The oracle is float64 torch. Without a GPU, these tests run in a process of their own, whose Triton interprets.

Triton decides when it is imported whether it interprets, so the variable must not be set beside other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from orchestrator.transfer.kernels import add_scores, supported
from orchestrator.transfer.scores import Scores
from orchestrator.transfer.sensitivity import score_matrix

pytest.importorskip("triton", reason="triton is not installed: the extra `gpu` has it")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
runs_the_kernel = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="runs within test_all_of_this_file_in_the_interpreter"
)
SIZES = [  # b, t, n, m
    (1, 1, 1, 1),
    (3, 5, 40, 24),
    (1, 64, 128, 256),
    (2, 70, 150, 130),
    (1, 17, 1, 300),
]


def factors(sizes: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, gy and x."""
    b, t, n, m = sizes
    generator = torch.Generator().manual_seed(b * t + n * m)
    shapes = ((n, m), (b, t, n), (b, t, m))
    return tuple(torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)  # type: ignore[return-value]


def exact(weight: Tensor, gy: Tensor, x: Tensor, squared: bool) -> Tensor:
    grads = gy.double().transpose(1, 2) @ x.double()
    return (grads.square() if squared else (grads * weight.double()).abs()).sum(0)


def summed(scores: Tensor, g: int) -> Tensor:
    bands = torch.stack([part.sum(0) for part in scores.split(g)])
    return torch.stack([part.sum(1) for part in bands.split(g, 1)], 1)


def scored(weight: Tensor, gy: Tensor, x: Tensor, g: int, squared: bool = False) -> Scores:
    sink = Scores.zeros(weight.shape, g, weight.device)
    add_scores(sink, weight, gy, x, squared=squared)
    return sink


def distance(found: Tensor, right: Tensor) -> float:
    assert found.shape == right.shape and found.dtype == torch.float32
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.skipif(DEVICE.type == "cuda" or INTERPRETED, reason="the tests below run by themselves")
def test_all_of_this_file_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout


@runs_the_kernel
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("squared", [False, True], ids=["taylor", "fisher"])
@pytest.mark.parametrize("g", [1, 16, 128])
def test_every_sum_is_that_of_the_exact_scores(sizes: tuple[int, int, int, int], squared: bool, g: int) -> None:
    weight, gy, x = factors(sizes)
    right = exact(weight, gy, x, squared)
    sink = scored(weight, gy, x, g, squared)
    assert distance(sink.tiles, summed(right, g)) < 1e-6
    if g > 1:
        assert distance(sink.rows, right.sum(1)) < 1e-6
        assert distance(sink.cols, right.sum(0)) < 1e-6


@runs_the_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("g", [32, 64])
def test_other_inputs_are_summed_in_float32(dtype: torch.dtype, g: int) -> None:
    weight, gy, x = factors((2, 33, 72, 200), dtype)
    right = exact(weight, gy, x, False)
    sink = scored(weight, gy, x, g)
    assert distance(sink.tiles, summed(right, g)) < 1e-6
    assert distance(sink.rows, right.sum(1)) < 1e-6


@runs_the_kernel
@pytest.mark.parametrize("g", [1, 16])
def test_two_calls_add_up_to_what_plain_torch_has_for_both(g: int) -> None:
    weight, gy, x = factors((4, 9, 140, 60))
    ours, plain = Scores.zeros(weight.shape, g, DEVICE), Scores.zeros(weight.shape, g, DEVICE)
    add_scores(ours, weight, gy[:1], x[:1])
    add_scores(ours, weight, gy[1:], x[1:])
    score_matrix(plain, weight, gy, x)
    for found, right in zip((ours.tiles, ours.rows, ours.cols), (plain.tiles, plain.rows, plain.cols), strict=True):
        torch.testing.assert_close(found, right, rtol=2e-6, atol=1e-5)


@runs_the_kernel
def test_padding_and_layout_change_nothing() -> None:
    """More tokens whose gy is 0; a weight, gy and x that are views of something transposed."""
    weight, gy, x = factors((2, 20, 50, 70))
    first = scored(weight, gy, x, 16)
    longer = scored(weight, torch.nn.functional.pad(gy, (0, 0, 0, 60)), torch.cat([x, x, x, x], 1), 16)
    turned = scored(*(part.mT.contiguous().mT for part in (weight, gy, x)), 16)
    assert torch.equal(first.tiles, longer.tiles) and torch.equal(first.tiles, turned.tiles)


@runs_the_kernel
def test_each_run_gives_the_same_bits() -> None:
    parts = factors((2, 70, 300, 150))
    first, second = scored(*parts, 16), scored(*parts, 16)
    for name in ("tiles", "rows", "cols"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_where_plain_torch_must_be_taken() -> None:
    assert not supported(64, torch.device("cpu"))
    assert not supported(24, torch.device("cuda"))
    weight, gy, x = factors((1, 3, 4, 5))
    with pytest.raises(ValueError, match="granularity: 24 has no kernel"):
        scored(weight, gy, x, 24)


PROGRAMS = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from orchestrator.transfer import kernels

def program(dtype, g, launch, device):
    pointers = dict.fromkeys(("gy", "x", "weight"), "*" + dtype)
    pointers |= dict.fromkeys(("tiles", "row_sums", "col_sums"), "*fp32")
    numbers = dict.fromkeys(("examples", "length", "n", "m"), "i32")
    fixed = {"G": g, "SQUARED": False, "BLOCK": kernels.BLOCK, "TOKENS": launch.tokens, "GROUP": kernels.GROUP}
    signature = pointers | numbers | dict.fromkeys(fixed, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place in (0, 1, 2, 3, 4, 5, 8, 9)}
    source = ASTSource(kernels._compiled(), signature, fixed, aligned)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    return compile(source, target=GPUTarget("cuda", device, 32), options=options)

CORES = {(8, 0): "mma.sync", (9, 0): "wgmma.mma_async", (10, 0): "tcgen05.mma"}
for device in kernels.DEVICES:
    for dtype, launch in (("bf16", kernels.TENSOR_CORES), ("fp32", kernels.PLAIN_CORES)):
        made = program(dtype, 64, launch, 10 * device[0] + device[1])
        assert made.metadata.shared <= kernels.SHARED_MEMORY, (device, dtype, made.metadata.shared)
        assert (CORES[device] in made.asm["ptx"]) == (dtype == "bf16"), (device, dtype)  # and never tf32
"""


@pytest.mark.skipif(INTERPRETED, reason="the process outside the interpreter has it")
def test_it_compiles_for_gpus_that_are_not_there() -> None:
    """In a process that doesn't interpret: tensor cores for bfloat16, loads that fit in the device's memory."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAMS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
@pytest.mark.parametrize("g", [1, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_layers_matrix_on_the_gpu(dtype: torch.dtype, g: int) -> None:
    """Large enough for many programs at once, the last blocks ragged; the same bits again."""
    parts = factors((2, 500, 1000, 2760), dtype)
    if not supported(g, DEVICE):
        pytest.skip("this device has too little shared memory")
    right, sink, again = exact(*parts, False), scored(*parts, g), scored(*parts, g)
    assert distance(sink.tiles, summed(right, g)) < 5e-6
    assert torch.equal(sink.tiles, again.tiles)
