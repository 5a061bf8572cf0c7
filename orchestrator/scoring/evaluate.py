"""Scores, example by example: what every comparison is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.cluster.ranks import HERE, Placement
from orchestrator.errors import UserError
from orchestrator.models.loading import load_tokenizer
from orchestrator.scoring import edits
from orchestrator.scoring.asking import Asked, asked
from orchestrator.scoring.by_vllm import Writer
from orchestrator.scoring.engine import Engine, loaded
from orchestrator.scoring.judge import NOT_ASKED, Item, Said, Scored
from orchestrator.scoring.judge import judge as by_lm_eval
from orchestrator.scoring.local_judge import Local
from orchestrator.scoring.preference import Endpoint, Judge, Pair, Preferences, as_alpaca_eval, length_controlled
from orchestrator.step import Track, silent
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import Encoded, TemplateName, stops

OPEN = ("also", "category", "likeliest")  # of a score, what most have none of
SAID = "said.jsonl"  # what a model said so far: the costly part, which the next try finds again


def evaluate(
    folder: Path,
    *,
    rows: Path,
    model: str,
    template: TemplateName,
    metric: dict[str, Any],
    choices: list[str],
    dtype: str,
    partial: Path,
    adapter: Path | None = None,
    untouched: Path | None = None,
    judge: dict[str, str] | None = None,
    judge_at: str = "",
    engine: str = "transformers",
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write examples.jsonl (id, prompt, output, answer, gold, score, cut, loss) and metrics.json.

    An adapter is loaded from its folder onto the stock model, so that what is scored is what leaves the product.
    `untouched`: the evaluation of that model as it is, where a figure asks what has changed.
    UserError where a loss is not finite.
    """
    tokenizer, asks = load_tokenizer(model), asked(rows, template, model, metric, choices)
    writer = Writer(model, adapter, dtype) if engine == "vllm" else None
    with loaded(model, adapter, dtype=dtype, writer=writer) as loads:
        told, losses = put(loads, asks, stops(template, tokenizer), partial / SAID, track)
    del loads  # whose room a judge may need
    prefer = preferences(judge, judge_at, partial)
    before = edits.untouched_in(untouched) if untouched else None
    scored = judged(asks.items, told, losses, asks.metric, prefer, before)
    more = outputs(folder, asks, scored, prefer)
    return write(folder, scored, losses, metric, trained=adapter is not None, told=more)


def preferences(
    judge: dict[str, str] | None, at: str, partial: Path, placement: Placement = HERE
) -> Preferences | None:
    """Whoever judges win rates, with what was judged before; nobody, where no answers are preferred.

    A judge that is computed here has a number type, and is `at` a folder; another at an endpoint's address.
    """
    if not judge:
        return None
    own = "dtype" in judge
    asks: Judge = Local(at, judge["dtype"], partial, placement) if own else Endpoint(at, judge["model"])
    return Preferences(asks, partial / "judged.jsonl")


def outputs(folder: Path, asks: Asked, scored: Sequence[Scored], prefer: Preferences | None) -> dict[str, Any]:
    """Write what was said for other judges, as AlpacaEval reads it; with the figures of one that was there."""
    if not asks.metric.keeps:
        return {}
    pairs = _pairs(asks.items, [one.output for one in scored])
    (folder / "outputs.json").write_text(json.dumps(as_alpaca_eval(pairs), ensure_ascii=False, indent=1) + "\n")
    if prefer is None:
        return {}
    even = length_controlled([one.score for one in scored], pairs)
    return {"length_controlled": even, "unclear": prefer.unclear(pairs)}


def put(
    engine: Engine,
    asks: Asked,
    ends: Sequence[int],
    kept: Path,
    track: Track[Any] = silent,
) -> tuple[list[Said], list[float | None]]:
    """A task's questions put to a model that is loaded: what it says to each, and the gold answers' losses.

    Each batch of answers is kept on disk before the next is asked for. One engine takes any number of tasks.
    """
    items, metric, encoded = asks
    golds, told = {row.id: row for row in encoded}, dict[int, Said]()
    if metric.writes or metric.chooses:
        told = dict(track(_asking(engine, asks, golds, ends, kept), "asking", len(items)))
    by_id = {items[place].id: one.loss for place, one in told.items() if one.loss is not None}
    rest = [row for row in encoded if row.id not in by_id]
    if rest:
        by_id |= dict(zip((row.id for row in rest), engine.losses(rest, track=track), strict=True))
    return [told.get(place, Said()) for place in range(len(items))], [by_id.get(item.id) for item in items]


