"""The options that verbs share, and what they are checked by."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.recipe import Recipe, Sweep
    from orchestrator.run import Run
    from orchestrator.store import Store
    from orchestrator.tracking.tracker import Tracker

File = Annotated[
    Path | None, typer.Argument(help="A sweep as YAML; flags say it differently or say more.", metavar="[FILE.yaml]")
]
Teacher = Annotated[str | None, typer.Option(help="Alias, local folder or hub id.")]
Student = Annotated[
    str | None, typer.Option(help="Alias, local folder or hub id; by default the teacher's natural student.")
]
Task = Annotated[
    str | None, typer.Option(help="A task's name, or a file of chats or edits; NAME:8 asks with 8 solved examples.")
]
Data = Annotated[
    str | None, typer.Option(help="A folder with the task's train.jsonl and test.jsonl, in place of the hub.")
]
Tasks = Annotated[str | None, typer.Option(help="Scored beside the one that is trained: gsm8k:8,mmlu,corpus.txt")]
Metric = Annotated[
    str | None,
    typer.Option(
        help="Of a FILE.jsonl: exact_match, contains, regex:PATTERN, rouge_l, multiple_choice, win_rate or loss."
    ),
]
Judge = Annotated[str | None, typer.Option(help="http://HOST/v1 of a model that judges win rates.")]
JudgeModel = Annotated[
    str | None, typer.Option(help="Its name there; without --judge an alias, local folder or hub id that judges here.")
]
RunCode = Annotated[
    bool | None, typer.Option("--run-code", help="Run programs that models wrote, in sandboxes: humaneval and mbpp do.")
]
Template = Annotated[str | None, typer.Option(help="plain, or chat: the model's own chat template.")]
Seeds = Annotated[str | None, typer.Option(help="FILE.jsonl of seed examples, in place of the task's.")]
SeedTasks = Annotated[
    str | None, typer.Option(help="Tasks by whose seed examples the teacher is measured, each: gsm8k,mmlu")
]
Arms = Annotated[
    str | None, typer.Option(help="lora,pissa,transfer,spectrum_control,ridge ..., or all: see `pkt strategies`")
]
TeacherAdapter = Annotated[
    str | None, typer.Option(help="A LoRA of the teacher, for arms that carry its update over: a folder or hub id.")
]
TeacherBase = Annotated[
    str | None, typer.Option(help="What the teacher was trained from: the difference is the update.")
]
Rank = Annotated[str | None, typer.Option(help="LoRA ranks: 8,16")]
Layers = Annotated[str | None, typer.Option(help="sensitivity,random,first,last,uniform, or teacher layers: 0,2,5")]
Structure = Annotated[str | None, typer.Option(help="window,head_aligned,consistent ...: see `pkt strategies`")]
Modules = Annotated[
    list[str] | None, typer.Option(help="attention,ffn,embedding or all; give it again for another value.")
]
Lr = Annotated[
    str | None, typer.Option(help="Learning rates to choose from, per row, on the validation split: 1e-4,3e-4")
]
Ranks = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that share the teacher; by default one a GPU, and one without GPUs."),
]
Offload = Annotated[
    str | None,
    typer.Option(help="Where a rank's parameters wait: cpu, or a folder on a local disk. Slower, on fewer GPUs."),
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens-at-once", min=1, help="That a rank takes through the teacher; fewer need less memory."),
]
SkipBad = Annotated[
    bool | None, typer.Option("--skip-bad-examples", help="Leave out seed examples whose loss is not finite.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any other field: finetune.epochs=1", metavar="PATH=VALUE")
]
SweepName = Annotated[str | None, typer.Argument(help="A sweep's name; by default the latest.")]
StoreDir = Annotated[
    str,
    typer.Option(
        "--store",
        help="A folder, or s3://BUCKET/NAME: where results are kept.",
        envvar="PKT_STORE",
        metavar="DIR",
        callback=lambda text: text if "://" in text else str(Path(text).expanduser()),
    ),
]
Tracking = Annotated[
    str | None,
    typer.Option(help="MLflow address; by default a sqlite file in the store.", envvar="MLFLOW_TRACKING_URI"),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="http://HOST:8265 of a Ray cluster: run there, as a job. Files named here are sent; --store,"
        " --out and model folders are paths there."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
GpuMemory = Annotated[
    str | None,
    typer.Option(help="Of each GPU, in place of what the smallest tells: 80GB. Checked against the plan."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Go on where the plan says that memory won't do, or the teacher misses its gate."),
]
WorkersPerTrial = Annotated[
    int | None, typer.Option(min=1, help="Processes that share a training; by default one a GPU.")
]
ShardStudent = Annotated[
    bool,
    typer.Option(
        "--shard-student", help="Each of these holds a part of the model that is trained: slower, less memory."
    ),
]
STORE = "pkt-store"
WHERE = (
    "store", "tracking", "cpus_per_trial", "gpus_per_trial", "workers_per_trial", "shard_student", "trials_at_once",
    "keep_tuned", "system_metrics", "ranks", "offload", "tokens", "gpu_memory", "force",
)  # fmt: skip
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def finding(recipe: Recipe) -> str:
    """What comes before any work, for people."""
    return f"finding {recipe.teacher} and {recipe.student} ..."


def check_memory(
    asked: Sweep | Recipe,
    steps: Sequence[str],
    run: Run,
    say: Callable[[str], None],
    *,
    gpu_memory: str | None,
    force: bool,
) -> Run:
    """The run, with no more at once than there is memory for; before a model is fetched.

    UserError where the plan says that one of `steps` can't fit.
    """
    from orchestrator.recipe import Recipe, Sweep
    from orchestrator.sweep.hardware import refuse_unless_fits
    from orchestrator.sweep.lengths import lengths_for
    from orchestrator.sweep.plan import forecast
    from orchestrator.sweep.room import here, within

    sweep = Sweep(recipe=asked, baseline=asked.arm.kind) if isinstance(asked, Recipe) else asked
    memory = amount(gpu_memory, "gpu-memory") if gpu_memory else None
    hardware = None if force else here(run, memory)
    if hardware is None:
        return run
    lengths = lengths_for(sweep, fetch=True, seeds_alone="finetune" not in steps)
    told, assumed = forecast(sweep, hardware, lengths), f"{lengths}: {lengths.unknown}" if lengths.unknown else ""
    for step in steps:
        if cost := told.steps.get(step):
            remedy = "pkt sweep --workers-per-trial N --shard-student gives each GPU a part" if step == "tune" else ""
            refuse_unless_fits(cost, f"{step} ({told.teacher.name} -> {told.student.name})", assumed, remedy)
    found = within(run, told, hardware)
    for field in ("tokens_at_once", *(["trials_at_once"] if isinstance(asked, Sweep) else [])):
        if (value := getattr(found, field)) != getattr(run, field):
            say(f"{field.replace('_', ' ')}: {value}, as many as there is memory for by `pkt plan`")
    return found


def where_of(context: typer.Context) -> str:
    """The options that say where and how, and not what, as they were given: whoever goes on needs them again."""
    from orchestrator.tracking.run_record import masked

    words = []
    for parameter in context.command.params:
        if (name := str(parameter.name)) in WHERE and "COMMANDLINE" in str(context.get_parameter_source(name)):
            value = context.params[name]
            words += [parameter.opts[0], *([] if value is True else [shlex.quote(masked(value))])]
    return " ".join(words)


def amount(written: str, option: str) -> float:
    """80GB, 400T or 1e9 as a number. UserError for anything else."""
    found = re.fullmatch(r"([0-9.eE+]+) *([kMGT]?)(?:B|FLOPS|FLOP/s)?", written.strip())
    try:
        number = float(found[1]) * UNITS[found[2]] if found else 0.0
    except ValueError:
        number = 0.0
    if number < 1e6:  # a unit was forgotten
        raise UserError(f"--{option}: {written!r} is no amount; write it as 80GB or 400T")
    return number


def tracker_of(store: Store, uri: str | None) -> Tracker:
    """MLflow at the address, or in the store's folder on this machine."""
    from orchestrator.tracking.tracker import MlflowTracker

    here = store.root
    if uri:
        return MlflowTracker(uri, here / "outbox")
    here.mkdir(parents=True, exist_ok=True)
    return MlflowTracker(f"sqlite:///{here / 'mlflow.db'}", here / "outbox", artifacts=here / "mlflow-artifacts")
