"""Sensitivities of Llamas of 0.2 and 1.1 billion parameters, against a plain backward pass and the published way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measuring import peak_bytes, ratio, table
from orchestrator.transfer.sensitivity import collect, example_losses

TOKENS = 256


SMALL = {  # 197M parameters, of which 10 % are in the embedding and the head
    "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 15,
    "num_attention_heads": 16, "num_key_value_heads": 8,
}  # fmt: skip
LARGE = {  # 1.1B, as TinyLlama has it
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4,
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(2)
    compared(SMALL, ("plain backward", "published way", "pkt, tiles of 64", "pkt, exact"), 10)
    compared(LARGE, ("plain backward", "pkt, tiles of 64"), 4)
    print("\nTargets: time ≤ 1.10 and memory ≤ 0.5 of the plain backward, with tiles.")


def compared(sizes: dict[str, int], ways: tuple[str, ...], repeats: int) -> None:
    """One table: each way's time and memory, in turn with a plain backward pass."""
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).eval()
    ids = torch.randint(0, sizes["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(0))

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
    for name in ways:
        work = works[name]
        seconds, against = ratio(work, plain, repeats)
        peak = peak_bytes(work)
        rows.append((name, seconds, against, peak / 2**20, peak / base))
    size = sum(parameter.numel() for parameter in llama.parameters())
    title = (
        f"Sensitivities of one example of {TOKENS} tokens, Llama of {size / 1e6:.0f}M parameters, float32, 2 threads"
    )
    table(title, ("way", "s", "time ÷ plain", "MiB above weights", "memory ÷ plain"), rows)
