"""How much surer the teacher's update makes it of each token of the answers: which of them the update is about."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.models import adapters
from orchestrator.models.borrowed import borrowed
from orchestrator.models.loading import load_tokenizer
from orchestrator.scoring.engine import evaluating
from orchestrator.scoring.likelihoods import token_logs
from orchestrator.step import Track, silent
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import TemplateName, fitted
from orchestrator.teacher.by_example import file_of

EXCESS = "excess.safetensors"


def excess(
    folder: Path,
    *,
    rows: Path,
    update: Path,
    teacher: str,
    template: TemplateName,
    max_tokens: int,
    dtype: str,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write log p with the update minus log p without, (t,) of each row's t answer tokens (TiTok's token excess)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(teacher, "teacher")
    encoded = fitted(data.read(rows), template, tokenizer, max_tokens).rows
    found: dict[str, Tensor] = {}
    with borrowed(teacher, dtype=dtype, device=device) as base:
        for adapter in (update, None):
            with adapters.wearing(base, adapter) as network, evaluating(network):
                each = chain.from_iterable(token_logs(network, encoded, pad=tokenizer.pad_token_id))
                told = "asking the teacher with its update" if adapter else "asking the teacher without"
                for place, logs in track(each, told, len(encoded)):
                    row, logs = file_of(encoded[place].id), logs.float().cpu()
                    found[row] = found[row] - logs if row in found else logs
    save_file({row: logs.contiguous() for row, logs in found.items()}, folder / EXCESS)
    values = torch.cat([*found.values()])
    return {"rows": len(found), "tokens": len(values), "mean": round(float(values.mean()), 4)}


def read_excess(folder: Path) -> dict[str, Tensor]:
    """By the file that a row's id names."""
    return load_file(folder / EXCESS)
