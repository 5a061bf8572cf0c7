"""The options that verbs share, and how flags, a YAML file and defaults become one sweep.

What is said nearest wins: defaults, then the file, then flags, then --set.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.recipe import Recipe, Run, Sweep
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
    str | None, typer.Option(help="A task's name, or FILE.jsonl of chats; NAME:8 asks with 8 solved examples.")
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
JudgeModel = Annotated[str | None, typer.Option(help="Its name there.")]
RunCode = Annotated[
    bool | None, typer.Option("--run-code", help="Run programs that models wrote, in sandboxes: humaneval and mbpp do.")
]
Template = Annotated[str | None, typer.Option(help="plain, or chat: the model's own chat template.")]
Seeds = Annotated[str | None, typer.Option(help="FILE.jsonl of seed examples, in place of the task's.")]
Arms = Annotated[str | None, typer.Option(help="lora,pissa,transfer,spectrum_control")]
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
STORE = "pkt-store"
WHERE = (
    "store", "tracking", "cpus_per_trial", "gpus_per_trial", "workers_per_trial", "shard_student", "trials_at_once",
    "keep_tuned", "system_metrics", "ranks", "offload", "tokens", "gpu_memory", "force",
)  # fmt: skip
SHORT = {"task": "name", "search": "kind"}  # fields for which a name stands in
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def sweep_of(
    file: Path | None,
    flags: dict[str, Any],
    axes: dict[str, str | list[str] | None],
    sets: list[str],
    begun: Sweep | None = None,
) -> Sweep:
    """The sweep that was asked for; without a file, flags change the one that was `begun`.

    UserError that names the field, the value and the remedy.
    """
    from pydantic import ValidationError

    from orchestrator.recipe import Sweep, one_line
    from orchestrator.sweep.presets import complete

    begun = None if file else begun
    document = _read(file) if file else begun.model_dump(mode="json") if begun else {}
    for path, value in flags.items():
        if value is not None:
            _put(document, path, value)
    for axis, value in axes.items():
        if value is not None:
            document.setdefault("axes", {})[axis] = listed(value) if isinstance(value, str) else value
    for item in sets:
        path, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set: {item!r} has no value; write PATH=VALUE, as in finetune.epochs=1")
        _put(document, path.strip(), _yaml(value, f"--set {path}"))
    try:
        return Sweep.model_validate(document if begun else complete(document))
    except ValidationError as error:
        raise UserError(one_line(error)) from error


def models_and_task(
    teacher: str | None,
    student: str | None,
    task: str | None,
    data: str | None = None,
    template: str | None = None,
    seeds: str | None = None,
    skip_bad: bool | None = None,
    metric: str | None = None,
    run_code: bool | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
) -> dict[str, Any]:
    """The flags that say what a recipe is about, under their fields."""
    return {
        "recipe.teacher": teacher, "recipe.student": student, "recipe.task.name": task, "recipe.task.data": data,
        "recipe.task.template": template, "recipe.measure.seeds": seeds, "recipe.measure.skip_bad_examples": skip_bad,
        "recipe.task.metric": metric, "recipe.task.run_code": run_code,
        "recipe.task.judge": judge, "recipe.task.judge_model": judge_model,
    }  # fmt: skip


def axes_of(
    arms: str | None, rank: str | None, layers: str | None, structure: str | None, modules: list[str] | None
) -> dict[str, Any]:
    """The flags that are a sweep's axes. `0,2,5` is one choice of layers; names are one value each."""
    numbers = layers is not None and layers.replace(",", "").replace(" ", "").isdigit()
    chosen = [layers] if numbers else listed(layers)
    return {"arm": arms, "rank": rank, "layers": chosen, "structure": structure, "modules": modules}


def listed(text: str | None) -> list[Any] | None:
    """Comma-separated values; numbers as numbers, and a list of layer numbers as the one value that it is."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [_yaml(part, text) for part in parts]


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
    from orchestrator.sweep.lengths import lengths_of
    from orchestrator.sweep.plan import forecast, here, refuse_unless_fits, within

    sweep = Sweep(recipe=asked, baseline=asked.arm.kind) if isinstance(asked, Recipe) else asked
    memory = amount(gpu_memory, "gpu-memory") if gpu_memory else None
    hardware = None if force else here(run, memory)
    if hardware is None:
        return run
    lengths = lengths_of(sweep.recipe, fetch=True, seeds_alone="finetune" not in steps)
    told, assumed = forecast(sweep, hardware, lengths), f"{lengths}: {lengths.unknown}" if lengths.unknown else ""
    for step in steps:
        if cost := told.steps.get(step):
            refuse_unless_fits(cost, f"{step} ({told.teacher.name} -> {told.student.name})", assumed)
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


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"file: {file} can't be read ({error.strerror}); give a sweep as YAML") from error
    document = _yaml(text, str(file))
    if not isinstance(document, dict):
        raise UserError(f"file: {file} is no mapping; it needs fields such as recipe, axes, repeats")
    return document


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML ({str(error).splitlines()[0]})") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted field of the sweep, or of its recipe where the sweep has no such field."""
    from orchestrator.recipe import Sweep

    keys = path.split(".")
    if keys[0] not in Sweep.model_fields:
        keys = ["recipe", *keys]
    place = document
    for key in keys[:-1]:
        if isinstance(place.get(key), str) and key in SHORT:
            place[key] = {SHORT[key]: place[key]}
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise UserError(f"--set: {path} is no field; `pkt strategies` lists the fields")
    place[keys[-1]] = value


def tracker_of(store: Store, uri: str | None) -> Tracker:
    """MLflow at the address, or in the store's folder on this machine."""
    from orchestrator.tracking.tracker import MlflowTracker

    here = store.root
    if uri:
        return MlflowTracker(uri, here / "outbox")
    here.mkdir(parents=True, exist_ok=True)
    return MlflowTracker(f"sqlite:///{here / 'mlflow.db'}", here / "outbox", artifacts=here / "mlflow-artifacts")
