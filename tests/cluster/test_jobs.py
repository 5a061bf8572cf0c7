"""Jobs on a real head node with token authentication; what a command carries, without one."""

import http.server
import itertools
import json
import os
import secrets
import shlex
import shutil
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
from fragile import fragile

from cli import jobs as verbs
from orchestrator.cluster import jobs
from orchestrator.errors import UserError

TOKEN = secrets.token_hex(32)
BIN = Path(sys.executable).parent
ENV = {
    name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PKT_", "MLFLOW_", "HF_TOKEN"))
}
ENV |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")  # in Ray's client
# As on a node that shows its two GPUs to whoever looks: what it sees says nothing of what it was given.
PLACED = """
import torch
torch.cuda.device_count, torch.cuda.is_available = lambda: 2, lambda: True
from orchestrator.cluster.ranks import Placement
from orchestrator.cluster.session import session
with Placement().settled() as placed, session(cpus=1, gpus=None) as share:
    print(placed.ranks, placed.here, share)
with Placement(2).settled() as placed:
    from orchestrator.cluster.ranks import spread
    from pathlib import Path
    import tempfile
    print(list(spread(placed, abs, [-1, -2], Path(tempfile.mkdtemp()))))
"""
LONG = "for i in $(seq 900); do echo line $i of a log; done; sleep 3; echo end"


def on_cluster(test):
    """One head node for all of them, where tests run in several processes, too."""
    return pytest.mark.cluster(pytest.mark.xdist_group("jobs")(test))


def free_ports():
    """Below Ray's own ranges and the kernel's ephemeral one, so that nothing takes them in between."""
    for port in range(8300 + os.getpid() % 1000, 9990):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                yield port


def ready(address):
    """Whether the dashboard answers."""
    try:
        return jobs.listed(address) == []
    except UserError:
        return False


@pytest.fixture(scope="module")
def head():
    """The address of a head node; its processes, and no other Ray's, end with the module."""
    place = tempfile.mkdtemp(prefix="pj", dir="/tmp")  # Ray's sockets need a short path
    port, other = itertools.islice(free_ports(), 2)
    command = f"start --head --block --num-cpus=2 --num-gpus=2 --disable-usage-stats --temp-dir={place} --port=0"
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
            until = time.monotonic() + 180
            while not ready(address):
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
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # Ray's own client would then send no token


def pkt(*words, **env):
    return subprocess.run([BIN / "pkt", *words], env=ENV | env, capture_output=True, text=True, timeout=200)


@on_cluster
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


@on_cluster
def test_a_failing_command_returns_its_own_status_and_its_files_are_there(head, tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: {rank: minus, measure: {seeds: no/such.jsonl}}\n")
    done = pkt("run", str(tmp_path / "mine.yaml"), "--arm", "lora", "--address", head)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("pkt: recipe.rank")]
    rows = json.loads(pkt("jobs", "list", "--json", "--address", head).stdout)
    assert [row["exit_code"] for row in rows if "mine.yaml" in row["command"]] == [2]
    assert rows[0]["id"] in pkt("jobs", "list", RAY_API_SERVER_ADDRESS=head, RAY_ADDRESS="http://127.0.0.1:1").stdout


@on_cluster
def test_tokens_arrive_unseen(head, token, capsys):
    job, _ = jobs.submit(head, "test ${#HF_TOKEN} = 9 && exit 7", name="env", env={"HF_TOKEN": "hf_secret"})
    assert jobs.stream(head, job, print) == 7
    assert "hf_secret" not in capsys.readouterr().out + json.dumps(jobs.listed(head))


@on_cluster
def test_what_a_job_may_use_goes_by_its_environment_alone(head, token, tmp_path, monkeypatch, capsys):
    """The stored hub token and MLflow's account: there for the job, in no list, log or command line of ours."""
    secret = {"MLFLOW_TRACKING_USERNAME": "user-1f", "MLFLOW_TRACKING_PASSWORD": "pass-1f", "HF_TOKEN": "hf_stored"}
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text(secret["HF_TOKEN"])
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, secret[name])
    monkeypatch.setattr(sys, "argv", ["pkt", "doctor", "--address", head])
    verbs.forward(head)
    out, err = capsys.readouterr()
    assert "token set" in out  # says the job
    told = out + err + pkt("jobs", "list", "--json", "--address", head).stdout
    (row,) = [row for row in jobs.listed(head) if row["command"].endswith("pkt doctor")]
    told += row["command"] + jobs.log(head, row["id"])
    assert not [value for value in secret.values() if value in told]
    with jobs._client(head) as client:  # SECURITY.md: Ray itself shows it to whoever may ask
        assert client.get_job_info(row["id"]).runtime_env["env_vars"] == secret


