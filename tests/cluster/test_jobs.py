"""Jobs on a real head node with token authentication; what a command carries, without one."""

import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from cli import jobs as verbs
from orchestrator.cluster import jobs
from orchestrator.errors import UserError

TOKEN = secrets.token_hex(32)
BIN = Path(sys.executable).parent
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PKT_", "MLFLOW_", "HF_TOKEN"))}
ENV |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def free_ports():
    """Below Ray's own ranges and the kernel's ephemeral one, so that nothing takes them in between."""
    for port in range(8300 + os.getpid() % 1000, 9990):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                yield port


@pytest.fixture(scope="module")
def head():
    """The address of a head node; its processes, and no other Ray's, end with the module."""
    place = tempfile.mkdtemp(prefix="pj", dir="/tmp")  # Ray's sockets need a short path
    port, other = itertools.islice(free_ports(), 2)
    command = f"start --head --block --num-cpus=2 --disable-usage-stats --temp-dir={place} --port=0"
    command += f" --dashboard-host=127.0.0.1 --dashboard-port={port} --dashboard-agent-listen-port=0"
    command += f" --ray-client-server-port={other} --min-worker-port=0 --max-worker-port=0"
    with open(f"{place}/head.log", "w") as log:
        node = subprocess.Popen(
            [BIN / "ray", *command.split()], stdout=log, stderr=log, env=ENV, cwd=place, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_TOKEN", TOKEN)
            until = time.monotonic() + 60
            while True:
                try:
                    jobs.listed(address)
                    break
                except UserError:
                    assert node.poll() is None, Path(f"{place}/head.log").read_text()
                    assert time.monotonic() < until, Path(f"{place}/head.log").read_text()
                    time.sleep(0.3)
        yield address
    finally:
        mine = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        node.terminate()
        for process in psutil.wait_procs(mine, timeout=15)[1]:
            process.kill()
        node.wait()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # Ray's own client would then send no token


def pkt(*words, **env):
    return subprocess.run([BIN / "pkt", *words], env=ENV | env, capture_output=True, text=True, timeout=60)


@pytest.mark.cluster
def test_a_command_runs_there_and_its_output_comes_here(head, token, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pkt", "models", "--json", "--address", head])
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert verbs.forward(head) == 0
    out, err = capsys.readouterr()
    assert '"llama2-70b"' in out
    assert "hf_secret" not in out + err
    (row,) = [row for row in jobs.listed(head) if row["command"].endswith("pkt models --json")]
    assert row["status"] == "SUCCEEDED"
    assert row["id"] in err
    assert jobs.log(head, row["id"]) == out


@pytest.mark.cluster
def test_a_failing_command_returns_its_own_status_and_its_files_are_there(head, tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: {rank: minus, measure: {seeds: no/such.jsonl}}\n")
    done = pkt("run", str(tmp_path / "mine.yaml"), "--arm", "lora", "--address", head)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("pkt: recipe.rank")]
    rows = json.loads(pkt("jobs", "list", "--json", "--address", head).stdout)
    assert [row["exit_code"] for row in rows if "mine.yaml" in row["command"]] == [2]
    assert rows[0]["id"] in pkt("jobs", "list", RAY_API_SERVER_ADDRESS=head).stdout


@pytest.mark.cluster
def test_the_environment_arrives_and_nobody_sees_it(head, token, capsys):
    job, _ = jobs.submit(head, 'test "$HF_TOKEN" = hf_secret && exit 7', name="env", env={"HF_TOKEN": "hf_secret"})
    assert jobs.stream(head, job, print) == 7
    assert "hf_secret" not in capsys.readouterr().out.replace('"$HF_TOKEN" = hf_secret', "")


@pytest.mark.cluster
def test_a_second_submission_joins_the_job_that_runs_and_starts_one_after_it(head, token):
    job, found = jobs.submit(head, "echo awake; sleep 300", name="long")
    assert (job[-2:], found) == ("-1", False)
    assert jobs.submit(head, "echo awake; sleep 300", name="long") == (job, True)
    watching = subprocess.Popen(
        [BIN / "pkt", "jobs", "logs", job, "--follow", "--address", head],
        env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "awake\n" not in watching.stdout.readline():
        assert watching.poll() is None
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"pkt jobs stop {job} --address {head}" in err
    assert pkt("jobs", "stop", job, "--address", head).stdout == f"{job}: stopped\n"
    assert jobs.stream(head, job, lambda text: None) == 130
    again, found = jobs.submit(head, "echo awake; sleep 300", name="long")
    assert (again, found) == (job[:-1] + "2", False)
    jobs.stop(head, again)


@pytest.mark.cluster
def test_a_connection_that_breaks_is_made_again_and_nothing_comes_twice(head, token):
    with socket.create_server(("127.0.0.1", 0)) as front:
        def pipe(source, sink, limit):
            while limit > 0 and (data := source.recv(2000)):
                sink.sendall(data)
                limit -= len(data)
            for end in (source, sink):
                end.close()

        def serve():
            while True:
                try:
                    near, _ = front.accept()
                except OSError:
                    return
                far = socket.create_connection(("127.0.0.1", int(head.rsplit(":", 1)[1])))
                threading.Thread(target=pipe, args=(near, far, 1e9), daemon=True).start()
                threading.Thread(target=pipe, args=(far, near, 9000), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        job, _ = jobs.submit(head, "for i in $(seq 300); do echo line $i of the long log; sleep 0.01; done", name="lines")
        got: list[str] = []
        assert jobs.stream(f"http://127.0.0.1:{front.getsockname()[1]}", job, got.append) == 0
    assert "".join(got) == jobs.log(head, job)
