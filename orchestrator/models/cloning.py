"""A wider model with the same function: HyperCloning (arXiv 2409.12903), and a narrow model's LoRA in it.

    widen("smollm2-135m/", Path("wide"), times=2)          # logits are those of before
    widen_adapter(Path("lora"), Path("wide-lora"), config, times=2, base="wide")

Each channel is there `times` over: W becomes its tiles over the number of copies that it reads, biases and norms are
repeated, heads are added and keep their size. So a small model's trained LoRA can be carried up, and a teacher be had
that is known to know what its student does.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.models import adapters
from orchestrator.models.dtypes import name_of
from orchestrator.models.families import AXES, FAMILIES, Geometry, ModelFamily
from orchestrator.models.loading import load, load_tokenizer, read_config

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def widen(source: str, folder: Path, times: int) -> dict[str, Any]:
    """Write the checkpoint of a model `times` as wide and as deep as before, its head untied, with its tokenizer.

    In the number type of before, in which a third of a weight may have to be rounded; `exact` says that none was.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    model = load(source, dtype=name_of(read_config(Path(source), "model").dtype or "float32"))  # whatever is fast here
    config = _wide(model.config, times)
    with no_init_weights():
        wide = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    row, narrow, own = FAMILIES[config.model_type], Geometry.of(model.config), Geometry.of(config)
    parameters, stock = dict(wide.named_parameters()), dict(model.named_parameters(remove_duplicate=False))
    matrices: set[str] = set()
    with torch.no_grad():
        for role, layer in narrow.matrices():
            for name in (f"{row.module(role, layer)}.{part}" for part in ("weight", "bias")):
                if name in parameters:
                    to, at = _rows(row, role, own, layer), _rows(row, role, narrow, layer)
                    parameters[name][to] = tiled(stock[name][at], role, times)
                    matrices.add(name)
        for name in parameters.keys() - matrices:  # norms, and those of a head
            parameters[name].copy_(stock[name].repeat(parameters[name].numel() // stock[name].numel()))
        parameters[row.parameter("embed", None)].mul_(_smaller(config, times))
    wide.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    exact = times & (times - 1) == 0 or model.dtype == torch.float32
    return {"parameters": sum(one.numel() for one in parameters.values()), "exact": exact}


def widen_adapter(source: Path, folder: Path, config: Any, times: int, base: str) -> dict[str, Any]:
    """Write the LoRA that does in the wide model (`base`) what this one does in the one of `config`."""
    row, narrow = FAMILIES[config.model_type], Geometry.of(config)
    own = Geometry.of(_wide(config, times))
    changed: dict[str, adapters.Start] = adapters.read_update(source)
    roles: dict[str, list[tuple[str, int | None]]] = {}
    for role, layer in narrow.matrices():
        roles.setdefault(row.module(role, layer), []).append((role, layer))
    starts: dict[str, adapters.Start] = {}
    for name, (b, a) in changed.items():
        role, layer = roles[name][0]
        up = torch.zeros(sum(own.shape(one)[0] for one, _ in roles[name]), b.shape[1])
        for one, _ in roles[name]:
            to, at = _rows(row, one, own, layer), _rows(row, one, narrow, layer)
            up[to] = b[at] if AXES[one][0] == "vocabulary" else b[at].repeat(times, 1)
        starts[name] = (up, a.repeat(1, times) / (1 if role == "embed" else times))
    embed = row.module("embed", None)
    embeddings = frozenset({embed}) & starts.keys()
    if embeddings:
        starts[embed] = (_smaller(config, times) * starts[embed][0], starts[embed][1])
    adapters.write_start(folder, adapters.of_one_rank(starts), base_name=base, embeddings=embeddings)
    return {"modules": len(starts)}


def tiled(matrix: Tensor, role: str, times: int) -> Tensor:
    """A role's matrix, or its bias, as the wide model has it."""
    rows = 1 if AXES[role][0] == "vocabulary" else times
    if matrix.dim() == 1:
        return matrix.repeat(rows)
    return matrix.repeat(rows, times) / (1 if role == "embed" else times)


def _smaller(config: Any, times: int) -> float:
    """Gemma multiplies what it looks up by the root of its width."""
    return float(times**-0.5) if config.model_type.startswith("gemma") else 1.0


def _wide(config: Any, times: int) -> Any:
    wide = copy.deepcopy(config)
    for name in SIZES:
        if getattr(wide, name, None):
            setattr(wide, name, getattr(wide, name) * times)
    wide.tie_word_embeddings = False
    return wide


def _rows(row: ModelFamily, role: str, geometry: Geometry, layer: int | None) -> Any:
    return slice(None) if layer is None else row.rows(role, geometry)
