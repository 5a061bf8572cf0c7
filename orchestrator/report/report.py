"""A sweep as one page that can be mailed, printed and kept: what was asked, what came out, and what that rests on.

    path.write_text(page(record, found, store))     # `found` are the record's results

It needs no network, no script and no font, since a page is read where the store is not. The verdict comes first, in
words; pictures follow, each with how to read it; whatever the store no longer has is told in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from orchestrator.report import style
from orchestrator.report.cross import Crossed
from orchestrator.report.drawn import LEFT_OUT, READ, SECTIONS, drawn
from orchestrator.report.evidence import Evidence, collect
from orchestrator.store import Store
from orchestrator.tasks import TASKS
from orchestrator.transfer.arms import ARMS
from orchestrator.verdict.estimates import Result, told_apart_by
from orchestrator.verdict.gate import answer_of
from orchestrator.verdict.verdict import Verdict, verdict_of
from orchestrator.verdict.words import about_rows, also_line, clipped_line, gate_line, how_chosen, reach, room_lines

SECONDS = (
    "seconds: of one training; before them: of all that it was made from (the teacher's passes and training, maps,"
    " scales), as if no other trial shared it."
)


def page(record: dict[str, Any], found: Sequence[Result], store: Store) -> str:
    """The whole report as HTML."""
    evidence, told = collect(record, found, store), verdict_of(record, found)
    title = f"{record['name']}: {record['task']}, {record['metric']}"
    pictures = drawn(evidence)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(told.headline)}</p>',
        _compared(told),
        "<p>One task and one pair of models: no evidence for others.</p>",
        _warnings(record, evidence),
        "<h2>What was asked</h2>",
        _table(None, asked(record, evidence), "asked"),
        *(_section(key, pictures, evidence) for key in SECTIONS if evidence.cross or key != "cross"),
        "<h2>All rows</h2>",
        _rows(evidence, record["baseline"]),
        "<h2>What the verdict rests on</h2>",
        _rests(told),
        _paid(told),
        _crossed(evidence.cross),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_css()}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def asked(record: dict[str, Any], evidence: Evidence) -> list[list[str]]:
    """Field and value of everything that says what this sweep was."""
    sweep, recipe = record["sweep"], record["sweep"]["recipe"]
    task, part = recipe["task"], recipe["finetune"]
    seeds = recipe["measure"]["seeds"] or f"{recipe['measure']['examples']} of the task's"
    models = {
        who: f"{recipe[who]} (weights {evidence.models[who][:12]})" if who in evidence.models else recipe[who]
        for who in ("teacher", "student")
    }
    rates, search = ", ".join(f"{rate:g}" for rate in sweep["lr"]), sweep["search"]["kind"]
    fields = {
        "teacher": models["teacher"],
        "student": models["student"],
        "task": " ".join(filter(None, [task["name"], task["data"] and f"from {task['data']}"]))
        + f", {task['template']} prompts"
        + (f": {TASKS[record['task']].about}" if record["task"] in TASKS else ""),
        "metric": record["metric"],
        "test examples": evidence.examples,
        "random seeds": f"{sweep['repeats']} a row",
        "axes": "; ".join(f"{axis}: {', '.join(map(_written, values))}" for axis, values in sweep["axes"].items()),
        "learning rates": f"{rates}; {search} search on the validation split, seeds a setting: {sweep['tuning_seeds']}",
        "baseline": record["baseline"],
        "seed examples": seeds,
        "metric of sensitivity": _written(recipe["measure"]["metric"]),
        "fine-tuning": f"{part['examples']} examples, {part['epochs']:g} epochs, batches of {part['batch_size']},"
        f" warm-up {part['warmup']:g}, dropout {part['dropout']:g},"
        f" gradients clipped at norm {part.get('max_grad_norm', 1.0):g}",  # before it was a field it was Trainer's own
        **_carried(record["rows"], recipe),
        "computed in": _written(record.get("computed_in", "not recorded")),
        "rows without room": " ".join(room_lines(record)) or "none",
        "gate": gate_line(record["gate"]),
        "versions": ", ".join(f"{name} {number}" for name, number in evidence.versions.items()) or "not known",
        "commit": record.get("commit") or "not recorded",
        "sweep": f"{record['name']}, key {record['key']}",
    }
    return [[name, str(value)] for name, value in fields.items()]


def _carried(rows: Sequence[dict[str, Any]], recipe: dict[str, Any]) -> dict[str, str]:
    """Where the teacher's update came from, and of what maps were made, where some arm took one."""
    arms = [ARMS[row["recipe"]["arm"]["kind"]] for row in rows]
    found, update, carry = {}, recipe.get("update", {}), recipe.get("carry", {})
    if any(arm.takes_update for arm in arms):
        length = f" for {update['epochs']:g} epochs" if update.get("epochs") else ""
        own = f"plain LoRA of rank {update['rank']} at {update['lr']:g}, trained here{length}"
        given = update["adapter"] or (update["base"] and f"{update['base']}, rank {update['rank']}")
        found["the teacher's update"] = str(given or own)
    if any("carried" in arm.needs for arm in arms):
        texts = carry.get("texts") or "training rows"
        found["texts for maps"] = f"{carry['examples']} of {texts}, {carry['tokens']} tokens"
    return found


