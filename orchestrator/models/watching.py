"""What goes on inside a model while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def outputs_of(layer: Any) -> Iterator[list[Any]]:
    """While open, what a layer puts out (rows, tokens, hidden), pass by pass; nothing of None.

    Some families put it first of several.
    """
    seen: list[Any] = []
    if layer is None:
        yield seen
        return
    hook = layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        yield seen
    finally:
        hook.remove()
