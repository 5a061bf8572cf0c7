"""`pkt compose`: what a sweep's adapters score when several of them answer together."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cli import options as o
from cli import saying
from orchestrator.errors import UserError


def compose(
    sweep: o.SweepName = None,
    arms: Annotated[str, typer.Option(help="Two arms of the sweep or more: lora,theseus")] = "",
    by: Annotated[str, typer.Option(help="composite: the mean of their logits; switch: in turns.")] = "composite",
    every: Annotated[int, typer.Option(min=1, help="Tokens of a turn.")] = 1,
    store: o.StoreDir = o.STORE,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Score several arms' adapters of one random seed together, for each seed of a sweep (Multi-LoRA composition)."""
    chosen = list(dict.fromkeys(saying.listed(arms) or []))
    if len(chosen) < 2:
        raise UserError("arms: a composition is of two arms or more; name them: --arms lora,theseus")
    if by not in ("composite", "switch"):
        raise UserError(f"by: {by!r} is neither composite nor switch")
    from cli.screen import Terminal
    from orchestrator.report.record import read_record
    from orchestrator.store import Store

    kept, screen = Store(store), Terminal()
    record = read_record(kept, sweep)
    rows = [_row(record, arm) for arm in chosen]
    with screen.lasting(f"finding the models of {record['name']}"):
        from orchestrator.models.portable import portable
        from orchestrator.pipeline.composing import composed_step
        from orchestrator.prepare.ready import prepare
        from orchestrator.recipe import Recipe
        from orchestrator.run import Run
        from orchestrator.sweep.alone import alone

        if record["sweep"].get("portable"):
            portable()
        recipes = [Recipe.model_validate(row["recipe"]) for row in rows]
        ready = prepare(recipes[0], screen.doing)
    scores: dict[int, Any] = {}
    with kept.in_use():
        for seed in range(min(len(row["trials"]) for row in rows)):
            step = composed_step([one.model_copy(update={"seed": seed}) for one in recipes], ready, by, every)  # type: ignore[arg-type]
            trained = step.inputs["adapter"].inputs.values()
            if all(kept.find(one.name, one.fingerprint) for one in trained):
                scores[seed] = alone(step, kept, Run(store=store), screen)
    if not scores:
        raise UserError(f"arms: no random seed has adapters of {' and '.join(chosen)} in {kept.address}; run the sweep")
    _tell(record, chosen, f"{by} of {' and '.join(chosen)}", scores, kept, as_json)
    return 0


def _row(record: dict[str, Any], arm: str) -> dict[str, Any]:
    """An arm's row of best validation score, or its only one."""
    own = [row for row in record["rows"] if row["label"] == arm and row["adapted"]]
    if not own or arm.startswith("teacher"):
        known = dict.fromkeys(row["label"] for row in record["rows"] if row["adapted"])
        raise UserError(f"arms: {arm!r} has no adapters in {record['name']}; arms: {', '.join(known)}")
    return max(own, key=lambda row: tuple(row["validation"] or ()))


def _tell(
    record: dict[str, Any], arms: list[str], name: str, scores: dict[int, Any], store: Any, as_json: bool
) -> None:
    """Its mean, and its differences from each of the arms by themselves: described, since nobody asked beforehand."""
    import numpy as np

    from orchestrator.report.record import read_scores
    from orchestrator.verdict.estimates import Result, difference, share_interval

    def result(label: str, folders: dict[int, Any]) -> Result:
        found = np.array([read_scores(folder) for folder in folders.values()])
        return Result(label, None, None, None, found, tuple(folders))

    whole = result(name, scores)
    told: list[dict[str, Any]] = []
    for arm in arms:
        row = _row(record, arm)
        own = {seed: store.find("evaluate", key) for seed, key in enumerate(row["trials"])}
        apart = difference(whole, result(arm, {seed: folder for seed, folder in own.items() if folder}))
        if apart:
            told.append({"against": arm, "delta": apart.mean, "ci95": list(apart.limits())})
    mean, low, high = share_interval(whole.scores)
    if as_json:
        answer = {"composition": name, "mean": mean, "ci95": [low, high], "seeds": len(scores), "differences": told}
        typer.echo(json.dumps(answer))
        return
    typer.echo(f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}] on the test split, {len(scores)} random seeds")
    for one in told:
        low, high = one["ci95"]
        typer.echo(f"  against {one['against']} alone: {one['delta']:+.3f} [{low:+.3f}, {high:+.3f}]")
    typer.echo(
        "Described, not claimed: each text goes through the student once for each adapter, and nobody asked before."
    )
