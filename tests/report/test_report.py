"""The report of a real small sweep, against `compare`, the steps' own files and arithmetic by hand."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import Page
from safetensors.torch import load_file
from test_bad_input import Call, pkt  # noqa: F401  (a fixture)

from orchestrator.recipe import Sweep
from orchestrator.report.drawn import write_pictures
from orchestrator.report.evidence import Evidence, collect
from orchestrator.report.maps import CELLS
from orchestrator.report.record import read_record, results, write_record
from orchestrator.report.report import page
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete
from orchestrator.sweep.search import Choice, Setting
from orchestrator.sweep.sweep import Plan, _row
from orchestrator.verdict.estimates import leaderboard
from orchestrator.verdict.verdict import verdict_of

SWEEP = {
    "name": "small",
    "recipe": {"finetune": {"examples": 32, "batch_size": 16, "epochs": 1}, "evaluate": {"examples": 10}},
    "axes": {
        "arm": ["lora", "transfer"],
        "rank": [2, 4],
        "layers": ["sensitivity"],
        "structure": ["window", "row_column"],
    },
    "lr": [0.02],
    "repeats": 2,
    "tuned_teacher": False,
}
OWN = {
    "ridge": "_random_map",
    "theseus": "_random_map",
    "cross_lora": "_random_map",
    "laten": "_random",
    "sta": "_random",
}
PICTURES = ["leaderboard", "rank-by-strategy", "curves", "layers", "windows-1", "windows-2", "cost"]


@pytest.fixture(scope="module")
def swept(demo_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sweep leaves, made by its own steps one after another; one row's trials were never run."""
    root = tmp_path_factory.mktemp("swept")
    plan, store = Plan.of(Sweep.model_validate(complete(SWEEP))), Store(root)
    rows, draw = [], random.Random(0)
    for cell in (*plan.references, *plan.cells):
        setting, edge = Setting(cell, 0.02), cell.label == "lora"
        choice = Choice(setting, (0.0, 0.0), at_edge=edge, tried=1) if cell.adapted else None
        seeds = range(2 if cell.adapted else 1)
        trials = [cell.trial(plan.ready, "test", lr=0.02, seed=seed, stage="trial") for seed in seeds]
        recipe = cell.recipe
        if not (cell.adapted and recipe.rank == 4 and recipe.structure and recipe.structure.kind == "row_column"):
            for trial in trials:
                _score(materialise(trial.step, store), draw)
        rows.append(_row(cell, choice, trials))
    record = {
        "name": "small", "key": plan.key, "task": "demo", "metric": "exact_match,whole-answer", "baseline": "lora",
        "tried": dict.fromkeys((cell.label for cell in plan.cells), 1),
        "gate": {"set": True, "least": 0.8, "score": 0.0, "passed": False}, "sweep": plan.sweep.model_dump(mode="json"),
        "rows": rows, "failed": {"t": {"label": "transfer r4 & more", "reason": "<script>alert(1)</script>"}},
    }  # fmt: skip
    write_pictures(store, record, write_record(store, record))
    return root


def _score(folder: Path, draw: random.Random) -> None:
    """Scores that differ from trial to trial: so short a training leaves them all at nothing."""
    rows = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    rows = [{**row, "score": float(draw.random() < 0.4)} for row in rows]
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["score"] = sum(row["score"] for row in rows) / len(rows)
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def store(swept: Path, tmp_path: Path) -> Store:
    """One to take pieces away from."""
    shutil.copytree(swept, tmp_path / "store")
    return Store(tmp_path / "store")


def told(store: Store, **changes: Any) -> tuple[str, Page]:
    record = {**read_record(store, "small"), **changes}
    text = page(record, results(record, store), store)
    parsed = Page()
    parsed.feed(text)
    return text, parsed


def evidence_of(store: Store) -> Evidence:
    record = read_record(store, "small")
    return collect(record, results(record, store), store)


