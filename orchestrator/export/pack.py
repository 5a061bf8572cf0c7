"""An update in few bits, to be kept or sent: GraftLLM's packs (arXiv 2505.18502), without its router.

Each module's update is cut to the directions that hold a share of its energy (Σσ² over all directions), and these are
kept in integers: the strongest part of them in the first number of bits, the next in the second, and so on. With all
of the energy and 32 bits nothing is lost. Embeddings and head are left out where that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.export.export import public_name
from orchestrator.export.source import Source
from orchestrator.models import adapters
from orchestrator.store.files import placing
from orchestrator.student.card import write_card
from orchestrator.transfer.lowrank import Factors, product_svd
from orchestrator.transfer.sides import norm_of

PACK = "pack.safetensors"
WHOLE = 32  # bits: the numbers themselves
WIDTHS = (2, 4, 8, WHOLE)
ABOUT = "A LoRA adapter in few bits (GraftLLM's packs): not for PEFT as it is."
LOAD = "    pkt export <this folder> --lora DIR      # the adapter again"


def write_pack(
    folder: Path,
    changed: Mapping[str, adapters.Start],
    *,
    energy: float,
    bits: Sequence[int],
    base_name: str,
    embeddings: frozenset[str],
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the pack of an update; says its bytes, how many times smaller than in float32 that is, and its error.

    `error` is that of the whole update, relative to its Frobenius norm; what is left out (`without`) counts.
    """
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"base": base_name, "embeddings": sorted(embeddings - {*without}), "modules": {}}
    lost, whole, floats = 0.0, 0.0, 0
    for name, (b, a) in sorted(changed.items()):
        floats += b.numel() + a.numel()
        whole += norm_of(b, a) ** 2
        if name in without:
            lost += norm_of(b, a) ** 2
            continue
        factors = product_svd(b, a)
        kept = factors.truncate(_holding(factors.s, energy))
        parts = [len(part) for part in torch.arange(len(kept.s)).tensor_split(len(bits))]
        meta["modules"][name] = {"shape": [len(b), a.shape[1]], "parts": parts, "bits": list(bits)}
        for side, matrix in (("u", kept.u.t()), ("v", kept.vh)):
            for place, (rows, width) in enumerate(zip(matrix.split(parts), bits, strict=True)):
                codes, scale = quantised(rows, width)
                tensors |= {f"{name}.{side}{place}": codes, f"{name}.{side}{place}.scale": scale}
        tensors[f"{name}.s"] = kept.s.contiguous()
        found = _read(tensors, name, meta["modules"][name])
        up, down = torch.cat([b.float(), -found[0]], 1), torch.cat([a.float(), found[1]])
        lost += norm_of(up, down) ** 2
    save_file(tensors, folder / PACK, metadata={"pack": json.dumps(meta)})
    size = (folder / PACK).stat().st_size
    error = (lost / whole) ** 0.5 if whole else 0.0
    return {"bytes": size, "smaller": 4 * floats / size, "error": error, "modules": len(meta["modules"])}


def unpack(folder: Path, target: Path) -> dict[str, Any]:
    """Write the LoRA that a pack holds, of the largest rank that one of its modules has."""
    with safe_open(folder / PACK, framework="pt") as file:
        meta = json.loads(file.metadata()["pack"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    starts = {name: _read(tensors, name, about) for name, about in meta["modules"].items()}
    adapters.write_start(
        target, adapters.of_one_rank(starts), base_name=meta["base"], embeddings=frozenset(meta["embeddings"])
    )
    return {"modules": len(starts), "rank": max(len(a) for _, a in starts.values()), "base": meta["base"]}


def packed(source: Source, target: Path, energy: float, bits: Sequence[int], prune: bool) -> dict[str, Any]:
    """An adapter's pack, with a card; `prune`: embedding and head are left out, as GraftLLM does."""
    changed = adapters.read_update(source.folder)
    embeddings = adapters.embeddings_of(source.folder)
    outer = [name for name in changed if name in embeddings or name.endswith(("lm_head", "embed_out"))]
    if prune and not {*changed} - {*outer}:
        raise UserError("prune: the adapter changes embedding and head alone; leave --prune out")
    with placing(target, "pack") as folder:
        facts = write_pack(
            folder, changed, energy=energy, bits=bits, base_name=public_name(source.student), embeddings=embeddings,
            without=outer if prune else (),
        )  # fmt: skip
        told = {"energy": energy, "bits": ",".join(map(str, bits)), "error": f"{facts['error']:.3g}"}
        write_card(folder, {**source.facts, **told}, about=ABOUT, load=LOAD)
    return {"folder": str(target), **facts}


def is_pack(folder: Path) -> bool:
    """Whether a folder holds one."""
    return (folder / PACK).is_file()


def _holding(s: Float[Tensor, " r"], energy: float) -> int:
    """As few directions as hold that share of Σσ²: at least one, and all that do something for all of it."""
    squares = s.double().square()
    if energy >= 1:
        return max(1, int((s > 0).sum()))
    held = squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
    return int((held < energy).sum()) + 1


def _read(tensors: Mapping[str, Tensor], name: str, about: Mapping[str, Any]) -> adapters.Start:
    sides = []
    for side, size in zip(("u", "v"), about["shape"], strict=True):
        read = [
            restored(tensors[f"{name}.{side}{place}"], tensors[f"{name}.{side}{place}.scale"], width, size)
            for place, width in enumerate(about["bits"])
        ]
        sides.append(torch.cat(read))
    factors = Factors(sides[0].t(), tensors[f"{name}.s"], sides[1])
    return (factors.u * factors.s).contiguous(), factors.vh.contiguous()


def quantised(rows: Float[Tensor, "r n"], bits: int) -> tuple[Tensor, Float[Tensor, " r"]]:
    """Integers of so many bits, several to a byte, and each row's step: its largest entry is the largest integer."""
    if bits == WHOLE:
        return rows.float().contiguous(), torch.ones(len(rows))
    most = 2 ** (bits - 1) - 1
    scale = (rows.abs().amax(1) / most).clamp_min(torch.finfo(torch.float32).tiny)
    codes = ((rows / scale[:, None]).round().clamp(-most, most) + most).to(torch.uint8)
    together = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % together))
    shifts = torch.arange(together, dtype=torch.uint8) * bits
    return (codes.unflatten(1, (-1, together)) << shifts).sum(2).to(torch.uint8), scale


def restored(codes: Tensor, scale: Float[Tensor, " r"], bits: int, size: int) -> Float[Tensor, "r n"]:
    """What `quantised` kept."""
    if bits == WHOLE:
        return codes
    shifts = torch.arange(8 // bits, dtype=torch.uint8) * bits
    each = ((codes[:, :, None] >> shifts) & (2**bits - 1)).flatten(1)[:, :size]
    return (each.float() - (2 ** (bits - 1) - 1)) * scale[:, None]
