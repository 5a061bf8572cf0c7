"""Programs that a model wrote, run where they can do no harm.

    ended_well(["assert 1 + 1 == 2", "import os; os._exit(0)"])           # [True, False]

Each runs in Linux namespaces of its own, made by util-linux: a root of a few folders that can only be read, a small
file system in memory, no network, no sight of other processes, no rights, and all that it starts ends with it. Memory,
time, processes and files are bounded. UserError where a machine lets none be made: then nothing is run at all.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from orchestrator.errors import UserError

SECONDS = 10.0  # for which a program may run, by the clock
MEMORY = 512 << 20  # bytes of addresses that each of its processes may have
PROCESSES = 16
DISK = "64m"  # that its files may take: they lie in memory
START = 60.0  # seconds that a busy machine may take to make one

# A root with Python and the system's libraries alone, to be read only; what was the root is let go of
ROOM = f"""
set -e
root=/tmp
mount --make-rprivate /
mount -t tmpfs -o size={DISK},nr_inodes=4k,nosuid,nodev,mode=777 tmpfs $root
for folder in /usr /lib /lib64 /bin "$@"; do
    [ -e "$folder" ] || continue
    mkdir -p "$root$(dirname "$folder")"
    if [ -L "$folder" ]; then ln -s "$(readlink "$folder")" "$root$folder"; continue; fi
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro,nosuid,nodev "$root$folder"
done
mkdir -p $root/dev $root/proc $root/old
: > $root/dev/null
mount --bind /dev/null $root/dev/null
mount -t proc -o nosuid,nodev,noexec proc $root/proc
mkdir -m 777 -p $root/tmp
cd $root
pivot_root . old
umount -l /old
cd /tmp
exec setpriv $RIGHTS --pdeathsig=KILL --no-new-privs --bounding-set=-all --inh-caps=-all "$PYTHON" -I -S -B -c "$RUN"
"""

# The program may leave by any door: that it came to its end is told by what comes after it
RUN = f"""
import os, resource, signal, sys
program = sys.stdin.read()
told, ended = os.dup(1), os.pipe()
null = os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
limits = dict(AS={MEMORY}, FSIZE={MEMORY}, NPROC={PROCESSES}, CORE=0, NOFILE=64)
for name, most in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
if os.fork() == 0:
    os.close(told)
    os.close(ended[0])
    try:
        exec(compile(program, "answer", "exec"), dict(__name__="__main__"))
        os.write(ended[1], b"1")
    finally:
        os._exit(0)
os.close(ended[1])
signal.signal(signal.SIGALRM, lambda *_: os._exit(1))  # the first of a namespace ends only by what it asks for itself
signal.setitimer(signal.ITIMER_REAL, float(os.environ["SECONDS"]))
os.write(told, os.read(ended[0], 1) or b"0")
"""


def ended_well(programs: Sequence[str], seconds: float = SECONDS) -> list[bool]:
    """Whether each program comes to its end within that time, and without an error."""
    rights = check()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda program: _run(program, rights, seconds)[0] == "1", programs))


@functools.cache
def check() -> bool:
    """Whether sandboxes are made by root's rights here, or by a user's namespace. UserError where neither can be."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("setpriv"):
        raise UserError(
            "run-code: programs are run in sandboxes of Linux alone, by util-linux; leave such tasks out here"
        )
    why = ""
    for root in (True, False) if os.geteuid() == 0 else (False,):
        told, why = _run("import socket", root, SECONDS)
        if told == "1":
            return root
    raise UserError(
        f"run-code: this machine lets no sandbox be made ({why or 'no answer'}); allow user namespaces, or leave out"
        " the tasks that run programs"
    )


def _run(program: str, root: bool, seconds: float) -> tuple[str, str]:
    """What was told: 1 for a good end, 0 for a bad one, nothing where there was none; and what went wrong besides."""
    number = 1 << 30 | random.SystemRandom().getrandbits(29)  # nobody's: processes are counted by user
    rights = f"--reuid={number} --regid={number} --clear-groups" if root else ""
    command = [
        "unshare",
        *([] if root else ["--user", "--map-root-user"]),
        "--mount",
        "--net",
        "--pid",
        "--ipc",
        "--uts",
    ]
    command += ["--fork", "--kill-child", "sh", "-c", ROOM, "sh", sys.base_prefix]
    python = os.path.realpath(sys.executable)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHON": python, "RUN": RUN, "RIGHTS": rights}
    environment["SECONDS"] = str(seconds)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True, encoding="utf-8", errors="surrogatepass",
    )  # fmt: skip
    try:
        told, error = process.communicate(program, timeout=seconds + START)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the first process of its namespace, too, and so all
        process.communicate()
        return "", f"it took more than {seconds + START:g} s"
    return told, " ".join(error.split())
