"""Tiny real models, one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 160, "vocab_size": 99, "max_position_embeddings": 128}
FAMILIES = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},  # biases on q, k and v
    "qwen3": {"head_dim": 32},  # norms on q and k, a head_dim of its own
    "qwen3-tied": {"head_dim": 32, "tie_word_embeddings": True},
    "olmo2": {},  # norms after attention and feed-forward, and on whole q and k
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},  # tied, embeddings scaled, norms of 1 + weight
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32},  # and norms on q and k
    "phi3": {},  # q, k and v in one matrix, gate and up in another
    "gpt_neox": {"num_key_value_heads": None},  # q, k and v of each head in turn, no gate, biases, LayerNorms
}


def tiny(family: str, seed: int = 0, **sizes: int) -> Any:
    """A real model of a family with random weights, norms and biases included, in float32 and evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SIZES, **FAMILIES[family], **sizes}
    config = AutoConfig.for_model(family.split("-")[0], bos_token_id=None, eos_token_id=1, pad_token_id=0, **settings)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def saved(folder: Path, family: str, seed: int = 0, **sizes: int) -> Any:
    """The model, which is then in the folder, too, with a tokenizer of characters."""
    from orchestrator.models.loading import load_tokenizer, source_of

    model = tiny(family, seed, **sizes)
    model.save_pretrained(folder)
    load_tokenizer(source_of("demo-student", "student")).save_pretrained(folder)
    return model


def batch(rows: int = 5, width: int = 14, vocabulary: int = 90) -> dict[str, torch.Tensor]:
    """Right-padded rows of different lengths, of which the first tokens are not labelled."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocabulary, (rows, width), generator=generator)
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row in range(rows):
        labels[row, : 2 + row] = -100
        labels[row, width - 2 * row :], mask[row, width - 2 * row :], ids[row, width - 2 * row :] = -100, 0, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
