"""Which adapter is meant: the best of a sweep, or the one in a folder, and what is known of it.

    find_adapter(None, store)                       # the latest sweep's row of best validation score, random seed 0
    find_adapter("my-sweep", store, arm="transfer", seed=3)
    find_adapter("some/folder", store)              # any LoRA that PEFT wrote

A folder that a sweep or `pkt run` left lies in a store, beside the evaluation that scored it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import UserError
from orchestrator.report.record import read_record, read_scores
from orchestrator.scoring.evaluate import read_metrics
from orchestrator.store import MANIFEST, Store
from orchestrator.verdict.asked import BOUNDS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Source:
    """An adapter, the student that it is for, and where it comes from."""

    folder: Path
    student: str  # as the sweep or the adapter calls it
    about: str
    facts: dict[str, Any]  # for its card
    identity: str | None = None  # the student's, where the training noted it
    evaluation: Path | None = None

    @property
    def rank(self) -> int:
        """Of the file, which is twice the trained one where the arm starts away from zero."""
        return int(self.config["r"])

    @property
    def config(self) -> dict[str, Any]:
        """As PEFT wrote it."""
        return json.loads((self.folder / CONFIG).read_text())


def find_adapter(
    source: str | None, store: Store, *, arm: str | None = None, seed: int | None = None, student: str | None = None
) -> Source:
    """UserError that names what there is, for a sweep, an arm or a seed that isn't there."""
    folder = Path(source).expanduser() if source else None
    if folder is None or not (folder.is_dir() or "/" in str(source)):
        return _of_sweep(read_record(store, source), store, arm, seed or 0, student)
    for name, value in (("arm", arm), ("seed", seed)):
        if value is not None:
            raise UserError(f"{name}: {value!r} chooses from a sweep, and {source} is a folder; leave it out")
    if missing := next((name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()), None):
        raise UserError(f"source: {source} has no {missing}; give a folder with a LoRA adapter, or a sweep's name")
    try:
        json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise UserError(f"source: {folder / CONFIG} is not JSON ({error}); copy it again") from error
    return _of_folder(folder, student)


def _of_sweep(record: dict[str, Any], store: Store, arm: str | None, seed: int, student: str | None) -> Source:
    """The trial of this seed in the row of best validation score: as for the verdict, the test split never chooses.

    Where a row has none, since there was nothing to choose for it, the highest mean is taken, and that is said.
    """
    name = record["name"]
    rows = [row for row in record["rows"] if row["label"] not in BOUNDS]
    arms = list(dict.fromkeys(row["label"] for row in rows))
    if arm is not None and arm not in arms:
        raise UserError(f"arm: {arm!r} has no row in {name}; rows: {', '.join(arms)}")
    scored = []
    for row in rows:
        found = {at: folder for at, key in enumerate(row["trials"]) if (folder := store.find("evaluate", key))}
        if found and arm in (None, row["label"]):
            scored.append((float(np.array([read_scores(folder) for folder in found.values()]).mean()), row, found))
    if not scored:
        raise UserError(
            f"sweep: {name} has no finished trial to export; the same `pkt sweep` again runs what is missing"
        )
    validated = all(row["validation"] for _, row, _ in scored)
    mean, row, found = max(scored, key=lambda one: one[1]["validation"] if validated else [one[0]])
    if seed not in found:
        there = ", ".join(map(str, found))
        raise UserError(f"seed: {seed} has no finished trial in {name}'s best row of {row['label']}; there: {there}")
    trained = store.find("finetune", _lineage(found[seed])["inputs"]["adapter"])
    store.find("data", _lineage(found[seed])["inputs"]["rows"])  # is on this machine from now on
    if trained is None:
        raise UserError(f"store: {store.address} lacks the adapter of {name}; the same `pkt sweep` again makes it")
    recipe = row["recipe"]
    facts = {"student": student or recipe["student"], "task": record["task"], **_trained(trained)}
    if recipe["layers"]:
        facts["teacher"] = recipe["teacher"]
    facts |= {"sweep": name, "score": _told(found[seed], "test"), "mean over seeds": f"{mean:.3f} ({len(found)})"}
    best = f"validation score, {row['validation'][0]:.3f}" if validated else "mean on the test split"
    only = "the only row" if len(scored) == 1 else f"the best {best}"
    about = f"{row['label']}, rank {recipe['rank']}, lr {recipe['lr']:g}, seed {seed} of sweep {name}: {only}"
    about += f"{f' of {arm}' if arm else ''} (test mean {mean:.3f} over {len(found)} seeds)"
    if (stored := json.loads((trained / CONFIG).read_text())["r"]) != recipe["rank"]:
        about += f"; its file has rank {stored}: what was trained, and what takes the start away"
    identity = _lineage(trained)["identity"]["student"]
    return Source(trained, facts["student"], about, facts, identity, found[seed])


def _of_folder(folder: Path, student: str | None) -> Source:
    name = student or json.loads((folder / CONFIG).read_text()).get("base_model_name_or_path")
    if not name:
        raise UserError(f"student: {folder} doesn't say which model it is for; name it with --student")
    facts: dict[str, Any] = {"student": name}
    if not (folder / MANIFEST).is_file() or _lineage(folder)["step"] != "finetune":
        return Source(folder, name, str(folder), facts)
    facts |= _trained(folder)
    scored = max(_evaluations(folder.absolute()), key=lambda path: path.stat().st_mtime, default=None)
    if scored:
        facts["score"] = _told(scored, None)
    return Source(folder, name, str(folder), facts, _lineage(folder)["identity"]["student"], scored)


def _evaluations(adapter: Path) -> Iterator[Path]:
    """What scored this adapter in its own store."""
    for manifest in (adapter.parents[1] / "evaluate").glob(f"*/{MANIFEST}"):
        if _lineage(manifest.parent)["inputs"].get("adapter") == adapter.name:
            yield manifest.parent


def _lineage(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())["lineage"]


def protocol_of(evaluation: Path) -> tuple[dict[str, Any], Path | None]:
    """How an evaluation asked, and the folder of the rows that it asked, None where the store lacks them."""
    lineage = _lineage(evaluation)
    return lineage["config"], Store(evaluation.parents[1]).find("data", lineage["inputs"]["rows"])


def _trained(folder: Path) -> dict[str, Any]:
    config = _lineage(folder)["config"]
    return {"arm": config["arm"]["kind"]} | {key: config[key] for key in ("rank", "alpha", "lr", "seed")}


def _told(evaluation: Path, split: str | None) -> str:
    """The trial's own score, for its card."""
    found = read_metrics(evaluation)
    on = f"{found['examples']} {split} examples" if split else f"{found['examples']} examples"
    return f"{found['score']:.4g} {found['metric']} on {on}"
