"""What every store keeps to: a directory, an object store in this process, and S3 as moto's server has it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from orchestrator.errors import UserError
from orchestrator.store import BARE, MANIFEST, Store
from orchestrator.store.directory import Directory
from orchestrator.store.objects import Objects
from orchestrator.store.remote import Remote

Machine = Callable[[str], Store]  # as a machine of that name has the same store; a directory is shared by all
SOON = {"beat": 0.1, "dead": 1.0}
KINDS = ["directory", "memory", "lagging", "s3"]
pytestmark = pytest.mark.xdist_group("stores")  # one server for all


class Memory(MemoryFileSystem):
    """Whose "create" is one step, as a server's is."""

    cachable = False
    one_at_a_time = threading.Lock()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **how: Any) -> None:
        with self.one_at_a_time:
            super().pipe_file(path, value, mode=mode, **how)


class Lagging(Memory):
    """Lists nothing, as a listing may lag."""

    def ls(self, path: str, detail: bool = True, **how: Any) -> list[Any]:
        return []


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_REGION", "us-east-1")):
            patch.setenv(name, value)
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # that an earlier server's client may be in
        fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)  # what moto holds outlives its server
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    if request.param == "directory":
        yield lambda name: Store(tmp_path / "shared")
        return
    if request.param == "s3":
        request.getfixturevalue("endpoint")
        url, files = f"s3://bucket/{tmp_path.name}", fsspec.filesystem("s3")
    else:
        files = Lagging() if request.param == "lagging" else Memory()
        files.store.clear()
        url = f"memory://{request.param}"
    yield lambda name: Store(Objects(url, files, tmp_path / name, **SOON))


def put(store: Store, content: str, key: str = "key", **files: str) -> None:
    with store.writing("finetune", key, {"facts": content}) as folder:
        (folder / "deep").mkdir()
        for name, text in ({"small": content, "deep/large": content * 100} | files).items():
            (folder / name).write_text(text)


def test_what_one_machine_publishes_another_finds_whole(machine: Machine) -> None:
    one, other = machine("one"), machine("other")
    assert one.find("finetune", "key") is None and other.find("finetune", "key") is None
    with one.writing("finetune", "key", {"facts": "a"}) as folder:
        (folder / "small").write_text("a")
        assert other.find("finetune", "key") is None
    for store in (one, other):
        found = store.find("finetune", "key")
        assert found and (found / "small").read_text() == "a"
        manifest = json.loads((found / MANIFEST).read_text())
        assert manifest["facts"] == "a" and list(manifest["files"]) == ["small"]
    with pytest.raises(KeyError), one.writing("finetune", "other", {}) as folder:
        (folder / "half").write_text("x")
        raise KeyError("stop")
    assert one.find("finetune", "other") is None and other.find("finetune", "other") is None


def test_of_two_writers_the_first_stays_and_nobody_sees_a_mixture(machine: Machine) -> None:
    both = threading.Barrier(2)

    def write(name: str) -> None:
        with machine(name).writing("finetune", "key", {"facts": name}) as folder:
            for number in range(5):
                (folder / str(number)).write_text(name)
            both.wait(30)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write, name) for name in ("one", "other")]:
            done.result(60)
    seen = set()
    for store in (machine("one"), machine("other"), machine("third")):
        folder = store.find("finetune", "key")
        assert folder
        seen.add(json.loads((folder / MANIFEST).read_text())["facts"])
        seen |= {(folder / str(number)).read_text() for number in range(5)}
    assert len(seen) == 1


