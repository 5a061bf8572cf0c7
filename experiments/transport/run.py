"""Runs the sweeps whose results aren't here yet, one after another, and keeps what each comes to.

    python experiments/transport/run.py transport                          # both stages: some eight hours on two cores
    python experiments/transport/run.py transport --only demo-backwards
    python experiments/transport/run.py --table                            # what is here, as a table

`results/PAIR-TASK.json` has what `pkt compare --json` tells, and of each arm that carries something over how good its
maps are and how much arrives, matrix by matrix, and the scales that validation rows chose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from orchestrator.report.evidence import collect, manifest
from orchestrator.report.record import read_record, results
from orchestrator.store import Store
from orchestrator.verdict.asked import BOUNDS, CONTROLS, NEEDED

HERE = Path(__file__).resolve().parent / "results"
PKT = Path(sys.executable).with_name("pkt")
AGAIN, ASIDES = "-again", ("-starts", "-steady")  # what names of the second stage's sweeps end with, of those aside
ASIDE = 2  # of a sweep that is run when it is named
NOTHING: dict[str, Any] = {"rows": [], "verdict": {"comparisons": []}}  # of a sweep that has not been run
KNOWS = "knows it"  # the answer of a gate
TASKS, WANTED = 3, 2  # of a pair: how many there are, and on how many a way is to be better
PAIRS = ("demo", "known", "wide", "deep")
RIVALS = ("lora", "pissa", "lora_equal", "distil", "distil_tuned")


def main() -> int:
    """Run, or show; the first sweep that fails ends it, and the same command goes on from there."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path, nargs="?", help="what make.py made")
    asked.add_argument("--only", help="PAIR-TASK,... of it")
    asked.add_argument("--table", action="store_true")
    said = asked.parse_args()
    if said.table:
        found = _found()
        for name, told in found.items():
            print(f"\n### {name}\n\n{table(told)}")
        for place, stage in enumerate(("", ", again")):
            some = {name: told for name, told in found.items() if _stage(name)[0] == place}
            tasks = list(dict.fromkeys(name.partition("-")[2] for name in some))
            for these in [*([task] for task in tasks), *([tasks] if len(tasks) > 1 else [])]:
                print(f"\n### {'; '.join(these)}\n\n{overview(some, these)}")
            if some:
                print(f"\n### All{stage}\n\n{summary(some)}")
        return 0
    if said.folder is None:
        asked.error("name the folder that make.py made")
    every = sorted((file.stem for file in said.folder.glob("*-*.yaml")), key=_stage)
    only = said.only.split(",") if said.only else [name for name in every if _stage(name)[0] < ASIDE]
    HERE.mkdir(exist_ok=True)
    for name in only:
        if (HERE / f"{name}.json").is_file() or (not said.only and settled(name, _found())):
            continue
        store, file = said.folder / "store", said.folder / f"{name}.yaml"
        rate = teachers_rate(file, store)
        code = subprocess.run([PKT, "sweep", file, "--set", f"update.lr={rate}", "--store", store, "--yes"]).returncode
        if code > 1 or code < 0:  # 1: it came to its end, and some of its trials failed
            return code
        told = kept(Store(store), f"transport-{name}", store)
        (HERE / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0


def _stage(name: str) -> tuple[int, str]:
    return 1 if name.endswith(AGAIN) else ASIDE if name.endswith(ASIDES) else 0, name


def _found() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(HERE.glob("*.json"))}


def settled(name: str, found: dict[str, dict[str, Any]]) -> bool:
    """Whether no way can win as many of a pair's tasks as are wanted any more: in the second stage the rest is spared.

    `found` is what sweeps came to, by their names.
    """
    if not name.endswith(AGAIN):
        return False
    pair = name.partition("-")[0]
    done = [told for other, told in found.items() if other.startswith(f"{pair}-") and other.endswith(AGAIN)]
    most = max(sum(_better(told, way, control) for told in done) for way, control in NEEDED.items())
    return most + TASKS - len(done) < WANTED


def teachers_rate(file: Path, store: Path) -> float:
    """Of the sweep's learning rates the one at which the teacher is best on validation rows: no arm is looked at."""
    asked = yaml.safe_load(file.read_text())
    name = f"{asked['name']}-teacher"
    small = asked | {
        "name": name, "axes": {"arm": ["lora"]}, "repeats": 2, "tuned_teacher": True, "gate": None, "search": "grid",
        "tuning_seeds": 1,
    }  # fmt: skip
    own = file.with_name(f"{name}.yml")
    own.write_text(yaml.safe_dump(small, sort_keys=False))
    subprocess.run([PKT, "sweep", own, "--store", store, "--yes"], check=True)
    (row,) = (row for row in _compared(name, store)["rows"] if row["arm"] == "teacher_tuned")
    return float(row["lr"])


def _compared(name: str, store: Path) -> dict[str, Any]:
    told = subprocess.run([PKT, "compare", name, "--json", "--store", store], stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, Any] = json.loads(told)
    return found


def kept(store: Store, name: str, where: Path) -> dict[str, Any]:
    """What a finished sweep tells, with its maps."""
    told = _compared(name, where)
    record = read_record(store, name)
    found = results(record, store)
    told["maps"] = {
        one.arm: {
            figure: {role: _rounded(cells[:, at]) for at, role in enumerate(one.roles)}
            for figure, cells in one.figures.items()
        }
        for one in collect(record, found, store).arrivals
    }
    told["scales"] = scales(record, store)
    return told


