"""A sweep whose results live on an object store: S3 as moto's server has it, two machines as two caches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

pytestmark = [
    pytest.mark.long,
    pytest.mark.cluster,
    pytest.mark.xdist_group("objects"),
    pytest.mark.usefixtures("room"),
]
PKT = [sys.executable, "-c", "from cli.main import main; main()"]
SMALL = ["--arms", "lora,transfer", "--rank", "4", "--lr", "1e-2", "--repeats", "2", "--name", "small"]
SMALL += ["--set", "tuned_teacher=false", "--set", "finetune.examples=36", "--set", "evaluate.examples=8"]
SMALL += ["--set", "gate=null", "--store", "s3://lab/pkt", "--trials-at-once", "1"]


def test_what_one_machine_computed_another_shows_exports_and_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    env["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, env[name])

    def pkt(machine: str, *words: str) -> subprocess.CompletedProcess[str]:
        there = {**env, "XDG_CACHE_HOME": str(tmp_path / machine)}
        done = subprocess.run(
            [*PKT, *words], cwd=tmp_path, capture_output=True, text=True, check=False, env=there, timeout=400
        )
        assert done.returncode == 0, done.stderr
        return done

    try:
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("lab")
        first = pkt("one", "sweep", *SMALL)
        manifests = {name: facts["LastModified"] for name, facts in files.find("lab/pkt", detail=True).items()
                     if name.endswith("manifest.json")}  # fmt: skip
        assert {name.split("/")[2] for name in manifests} == {"data", "measure", "extract", "finetune", "evaluate"}
        assert not [name for name in files.find("lab/pkt") if name.endswith("lease.json")]
        assert pkt("other", "compare", "small", "--store", "s3://lab/pkt").stdout == first.stdout
        pkt("other", "export", "small", "--lora", "best", "--lm-eval", "task", "--store", "s3://lab/pkt")
        assert (tmp_path / "best/adapter_model.safetensors").is_file()
        report = Path(pkt("other", "report", "small", "--store", "s3://lab/pkt").stdout.strip())
        assert "no longer in the store" not in report.read_text()
        again = pkt("third", "sweep", *SMALL)
        assert again.stdout == first.stdout
        files.invalidate_cache()
        assert manifests == {name: facts["LastModified"] for name, facts in files.find("lab/pkt", detail=True).items()
                             if name.endswith("manifest.json")}  # fmt: skip
    finally:
        server.stop()
    assert not (tmp_path / "pkt-store").exists()
    assert (tmp_path / "task").is_dir()