def _written(value: Any) -> str:
    if isinstance(value, dict):
        more = ", ".join(f"{key} {_written(one)}" for key, one in value.items() if key != "kind" and one)
        return f"{value['kind']} ({more})" if more else str(value.get("kind"))
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _warnings(record: dict[str, Any], evidence: Evidence) -> str:
    """What to know before believing a figure."""
    lines = [f"Failed: {one['label']}: {one['reason']}" for one in record["failed"].values()]
    lines += evidence.missing.get("rows", [])
    if edge := [name for name, row in zip(evidence.names, evidence.rows, strict=True) if row["lr_at_edge"]]:
        lines.append(
            f"The best learning rate lies on the edge of its grid, so that a wider --lr might change the order:"
            f" {'; '.join(edge)}."
        )
    if answer_of(record["gate"]) != "knows it":
        lines.append(f"The gate: {gate_line(record['gate'])}.")
    return f"<section class=warnings><h2>Warnings</h2>{_list(lines)}</section>" if lines else ""


def _compared(told: Verdict) -> str:
    """The differences that the headline rests on; all that belongs to them is at the page's end (`_rests`)."""
    if (found := told.grid()) is None:
        return _list(line.strip() for line in told.lines()[1:])
    about, head, rows, reasons = found
    notes = [*reasons, *(line.strip() for line in told.cost_lines())]
    return f"{_list(told.warnings)}<p>{about}</p>{_table(head, rows, 'grid')}{_list(notes)}"


def _section(key: str, pictures: Sequence[Any], evidence: Evidence) -> str:
    """One kind of picture, with how to read it and what is missing of it."""
    own = [picture for picture in pictures if picture.section == key]
    gone = evidence.missing.get(key, [])
    drawings = "".join(
        f'<figure id="{one.name}">'
        + (f"<figcaption>{escape(one.read)}</figcaption>" if one.read != READ[key] else "")
        + f"{style.svg(one.figure, one.name, escape(SECTIONS[key]))}</figure>\n"
        for one in own
    )
    read = READ[key] if own else "" if gone else LEFT_OUT[key]
    return f"<section><h2>{SECTIONS[key]}</h2><p>{escape(read)}</p>{_list(gone)}{drawings}</section>"


def _crossed(cells: Sequence[Crossed]) -> str:
    if not cells:
        return ""
    rows = [[one.arm, one.seeds, one.task, f"{one.delta:+.3f}", _span(one.ci95, "+")] for one in cells]
    head = ["arm", "seeds of", "scored on", "difference from the baseline", "95 %, by itself"]
    about = "A picture, not claims: where no seeds matter, one interval in twenty leaves zero out all the same."
    return f"<h2>Seeds of one task, scores on another</h2><p>{about}</p>{_table(head, rows, 'cross')}"


MOST_NAMED = 12  # examples that went wrong


def _paid(told: Verdict) -> str:
    """What the chosen rows' trainings cost on tasks that were not trained on."""
    if not told.costs:
        return ""
    beyond = f"p beyond {told.costs[0].margin:g}"
    head = ["arm", "task", "untouched", "difference", "95 %", "p", beyond, "", "lost", "won"]
    rows = [
        [
            one.arm, one.task, f"{one.before:.3f}", f"{one.delta:+.3f}", _span(one.ci95, "+"), f"{one.p:.3f}",
            f"{one.p_beyond:.3f}", one.outcome,
            *((f"{one.flips.lost:.1%}", f"{one.flips.won:.1%}") if one.flips else ("-", "-")),
        ]
        for one in told.costs
    ]  # fmt: skip
    wrong = [
        f"{one.arm} on {one.task}, right before and wrong after: "
        + ", ".join(f"{name} ({count} of {one.seeds})" for name, count in list(one.flips.wrong.items())[:MOST_NAMED])
        for one in told.costs
        if one.flips and one.flips.wrong
    ]
    about = (
        "Against the untouched student, over seeds and examples; both p-values are Holm's. “Forgot nothing” is claimed"
        " where the difference is significantly within the margin both ways."
    )
    return f"<h2>What it cost elsewhere</h2><p>{about}</p>{_table(head, rows, 'cost')}{_list(wrong)}"


