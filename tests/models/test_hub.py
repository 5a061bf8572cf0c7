"""What is fetched from a hub: a real client against a server that speaks as much of the hub's API as it asks for."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny

COMMIT = "0" * 39 + "1"
RESOLVE = """
import sys
from orchestrator.models.loading import resolve
found = resolve("org/model", "teacher", lambda line: print(line))
print(found.folder)
"""


class Hub(http.server.ThreadingHTTPServer):
    """One repository, `org/model`, of a folder's files; notes which were asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.fetched = folder, set[str]()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/org/model/resolve/"):
            name = path.removeprefix("/org/model/resolve/").partition("/")[2]
            file = self.server.folder / name
            if not file.is_file():
                return self.say(404, b"", {"X-Error-Code": "EntryNotFound"})
            self.server.fetched.add(name)
            body = file.read_bytes()
            tag = hashlib.sha256(body).hexdigest()
            return self.say(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        if path.startswith("/api/models/org/model/tree/"):
            return self.say(200, json.dumps([self.entry(file) for file in self.files()]).encode())
        names = [{"rfilename": str(file.relative_to(self.server.folder))} for file in self.files()]
        info = {"_id": "1", "id": "org/model", "sha": COMMIT, "siblings": names, "private": False, "tags": []}
        return self.say(200, json.dumps(info | {"downloads": 0, "likes": 0}).encode())

    def files(self) -> list[Path]:
        return sorted(file for file in self.server.folder.rglob("*") if file.is_file())

    def entry(self, file: Path) -> dict[str, object]:
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {
            "type": "file",
            "path": str(file.relative_to(self.server.folder)),
            "size": file.stat().st_size,
            "oid": oid,
        }

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Not on the test's screen."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "repository").mkdir()
    with Hub(tmp_path / "repository") as server:
        yield server
        server.shutdown()


@pytest.mark.parametrize("shards", ["100KB", "5GB"], ids=["several files", "one file"])
def test_only_what_the_index_names_is_fetched(shards: str, hub: Hub, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(hub.folder, max_shard_size=shards)
    own = {file.name for file in hub.folder.iterdir()}
    assert ("model.safetensors.index.json" in own) == (shards == "100KB")
    (hub.folder / "tokenizer_config.json").write_text("{}")
    (hub.folder / "original").mkdir()
    for name in ("consolidated.safetensors", "consolidated.00.pth", "original/params.json", "original/tokenizer.model"):
        (hub.folder / name).write_bytes(b"another form of the same")
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", RESOLVE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.fetched == own | {"tokenizer_config.json"}
    assert "fetching org/model 0.0/0.0 GB" in done.stdout and "reading org/model 0.0/0.0 GB" in done.stdout