def scales(record: dict[str, Any], store: Store) -> dict[str, list[float]]:
    """Of each arm that injects something, the scales at which its trials are given it."""
    chosen: dict[str, list[float]] = defaultdict(list)
    for row in record["rows"]:
        for key in row["trials"]:
            lineage = _lineage(store, "evaluate", key)
            trained = _lineage(store, "finetune", lineage.get("adapter"))
            scaled = store.find("scale", trained["carried"]) if "carried" in trained else None
            if scaled:
                chosen[row["label"]].append(manifest(scaled)["facts"]["scale"])
    return dict(chosen)


def _lineage(store: Store, step: str, key: str | None) -> dict[str, str]:
    folder = store.find(step, key) if key else None
    return manifest(folder)["lineage"]["inputs"] if folder else {}


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]


def table(told: dict[str, Any]) -> str:
    """A line a way: its score before any step and after, and how much better it is than what it is held against."""
    rows = {row["arm"]: row for row in told["rows"]}
    found = {(one["arm"], one["against"]): one for one in told["verdict"]["comparisons"]}
    others = [arm for arm in rows if arm not in {*NEEDED, *CONTROLS, *BOUNDS} or arm == "teacher_tuned"]
    lines = [
        ", ".join(f"{arm} {rows[arm]['mean']:.2f}" for arm in others) + ".\n",
        "| way | before | after | minus lora | minus pissa | its control | minus it | better than |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, control in sorted(NEEDED.items(), key=lambda pair: -rows[pair[0]]["mean"] if pair[0] in rows else 0):
        if way not in rows:
            continue
        cells = [
            way, _score(rows[way].get("before")), _score(rows[way]["mean"]),
            *(_difference(found.get((way, rival))) for rival in ("lora", "pissa")),
            _score(rows.get(control, {}).get("mean")), _difference(found.get((way, control))),
            ", ".join(_beaten(told, way)) or "-",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def overview(found: dict[str, dict[str, Any]], tasks: list[str]) -> str:
    """A line an arm, a column a pair, and for each task a score, in parentheses its own control's; what it is claimed
    to be better than (l: lora, p: pissa, c: its control).

    At the end the seconds before its training, and of it, on the first pair and task.
    """
    pairs = [pair for pair in PAIRS if any(f"{pair}-{task}" in found for task in tasks)]
    sweeps = [[found.get(f"{pair}-{task}", NOTHING) for task in tasks] for pair in pairs]
    there = {row["arm"] for of_pair in sweeps for told in of_pair for row in told["rows"]}
    lines = [f"| arm | {' | '.join(pairs)} | s |", f"|---|{'---|' * len(pairs)}---|"]
    for arm in ("teacher_tuned", *RIVALS, *NEEDED):
        if arm in there:
            cells = ["; ".join(_cell(told, arm) for told in of_pair) for of_pair in sweeps]
            lines.append(f"| `{arm}` | {' | '.join(cells)} | {_seconds(sweeps[0][0], arm)} |")
    return "\n".join(lines)


def _seconds(told: dict[str, Any], arm: str) -> str:
    rows = [row for row in told["rows"] if row["arm"] == arm]
    return f"{rows[0]['seconds_before']:.0f} + {rows[0]['seconds']:.0f}" if rows else "-"


def _cell(told: dict[str, Any], arm: str) -> str:
    means = {row["arm"]: row["mean"] for row in told["rows"]}
    if arm not in means:
        return "-"
    control = NEEDED.get(arm, "")
    beats = _beaten(told, arm)
    marks = "".join(mark for mark, rival in (("l", "lora"), ("p", "pissa"), ("c", control)) if rival in beats)
    own = f" ({means[control]:.2f})" if control in means else ""
    return f"{means[arm]:.2f}{own} {marks}".strip()


def summary(found: dict[str, dict[str, Any]]) -> str:
    """A line a way: on how many of a pair's tasks it is better than plain LoRA, PiSSA and its own control at once.

    Of those tasks at which the teacher passes the gate. In parentheses: on how many of those that were won its mean is
    also above that of every other random map of the sweep.
    """
    pairs = list(dict.fromkeys(name.partition("-")[0] for name in found))
    asked = {one["arm"] for told in found.values() for one in told["verdict"]["comparisons"]}
    lines = [f"| way | {' | '.join(pairs)} |", f"|---|{'---|' * len(pairs)}"]
    for way, control in NEEDED.items():
        if way not in asked:
            continue
        cells = []
        for pair in pairs:
            of_pair = [
                told for name, told in found.items() if name.startswith(f"{pair}-") and told["gate"]["answer"] == KNOWS
            ]
            won = [told for told in of_pair if _better(told, way, control)]
            cells.append(f"{len(won)} of {len(of_pair)} ({sum(_above_all_maps(told, way) for told in won)})")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _better(told: dict[str, Any], way: str, control: str) -> bool:
    return {*_beaten(told, way)} >= {"lora", "pissa", control}


def _beaten(told: dict[str, Any], arm: str) -> list[str]:
    """What an arm is claimed to be better than."""
    compared = told["verdict"]["comparisons"]
    return [one["against"] for one in compared if (one["arm"], one["outcome"]) == (arm, "better")]


def _above_all_maps(told: dict[str, Any], way: str) -> bool:
    means = {row["arm"]: row["mean"] for row in told["rows"]}
    return all(means[way] > mean for arm, mean in means.items() if arm.endswith("_random_map"))


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _difference(one: dict[str, Any] | None) -> str:
    return f"{one['delta']:+.2f} [{one['ci95'][0]:+.2f}, {one['ci95'][1]:+.2f}]" if one else "-"


if __name__ == "__main__":
    sys.exit(main())
