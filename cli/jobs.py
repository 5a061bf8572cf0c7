"""`pkt jobs`, and `--address` of other verbs: the same command, on a remote cluster, as a Ray Job.

The job's log is stdout and stderr in one stream, on stdout here. Its exit status is the command's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options as o
from orchestrator.errors import UserError

app = typer.Typer(help="List, read and stop jobs on a Ray cluster.", no_args_is_help=True)
Address = Annotated[
    str, typer.Option(help="http://HOST:8265 of the cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS")
]
Id = Annotated[str, typer.Argument(help="As `pkt jobs list` shows it.", metavar="ID")]
MODELS = (  # as options and as fields
    "teacher", "student", "judge-model", "judge_model", "teacher-adapter", "teacher-base", "adapter", "base",
)  # fmt: skip
LIMIT = 99 * 2**20  # a Ray dashboard takes 100 MiB, the archive's own bytes among them
# A job's folder goes with the job. Where the cluster doesn't say (ray_cluster.yaml does), results stay at home.
STORE = 'PKT_STORE="${PKT_STORE:-$HOME/pkt-store}"'


@app.command("list")
def list_(address: Address, as_json: o.Json = False, debug: o.Debug = False) -> int:
    """List the cluster's jobs, the latest first."""
    from orchestrator.cluster import jobs

    rows = jobs.listed(address)
    for row in rows:
        row["command"] = row["command"].removeprefix(STORE).strip()
    if as_json:
        typer.echo(json.dumps(rows))
        return 0
    for row in rows:
        began = datetime.fromtimestamp(row["started"]).strftime("%Y-%m-%d %H:%M")
        typer.echo(f"{row['id']:<30} {row['status']:<10} {began}  {row['command']}")
    return 0


@app.command()
def logs(
    job: Id,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends; then exit with its status.")] = False,
    debug: o.Debug = False,
) -> int:
    """Show what a job has written."""
    from orchestrator.cluster import jobs

    if follow:
        return watch(address, job)
    typer.echo(jobs.log(address, job), nl=False)
    return 0


@app.command()
def stop(job: Id, address: Address, debug: o.Debug = False) -> int:
    """End a job. What it has finished is in the store; the same command goes on from there."""
    from orchestrator.cluster import jobs

    status = jobs.stop(address, job)
    typer.echo(f"{job}: {status.lower()}")
    return 1 if status in ("PENDING", "RUNNING") else 0


def forward(address: str) -> int:
    """Run this process's own command line on the cluster, show its log, and return its exit status.

    Files that it names and that are here go with it. Models don't: a folder of --teacher, --student or --judge-model,
    like --store and --out, is a path on the cluster's shared file system. Secrets go as its environment, in no other
    way.
    """
    from orchestrator.cluster import jobs

    env = environment()
    refuse_passwords([*sys.argv[1:], env.get("MLFLOW_TRACKING_URI", "")])
    with tempfile.TemporaryDirectory(prefix="pkt-job-") as place:
        words = pack(without_address(sys.argv[1:]), Path(place))
        job, found = jobs.submit(
            address,
            f"{STORE} {shlex.join(['pkt', *words])}",
            name=f"pkt-{words[0]}",
            folder=Path(place) if os.listdir(place) else None,
            env=env,
        )
    typer.echo(f"pkt: job {job} on {address}{' runs already; here is its log' if found else ''}", err=True)
    return watch(address, job)


def environment() -> dict[str, str]:
    """What the job needs of this user's environment: MLflow's address and account, and the hub's token."""
    from huggingface_hub import get_token

    account = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    here = os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("sqlite", "file", "/", "."))
    names = account if here else ("MLFLOW_TRACKING_URI", *account)
    found = {"HF_TOKEN": get_token() or "", **{name: os.environ.get(name, "") for name in names}}
    return {name: value for name, value in found.items() if value}


