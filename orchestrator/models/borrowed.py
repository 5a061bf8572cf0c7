"""A model that one piece of work after another puts an adapter on: loaded once a process, and kept as it was.

    with borrowed(folder, dtype="float32", device="cpu") as model, wearing(model, adapter) as network: ...

Loading takes longer than many a score; and a worker that trains and then scores would otherwise hold two copies.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.models.loading import load

_kept: dict[tuple[str, str, str], Any] = {}  # the last one, of this process


def let_go() -> None:
    """Keep none: whoever loads another model, or one of its own, has its memory; what a training left holds it, too."""
    if _kept:
        _kept.clear()
        gc.collect()


@contextmanager
def borrowed(folder: str, *, dtype: str, device: str) -> Iterator[Any]:
    """The stock model, as `load` has it. Who puts an adapter on it takes it off before the block ends.

    It stays for the next that asks for the same; another goes before its successor is loaded. After an error it isn't
    kept, since nobody knows how it was left.
    """
    key = (folder, dtype, device)
    model = _kept.pop(key, None)
    if model is None:
        let_go()
        model = load(folder, dtype=dtype, device=device)
    yield model
    for parameter in model.parameters():
        parameter.requires_grad_(True).grad = None
    _kept[key] = model.eval()
