"""A judge behind a real HTTP server that is slow, refuses, breaks off, babbles or dies: what is made of it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainings import recipe

from orchestrator.errors import UserError
from orchestrator.pipeline import evaluate_step
from orchestrator.prepare.ready import prepare
from orchestrator.scoring import preference
from orchestrator.scoring.preference import Endpoint, Pair, Preferences, length_controlled, said
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.tasks import metric

Answer = Callable[[str, int], tuple[int, dict[str, str], str]]  # prompt, how often it came → status, headers, body


class Server:
    """OpenAI's protocol, as far as a judge needs it: `answer` says what comes back."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.headers: list[str] = []
        self.answer: Answer = lambda prompt, _: reply("1")
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                asked = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                prompt = asked["messages"][0]["content"]
                with lock:
                    self.seen[prompt] += 1
                    self.headers.append(handler.headers["Authorization"])
                    count = self.seen[prompt]
                status, headers, body = self.answer(prompt, count)
                handler.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    handler.send_header(name, value)
                handler.send_header("Content-Length", str(len(body.encode())))
                handler.end_headers()
                handler.wfile.write(body.encode())

            def log_message(handler, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def reply(text: str) -> tuple[int, dict[str, str], str]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return (
        200,
        {},
        json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}),
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    preference._client.cache_clear()
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    made = Server()
    yield made
    made.stop()


def pairs(count: int = 10) -> list[Pair]:
    return [Pair(f"p{n}", f"Say {n}", f"own {n}", f"reference {n}") for n in range(count)]


def first_is_own(prompt: str) -> bool:
    return "### Answer 1\nown" in prompt


def test_both_orders_are_asked_and_a_place_is_no_merit(server: Server, tmp_path: Path) -> None:
    """A judge that likes whatever comes first is even; one that likes what is said is counted whole."""
    kept = Preferences(Endpoint(server.url, "m"), tmp_path / "a")
    assert kept.scores(pairs()) == [0.5] * 10
    assert len(server.seen) == 20 and set(server.seen.values()) == {1}
    assert set(server.headers) == {"Bearer sesame"}
    number = re.compile(r"own (\d+)")

    def by_content(prompt: str, _: int) -> tuple[int, dict[str, str], str]:
        n = int(number.search(prompt)[1])  # type: ignore[index]
        if n % 3 == 2:
            return reply("0")
        return reply("1" if first_is_own(prompt) == (n % 3 == 0) else "2")

    server.answer = by_content
    told = Preferences(Endpoint(server.url, "m"), tmp_path / "b").scores(pairs())
    assert told == [{0: 1.0, 1: 0.0, 2: 0.5}[n % 3] for n in range(10)]


def test_nothing_is_asked_twice_after_a_death(server: Server, tmp_path: Path) -> None:
    """Half of it judged, half a line at the end; another answer to the same question is another pair."""
    first = Preferences(Endpoint(server.url, "m"), tmp_path / "j")
    whole = first.scores(pairs())
    lines = [line for line in (tmp_path / "j").read_text().split("\n") if line]
    (tmp_path / "j").write_text("\n".join(lines[:12]) + '\n{"id": "p9", "or')
    server.seen.clear()
    again = Preferences(Endpoint(server.url, "m"), tmp_path / "j")
    assert again.scores(pairs()) == whole
    assert sum(server.seen.values()) == 8
    server.seen.clear()
    assert Preferences(Endpoint(server.url, "m"), tmp_path / "j").scores(pairs()) == whole
    assert not server.seen
    other = [pairs()[0]._replace(answer="own otherwise")]
    Preferences(Endpoint(server.url, "m"), tmp_path / "j").scores(other)
    assert sum(server.seen.values()) == 2


def test_a_server_that_limits_fails_and_is_slow_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 with and without a time to wait, 500, 503, a reply later than the limit: each asked again, until it comes."""
    monkeypatch.setattr(preference, "SECONDS", 0.5)

    def faults(prompt: str, count: int) -> tuple[int, dict[str, str], str]:
        n = int(re.findall(r"own (\d+)", prompt)[0])
        if count > 1:
            return reply("1" if first_is_own(prompt) else "2")
        if n == 3:
            time.sleep(1.0)
        return [(429, {"Retry-After": "1"}, "{}"), (429, {}, "{}"), (500, {}, "oops"), (503, {}, "")][n % 4]

    server.answer = faults
    assert Preferences(Endpoint(server.url, "m"), tmp_path / "j").scores(pairs(4)) == [1.0] * 4
    assert set(server.seen.values()) == {2}


@pytest.mark.parametrize("body", ["not json", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {}}]}'])
def test_replies_that_are_none_count_as_ties_and_too_many_end_it(server: Server, tmp_path: Path, body: str) -> None:
    """One of forty is told; a server that knows another protocol scores nothing."""
    broken = pairs(20)[7]

    def sometimes(prompt: str, _: int) -> tuple[int, dict[str, str], str]:
        if "own 7\n" in prompt and first_is_own(prompt):
            return 200, {}, body
        return reply("1" if first_is_own(prompt) else "2")

    server.answer = sometimes
    kept = Preferences(Endpoint(server.url, "m"), tmp_path / "j")
    found = kept.scores(pairs(20))
    assert found == [0.75 if pair.id == broken.id else 1.0 for pair in pairs(20)]
    assert kept.unclear(pairs(20)) == 1
    server.answer = lambda *_: (200, {}, body)
    with pytest.raises(UserError, match=r"judge: 20 of 20 replies are no judgment"):
        Preferences(Endpoint(server.url, "m"), tmp_path / "k").scores(pairs())


def test_a_judge_that_babbles_ends_it(server: Server, tmp_path: Path) -> None:
    server.answer = lambda *_: reply("Both are fine, I think: 1 or 2.")
    with pytest.raises(UserError, match="replies are no judgment"):
        Preferences(Endpoint(server.url, "m"), tmp_path / "j").scores(pairs())


def test_a_judge_that_dies_midway_loses_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by its address, without a key; what was judged is there, and the rest is asked of its successor."""
    monkeypatch.setattr(preference, "RETRIES", 0)
    monkeypatch.setattr(preference, "AT_ONCE", 1)
    server.answer = lambda prompt, _: reply("1") if int(re.findall(r"own (\d+)", prompt)[0]) < 5 else (500, {}, "")
    with pytest.raises(
        UserError, match=rf"judge: {re.escape(server.url)} doesn't answer .*what was judged is kept"
    ) as told:
        Preferences(Endpoint(server.url, "m"), tmp_path / "j").scores(pairs())
    assert "sesame" not in str(told.value)
    server.seen.clear()
    server.answer = lambda *_: reply("1")
    Preferences(Endpoint(server.url, "m"), tmp_path / "j").scores(pairs())
    assert sum(server.seen.values()) == 10