def test_an_upload_that_was_torn_is_nothing_and_is_made_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power fails after any number of files, and before the manifest: the last, as the contract has it."""

    class PowerFails(BaseException):
        pass

    store = machine("one")
    backend: Any = store._backend
    with monkeypatch.context() as patch:

        def fails(*given: Any, **how: Any) -> None:
            raise PowerFails

        if isinstance(backend, Directory):
            patch.setattr(Path, "rename", fails)
        else:
            patch.setattr(Remote, "first", fails)
        with pytest.raises(PowerFails):
            put(store, "torn")
    assert store.find("finetune", "key") is None and machine("other").find("finetune", "key") is None
    put(store, "whole")
    folder = machine("other").find("finetune", "key")
    assert folder and (folder / "small").read_text() == "whole"


def test_a_file_that_is_not_what_its_manifest_says_is_an_error(machine: Machine) -> None:
    one, other = machine("one"), machine("other")
    if isinstance(one._backend, Directory):
        pytest.skip("its files are where they were written, and are not copied")
    put(one, "true")
    backend: Any = one._backend
    content = backend._manifest("finetune", "key")
    backend._remote.files.pipe_file(backend._file("finetune", "key", content, "small"), b"false")
    with pytest.raises(OSError, match="is not what its manifest says"):
        other.find("finetune", "key")
    assert not list(other.root.glob("finetune/*"))


def test_what_was_let_go_is_known_to_all_and_can_be_whole_again(machine: Machine) -> None:
    one, other = machine("one"), machine("other")
    put(one, "a")
    one.let_go("finetune", "key", ["deep", "never there"])
    for store in (one, other):
        assert store.find("finetune", "key") is None
        folder = store.find("finetune", "key", bare=True)
        assert folder and (folder / "small").read_text() == "a" and not (folder / "deep/large").exists()
        assert (folder / BARE).is_file()
    put(other, "b")
    for store in (one, other, machine("third")):
        folder = store.find("finetune", "key")
        assert folder and (folder / "small").read_text() == "b" and (folder / "deep/large").exists()


def test_what_is_removed_is_gone_for_whoever_has_not_seen_it(machine: Machine) -> None:
    one, other = machine("one"), machine("other")
    put(one, "a")
    one.remove("finetune", "key")
    assert one.find("finetune", "key") is None and other.find("finetune", "key", bare=True) is None
    put(other, "b")
    folder = one.find("finetune", "key")
    assert folder and (folder / "small").read_text() == "b"


def test_one_at_a_time_is_at_a_step(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """Longer than a dead one would be waited for: who lives, tells."""
    within, at_once, most = threading.Lock(), 0, 0

    def work(name: str) -> None:
        nonlocal at_once, most
        with machine(name).resumable("finetune", "key"):
            with within:
                at_once += 1
                most = max(most, at_once)
            time.sleep(1.5 * SOON["dead"])
            with within:
                at_once -= 1

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, name) for name in ("one", "one", "other")]:
            done.result(60)
    assert most == 1
    assert "waiting for another process that is at the same step: finetune" in caplog.text


def test_what_an_unfinished_step_kept_is_there_for_the_next_try(machine: Machine) -> None:
    """On the same machine: who goes on elsewhere begins anew, unless it is a directory that both have."""
    with pytest.raises(KeyError), machine("one").resumable("measure", "key") as partial:
        (partial / "kept").touch()
        raise KeyError("stop")
    with machine("one").resumable("measure", "key") as partial:
        assert (partial / "kept").exists()
    with machine("one").resumable("measure", "key") as partial:
        assert not (partial / "kept").exists()


HOLDER = """
import sys, time
from pathlib import Path
from orchestrator.store import Store
from orchestrator.store.objects import Objects
where = sys.argv[1]
store = Store(Objects(where, here=Path(sys.argv[2]), beat=0.1, dead=1.0) if "://" in where else where)
with store.resumable("finetune", "key"):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_a_lease_whose_holder_was_killed_is_had_by_the_next(kind: str, tmp_path: Path, endpoint: str) -> None:
    where = str(tmp_path / "shared") if kind == "directory" else f"s3://bucket/{tmp_path.name}"
    words = [sys.executable, "-c", HOLDER, where, str(tmp_path / "one")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "mine\n"
        store = Store(Objects(where, here=tmp_path / "other", **SOON) if kind == "s3" else where)
        got = threading.Event()

        def wait() -> None:
            with store.resumable("finetune", "key"):
                got.set()

        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(wait)
            assert not got.wait(2 * SOON["dead"])  # it lives
            holder.kill()
            assert got.wait(30)
            waits.result(30)


def test_an_answer_that_was_lost_leaves_what_was_written(tmp_path: Path) -> None:
    """The libraries send it again, and hear that there is one: their own."""

    class Twice(Memory):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **how: Any) -> None:
            super().pipe_file(path, value, mode=mode, **how)
            if mode == "create":
                super().pipe_file(path, value, mode=mode, **how)

    files = Twice()
    files.store.clear()
    one, other = (Store(Objects("memory://twice", files, tmp_path / name, **SOON)) for name in ("one", "other"))
    put(one, "a")
    for store in (one, other):
        folder = store.find("finetune", "key")
        assert folder and (folder / "small").read_text() == "a"
    began = time.monotonic()
    with other.resumable("finetune", "key"):
        assert time.monotonic() - began < SOON["dead"] / 2


