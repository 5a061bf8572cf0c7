"""Rows of a public data set by its hub name."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from orchestrator.errors import UserError


def hub_rows(name: str, config: str | None, split: str, **files: str) -> Iterable[dict[str, Any]]:
    """The rows of a split. UserError that names the data set and what is missing where it can't be had."""
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry is told; the end of them is enough
    try:
        return list(datasets.load_dataset(name, config, split=split, **files))
    except (OSError, ValueError, RuntimeError) as error:
        name = files.get("data_files", name)
        raise UserError(
            f"task: the data set {name} is not in the local cache and the hub can't be reached (no network?);"
            " give local rows with --data DIR (train.jsonl, test.jsonl), or connect and set HF_TOKEN if it asks for one"
        ) from error