def test_its_numbers_are_those_of_compare(store: Store) -> None:
    _, parsed = told(store)
    record = read_record(store, "small")
    rows = leaderboard(results(record, store), "lora")
    head, *shown = parsed.tables["rows"]
    assert len(shown) == len(rows) == 7
    assert any(row["delta"] for row in rows)
    for row, cells in zip(rows, shown, strict=True):
        by_name = dict(zip(head, cells, strict=True))  # of two columns called "95 %" the last stays
        assert [by_name["arm"], by_name["structure"]] == [row["arm"], row["structure"] or "-"]
        assert by_name["mean"] == f"{row['mean']:.3f}"
        assert cells[head.index("95 %")] == "[{:.3f}, {:.3f}]".format(*row["ci95"])
        assert by_name["vs lora"] == ("-" if row["delta"] is None else f"{row['delta']:+.3f}")
        assert by_name["95 %"] == ("-" if row["delta"] is None else "[{:+.3f}, {:+.3f}]".format(*row["delta_ci95"]))
        assert by_name["seeds"] == str(row["seeds"])
        assert by_name["clipped"] == ("-" if row["clipped"] is None else f"{row['clipped']:.0%}")
    asked = dict(parsed.tables["asked"])
    assert asked["test examples"] == "10"
    assert "torch 2." in asked["versions"]
    assert asked["teacher"].startswith("demo-teacher (weights ")


def test_it_has_every_picture_the_verdict_first_and_fetches_nothing(store: Store) -> None:
    text, parsed = told(store)
    assert parsed.figures == PICTURES
    assert text.count("<svg") == len(PICTURES)
    assert parsed.text.index("No verdict: the teacher scores 0.00") < parsed.text.index("What was asked")
    assert not parsed.tags & {"script", "link", "iframe", "object", "embed"}
    assert all(one.startswith(("#", "data:image/png;base64,")) for one in parsed.fetched)
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(re.findall(r'\bid="', text)) == len(set(re.findall(r'\bid="([^"]*)', text)))
    assert len(text) < 3e6
    for warning in (
        "Failed: transfer r4",
        "edge of its grid",
        "below the gate of 0.8",
        "row_column, rank 4: no trial left",
    ):
        assert warning in parsed.text


@pytest.mark.parametrize(
    "gate", [{"set": True, "least": 0.8, "score": None}, {"set": False, "least": 0.0, "score": 0.0}]
)
def test_one_seed_and_a_teacher_that_was_not_scored_are_no_obstacle(store: Store, gate: dict[str, Any]) -> None:
    """Where nothing tells how far a difference reaches; and a gate that nobody set isn't called one."""
    record = read_record(store, "small")
    rows = [row | {"trials": row["trials"][:1]} for row in record["rows"]]
    _, parsed = told(store, rows=rows, gate=gate | {"of": "teacher", "passed": False})
    assert {line[6] for line in parsed.tables["rests"][1:]} == {"not even the largest true difference"}
    assert ("below the gate" in parsed.text, "is needed for a claim: not passed" in parsed.text) == (False, True)


def test_pictures_follow_the_page_s_theme(store: Store) -> None:
    """Whatever is ink, grid or paper in a picture is the style sheet's to say, and has its light colour nowhere."""
    text, _ = told(store)
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert all("var(--ink)" in one for one in drawings)
    assert not any(colour in one for one in drawings for colour in ("#1b1d21", "#5c6068", "#dcdee3", "#fefefd"))


def test_names_are_escaped(store: Store) -> None:
    text, parsed = told(store, task='<b>&"task"', metric="a<i>b")
    assert "<script>" not in text
    assert "<script>alert(1)</script>" in parsed.text
    assert '<b>&"task"' in parsed.text
    assert "b" not in parsed.tags
    record = read_record(store, "small")
    record["rows"][2]["label"] = "<em>arm</em> & more"
    _, parsed = told(store, rows=record["rows"])
    assert "em" not in parsed.tags
    assert any("<em>arm</em> & more" in row[0] for row in parsed.tables["rows"])


