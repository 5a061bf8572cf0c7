"""Sensitivities of a ~200M-parameter Llama, against a plain backward pass and against the published way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measuring import peak_bytes, ratio, table
from orchestrator.transfer.sensitivity import collect, example_losses

TOKENS = 256


def model() -> LlamaForCausalLM:
    """197M parameters in float32, of which 10 % are in the embedding and the head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=15, num_attention_heads=16,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def main() -> None:
    torch.set_num_threads(2)
    llama = model()
    ids = torch.randint(0, 8192, (1, TOKENS), generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        return example_losses(llama(ids, use_cache=False).logits, ids).sum()

    def plain() -> None:
        loss().backward()
        llama.zero_grad(set_to_none=True)

    def published() -> None:
        """A score of the model's size per example, from gradients of the model's size."""
        scores = {name: torch.zeros_like(parameter) for name, parameter in llama.named_parameters()}
        loss().backward()
        with torch.no_grad():
            for name, parameter in llama.named_parameters():
                scores[name] += (parameter * parameter.grad).abs()
        llama.zero_grad(set_to_none=True)

    def ours(granularity: int) -> Callable[[], None]:
        def run() -> None:
            with collect(llama, granularity=granularity):
                loss().backward()

        return run

    works = {"plain backward": plain, "published way": published, "pkt, tiles of 64": ours(64), "pkt, exact": ours(1)}
    base = peak_bytes(plain)
    rows = []
    for name, work in works.items():
        seconds, against = ratio(work, plain, 9)
        peak = peak_bytes(work)
        rows.append((name, seconds, against, peak / 2**20, peak / base))
    size = sum(parameter.numel() for parameter in llama.parameters())
    title = (
        f"Sensitivities of one example of {TOKENS} tokens, Llama of {size / 1e6:.0f}M parameters, float32, 2 threads"
    )
    table(title, ("way", "s", "time ÷ plain", "MiB above weights", "memory ÷ plain"), rows)
    print("\nTargets: time ≤ 1.10 and memory ≤ 0.5 of the plain backward, with tiles.")
