"""What there is to tell of a run, as a value: it can be kept as JSON, sent twice, and holds no secrets.

    Record(key="sweep/trial", name="lora r8", parent="sweep", params={"rank": 8}, metrics={"score": 0.5}).clean()

What is written later under the same key adds to the run.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED", "RUNNING"]
SECRET = re.compile(r"token(?!s|iz)|secret|passw|credential|api[-_.]?key", re.IGNORECASE)  # `max_tokens` is a count


@dataclass(frozen=True)
class Record:
    """All there is to tell of a run up to now; a later one of the same key adds to it."""

    key: str  # the run's identity: a fingerprint
    name: str
    parent: str | None = None  # a key
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)  # (step, value)
    artifacts: Sequence[tuple[str, str]] = ()  # (a folder that stays where it is, its name in the run)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # file.json → {"columns": , "data": }
    datasets: Sequence[Mapping[str, str]] = ()  # name, digest, source, context
    status: Status = "FINISHED"
    seconds: float = 0.0  # that the work took, until `time_ms`
    time_ms: int = field(default_factory=lambda: int(time.time() * 1000))  # the same again makes the same points

    def clean(self) -> Record:
        """Without what may not be written down: fields named like secrets, and credentials in addresses."""
        fields = {key: masked(value) for key, value in self.params.items() if not SECRET.search(key)}
        tags = {key: masked(value) for key, value in self.tags.items() if not SECRET.search(key)}
        datasets = [{key: masked(value) for key, value in one.items()} for one in self.datasets]
        return replace(self, params=fields, tags=tags, datasets=datasets, name=masked(self.name))


def masked(value: Any) -> str:
    """As text, without the credentials of an address or the environment's for MLflow."""
    text = re.sub(r"://[^/\s]*@", "://***@", str(value))
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        if len(secret := os.environ.get(name, "")) >= 8:  # a shorter one is found in too many words
            text = text.replace(secret, "***")
    return text


def one_line(error: object) -> str:
    """What a screen has room for: masked, and where a network or a disk is at the bottom of it, that alone."""
    inner = error if isinstance(error, BaseException) else None
    while inner is not None:
        if isinstance(inner, (OSError, sqlite3.Error)):
            error = inner
        inner = inner.__cause__ or inner.__context__
    first = re.sub(r"\b(Basic|Bearer) +\S+", r"\1 ***", masked(error).strip().partition("\n")[0])
    return " ".join(re.sub(r"^\[Errno -?\d+\] ", "", first).split())[:300]
