"""A step's folder is whole or absent, whoever writes it and whatever breaks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.step import Step, materialise
from orchestrator.store import Store, fingerprint
from orchestrator.store.files import link, placing
from orchestrator.tasks.base import Example
from orchestrator.tasks.rows import data_step, light

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_a_fingerprint_is_the_value_and_not_the_object(value: object) -> None:
    assert fingerprint(value) == fingerprint(json.loads(json.dumps(value)))


def test_fingerprints_differ_and_refuse_what_has_no_value() -> None:
    assert len({fingerprint(value) for value in (1, "1", [1], {"a": 1}, {"a": [1]}, None, 1.5)}) == 7
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        fingerprint({"path": Path("x")})
    with pytest.raises(ValueError):
        fingerprint(float("nan"))


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(KeyError), store.writing("step", "key", {}) as folder:
        (folder / "half").write_text("x")
        raise KeyError("stop")
    assert store.find("step", "key") is None
    assert list((tmp_path / "s" / "step").iterdir()) == []


def test_the_manifest_sums_every_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writing("step", "key", {"a": 1}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("content")
    found = store.find("step", "key")
    assert found
    manifest = json.loads((found / "manifest.json").read_text())
    assert manifest["files"] == {"deep/file": hashlib.sha256(b"content").hexdigest()}
    assert manifest["a"] == 1


def test_of_many_writers_one_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def write(number: int) -> None:
        with store.writing("step", "key", {}) as folder:
            (folder / "who").write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["key"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="is not writable"):
        Store(tmp_path / "s").check()


def test_a_store_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not writable"):
        Store(tmp_path / "file" / "s").check()
    Store(tmp_path / "new" / "s").check()
    assert not (tmp_path / "new").exists()


def _write(folder: Path, *, text: str, calls: list[str], before: Path | None = None) -> dict[str, str]:
    calls.append(text)
    (folder / "out").write_text(text + ((before / "out").read_text() if before else ""))
    return {"wrote": text}


def test_a_step_runs_once_and_its_name_is_what_determines_it(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []
    first = Step("a", _write, config={"text": "one"}, where={"calls": calls})
    second = Step("b", _write, config={"text": "two"}, inputs={"before": first}, where={"calls": calls})
    folder = materialise(second, store)
    assert (folder / "out").read_text() == "twoone"
    assert materialise(second, store) == folder
    assert calls == ["one", "two"]
    elsewhere = Step("a", _write, config={"text": "one"}, where={"calls": []})
    assert elsewhere.fingerprint == first.fingerprint
    changes = [
        Step("a", _write, config={"text": "uno"}),
        Step("a", _write, config={"text": "one"}, identity={"model": "x"}),
        Step("a", _write, config={"text": "one"}, version=2),
        Step("a", _write, config={"text": "one"}, inputs={"before": first}),
    ]
    assert len({step.fingerprint for step in (first, *changes)}) == 5


def test_what_was_let_go_is_made_again_for_whoever_needs_it(tmp_path: Path) -> None:
    made: list[str] = []

    def train(folder: Path, *, partial: Path, **_: Any) -> dict[str, int]:
        made.append("train")
        (folder / "large").write_text("x" * 1000)
        (folder / "state").mkdir()
        (folder / "state" / "more").write_text("y")
        (folder / "history").write_text(f"{len(made)}")
        return {"steps": len(made)}

    def score(folder: Path, *, adapter: Path, split: str, **_: Any) -> None:
        made.append(split)
        assert (adapter / "large").is_file()

    store, trained = Store(tmp_path), Step("finetune", train, needs="group")
    first, second = (
        Step("evaluate", score, {"split": split}, {"adapter": trained}, needs="model") for split in ("tune", "test")
    )
    materialise(first, store)
    folder = store.find("finetune", trained.fingerprint)
    assert folder
    before = (folder / "manifest.json").read_text()
    store.let_go("finetune", trained.fingerprint, ["large", "state", "never there"])
    assert store.find("finetune", trained.fingerprint) is None
    assert store.find("finetune", trained.fingerprint, bare=True) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["history", "let-go.json", "manifest.json"]
    assert (folder / "manifest.json").read_text() == before
    store.let_go("finetune", trained.fingerprint, ["large", "state"])
    store.let_go("finetune", "never there", ["large"])
    materialise(first, store)
    assert made == ["train", "tune"]  # its score is there
    materialise(second, store)
    assert made == ["train", "tune", "train", "test"]
    assert sorted(path.name for path in folder.iterdir()) == ["history", "large", "manifest.json", "state"]
    assert (folder / "history").read_text() == "3"  # of one training, all of it
    assert [path.name for path in (tmp_path / "finetune").iterdir()] == [trained.fingerprint]


def test_what_another_sweep_lets_go_of_in_the_middle_is_made_again(tmp_path: Path) -> None:
    made: list[str] = []

    def train(folder: Path, *, partial: Path, **_: Any) -> None:
        made.append("train")
        (folder / "large").touch()

    def score(folder: Path, *, adapter: Path, faulty: bool, **_: Any) -> None:
        made.append("score")
        if len(made) == 2:
            store.let_go("finetune", trained.fingerprint, ["large"])
        (adapter / "large").read_text()
        if faulty:
            raise RuntimeError("of its own")

    store, trained = Store(tmp_path), Step("finetune", train, needs="group")
    materialise(Step("evaluate", score, {"faulty": False}, {"adapter": trained}, needs="model"), store)
    assert made == ["train", "score"] * 2
    with pytest.raises(RuntimeError, match="of its own"):
        materialise(Step("evaluate", score, {"faulty": True}, {"adapter": trained}, needs="model"), store)
    assert made == ["train", "score"] * 2 + ["score"]


def test_two_at_one_resumable_step_run_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second waits until the first is done, and takes what it made."""
    began, go_on, calls = threading.Event(), threading.Event(), []

    def run(folder: Path, *, partial: Path, **given: object) -> dict[str, str]:
        calls.append((partial / "kept").exists())
        (partial / "kept").touch()
        began.set()
        assert go_on.wait(30)
        return {}

    step, store = Step("measure", run, needs="ranks"), Store(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(materialise, step, store)
        assert began.wait(30)
        second = pool.submit(materialise, step, store)
        while "waiting for another process" not in caplog.text:
            assert not second.done()
        go_on.set()
        assert first.result(30) == second.result(30)
    assert calls == [False]
    assert not list(tmp_path.glob("measure/.*.partial"))


def test_rows_stay_in_the_store_and_a_worker_without_it_says_so(tmp_path: Path) -> None:
    rows = data_step([Example.model_validate({"id": "a", "messages": [{"role": "user", "content": "x" * 10_000}]})])
    step = Step(
        "evaluate", lambda folder, *, rows, **_: {"there": (rows / "rows.jsonl").is_file()}, inputs={"rows": rows}
    )
    sent = light(step, Store(tmp_path / "shared"))
    assert sent.fingerprint == step.fingerprint
    assert "x" * 100 not in repr(sent)
    folder = materialise(sent, Store(tmp_path / "shared"))
    assert json.loads((folder / "manifest.json").read_text())["facts"] == {"there": True}
    with pytest.raises(UserError, match=r"its worker doesn't share the store \S+/other; name one on a common"):
        materialise(sent, Store(tmp_path / "other"))


def test_what_a_failed_step_kept_is_there_for_the_next_try(tmp_path: Path) -> None:
    found: list[bool] = []

    def run(folder: Path, *, partial: Path, **given: object) -> dict[str, str]:
        found.append((partial / "kept").exists())
        (partial / "kept").touch()
        if len(found) == 1:
            raise RuntimeError("no more power")
        return {}

    step, store = Step("measure", run, needs="ranks"), Store(tmp_path)
    with pytest.raises(RuntimeError, match="no more power"):
        materialise(step, store)
    materialise(step, store)
    assert found == [False, True]


def test_a_folder_outside_of_any_store_is_whole_or_absent_too(tmp_path: Path) -> None:
    target = tmp_path / "deep/out"
    with pytest.raises(KeyError), placing(target, "out") as folder:
        (folder / "half").write_text("x")
        raise KeyError("stop")
    assert list(target.parent.iterdir()) == []
    with placing(target, "out") as folder:
        (folder / "in").mkdir()
        (folder / "in/file").write_text("x")
        assert not target.exists()
    assert (target / "in/file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    with pytest.raises(OSError), placing(target, "out") as folder:
        (folder / "other").write_text("x")
    assert [path.name for path in target.rglob("*")] == ["in", "file"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_second_name_is_a_copy_where_there_can_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on exFAT; any other fault stays one."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "one").write_bytes(b"1")
    link(tmp_path / "one", tmp_path / "same")
    assert (tmp_path / "same").samefile(tmp_path / "one")
    monkeypatch.setattr(os, "link", refuse)
    for code in (errno.EPERM, errno.ENOTSUP):
        link(tmp_path / "one", tmp_path / str(code))
        assert (tmp_path / str(code)).read_bytes() == b"1"
    code = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        link(tmp_path / "one", tmp_path / "none")
    assert not (tmp_path / "none").exists()
