"""What a report shows, as numbers: whoever doubts a picture can ask for what was drawn.

    evidence = collect(record, results(record, store), store)
    evidence.heats[0].cells         # mean scores, rank x strategy
    evidence.missing["curves"]      # sentences, for what the store no longer has

All comes from the sweep's record and the folders that its rows rest on: evaluate <- finetune <- extract <- measure. A
folder that is gone leaves a sentence, since a report is often written long after large folders were deleted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from orchestrator.report.arrivals import Arrival, arrival_of
from orchestrator.report.cross import Crossed, crossed
from orchestrator.report.maps import Map, maps_of
from orchestrator.store import MANIFEST, Store
from orchestrator.teacher.files import LAYERS
from orchestrator.verdict.estimates import Result, leaderboard
from orchestrator.verdict.words import label

Numbers = NDArray[np.float64]
BROKEN = (OSError, KeyError, ValueError, SafetensorError)  # a file that is gone, or cut short


@dataclass(frozen=True)
class Curve:
    """A row's training loss by step: mean, least and most over its seeds."""

    name: str
    arm: str
    steps: list[int]
    mean: Numbers
    low: Numbers
    high: Numbers
    seeds: int


@dataclass(frozen=True)
class Cost:
    """What one of a row's trainings took with all that it was made from, and what it scored."""

    name: str
    arm: str
    seconds: float
    mean: float


@dataclass(frozen=True)
class Heat:
    """An arm's mean scores; NaN where a combination was not run."""

    arm: str
    columns: list[str]
    strategies: list[str]
    cells: Numbers  # (strategies, columns)


@dataclass(frozen=True)
class Layers:
    """A pass over the teacher: each layer's S, and which layers each strategy took by it."""

    name: str
    scores: list[float]
    chosen: dict[str, list[int]]


@dataclass(frozen=True)
class Extraction:
    """What was cut for some arms, in the first and the last layer that was kept."""

    name: str
    arms: tuple[str, ...]
    maps: list[Map]


@dataclass
class Evidence:
    """All numbers of a report."""

    rows: list[dict[str, Any]]  # of the leaderboard, best first
    names: list[str]  # theirs
    heats: list[Heat]
    curves: list[Curve] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    cross: list[Crossed] = field(default_factory=list)  # seeds' task by scored task
    passes: list[Layers] = field(default_factory=list)
    extractions: list[Extraction] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)  # of updates that were carried over
    versions: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)  # hashes of their weights
    examples: int = 0
    missing: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def collect(record: Mapping[str, Any], found: Sequence[Result], store: Store) -> Evidence:
    """Everything that is there of a sweep; `found` are its results (`record.results`)."""
    rows = leaderboard(found, record["baseline"])
    evidence = Evidence(rows, names(rows), heats_of(found))
    evidence.cross = crossed(found, record["baseline"], record["task"])
    evidence.examples = found[0].scores.shape[1] if found else 0
    finished = [row for row in record["rows"] if any(store.find("evaluate", key) for key in row["trials"])]
    starts: dict[str, list[str]] = {}
    for row, result, name in zip(finished, found, names([vars(one) for one in found]), strict=True):
        if lost := len(row["trials"]) - len(result.seeds):
            evidence.missing["rows"].append(f"{name}: {lost} of {len(row['trials'])} trials left no scores.")
        for start in _trained(row, result, name, store, evidence):
            starts.setdefault(start, []).append(result.arm)
    for row in record["rows"]:
        if row not in finished:
            ways = {key: row["recipe"][key] and label(row["recipe"][key]) for key in ("layers", "structure")}
            (name,) = names([{"arm": row["label"], **ways, "modules": None, "rank": row["recipe"]["rank"]}])
            evidence.missing["rows"].append(f"{name}: no trial left scores.")
    _cut(starts, store, evidence)
    return evidence


def names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each row from the others: arm, strategies, rank, and whatever else differs."""
    modules = len({row["modules"] for row in rows if row["modules"]}) > 1
    return [
        ", ".join(
            str(part)
            for part in (
                row["arm"], row["layers"], row["structure"], row["modules"] if modules else None,
                f"rank {row['rank']}" if row["rank"] else None,
                *(f"{key} {value}" for key, value in (row.get("other") or {}).items()),
            )
            if part
        )
        for row in rows
    ]  # fmt: skip


def strategy(row: Mapping[str, Any]) -> str:
    """A row's way to choose layers and blocks; for what extracts nothing there is none."""
    return ", ".join(part for part in (row["layers"], row["structure"], row["modules"]) if part) or "-"


def heats_of(found: Sequence[Result]) -> list[Heat]:
    """Mean scores of every arm that was run at several ranks or by several strategies."""
    heats = []
    several = len({one.modules for one in found if one.modules}) > 1
    for arm in dict.fromkeys(one.arm for one in found if one.rank):
        scores: dict[tuple[str, int], list[float]] = {}
        for one in (one for one in found if one.arm == arm):
            scores.setdefault((strategy(vars(one) | ({} if several else {"modules": None})), one.rank or 0), []).append(
                float(one.scores.mean())
            )
        strategies = list(dict.fromkeys(way for way, _ in scores))
        ranks = sorted({rank for _, rank in scores})
        if len(scores) > 1:
            cells = [[float(np.mean(scores.get((way, rank), np.nan))) for rank in ranks] for way in strategies]
            heats.append(Heat(arm, [f"rank {rank}" for rank in ranks], strategies, np.array(cells)))
    return heats