def _rows(evidence: Evidence, baseline: str) -> str:
    modules, further = told_apart_by(evidence.rows)
    before = ["before"] if any("before" in row for row in evidence.rows) else []
    head = ["arm", "layers", "structure", *modules, "rank", "lr", *further, *before, "mean", "95 %"]
    head += [f"vs {baseline}", "95 %", "seeds", "clipped", "seconds", "before them"]
    rows = [
        [
            row["arm"],
            *(row[key] or "-" for key in ("layers", "structure", *modules, "rank")),
            "-" if row["lr"] is None else f"{row['lr']:g}" + ("*" if row["lr_at_edge"] else ""),
            *(row.get("other", {}).get(key, "-") for key in further),
            *("-" if row[key] is None else f"{row[key]:.3f}" for key in before),
            f"{row['mean']:.3f}",
            _span(row["ci95"]),
            "-" if row["delta"] is None else f"{row['delta']:+.3f}",
            _span(row["delta_ci95"], "+"),
            row["seeds"],
            "-" if row["clipped"] is None else f"{row['clipped']:.0%}",
            *("-" if row[key] is None else f"{row[key]:.0f}" for key in ("seconds", "seconds_before")),
        ]
        for row in evidence.rows
    ]
    edge = ["* on the edge of its grid."] if any(row["lr_at_edge"] for row in evidence.rows) else []
    about = [*about_rows(evidence.rows, baseline), SECONDS]
    return _table(head, rows, "rows") + _list([*about, *also_line(evidence.rows), *clipped_line(evidence.rows), *edge])


def _rests(told: Verdict) -> str:
    """Each comparison with its two sides, its figures and how they were corrected."""
    if not told.comparisons:
        return "<p>No comparison could be made.</p>"
    head = ["compared", "difference", "95 %, by itself", "p", "p, Holm", "seeds", "found 4 times of 5", "outcome"]
    rows = [
        [
            f"{one.arm} ({told.chosen[one.arm]}) against {one.against} ({told.chosen[one.against]})",
            f"{one.delta:+.3f}",
            _span(list(one.ci95), "+"),
            f"{one.p:.3g}",
            f"{one.p_holm:.3g}",
            one.seeds,
            reach(one.smallest),
            one.outcome,
        ]
        for one in told.comparisons
    ]
    how = (
        f"Each arm stands at its {how_chosen(told.twins)}; differences are paired by random seed and example,"
        " their intervals are over both, each by itself, and p-values are corrected for all comparisons by"
        " Holm's method: the outcome goes by the corrected one."
    )
    return f"<p>{how}</p>" + _table(head, rows, "rests")


def _span(limits: Sequence[float] | None, sign: str = "") -> str:
    return "-" if limits is None else f"[{limits[0]:{sign}.3f}, {limits[1]:{sign}.3f}]"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _table(head: Sequence[str] | None, rows: Iterable[Sequence[Any]], name: str) -> str:
    """Cells are escaped here, so that no name of an arm or of a model is ever read as HTML."""
    top = "<thead><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table id="{name}">{top}<tbody>{body}</tbody></table></div>'


def _css() -> str:
    light = ";".join(f"--{name}:{colour}" for name, colour in style.THEME.items())
    dark = "--ink:#e8e9ec;--muted:#a2a6ae;--grid:#34383f;--paper:#16181c"
    return (
        f":root{{{light};color-scheme:light dark}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{CSS}"
    )


CSS = """
body{max-width:1080px;margin:0 auto;padding:24px 32px 64px;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:26px;line-height:1.25;margin:8px 0 16px;overflow-wrap:anywhere} h2{font-size:19px;margin:36px 0 8px}
p,li{max-width:50em} ul{padding-left:1.3em} li{overflow-wrap:anywhere}
.verdict{font-size:20px;line-height:1.4;font-weight:600;border-left:5px solid #0072b2;padding:4px 0 4px 16px}
.warnings{border:2px solid #d55e00;border-radius:6px;padding:4px 20px;margin:24px 0} .warnings h2{margin:10px 0 0}
.wide{overflow-x:auto} table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:4px 12px 4px 0;border-bottom:1px solid var(--grid);vertical-align:top}
th{border-bottom:2px solid var(--muted)} #asked td:first-child{color:var(--muted);white-space:nowrap;padding-right:24px}
#rows td,#grid td,#rests td+td{white-space:nowrap} figure{margin:12px 0 28px} figcaption{font-size:15px;font-weight:600}
svg{width:100%;height:auto;display:block}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
svg image{image-rendering:pixelated}
@media print{@page{margin:14mm} body{max-width:none;padding:0;font-size:10.5pt}
 figure,tr,.warnings{break-inside:avoid} h2,h2+p{break-after:avoid} .wide{overflow:visible} table{font-size:8.5pt}
 .verdict{font-size:13pt}}
"""