def judged(
    items: Sequence[Item],
    told: Sequence[Said],
    losses: Sequence[float | None],
    metric: Metric,
    prefer: Preferences | None = None,
    untouched: Mapping[str, edits.Likeliest] | None = None,
) -> list[Scored]:
    """What was said as scores: by lm-eval, by another model's preference, or by how likely the gold answers are; of
    edits, by which tokens are the likeliest."""
    if metric.kind == "edit_success":
        return edits.scored(items, told, untouched)
    if metric.kind == "loss":
        return [_likely(*one) for one in zip(items, told, losses, strict=True)]
    if metric.kind != "win_rate":
        return by_lm_eval(items, told, metric)
    assert prefer is not None
    found = prefer.scores(_pairs(items, [one.text for one in told]))
    return [
        Scored(
            item.id,
            item.prompt,
            one.text,
            one.text.strip() if one.asked else NOT_ASKED,
            item.gold,
            score,
            one.cut,
            category=item.category,
        )
        for item, one, score in zip(items, told, found, strict=True)
    ]


def _pairs(items: Sequence[Item], texts: Sequence[str]) -> list[Pair]:
    return [Pair(one.id, one.instruction, text.strip(), one.gold) for one, text in zip(items, texts, strict=True)]


def _likely(item: Item, said: Said, loss: float | None) -> Scored:
    """Scored by how likely the gold answer is: more is better, as with every score."""
    if loss is None:
        raise UserError(f"data: the model's context has no room for the answer of {item.id!r}; leave such rows out")
    return Scored(item.id, item.prompt, said.text, "", item.gold, -loss, said.cut, category=item.category)


def _asking(
    engine: Engine, asks: Asked, golds: dict[str, Encoded], ends: Sequence[int], kept: Path
) -> Iterator[tuple[int, Said]]:
    """Each item's place and what was said, of a batch once it is on disk."""
    known, items = read_said(kept), asks.items
    for some in engine.said(items, asks.metric, stops=ends, known=known, golds=golds):
        new = [(items[place].id, one) for place, one in some if items[place].id not in known]
        with kept.open("a", encoding="utf-8") as file:
            file.write("".join(f"\n{json.dumps({'id': id, **asdict(one)})}" for id, one in new) + "\n")
        yield from some


def read_said(path: Path) -> dict[str, Said]:
    """What was said before, by the items' ids; half a line is what a killed process left, and is none."""
    found: dict[str, Said] = {}
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        id = fields.pop("id")
        found[id] = said_of(fields)
    return found


def said_of(fields: dict[str, Any]) -> Said:
    """An answer, from the fields that were kept of it."""
    likeliest = tuple(map(tuple, fields.get("likeliest", ())))
    return Said(**fields | {"logs": tuple(fields["logs"]), "likeliest": likeliest, "ids": tuple(fields.get("ids", ()))})


def write(
    folder: Path,
    scored: Sequence[Scored],
    losses: Sequence[float | None],
    metric: dict[str, Any],
    *,
    trained: bool,
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an evaluation's files, with what else is `told` among the figures.

    UserError where a loss is not finite: training broke the model, or it was broken.
    """
    for row, loss in zip(scored, losses, strict=True):
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"lr: after training the loss on example {row.id!r} is {loss}; take a smaller one" if trained else
                f"dtype: untrained, the model's loss on example {row.id!r} is {loss}; take a wider one"
            )  # fmt: skip
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as file:
        for row, loss in zip(scored, losses, strict=True):
            fields = {name: value for name, value in asdict(row).items() if value or name not in OPEN}
            file.write(json.dumps({**fields, "loss": loss}, ensure_ascii=False) + "\n")
    known = [loss for loss in losses if loss is not None]
    result = {
        "score": sum(row.score for row in scored) / len(scored),
        "loss": sum(known) / len(known),
        "examples": len(scored),
        "cut": sum(row.cut for row in scored),
        "not_asked": sum(row.answer == NOT_ASKED for row in scored),
        "metric": f"{metric['kind']},{metric['filter_name']}",
    }
    if names := dict.fromkeys(name for row in scored for name in row.also):
        result["also"] = {name: _mean(row.also[name] for row in scored if name in row.also) for name in names}
    if len(categories := sorted({row.category for row in scored})) > 1:
        result["by_category"] = {
            name: _mean(row.score for row in scored if row.category == name) for name in categories
        }
    result |= told or {}
    (folder / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The figures of a finished evaluation."""
    return json.loads((folder / "metrics.json").read_text())