def cross_heats(cells: Sequence[Crossed]) -> list[Heat]:
    """A panel an arm: seeds' tasks downwards, scored tasks along. Of several rows for a cell, their mean."""
    heats = []
    for arm in dict.fromkeys(one.arm for one in cells):
        mine = [one for one in cells if one.arm == arm]
        seeds, tasks = (list(dict.fromkeys(getattr(one, name) for one in mine)) for name in ("seeds", "task"))
        values = [
            [float(np.mean([one.delta for one in mine if (one.seeds, one.task) == (down, along)] or np.nan))
             for along in tasks] for down in seeds
        ]  # fmt: skip
        heats.append(Heat(arm, tasks, [f"seeds of {name}" for name in seeds], np.array(values)))
    return heats


def _trained(
    row: Mapping[str, Any], result: Result, name: str, store: Store, evidence: Evidence
) -> Iterator[str]:  # of its trials, the fingerprints of their extractions
    """Put a row's curve and its cost into the evidence."""
    histories, lost = [], 0
    starts: dict[str | None, None] = {}
    for key in row["trials"]:
        if (folder := store.find("evaluate", key)) is None:
            continue
        scored = manifest(folder)
        evidence.versions = evidence.versions or scored["versions"]
        who = "teacher" if result.arm.startswith("teacher") else "student"
        evidence.models.setdefault(who, scored["lineage"]["identity"]["model"])
        if (adapter := scored["lineage"]["inputs"].get("adapter")) is None:
            continue
        if store.find("update", adapter):
            continue  # made elsewhere
        try:
            folder = found_in(store, "finetune", adapter)
            trained = manifest(folder)
            before = trained["lineage"]["inputs"]
            starts |= {before.get("factors", before.get("start")): None}  # as older stores call them
            _arrived(before.get("carried"), result.arm, store, evidence)
            history = json.loads((folder / "history.json").read_text())
            histories.append({point["step"]: point["loss"] for point in history if "loss" in point})
        except BROKEN:
            lost += 1
    if lost:
        evidence.missing["curves"].append(f"{name}: the training of {lost} trials is no longer in the store.")
    if result.seconds:
        evidence.costs.append(Cost(name, result.arm, sum(result.seconds), float(result.scores.mean())))
    if steps := sorted(set.intersection(*map(set, histories))) if histories else []:
        losses = np.array([[history[step] for step in steps] for history in histories])
        low, high = losses.min(0), losses.max(0)
        evidence.curves.append(Curve(name, result.arm, steps, losses.mean(0), low, high, len(losses)))
    yield from filter(None, starts)


def _arrived(key: str | None, arm: str, store: Store, evidence: Evidence) -> None:
    """Put what is known of an arm's maps into the evidence, once: of controls, and of what reads none, nothing is."""
    if key is None or arm in (one.arm for one in evidence.arrivals):
        return
    if scaled := store.find("scale", key, bare=True):
        key = manifest(scaled)["lineage"]["inputs"]["carried"]
    folder = store.find("carry", key, bare=True)
    if folder and (one := arrival_of(arm, folder)) and one.figures:
        evidence.arrivals.append(one)


def _cut(starts: Mapping[str, list[str]], store: Store, evidence: Evidence) -> None:
    """Put the passes over the teacher and what was cut by them into the evidence."""
    passes: dict[str, dict[str, list[int]]] = {}
    users: dict[str, dict[str, None]] = {}
    for start, arms in starts.items():
        who = ", ".join(dict.fromkeys(arms))
        try:
            folder = found_in(store, "extract", start)
            cut = manifest(folder)["lineage"]
            transfer = json.loads((folder / "transfer.json").read_text())
        except BROKEN:
            evidence.missing["layers"].append(f"An extraction of {who} is no longer in the store ({start}).")
            evidence.missing["windows"].append(f"An extraction of {who} is no longer in the store ({start}).")
            continue
        key, way = cut["inputs"]["measured"], label(cut["config"]["layers"])
        passes.setdefault(key, {})[way] = transfer["layers"]
        users.setdefault(key, {}).update(dict.fromkeys(arms))
        name = strategy(
            {"layers": way, "structure": label(cut["config"]["structure"])}
            | {"modules": "+".join(cut["config"]["modules"])}
        )
        try:
            maps = maps_of(folder, transfer, found_in(store, "measure", key))
            evidence.extractions.append(Extraction(name, tuple(dict.fromkeys(arms)), maps))
        except BROKEN:
            evidence.missing["windows"].append(f"{name} ({who}): sensitivities or factors are no longer in the store.")
    for key, chosen in passes.items():
        who = ", ".join(users[key])
        try:
            folder = found_in(store, "measure", key)
            metric = label(manifest(folder)["lineage"]["config"]["metric"])
            scores = json.loads((folder / LAYERS).read_text())
            evidence.passes.append(Layers(f"{metric}, for {who}", scores, chosen))
        except BROKEN:
            evidence.missing["layers"].append(f"The teacher's sensitivities for {who} are no longer in the store.")


def found_in(store: Store, step: str, key: str) -> Path:
    """The folder of a step, with or without its large files. FileNotFoundError where the store has none of it."""
    if folder := store.find(step, key, bare=True):
        return folder
    raise FileNotFoundError(f"{step}/{key} is not in the store {store.address}")


def manifest(folder: Path) -> dict[str, Any]:
    """What a step's folder tells of itself."""
    return json.loads((folder / MANIFEST).read_text())
