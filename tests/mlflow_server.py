"""A real MLflow server in a process of its own, and a door before it: credentials, lost answers, what was asked."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

USERS = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """Down until it is started; with a password it is MLflow's own one with users, the first being `admin`."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self.folder, self.port, self.password = folder, free_port(), password
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "server-artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self.password:
            command += ["--app-name", "basic-auth"]
            users = self.folder / "users.ini"
            users.write_text(USERS.format(folder=self.folder))
            environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_AUTH_ADMIN_PASSWORD": self.password}
            environment |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        while True:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            try:
                urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except (URLError, OSError):
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def send(self, number: signal.Signals) -> None:
        """To the server and its workers: the session that it leads."""
        assert self._process is not None
        os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait(timeout=30)

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self.send(signal.SIGKILL)


class Door:
    """A proxy that asks for credentials.

    `lost` are paths whose next answer does not get back; `late` are those whose next request is given up by the client
    and served all the same, just before the next batch. `large` are paths that it takes no files for.
    """

    def __init__(self, server: Server, user: str, password: str) -> None:
        self.lost: list[str] = []
        self.late: list[str] = []
        self.large: list[str] = []
        self.asked: list[str] = []
        wanted = {f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}", f"Bearer {password}"}
        held: list[tuple[str, str, bytes]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Authorization") not in wanted:
                    self._answer(401, f"You are not authenticated as {self.headers.get('Authorization')}".encode())
                    return
                door.asked.append(f"{self.command} {self.path.partition('?')[0]}")
                if self.path.endswith(tuple(door.large)):
                    self._answer(413, b"too large")
                    return
                for path in door.late:
                    if self.path.endswith(path):
                        door.late.remove(path)
                        held.append((self.command, self.path, body))
                        self._hang_up()
                        return
                while held and self.path.endswith("runs/log-batch"):
                    self._onward(*held.pop())
                status, content = self._onward(self.command, self.path, body)
                for path in door.lost:
                    if self.path.endswith(path):
                        door.lost.remove(path)
                        self._hang_up()
                        return
                self._answer(status, content)

            def _onward(self, command: str, path: str, body: bytes) -> tuple[int, bytes]:
                onward = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                onward.request(command, path, body, {"Content-Type": self.headers.get("Content-Type") or "text/plain"})
                answer = onward.getresponse()
                return answer.status, answer.read()

            def _hang_up(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = handle_one

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def plain_site() -> Iterator[str]:
    """Something that answers, and is no MLflow."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{site.server_address[1]}"
    finally:
        site.shutdown()
        site.server_close()