def test_a_server_that_isnt_there_or_refuses_the_key_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference, "RETRIES", 0)
    server.answer = lambda *_: (401, {}, '{"error": {"message": "no key"}}')
    with pytest.raises(UserError, match=r"refuses m \(.*\); set OPENAI_API_KEY"):
        Preferences(Endpoint(server.url, "m"), tmp_path / "j").scores(pairs(1))
    preference._client.cache_clear()
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1 doesn't answer \(Connection error"):
        Preferences(Endpoint("http://127.0.0.1:9/v1", "m"), tmp_path / "j").scores(pairs(1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), (" 2.\n", 2), ("0", 0), ("**1**", 1), ("Answer 2", 2), ("1 1", 1), ("1 or 2", None), ("", None),
     ("12", None), ("3", None), ("1.5", None), ("one", None)],
)  # fmt: skip
def test_what_is_a_judgment(text: str, expected: int | None) -> None:
    assert said(text) == expected


def test_length_control_takes_out_what_length_alone_brings() -> None:
    """Simulated judges: of answers that are as good but longer, one that likes length is brought back to even."""
    draw = np.random.default_rng(0)
    lengths = draw.normal(120, 100, 3000).clip(-200, 500).astype(int)
    made = [Pair(str(n), "", "x" * (500 + length), "y" * 500) for n, length in enumerate(lengths)]
    likes = 1 / (1 + np.exp(-2.5 * np.tanh(lengths / lengths.std())))
    scores = (draw.random(3000) < likes).astype(float)
    assert scores.mean() > 0.7
    assert length_controlled(scores, made) == pytest.approx(0.5, abs=0.05)
    better = (draw.random(3000) < 0.7).astype(float)
    assert length_controlled(better, made) == pytest.approx(0.7, abs=0.05)
    assert 0.9 < length_controlled([1.0] * 50, made[:50]) <= 1.0


def test_a_models_answers_are_judged_and_kept_for_others(
    server: Server, demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole step, with a judge and without: scores by hand from what the server was shown, outputs either way."""
    monkeypatch.setattr(metric, "NEW", 12)  # the demo's context is short
    rows = tmp_path / "own.jsonl"
    chats = [
        {"id": f"c{n}", "messages": [{"role": "user", "content": f"Backwards: ab{n}"},
                                     {"role": "assistant", "content": f"{n}ba"}]} for n in range(30)
    ]  # fmt: skip
    rows.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    server.answer = lambda prompt, _: reply(str(1 + len(prompt) % 2))
    told = {}
    for name, judge in (("judged", {"judge": server.url, "judge_model": "m"}), ("alone", {})):
        one = recipe("lora", task={"name": str(rows), "metric": "win_rate", **judge}, evaluate={"examples": 6})
        folder = materialise(evaluate_step(one, prepare(one), "test"), Store(tmp_path / name))
        lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
        kept = json.loads((folder / "outputs.json").read_text())
        told[name] = lines, kept, json.loads((folder / "metrics.json").read_text())
    lines, kept, metrics = told["judged"]
    assert sum(server.seen.values()) == 12
    assert [one["output"] for one in kept] == [line["output"].strip() for line in lines] == [
        one["output"] for one in told["alone"][1]
    ]  # fmt: skip
    for line, one in zip(lines, kept, strict=True):
        orders = [preference.PROMPT.format(instruction=one["instruction"], first=first, second=second)
                  for first, second in ((one["output"], line["gold"]), (line["gold"], one["output"]))]  # fmt: skip
        assert all(prompt in server.seen for prompt in orders)
        by_hand = ((len(orders[0]) % 2 == 0) + (len(orders[1]) % 2 == 1)) / 2
        assert line["score"] == by_hand
    assert metrics["metric"] == "win_rate,judge" and metrics["unclear"] == 0
    assert 0 < metrics["length_controlled"] < 1
    alone = told["alone"][2]
    assert alone["metric"] == "loss,outputs" and "length_controlled" not in alone
    assert alone["score"] == pytest.approx(-alone["loss"])


def test_another_judge_is_another_score_and_its_address_is_not(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric, "NEW", 12)
    rows = tmp_path / "own.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats = [{"messages": [{**turns[0], "content": f"{number}"}, turns[1]]} for number in range(20)]
    rows.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    names = []
    for url, model in (("http://a/v1", "m"), ("http://b/v1", "m"), ("http://a/v1", "n")):
        one = recipe("lora", task={"name": str(rows), "metric": "win_rate", "judge": url, "judge_model": model})
        names.append(evaluate_step(one, prepare(one), "test").fingerprint)
    assert names[0] == names[1] != names[2]
