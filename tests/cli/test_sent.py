"""What a command sends to a cluster: its words, and the files that are here."""

import pytest
import yaml

from cli import jobs as verbs
from orchestrator.errors import UserError


def test_the_cluster_sees_the_command_without_the_address():
    words = ["sweep", "--address", "http://head:8265", "--rank", "8", "--address=http://head:8265", "--json"]
    assert verbs.without_address(words) == ["sweep", "--rank", "8", "--json"]


def test_files_that_are_here_are_carried_and_named_by_their_content(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "rows").mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in ("seeds.jsonl", "chats.jsonl", "rows/train.jsonl", "rows/test.jsonl", "rows/notes.txt", "more.jsonl"):
        (here / name).write_text(name)
    asked = {"recipe": {"task": {"name": "gsm8k", "data": "rows"}, "teacher": "demo-teacher"}, "lr": ["1e-3"]}
    (here / "mine.yaml").write_text(yaml.safe_dump(asked | {"axes": {"measure.seeds": ["seeds.jsonl", "more.jsonl"]}}))
    said = ["sweep", "mine.yaml", "--json", f"--seeds={here}/seeds.jsonl", "--task", "chats.jsonl", "--data", "rows"]
    said += ["--set", "measure.seeds=more.jsonl", "--rank", "8,16", "--name", "rows", "--store", "/mnt/store"]
    words = verbs.pack(said, there)
    plain = ["sweep", "--json", "--task", "--data", "--set", "--rank", "8,16"]
    plain += ["--name", "rows", "--store", "/mnt/store"]
    assert [word for word in words if "/" not in word or word == "/mnt/store"] == plain
    assert (there / words[1]).name == "mine.yaml"
    assert (there / words[3].removeprefix("--seeds=")).read_text() == "seeds.jsonl"
    assert (there / words[5]).read_text() == "chats.jsonl"
    assert sorted(path.name for path in (there / words[7]).iterdir()) == ["test.jsonl", "train.jsonl"]
    assert (there / words[9].removeprefix("measure.seeds=")).read_text() == "more.jsonl"
    sent = yaml.safe_load((there / words[1]).read_text())
    assert sent["recipe"]["task"] == {"name": "gsm8k", "data": words[7]}
    assert [(there / seeds).read_text() for seeds in sent["axes"]["measure.seeds"]] == ["seeds.jsonl", "more.jsonl"]
    assert sent["lr"] == ["1e-3"]
    assert verbs.pack(said, tmp_path / "again") == words
    (here / "more.jsonl").write_text("other rows")
    changed = verbs.pack(said, tmp_path / "changed")
    assert [changed[at] == words[at] for at in (1, 3, 5, 7, 9)] == [False, True, True, True, False]


def test_what_is_not_here_is_a_path_of_the_cluster(tmp_path):
    said = ["run", "/mnt/pkt/mine.yaml", "--data", "/mnt/pkt/rows", "--teacher", "/mnt/models/llama", "--out", "/mnt/x"]
    assert verbs.pack(said, tmp_path / "there") == said
    assert not (tmp_path / "there").exists()


def test_what_would_be_lost_or_missing_or_is_too_much_is_said_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert verbs.pack(["sweep", "--store", "s3://lab/pkt"], tmp_path / "there") == ["sweep", "--store", "s3://lab/pkt"]
    with pytest.raises(UserError, match="store: results would go with the job's folder"):
        verbs.pack(["sweep", "--store", "results"], tmp_path / "there")
    (tmp_path / "llama").mkdir()
    with pytest.raises(UserError, match="teacher: llama is a folder here"):
        verbs.pack(["sweep", "--teacher=llama"], tmp_path / "there")
    with pytest.raises(UserError, match="judge-model: llama is a folder here"):
        verbs.pack(["sweep", "--judge-model", "llama"], tmp_path / "there")
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"recipe": {"task": {"name": "alpaca", "judge_model": "llama"}}})
    )
    with pytest.raises(UserError, match="judge_model: llama is a folder here"):
        verbs.pack(["sweep", "mine.yaml"], tmp_path / "there")
    with open("big.jsonl", "wb") as big:
        big.truncate(200 * 2**20)
    with pytest.raises(UserError, match="come to 200 MiB, a Ray job takes 100; put them on the cluster's shared"):
        verbs.pack(["sweep", "--seeds", "big.jsonl"], tmp_path / "there")
