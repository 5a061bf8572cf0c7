"""`pkt widen`: a wider model with the same function, and a LoRA carried up into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options as o
from orchestrator.errors import UserError


def widen(
    model: Annotated[str, typer.Argument(help="Alias, local folder or hub id.")],
    folder: Annotated[Path, typer.Argument(help="Where the wide model is written; a new folder.")],
    times: Annotated[int, typer.Option(min=2, help="How many copies of each channel it has.")] = 2,
    adapter: Annotated[Path | None, typer.Option(help="A LoRA of the model, written beside as FOLDER-lora.")] = None,
    debug: o.Debug = False,
) -> int:
    """Write a wider model that says the same (HyperCloning): a teacher that knows what its student does."""
    from orchestrator.carry.update import find_adapter
    from orchestrator.export.export import check_target
    from orchestrator.models.cloning import widen as work
    from orchestrator.models.cloning import widen_adapter
    from orchestrator.models.loading import resolve
    from orchestrator.store.files import placing

    folder = folder.expanduser()
    beside = folder.with_name(f"{folder.name}-lora")
    for path in (folder, beside) if adapter else (folder,):
        check_target(path, "widen")
    checkpoint = resolve(model, "model")
    if adapter and not adapter.expanduser().is_dir():
        raise UserError(f"adapter: {adapter} is no folder; give one that PEFT's save_pretrained made")
    lora = Path(find_adapter(str(adapter), checkpoint, field="adapter")[0]) if adapter else None
    with placing(folder, "widen") as place:
        facts = work(checkpoint.folder, place, times)
    rounded = "" if facts["exact"] else " but for its weights' rounding: a power of two has none"
    typer.echo(f"{folder}: {facts['parameters']:,} parameters, {times} times as wide, with the same logits{rounded}")
    if lora:
        with placing(beside, "widen") as place:
            facts = widen_adapter(lora, place, checkpoint.config, times, str(folder.absolute()))
        typer.echo(f"{beside}: the LoRA of {facts['modules']} modules that does there what it did")
    return 0
