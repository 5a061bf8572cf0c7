"""`pkt tasks`: what a teacher and a student can be asked."""

from __future__ import annotations

import json

import typer

from cli import options as o


def tasks(as_json: o.Json = False) -> int:
    """List the tasks: metric, what the loss covers, where the rows come from."""
    from orchestrator.tasks import TASKS

    rows = {
        name: {
            "about": task.about,
            "metric": task.metric.name,
            "loss_covers": task.loss_covers,
            "source": task.source,
        }
        for name, task in TASKS.items()
    }
    if as_json:
        typer.echo(json.dumps(rows))
        return 0
    for name, row in rows.items():
        typer.echo(f"{name}: {row['about']}")
        typer.echo(f"    metric {row['metric']}; loss covers {row['loss_covers']}; rows from {row['source']}")
    typer.echo(
        'FILE.jsonl: any chats, one {"messages": [...]} a line; --metric exact_match (of the whole answer, by default),'
    )
    typer.echo(
        "    contains, regex:PATTERN, rouge_l, multiple_choice (rows have `choices`), win_rate (--judge-model) or loss"
    )
    typer.echo("Any task of lm-eval by its name: arc_easy, hellaswag, winogrande, ...")
    typer.echo(
        'FILE.json: edits in KnowEdit\'s form, {"prompt": ..., "target_new": ...} each, or one a line; by success, and'
    )
    typer.echo("    beside it portability, locality and fluency")
    typer.echo("NAME:8 shows 8 solved examples before each question that is scored; mbpp and humaneval need --run-code")
    return 0
