"""`pkt strategies`: the values of each axis, and the fields of a recipe."""

from __future__ import annotations

import json
from typing import Any, get_args

import typer

from cli import options as o


def strategies(as_json: o.Json = False) -> int:
    """List every strategy of every axis with its reason, and the fields that --set takes."""
    from orchestrator.recipe import ORIGINS, Recipe, Search, Sweep
    from orchestrator.transfer.arms import Arm
    from orchestrator.transfer.blocks import BlockSelection
    from orchestrator.transfer.layers import LayerSelection
    from orchestrator.transfer.metrics import SensitivityMetric

    axes = {
        "search": Search,
        "arms": Arm,
        "layers": LayerSelection,
        "structure": BlockSelection,
        "measure.metric": SensitivityMetric,
    }
    listed = {axis: dict(_members(union)) for axis, union in axes.items()}
    own = [(name, default) for name, default in _fields(Sweep) if name not in ("name", "recipe", "axes")]
    fields = dict([*_fields(Recipe), *own])
    if as_json:
        typer.echo(json.dumps({**listed, "modules": list(ORIGINS), "fields": fields}))
        return 0
    for axis, kinds in listed.items():
        typer.echo(f"--{axis}")
        for kind, about in kinds.items():
            typer.echo(f"    {kind:<24} {about}")
    typer.echo(f"--modules\n    any of {', '.join(ORIGINS)}")
    typer.echo("A strategy with fields of its own, in {}, is written in YAML: arm: [lora, {kind: distil, rows: all}]")
    typer.echo("--set PATH=VALUE (and recipe, axes and the rest of a YAML file)")
    for path, default in fields.items():
        typer.echo(f"    {path:<28} {default}")
    return 0


def _members(union: Any) -> list[tuple[str, str]]:
    """Kind and first docstring line of a discriminated union's models, with the fields that one may have."""
    models = get_args(get_args(get_args(union)[0])[0]) or get_args(get_args(union)[0])
    return [(model.model_fields["kind"].default, _about(model)) for model in models]


def _about(model: Any) -> str:
    reason = (model.__doc__ or "").strip().splitlines()[0]
    own = [f"{name}: {default}" for name, default in _fields(model) if name != "kind"]
    return f"{reason} {{{', '.join(own)}}}" if own else reason


def _fields(model: Any, prefix: str = "") -> list[tuple[str, str]]:
    from pydantic import BaseModel

    rows: list[tuple[str, str]] = []
    for name, info in model.model_fields.items():
        default = info.default
        if isinstance(default, BaseModel) and "kind" not in type(default).model_fields:
            rows += _fields(type(default), f"{prefix}{name}.")
        else:
            text = "needed" if info.is_required() else getattr(default, "kind", default)
            rows.append((prefix + name, ",".join(map(str, text)) if isinstance(text, tuple) else str(text)))
    return rows
