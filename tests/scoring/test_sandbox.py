"""Programs that do harm where they can, in a sandbox: each is ended, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.scoring import sandbox

OUTSIDE = Path(__file__).resolve()
GOOD = {
    "an assertion that holds": "assert 1 + 1 == 2",
    "the standard library": "import collections, heapq, itertools, math, re, typing",
    "unicode": "é = 'ü'; assert é == chr(252)",
    "a file of its own": "open('/tmp/x', 'w').write('1'); assert open('/tmp/x').read() == '1'",
    "no sight of what is outside": f"import os; assert not os.path.exists({str(OUTSIDE)!r})",
    "no sight of other processes": "import os; assert sum(name.isdigit() for name in os.listdir('/proc')) <= 2",
    "no words from outside": "import os, sys; assert not sys.stdin.read(); assert 'HOME' not in os.environ",
}
BAD = {
    "an assertion that fails": "assert 1 == 2",
    "no Python": "def f(:",
    "half a surrogate pair": "x = '\ud800'",
    "an end before the tests": "import sys; sys.exit(0)",
    "another end before them": "import os; os._exit(0)",
    "a socket to the world": "import socket; socket.create_connection(('1.1.1.1', 53), 3)",
    "a name that is looked up": "import socket; socket.getaddrinfo('example.com', 80)",
    "a socket to itself": "from socket import *; create_connection(create_server(('127.0.0.1', 0)).getsockname())",
    "more memory than there is": "x = bytearray(1 << 30)",
    "forks without end": "import os\nwhile True: os.fork()",
    "threads without end": "from threading import *\nwhile True: Thread(target=Event().wait).start()",
    "a file without end": "f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(1 << 20))",
    "files without end": "for n in range(10 ** 6): open(f'/tmp/{n}', 'w')",
    "the system's folders": "open('/usr/bin/x', 'w')",
    "its own rights back": "from subprocess import *; run(['mount', '-o', 'remount,bind,rw', '/usr'], check=True)",
    "a root of its own": "import os; os.chroot('/tmp')",
    "other users": "import os; os.setuid(0)",
    "its own limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "signals to all": "import os, signal; os.kill(1, signal.SIGKILL); os.kill(-1, signal.SIGTERM)\nassert False",
}


pytestmark = pytest.mark.usefixtures("sandboxes")


def test_what_is_right_ends_well() -> None:
    told = dict(zip(GOOD, sandbox.ended_well(list(GOOD.values())), strict=True))
    assert [name for name, well in told.items() if not well] == []


def test_what_does_harm_does_not() -> None:
    told = dict(zip(BAD, sandbox.ended_well(list(BAD.values())), strict=True))
    assert [name for name, well in told.items() if well] == []


def test_what_never_ends_is_ended_with_all_that_it_started() -> None:
    """By the time that it was given; a child that left its session included. Its mark is looked for in /proc."""
    mark = f"mark-{os.getpid()}-{time.time_ns()}"
    spin = f"x = {mark!r}\nwhile True: pass"
    orphan = "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
    orphan += f"    os.execl('/bin/sh', 'sh', '-c', 'sleep 96; : {mark}')\ntime.sleep(99)"
    child = f"import subprocess, sys\nsubprocess.run(['sh', '-c', 'sleep 98; : {mark}'])"
    started = time.monotonic()
    assert sandbox.ended_well([spin, orphan, child], seconds=1.0) == [False] * 3
    assert time.monotonic() - started < 60  # and not the 98 s of what they started
    assert not _alive(mark)


def test_a_sandbox_does_not_outlive_who_made_it() -> None:
    """A scoring process that is killed leaves nothing that runs on past its time."""
    mark = f"mark-{os.getpid()}-{time.time_ns()}"
    program = f"import subprocess; subprocess.run(['sh', '-c', 'sleep 97; : {mark}'])"
    code = f"from orchestrator.scoring.sandbox import ended_well; ended_well([{program!r}], seconds=4.0)"
    maker = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not _alive(mark):
        assert maker.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    while _alive(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(mark: str) -> list[int]:
    """Processes with the mark among their words, but for the one that only has it in a program text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word.endswith(mark.encode()) for word in words):
            found.append(int(path.parent.name))
    return found


def test_a_machine_that_lets_none_be_made_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without util-linux, or where the kernel refuses: told, and no program is run some other way."""
    sandbox.check.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="run-code: programs are run in sandboxes of Linux alone"):
        sandbox.ended_well(["pass"])
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "ROOM", "echo no namespaces here >&2; exit 1")
    with pytest.raises(UserError, match=r"this machine lets no sandbox be made .*no namespaces here"):
        sandbox.ended_well(["pass"])
    monkeypatch.undo()
    sandbox.check.cache_clear()