def refuse_passwords(words: list[str]) -> None:
    """UserError for an address that holds one: the cluster shows a job's command line to all who may look."""
    if found := next(filter(None, (re.search(r"(\w+://)([^/\s:@]*):[^/\s]+@([^/\s]*)", word) for word in words)), None):
        scheme, user, host = found.groups()
        raise UserError(
            f"tracking: {scheme}{user}:***@{host} holds a password, which a job's command line would show; write"
            f" {scheme}{host} and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which go with the job"
        )


def watch(address: str, job: str) -> int:
    """Show the log until the job ends. Ctrl-C leaves it running: the job is not this process's child."""
    from orchestrator.cluster import jobs

    def out(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        return jobs.stream(address, job, out)
    except KeyboardInterrupt:
        same = f"{job} --address {address}"
        line = f"\npkt: the job goes on; to look: pkt jobs logs {same} --follow; to end it: pkt jobs stop {same}"
        typer.echo(line, err=True)
        return 130


def without_address(argv: list[str]) -> list[str]:
    """The command line as the cluster is to see it."""
    pairs = zip(["", *argv], argv, strict=False)
    return [word for before, word in pairs if "--address" not in (before, word) and not word.startswith("--address=")]


def pack(argv: list[str], folder: Path) -> list[str]:
    """Copy the local files that a command names into `folder`, and name them by their place there.

    A copy lies in a folder named by its hash, so that the command differs where its files do. What isn't here is left
    as it is: a path on the cluster. UserError for what would be lost or missing there.
    """
    words, option = [], ""
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            words.append(f"{name}={_packed(value, name, folder)}")
        else:
            words.append(word if word.startswith("--") else _packed(word, option, folder))
        option = word if word.startswith("--") else ""
    return words


def _packed(word: str, option: str, folder: Path) -> str:
    """One argument, or one text in a sweep's YAML, whose key is its option."""
    path, field = Path(word).expanduser(), option.removeprefix("--")
    if field == "set":
        name, equals, value = word.partition("=")
        return f"{name}{equals}{_packed(value, name.rpartition('.')[2], folder)}"
    if field in ("store", "out") and not word.startswith(("/", "~")) and not (field == "store" and "://" in word):
        raise UserError(f"{field}: {word} would go with the job's folder; give an absolute path on the cluster")
    if field in MODELS and path.is_dir() and not path.is_absolute():
        raise UserError(f"{field}: {word} is a folder here, and models aren't sent; give its absolute path there")
    if field in ("store", "out", *MODELS):
        return word
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _yaml(path, folder)
    if path.is_file() and (path.suffix == ".jsonl" or field in ("seeds", "task", "texts")):
        return _place([path], "", folder)
    if field == "data" and (rows := sorted(path.glob("*.jsonl"))):
        return _place(rows, path.resolve().name, folder)
    return word


def _yaml(path: Path, folder: Path) -> str:
    """A sweep's YAML with the files that it names; one that isn't YAML goes as it is, for the job to say so."""
    import yaml

    def moved(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: moved(part, str(name).rpartition(".")[2]) for name, part in value.items()}
        if isinstance(value, list):
            return [moved(part, key) for part in value]
        return _packed(value, key, folder) if isinstance(value, str) else value

    try:
        document = yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError):
        document = None
    if (there := moved(document, "")) == document:
        return _place([path], "", folder)
    with tempfile.TemporaryDirectory() as aside:
        rewritten = Path(aside) / path.name
        rewritten.write_text(yaml.safe_dump(there, sort_keys=False))
        return _place([rewritten], "", folder)


def _place(files: list[Path], within: str, folder: Path) -> str:
    """Copy the files side by side; the name of the only one, or of the folder `within` that holds them."""
    size = sum(path.stat().st_size for path in [*files, *folder.rglob("*")] if path.is_file())
    if size > LIMIT:
        raise UserError(
            f"{files[0]}: the files to send come to {size / 2**20:.0f} MiB, a Ray job takes 100; put them on the"
            " cluster's shared file system and give their path there"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    place = folder / digest.hexdigest()[:10] / within
    place.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, place / file.name)
    return str((place if within else place / files[0].name).relative_to(folder))
