"""Short names for checkpoints, and what goes with each when nothing else is said.

`pkt sweep --teacher llama2-70b` is a complete command because a teacher's row names its natural student: the
smallest of its line, since what is asked for most is the largest compression.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """A hub id (or `demo:`, made on first use) and the student that a teacher has by default."""

    source: str
    student: str | None = None


ALIASES: dict[str, Alias] = {
    "demo-teacher": Alias("demo:demo-teacher", "demo-student"),
    "demo-student": Alias("demo:demo-student"),
    "llama2-7b": Alias("meta-llama/Llama-2-7b-hf"),
    "llama2-13b": Alias("meta-llama/Llama-2-13b-hf", "llama2-7b"),
    "llama2-70b": Alias("meta-llama/Llama-2-70b-hf", "llama2-7b"),
    "llama3-8b": Alias("meta-llama/Meta-Llama-3-8B"),
    "llama3-70b": Alias("meta-llama/Meta-Llama-3-70B", "llama3-8b"),
    "llama3.1-8b": Alias("meta-llama/Llama-3.1-8B", "llama3.2-1b"),
    "llama3.1-70b": Alias("meta-llama/Llama-3.1-70B", "llama3.1-8b"),
    "llama3.1-405b": Alias("meta-llama/Llama-3.1-405B", "llama3.1-8b"),
    "llama3.2-1b": Alias("meta-llama/Llama-3.2-1B"),
    "llama3.2-3b": Alias("meta-llama/Llama-3.2-3B", "llama3.2-1b"),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3"),
    "mistral-large": Alias("mistralai/Mistral-Large-Instruct-2407", "mistral-7b"),
    "qwen2.5-0.5b": Alias("Qwen/Qwen2.5-0.5B"),
    "qwen2.5-1.5b": Alias("Qwen/Qwen2.5-1.5B", "qwen2.5-0.5b"),
    "qwen2.5-3b": Alias("Qwen/Qwen2.5-3B", "qwen2.5-0.5b"),
    "qwen2.5-7b": Alias("Qwen/Qwen2.5-7B", "qwen2.5-0.5b"),
    "qwen2.5-14b": Alias("Qwen/Qwen2.5-14B", "qwen2.5-0.5b"),
    "qwen2.5-32b": Alias("Qwen/Qwen2.5-32B", "qwen2.5-0.5b"),
    "qwen2.5-72b": Alias("Qwen/Qwen2.5-72B", "qwen2.5-7b"),
    "qwen3-0.6b": Alias("Qwen/Qwen3-0.6B-Base"),
    "qwen3-1.7b": Alias("Qwen/Qwen3-1.7B-Base", "qwen3-0.6b"),
    "qwen3-4b": Alias("Qwen/Qwen3-4B-Base", "qwen3-0.6b"),
    "qwen3-8b": Alias("Qwen/Qwen3-8B-Base", "qwen3-0.6b"),
    "qwen3-14b": Alias("Qwen/Qwen3-14B-Base", "qwen3-0.6b"),
}