def test_a_window_is_where_transfer_json_says(store: Store) -> None:
    cut = next(one for one in evidence_of(store).extractions if "window" in one.name)
    key = next(
        path for path in (store.root / "extract").iterdir() if '"window"' in (path / "manifest.json").read_text()
    )
    transfer = json.loads((key / "transfer.json").read_text())
    assert [one.role for one in cut.maps] == ["q", "k", "v", "o", "gate", "up", "down"] * 2
    assert {(one.student, one.layer) for one in cut.maps} == {(0, transfer["layers"][0]), (3, transfer["layers"][3])}
    scores = load_file(next((store.root / "measure").iterdir()) / "sensitivities.safetensors")
    sizes = {"q": (64, 64), "k": (32, 64), "up": (192, 64), "down": (64, 192)}
    for one in cut.maps:
        part = "self_attn" if one.role in "qkvo" else "mlp"
        name = "model.layers.{}." + f"{part}.{one.role}_proj.weight"
        assert one.window and one.window[:2] == tuple(transfer["windows"][name.format(one.student)])
        assert one.window[2:] == sizes.get(one.role, one.window[2:])
        own = scores[name.format(one.layer)].double()
        assert one.shape == tuple(own.shape)
        down, along = one.step
        assert one.cells.sum() == pytest.approx(float(own.sum()))
        assert one.cells[1, 2] == pytest.approx(float(own[down : 2 * down, 2 * along : 3 * along].sum()))
        assert max(one.cells.shape) <= CELLS


def test_rows_and_columns_are_those_of_transfer_json(store: Store) -> None:
    cut = next(one for one in evidence_of(store).extractions if "row_column" in one.name)
    key = next(
        path for path in (store.root / "extract").iterdir() if "row_column" in (path / "manifest.json").read_text()
    )
    places = json.loads((key / "transfer.json").read_text())["indices"]["model.layers.3.mlp.down_proj.weight"]
    assert (cut.maps[-1].rows, cut.maps[-1].columns) == (places["rows"], places["columns"])
    assert cut.maps[-1].window is None


def test_a_cell_of_the_heat_map_is_the_mean_of_its_scores(store: Store) -> None:
    lora, transfer = evidence_of(store).heats
    assert (lora.arm, lora.columns, lora.strategies) == ("lora", ["rank 2", "rank 4"], ["-"])
    assert (transfer.columns, transfer.strategies) == (
        ["rank 2", "rank 4"],
        ["sensitivity, window", "sensitivity, row_column"],
    )
    assert np.isnan(transfer.cells[1, 1])  # never run
    assert len({*transfer.cells.ravel()[:3], *lora.cells.ravel()}) > 2
    for row in read_record(store, "small")["rows"]:
        folders = [store.root / "evaluate" / key for key in row["trials"]]
        if row["label"] != "transfer" or not folders[0].exists():
            continue
        scores = [json.loads((folder / "metrics.json").read_text())["score"] for folder in folders]
        way = f"sensitivity, {row['recipe']['structure']['kind']}"
        cell = transfer.cells[transfer.strategies.index(way), transfer.columns.index(f"rank {row['recipe']['rank']}")]
        assert cell == pytest.approx(np.mean(scores))


def test_curves_costs_and_layers_are_those_of_the_steps(store: Store) -> None:
    found = evidence_of(store)
    row = next(row for row in read_record(store, "small")["rows"] if row["label"] == "transfer")
    losses, seconds, before = [], [], []

    def manifest(step: str, key: str) -> Any:
        return json.loads((store.root / step / key / "manifest.json").read_text())

    for key in row["trials"]:
        adapter = manifest("evaluate", key)["lineage"]["inputs"]["adapter"]
        told = manifest("finetune", adapter)
        history = json.loads((store.root / "finetune" / adapter / "history.json").read_text())
        losses.append([point["loss"] for point in history])
        seconds.append(told["facts"]["training_seconds"])
        cut = manifest("extract", told["lineage"]["inputs"]["factors"])
        measured = manifest("measure", cut["lineage"]["inputs"]["measured"])
        rows = [manifest("data", one["lineage"]["inputs"][name]) for one, name in ((told, "rows"), (measured, "seeds"))]
        before.append(sum(one["seconds"] for one in (cut, measured, *rows)))
    curve = next(one for one in found.curves if one.arm == "transfer")
    assert curve.mean == pytest.approx(np.mean(losses, 0))
    assert curve.low == pytest.approx(np.min(losses, 0))
    assert curve.high == pytest.approx(np.max(losses, 0))
    cost = next(one for one in found.costs if one.arm == "transfer")
    assert cost.seconds == pytest.approx(np.mean(seconds) + np.mean(before))
    told = [(one["seconds"], one["seconds_before"]) for one in found.rows if one["arm"] == "transfer"]
    assert any(one == pytest.approx((np.mean(seconds), np.mean(before))) and one[1] > 0 for one in told)
    (one,) = found.passes
    assert one.scores == json.loads(next((store.root / "measure").glob("*/layers.json")).read_text())
    assert one.chosen == {"sensitivity": sorted(sorted(range(6), key=lambda layer: -one.scores[layer])[:4])}
    assert not any(found.missing[key] for key in ("curves", "layers", "windows"))


