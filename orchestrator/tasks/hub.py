"""Rows of a public data set by its hub name."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from orchestrator.errors import UserError

UNREACHABLE = (OSError, ValueError, RuntimeError)  # what `datasets` raises where rows can't be had


def hub_rows(name: str, config: str | None, split: str, **files: str) -> Iterable[dict[str, Any]]:
    """The rows of a split. UserError that names the data set and what is missing where it can't be had."""
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry is told; the end of them is enough
    try:
        return list(datasets.load_dataset(name, config, split=split, **files))
    except UNREACHABLE as error:
        raise not_to_be_had(files.get("data_files", name)) from error


def not_to_be_had(name: str, form: str = "train.jsonl, test.jsonl") -> UserError:
    """What to say where a data set can't be had, with the form of local rows that would do."""
    return UserError(
        f"task: the data set {name} is not in the local cache and the hub can't be reached (no network?);"
        f" give local rows with --data DIR ({form}), or connect and set HF_TOKEN if it asks for one"
    )
