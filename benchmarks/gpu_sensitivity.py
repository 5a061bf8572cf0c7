"""One decoder layer's sensitivities on a GPU, against its plain backward pass, plain torch and the device's ceiling."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from benchmarks.measuring import table
from orchestrator.transfer.gradients import Lookup, watched
from orchestrator.transfer.kernels import add_scores, supported
from orchestrator.transfer.scores import Scores
from orchestrator.transfer.sensitivity import score_matrix

GRANULARITY = 64
LAYERS = {  # as in Llama 2; no token is looked up here
    "7B": LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32),
    "70B": LlamaConfig(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8),
}
HEAD = ("tokens", "way", "ms", "÷ plain", "÷ unfused", "% of ceiling", "MiB above weights", "extra, % of weights")
TOKENS = (256, 512, 1024, 2048)
REPEATS = 15


def main() -> None:
    device = torch.device("cuda")
    if not torch.cuda.is_available() or not supported(GRANULARITY, device):
        print("\nSensitivities on a GPU: not run, as there is no CUDA device here that the kernel supports.")
        return
    ceiling = matmul_ceiling(device)
    print(f"\n{torch.cuda.get_device_name()}: a bfloat16 product of 8192 x 8192 reaches {ceiling / 1e12:.0f} TFLOP/s.")
    for name, config in LAYERS.items():
        rows = [row for tokens in TOKENS for row in measured(config, tokens, device, ceiling)]
        table(f"Forward and backward pass of one Llama-2-{name} layer, bfloat16, tiles of {GRANULARITY}", HEAD, rows)
    print("\nTargets: fused ≤ 1.10 of the plain backward, ≥ 55 % of the ceiling, extra memory ≤ 1 % of the weights.")
    print("Counted are 6 FLOP a weight and token, attention's own not; extra is what frozen weights don't need.")


def matmul_ceiling(device: torch.device) -> float:
    """FLOP/s of a large product, the most that this device reaches in this process."""
    a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
    (milliseconds,) = medians([lambda: a @ b])
    return 2 * 8192**3 / milliseconds * 1e3


def measured(config: LlamaConfig, tokens: int, device: torch.device, ceiling: float) -> list[tuple[object, ...]]:
    layer, ways = prepared(config, tokens, device, torch.bfloat16)
    times = dict(zip(ways, medians(list(ways.values())), strict=True))
    peaks = {name: peak_bytes(way) for name, way in ways.items()}
    count = sum(parameter.numel() for parameter in layer.parameters())
    rows: list[tuple[object, ...]] = []
    for name, ms in times.items():
        share = 100 * 6 * count * tokens / (ms / 1e3) / ceiling
        extra = 100 * (peaks[name] - peaks["frozen weights"]) / (2 * count)
        ratios = ms / times["plain backward"], ms / times["pkt, unfused"]
        done = "-" if name == "frozen weights" else share  # it leaves out a third of the work
        rows.append((tokens, name, ms, *ratios, done, peaks[name] / 2**20, extra))
    return rows


def prepared(
    config: LlamaConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Callable[[], None]]]:
    """A layer with random weights, and the ways to go through it forwards and backwards with one example."""
    torch.manual_seed(0)
    config._attn_implementation = "sdpa"
    with device:
        layer = LlamaDecoderLayer(config, 0).to(dtype)
        x, gy = torch.randn(2, 1, tokens, config.hidden_size, dtype=dtype)
        places = LlamaRotaryEmbedding(config)(x, torch.arange(tokens)[None])
    x.requires_grad_()

    def through() -> None:
        layer(x, position_embeddings=places).backward(gy)
        x.grad = None

    def plain() -> None:
        layer.requires_grad_(True)
        through()
        layer.zero_grad(set_to_none=True)

    def frozen() -> None:
        layer.requires_grad_(False)
        through()

    def ours(fused: bool) -> None:
        sinks = {name: Sums(parameter, fused) for name, parameter in layer.named_parameters()}
        with watched(layer, sinks):
            through()

    return layer, {
        "plain backward": plain,
        "frozen weights": frozen,
        "pkt, fused": lambda: ours(True),
        "pkt, unfused": lambda: ours(False),
    }


@dataclass
class Sums:
    """Taylor scores of one parameter, by the kernel or by plain torch, whatever `collect` would choose."""

    parameter: Tensor
    fused: bool

    def __post_init__(self) -> None:
        self.scores = Scores.zeros(self.parameter.shape, GRANULARITY, self.parameter.device)

    def matrix(self, weight: Tensor, gy: Tensor, x: Tensor, lookup: Lookup | None) -> None:
        (add_scores if self.fused else score_matrix)(self.scores, weight, gy, x)

    def rows(self, weight: Tensor, lookup: Lookup) -> None:
        raise AssertionError("a decoder layer has no embedding")

    def vector(self, weight: Tensor, grads: Tensor) -> None:
        self.scores.tiles += (grads * weight).abs().sum(0)


def medians(works: list[Callable[[], object]]) -> list[float]:
    """Median milliseconds on the device of each, run in turn; the first three rounds are not counted."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS + 3):
        for work, taken in zip(works, times, strict=True):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            work()
            ended.record()
            torch.cuda.synchronize()
            taken.append(began.elapsed_time(ended))
    return [statistics.median(taken[3:]) for taken in times]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most device memory that `work` takes above what is there before it."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before