@pytest.mark.parametrize(
    ("gone", "sentence", "left"),
    [
        ("measure", "The teacher's sensitivities for transfer are no longer in the store", {"layers", "windows"}),
        ("extract", "An extraction of transfer is no longer in the store", {"layers", "windows"}),
        ("finetune", "the training of 2 trials is no longer in the store", {"curves", "layers", "windows", "cost"}),
        ("evaluate", "No row has scores", {"leaderboard", "rank", "curves", "layers", "windows", "cost"}),
        ("finetune/*/history.json", "the training of 2 trials is no longer in the store", {"curves"}),
        ("measure/*/sensitivities.safetensors", "sensitivities or factors are no longer in the store", {"windows"}),
    ],
)
def test_what_is_gone_is_told_in_its_place(gone: str, sentence: str, left: set[str], store: Store) -> None:
    for path in store.root.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, parsed = told(store)
    assert sentence in parsed.text
    assert [one for one in PICTURES if one.split("-")[0] not in left] == parsed.figures


def test_a_sweep_of_one_rank_and_strategy_has_no_heat_map(store: Store) -> None:
    rows = read_record(store, "small")["rows"]
    few = [row for row in rows if row["recipe"]["rank"] == 2 and (row["recipe"]["structure"] or {"kind": "window"})]
    few = [row for row in few if (row["recipe"]["structure"] or {"kind": "window"})["kind"] == "window"]
    _, parsed = told(store, rows=few)
    assert "rank-by-strategy" not in parsed.figures
    assert "no arm was run at more than one rank or by more than one strategy" in parsed.text


def test_differences_of_many_ways_are_a_table_under_the_headline(store: Store) -> None:
    (row, *_) = (one for one in read_record(store, "small")["rows"] if one["label"] == "transfer")
    arms = ["lora", "pissa", *OWN, *(way + own for way, own in OWN.items())]
    rows = [{**row, "label": arm} for arm in arms]
    gate = {"set": True, "least": 0.8, "score": 0.9, "passed": True}
    _, parsed = told(store, rows=rows, tried=dict.fromkeys(arms, 1), gate=gate, failed={})
    record = {**read_record(store, "small"), "rows": rows, "tried": dict.fromkeys(arms, 1), "gate": gate, "failed": {}}
    about, head, shown, reasons = verdict_of(record, results(record, store)).grid() or ("", [], [], [])
    assert parsed.tables["grid"] == [head, *shown] and len(shown) == 5
    assert parsed.text.index(about) < parsed.text.index(reasons[0]) < parsed.text.index("What was asked")
    assert "ridge against lora" not in parsed.text.split("What was asked")[0]


def test_the_pictures_lie_beside_the_record(swept: Path) -> None:
    assert sorted(path.stem for path in (swept / "sweeps" / "small").glob("*.png")) == sorted(PICTURES)


def test_the_verb_writes_it_and_says_where(store: Store, pkt: Call, tmp_path: Path) -> None:  # noqa: F811
    code, out, err = pkt("report", "--store", str(store.root))
    default = store.root / "sweeps" / "small" / "report.html"
    assert (code, out, err) == (0, f"{default}\n", "")
    code, out, _ = pkt("report", "small", "--store", str(store.root), "--out", "deep/mine.html", "--json")
    assert (code, json.loads(out)) == (0, {"report": "deep/mine.html"})
    assert (tmp_path / "deep/mine.html").read_text() == default.read_text() == told(store)[0]
    code, _, err = pkt("report", "smal", "--store", str(store.root))
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = pkt("report", "--store", str(store.root), "--out", str(store.root))
    assert (code, "name another file with --out" in err) == (2, True)
