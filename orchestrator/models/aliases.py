"""Short names for checkpoints, and what goes with each when nothing else is said.

`pkt sweep --teacher llama2-70b` is a complete command because a teacher's row names its natural student: the
smallest of its line, since what is asked for most is the largest compression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alias:
    """A hub id (`demo:`: in this package), the student that a teacher has by default, and the published config.

    The config is what a plan is made from when nothing may be fetched; a run reads the checkpoint's own.
    """

    source: str
    student: str | None = None
    config: dict[str, Any] | None = None


TIED = {"tie_word_embeddings": True}
LLAMA2 = {"model_type": "llama", "vocab_size": 32_000, "dtype": "float16"}
LLAMA3 = {"model_type": "llama", "vocab_size": 128_256, "dtype": "bfloat16"}
MISTRAL = {"model_type": "mistral", "vocab_size": 32_768, "dtype": "bfloat16"}
QWEN25 = {"model_type": "qwen2", "vocab_size": 151_936, "dtype": "bfloat16"}
QWEN25_WIDE = QWEN25 | {"vocab_size": 152_064}
QWEN3 = {"model_type": "qwen3", "vocab_size": 151_936, "head_dim": 128, "dtype": "bfloat16"}


def sized(common: dict[str, Any], hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """A config in transformers' own words."""
    return common | {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


ALIASES: dict[str, Alias] = {
    "demo-teacher": Alias("demo:demo-teacher", "demo-student"),
    "demo-student": Alias("demo:demo-student"),
    "llama2-7b": Alias("meta-llama/Llama-2-7b-hf", None, sized(LLAMA2, 4096, 11008, 32, 32, 32)),
    "llama2-13b": Alias("meta-llama/Llama-2-13b-hf", "llama2-7b", sized(LLAMA2, 5120, 13824, 40, 40, 40)),
    "llama2-70b": Alias("meta-llama/Llama-2-70b-hf", "llama2-7b", sized(LLAMA2, 8192, 28672, 80, 64, 8)),
    "llama3-8b": Alias("meta-llama/Meta-Llama-3-8B", None, sized(LLAMA3, 4096, 14336, 32, 32, 8)),
    "llama3-70b": Alias("meta-llama/Meta-Llama-3-70B", "llama3-8b", sized(LLAMA3, 8192, 28672, 80, 64, 8)),
    "llama3.1-8b": Alias("meta-llama/Llama-3.1-8B", "llama3.2-1b", sized(LLAMA3, 4096, 14336, 32, 32, 8)),
    "llama3.1-70b": Alias("meta-llama/Llama-3.1-70B", "llama3.1-8b", sized(LLAMA3, 8192, 28672, 80, 64, 8)),
    "llama3.1-405b": Alias("meta-llama/Llama-3.1-405B", "llama3.1-8b", sized(LLAMA3, 16384, 53248, 126, 128, 8)),
    "llama3.2-1b": Alias("meta-llama/Llama-3.2-1B", None, sized(LLAMA3 | TIED, 2048, 8192, 16, 32, 8)),
    "llama3.2-3b": Alias("meta-llama/Llama-3.2-3B", "llama3.2-1b", sized(LLAMA3 | TIED, 3072, 8192, 28, 24, 8)),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3", None, sized(MISTRAL, 4096, 14336, 32, 32, 8)),
    "mistral-large": Alias(
        "mistralai/Mistral-Large-Instruct-2407", "mistral-7b", sized(MISTRAL, 12288, 28672, 88, 96, 8)
    ),
    "qwen2.5-0.5b": Alias("Qwen/Qwen2.5-0.5B", None, sized(QWEN25 | TIED, 896, 4864, 24, 14, 2)),
    "qwen2.5-1.5b": Alias("Qwen/Qwen2.5-1.5B", "qwen2.5-0.5b", sized(QWEN25 | TIED, 1536, 8960, 28, 12, 2)),
    "qwen2.5-3b": Alias("Qwen/Qwen2.5-3B", "qwen2.5-0.5b", sized(QWEN25 | TIED, 2048, 11008, 36, 16, 2)),
    "qwen2.5-7b": Alias("Qwen/Qwen2.5-7B", "qwen2.5-0.5b", sized(QWEN25_WIDE, 3584, 18944, 28, 28, 4)),
    "qwen2.5-14b": Alias("Qwen/Qwen2.5-14B", "qwen2.5-0.5b", sized(QWEN25_WIDE, 5120, 13824, 48, 40, 8)),
    "qwen2.5-32b": Alias("Qwen/Qwen2.5-32B", "qwen2.5-0.5b", sized(QWEN25_WIDE, 5120, 27648, 64, 40, 8)),
    "qwen2.5-72b": Alias("Qwen/Qwen2.5-72B", "qwen2.5-7b", sized(QWEN25_WIDE, 8192, 29568, 80, 64, 8)),
    "qwen3-0.6b": Alias("Qwen/Qwen3-0.6B-Base", None, sized(QWEN3 | TIED, 1024, 3072, 28, 16, 8)),
    "qwen3-1.7b": Alias("Qwen/Qwen3-1.7B-Base", "qwen3-0.6b", sized(QWEN3 | TIED, 2048, 6144, 28, 16, 8)),
    "qwen3-4b": Alias("Qwen/Qwen3-4B-Base", "qwen3-0.6b", sized(QWEN3 | TIED, 2560, 9728, 36, 32, 8)),
    "qwen3-8b": Alias("Qwen/Qwen3-8B-Base", "qwen3-0.6b", sized(QWEN3, 4096, 12288, 36, 32, 8)),
    "qwen3-14b": Alias("Qwen/Qwen3-14B-Base", "qwen3-0.6b", sized(QWEN3, 5120, 17408, 40, 40, 8)),
}