@pytest.mark.parametrize("status", [409, 412])
def test_a_server_that_says_in_its_own_way_that_there_is_one_is_understood(tmp_path: Path, status: int) -> None:
    """s3fs knows AWS's words for it alone; with others, and with two writers at the same moment, it is an OSError."""

    class Answer(Exception):
        response: ClassVar[dict[str, Any]] = {"ResponseMetadata": {"HTTPStatusCode": status}}

    class Other(Memory):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **how: Any) -> None:
            try:
                super().pipe_file(path, value, mode=mode, **how)
            except FileExistsError:
                raise OSError(errno.EINVAL, "refused") from Answer()

    files = Other()
    files.store.clear()
    one, other = (Store(Objects("memory://other", files, tmp_path / name, **SOON)) for name in ("one", "other"))
    put(one, "a")
    put(other, "b")
    folder = other.find("finetune", "key")
    assert folder and (folder / "small").read_text() == "a"


def test_what_was_cleared_or_made_anew_up_there_is_not_believed_here(machine: Machine) -> None:
    one = machine("one")
    if not one.apart:
        pytest.skip("there is no other place")
    put(one, "a")
    put(one, "a", "other")
    machine("other").remove("finetune", "key")
    machine("other").remove("finetune", "other")
    put(machine("other"), "b", "other")
    again = machine("one")  # another process
    assert not again.has("finetune", "key") and again.find("finetune", "key") is None
    folder = again.find("finetune", "other")
    assert folder and (folder / "small").read_text() == "b"


def test_what_a_sweep_leaves_in_its_own_folder_is_seen_elsewhere(machine: Machine) -> None:
    """Whichever way it ends; and what a killed one has not sent yet isn't overwritten by what was there before."""
    if "lagging" in machine("one").address:
        pytest.skip("a sweep's folder is looked for by a listing: it is there later")
    one, other = machine("one"), machine("other")
    mine, theirs = one.root / "sweeps/mine", other.root / "sweeps/mine"
    with pytest.raises(KeyError), one.kept(mine):
        mine.mkdir(parents=True, exist_ok=True)
        (mine / "asked.json").write_text("1")
        raise KeyError("stop")
    other.bring("sweeps")
    assert (theirs / "asked.json").read_text() == "1"
    with other.kept(theirs):
        (theirs / "asked.json").write_text("22")
        one.bring("sweeps")
        if one.root != other.root:
            assert (mine / "asked.json").read_text() == "1"
    one.bring("sweeps")
    assert (mine / "asked.json").read_text() == "22"
    killed = one.kept(mine)
    killed.__enter__()
    (mine / "asked.json").write_text("333")
    one.send(mine / "asked.json")
    other.bring("sweeps")
    assert (theirs / "asked.json").read_text() == "333"  # before it ends
    (mine / "asked.json").write_text("4444")
    one.bring("sweeps")
    assert (mine / "asked.json").read_text() == "4444"


def test_what_can_not_be_a_store_is_told(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(UserError, match=r"store: nowhere://x: Protocol not known: nowhere"):
        Store("nowhere://x")
    with pytest.raises(UserError, match=r"store: s3://never/there can't be written \(.*bucket"):
        Store(Objects("s3://never/there", here=tmp_path)).check()
    Store(Objects("s3://bucket/there", here=tmp_path)).check()
    assert fsspec.filesystem("s3").find("bucket/there") == []
    with pytest.raises(UserError, match=r"s3://bucket/there is cleared by its own tools"):
        with Store(Objects("s3://bucket/there", here=tmp_path)).unused():
            pass
