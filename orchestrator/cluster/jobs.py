"""Ray Jobs: a command on a cluster that outlives the connection to it.

    job, found = submit("http://head:8265", "pkt sweep --teacher llama2-70b", name="pkt-sweep")
    status = stream("http://head:8265", job, sys.stdout.write)     # the command's own exit status

A cluster that asks for a token gets the one that Ray itself would read (RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH,
~/.ray/auth_token). Ray's client sends it only where RAY_AUTH_MODE=token is set, too; here it is sent in any case.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import UserError

RETRIES = 6  # after 1, 2, 4, ... seconds: about a minute for a network or a head node to come back
QUIET = 2.0  # seconds without a line of log before the job's status is looked at


def submit(
    address: str, entrypoint: str, *, name: str, folder: Path | None = None, env: dict[str, str] | None = None
) -> tuple[str, bool]:
    """Start the shell command as a job in a copy of `folder`, or find it running; its id, and whether it was found.

    The id is the name, a hash of the command, and a count of its submissions. So a client that was cut off and
    submits the same command again joins the job that is alive; once that has ended, the next count starts a new one.
    Ray refuses an id that it has, which decides between two clients that submit at once. What `folder` holds must be
    told apart by the command, as by names made of hashes. A job asks for no GPU: what needs one gets its own from Ray.
    """
    base = f"{name}-{hashlib.sha256(entrypoint.encode()).hexdigest()[:10]}"
    runtime = {"env_vars": env or {}} | ({"working_dir": str(folder)} if folder else {})
    with _client(address) as client:
        same = [job for job in client.list_jobs() if (job.submission_id or "").rpartition("-")[0] == base]
        if alive := [job.submission_id for job in same if not job.status.is_terminal()]:
            return str(alive[0]), True
        job = f"{base}-{1 + max((int(job.submission_id.rpartition('-')[2]) for job in same), default=0)}"
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=runtime)
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            return job, True
    return job, False


def stream(address: str, job: str, out: Callable[[str], object]) -> int:
    """Hand the log over as it comes, from its start; the command's own exit status once it has ended.

    130 for a job that was stopped, 1 for one that could not start. A broken connection is made again; UserError where
    that fails. The job does not notice either.
    """
    with _client(address, job) as client:
        client.get_job_info(job)
    details = asyncio.run(_follow(client, address, job, out))
    code = details.driver_exit_code
    if code is not None:
        if code == 127:
            out("the cluster's nodes lack this command; install it there, as ray_cluster.yaml does\n")
        return int(code) if code >= 0 else 128 - int(code)
    status = str(details.status.value)
    out(f"job {job}: {status.lower()}" + (f": {details.message}\n" if status == "FAILED" else "\n"))
    return 130 if status == "STOPPED" else 1


def listed(address: str) -> list[dict[str, Any]]:
    """The submitted jobs, the latest first. Their environment is left out: it may hold tokens."""
    with _client(address) as client:
        jobs = [job for job in client.list_jobs() if job.submission_id]
    return [
        {
            "id": job.submission_id,
            "status": job.status.value,
            "exit_code": job.driver_exit_code,
            "started": (job.start_time or 0) / 1000,
            "ended": job.end_time / 1000 if job.end_time else None,
            "command": job.entrypoint,
        }
        for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)
    ]


def log(address: str, job: str) -> str:
    """All that the job has written so far."""
    with _client(address, job) as client:
        return str(client.get_job_logs(job))


def stop(address: str, job: str, patience: float = 30) -> str:
    """End the job and say what became of it: Ray asks its processes, and kills them after three seconds."""
    until = time.monotonic() + patience
    with _client(address, job) as client:
        while True:
            client.stop_job(job)  # once more each time: a job that is only starting does not hear it
            status = client.get_job_status(job)
            if status.is_terminal() or time.monotonic() > until:
                return str(status.value)
            time.sleep(0.5)


async def _follow(client: Any, address: str, job: str, out: Callable[[str], object]) -> Any:
    """The job's details once it has ended and all its log is out."""
    import aiohttp

    seen = failures = 0

    def show(text: str, start: int) -> None:
        """A part of the log from its character `start`; each new connection sends it from 0."""
        nonlocal seen, failures
        if start + len(text) > seen:
            out(text[max(seen - start, 0) :])
            seen, failures = start + len(text), 0

    while True:
        try:
            await _tail(client, job, show)
            details = client.get_job_info(job)
            if details.status.is_terminal():
                show(client.get_job_logs(job), 0)  # what came between the last look at the log and the end
                return details
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            failures += 1
            if failures > RETRIES:
                raise UserError(
                    f"address: the connection to {address} is lost ({type(error).__name__}), the job goes on; come back"
                    f" with `pkt jobs logs {job} --follow --address {address}`"
                ) from error
        await asyncio.sleep(2 ** max(failures - 1, 0))


async def _tail(client: Any, job: str, show: Callable[[str, int], None]) -> None:
    """Show the log until the job has ended. Ray would keep the connection open for seconds after that."""
    lines, start = client.tail_job_logs(job), 0
    coming = asyncio.ensure_future(anext(lines, None))
    try:
        while True:
            if not (await asyncio.wait({coming}, timeout=QUIET))[0]:
                if client.get_job_status(job).is_terminal():
                    return
                continue
            if (text := coming.result()) is None:
                return
            show(text, start)
            start += len(text)
            coming = asyncio.ensure_future(anext(lines, None))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await lines.aclose()


@contextmanager
def _client(address: str, job: str = "") -> Iterator[Any]:
    """Ray's client; what it raises becomes one line, here and in the block."""
    client = _connect(address)
    try:
        yield client
    except RuntimeError as error:
        if "does not exist" in str(error) or "submission type" in str(error):
            known = f"`pkt jobs list --address {address}` shows those there are"
            raise UserError(f"id: {address} has no job {job!r}; {known}") from error
        raise UserError(f"address: {address} can't do that now: {str(error).strip().splitlines()[-1]}") from error
    except OSError as error:
        raise UserError(f"address: the connection to {address} broke ({type(error).__name__}); try again") from error


def _connect(address: str) -> Any:
    try:
        parts = urlsplit(address)
        usual = {"http": 80, "https": 443}[parts.scheme]
        place = (parts.hostname or "", parts.port or usual)
    except (ValueError, KeyError) as error:
        raise UserError(f"address: {address!r} is not of the form http://HOST:8265, a Ray dashboard's") from error
    token, source = _token()
    try:
        socket.create_connection(place, timeout=10).close()  # Ray's client would wait for minutes
    except OSError as error:
        raise UserError(
            f"address: {address} can't be reached ({error.strerror or error}); check host and port, and that the"
            " cluster's dashboard runs (`ray dashboard ray_cluster.yaml` brings it to http://127.0.0.1:8265)"
        ) from error
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # whatever is there, or in RAY_ADDRESS, would win over the argument
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except AuthenticationError as error:
        wrong = f"does not accept the token of {source}" if token else "asks for a token, and there is none"
        raise UserError(
            f"address: {address} {wrong}; set RAY_AUTH_TOKEN, or write the cluster's token to ~/.ray/auth_token"
        ) from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"address: {address} is no Ray dashboard, or too old a one ({type(error).__name__})") from error
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]


def _token() -> tuple[str, str]:
    """The token and where it is from, in the order in which Ray looks; ("", "") for none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip(), str(path)
    except OSError as error:
        if named:
            raise UserError(f"RAY_AUTH_TOKEN_PATH: {named} can't be read ({error.strerror})") from error
    return "", ""