def test_a_password_in_an_address_is_refused(monkeypatch):
    refused = "tracking: https://me:\\*\\*\\*@mlflow:5000 holds a password.* set MLFLOW_TRACKING_USERNAME and"
    uri = "https://me:pass-1f@mlflow:5000"
    for words in (["--tracking", uri], [f"--tracking={uri}"]):
        monkeypatch.setattr(sys, "argv", ["pkt", "sweep", *words])
        with pytest.raises(UserError, match=refused) as told:
            verbs.forward("http://127.0.0.1:1")
        assert "pass-1f" not in str(told.value)
    monkeypatch.setattr(sys, "argv", ["pkt", "sweep"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=refused):
        verbs.forward("http://127.0.0.1:1")
    verbs.refuse_passwords(["https://me@mlflow:5000", "--data", "a:b@c", "http://127.0.0.1:1/x@y"])


@on_cluster
@pytest.mark.parametrize(
    ("own", "ranks", "room"), [(0, 2, "[1, 2]"), (1, 1, "this job holds 1 of the GPUs itself, which is room for 1;")]
)
def test_ranks_get_the_gpus_that_the_job_was_not_given_itself(head, token, own, ranks, room):
    with jobs._client(head) as client:
        command = shlex.join([sys.executable, "-c", PLACED])
        job = client.submit_job(entrypoint=command, entrypoint_num_gpus=own or None)
    jobs.stream(head, job, lambda text: None)
    log = jobs.log(head, job)
    assert f"{ranks} False 1.0\n" in log and room in log


@on_cluster
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
    _, err = watching.communicate(timeout=200)
    assert watching.returncode == 130
    assert f"pkt jobs stop {job} --address {head}" in err
    assert pkt("jobs", "stop", job, "--address", head).stdout == f"{job}: stopped\n"
    assert jobs.stream(head, job, lambda text: None) == 130
    again, found = jobs.submit(head, "echo awake; sleep 300", name="long")
    assert (again, found) == (job[:-1] + "2", False)
    jobs.stop(head, again)


@on_cluster
def test_a_connection_that_breaks_is_made_again_and_nothing_comes_twice(head, token):
    job, _ = jobs.submit(head, LONG, name="lines")
    got: list[str] = []
    with fragile(head, breaks=2) as (front, tails):
        assert jobs.stream(front, job, got.append) == 0
    assert len(tails) > 2
    assert "".join(got) == jobs.log(head, job)
    assert "".join(got).endswith("end\n")


@on_cluster
def test_what_is_wrong_with_the_token_is_one_line(head, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=f"{head} asks for a token, and there is none; set RAY_AUTH_TOKEN"):
        jobs.listed(head)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN + "\n")
    jobs.listed(head)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such")
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH: /no/such can't be read"):
        jobs.listed(head)
    done = pkt("run", "--address", head, RAY_AUTH_TOKEN="another")
    assert done.returncode == 2
    assert done.stderr.startswith(f"pkt: address: {head} does not accept the token of RAY_AUTH_TOKEN")
    assert len(done.stderr.splitlines()) == 1


@on_cluster
def test_an_unknown_job_is_one_line(head, token):
    for act in (jobs.log, jobs.stop, lambda *where: jobs.stream(*where, print)):
        with pytest.raises(UserError, match=f"id: {head} has no job 'nope'"):
            act(head, "nope")


@pytest.mark.parametrize("address", ["here", "localhost:8265", "ray://head:10001", "http://head:port"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match="is not of the form http://HOST:8265"):
        jobs.listed(address)


def test_an_address_where_nobody_answers_and_one_where_something_else_does():
    done = pkt("sweep", "--teacher", "llama2-70b", "--address", f"http://127.0.0.1:{next(free_ports())}")
    assert done.returncode == 2
    assert "can't be reached (Connection refused)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="is no Ray dashboard"):
            jobs.listed(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
