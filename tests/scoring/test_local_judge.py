"""A checkpoint as the judge says what transformers' `generate` does; nothing is asked twice, no two are loaded."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import Call
from test_bad_input import pkt as pkt
from tiny import saved
from tokenizers_of_all_kinds import chat_tokenizer
from trainings import recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.cluster.ranks import Placement
from orchestrator.errors import UserError
from orchestrator.models import borrowed
from orchestrator.models.loading import load, resolve
from orchestrator.pipeline import evaluate_step, finetune_step
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Sweep
from orchestrator.scoring import local_judge, preference
from orchestrator.scoring.local_judge import Local, first_line, questions
from orchestrator.scoring.preference import PROMPT, Pair, Preferences, Told, said
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete
from orchestrator.sweep.sweep import Plan
from orchestrator.tasks import metric
from orchestrator.teacher import teacher_pass

CHAT = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
END = 63  # the dimension of the hidden states that says: the turn has ended


@torch.no_grad()
def made(folder: Path, words: str = "012", *, seed: int = 1, template: str | None = None) -> str:
    """A judge on the spot: says one of `words`, by all that it is asked, and ends its turn.

    Its layers are random, and livelier than at a training's start. One dimension belongs to the words that it has said,
    and to the end of the turn; the words' rows of the head sum to nothing, so that one of them is always the likeliest.
    """
    model = saved(folder, "llama", seed, vocab_size=104, max_position_embeddings=1024)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(list(words))
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.copy_(torch.randn(weight.shape, generator=draw) * (3 / weight.shape[1] ** 0.5))
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[END] = 0
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    table[:, END] = 0
    table[ids, END] = 50
    rows = head[ids] - head[ids].mean(0)
    seen = [
        tokenizer(prompt, return_tensors="pt", verbose=False).input_ids for one in pairs(6) for prompt in orders(one)
    ]
    usual = torch.stack([model.model(one).last_hidden_state[0, -1] for one in seen]).mean(0)
    rows -= torch.outer(rows @ usual, usual) / usual.dot(usual)
    head.zero_()
    head[ids] = rows
    head[:, END] = 0
    head[tokenizer.eos_token_id, END] = 100
    model.save_pretrained(folder)
    if template:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return str(folder)


def pairs(count: int = 12) -> list[Pair]:
    words = [chr(97 + n % 26) * (3 + 5 * n % 17) for n in range(3 * count)]
    return [Pair(f"p{n}", f"Say {words[n]}", words[n + count], words[n + 2 * count]) for n in range(count)]


def orders(pair: Pair) -> list[str]:
    both = (pair.answer, pair.reference), (pair.reference, pair.answer)
    return [PROMPT.format(instruction=pair.instruction, first=one, second=other) for one, other in both]


@torch.no_grad()
def by_transformers(folder: str, prompts: Sequence[str]) -> list[int | None]:
    """One at a time, by plain transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        if tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        else:
            ids = tokenizer(f"<|user|>\n{prompt}\n\n<|assistant|>\n", return_tensors="pt")
        asked = ids["input_ids"]
        told = model.generate(
            asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=8, pad_token_id=0
        )
        found.append(said(tokenizer.decode(told[0, asked.shape[1] :], skip_special_tokens=True)))
    return found


def points(told: Sequence[int | None]) -> list[float]:
    """By hand: what the answer has of both orders, as they were asked."""
    first = [{1: 1.0, 2: 0.0}.get(one, 0.5) for one in told[::2]]  # type: ignore[call-overload]
    second = [{1: 0.0, 2: 1.0}.get(one, 0.5) for one in told[1::2]]  # type: ignore[call-overload]
    return [(one + other) / 2 for one, other in zip(first, second, strict=True)]


@dataclass
class Counted:
    """A judge, and what it was asked; ended after `most` replies."""

    judge: Local
    seen: list[str] = field(default_factory=list)
    most: int = 10**6

    def __call__(self, prompts: Sequence[str], told: Told) -> None:
        self.seen += prompts
        replies = 0

        def heard(place: int, text: str) -> None:
            nonlocal replies
            if (replies := replies + 1) > self.most:
                raise KeyboardInterrupt
            told(place, text)

        self.judge(prompts, heard)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Folders of the models that are loaded, as they are, and how many of those before are still there."""
    found: list[tuple[str, int]] = []
    there: list[Any] = []

    def noted(folder: str, **how: Any) -> Any:
        found.append((folder, sum(one() is not None for one in there)))
        model = load(folder, **how)
        there.append(weakref.ref(model))
        return model

    monkeypatch.setattr(borrowed, "_kept", {})
    monkeypatch.setattr(borrowed, "load", noted)
    monkeypatch.setattr(local_judge, "load", noted)
    monkeypatch.setattr(teacher_pass, "load", noted)
    return found


@pytest.mark.parametrize("template", [None, CHAT])
def test_judgments_are_those_of_generate_in_both_orders(tmp_path: Path, template: str | None) -> None:
    folder = made(tmp_path / "judge", template=template)
    judge = Counted(Local(folder, "float32", tmp_path))
    kept = Preferences(judge, tmp_path / "judged")
    found = kept.scores(pairs())
    asked = [prompt for pair in pairs() for prompt in orders(pair)]
    assert judge.seen == asked
    expected = by_transformers(folder, asked)
    assert {0, 1, 2} == {*expected}  # else equal ones would prove little
    assert found == points(expected)
    assert kept.unclear(pairs()) == 0


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("room")
def test_another_process_says_the_same(tmp_path: Path) -> None:
    """As beside a teacher on several ranks: one of them judges."""
    folder = made(tmp_path / "judge")
    here, there = (
        Preferences(Local(folder, "float32", tmp_path, where), tmp_path / name).scores(pairs(5))
        for name, where in (("here", Placement(1, here=True)), ("there", Placement(2)))
    )
    assert here == there and len({*here}) > 1


def test_nothing_is_asked_or_loaded_again_after_a_death(tmp_path: Path, loads: list[tuple[str, int]]) -> None:
    """Ended midway and in the middle of a line, and once more when all is judged; then with one other answer."""
    folder, kept = made(tmp_path / "judge"), tmp_path / "judged"
    judge = Local(folder, "float32", tmp_path)
    whole = Preferences(judge, tmp_path / "whole").scores(pairs())
    loads.clear()
    with pytest.raises(KeyboardInterrupt):
        Preferences(Counted(judge, most=15), kept).scores(pairs())
    lines = [line for line in kept.read_text().split("\n") if line]
    assert len(lines) == 15 and len(loads) == 1
    with kept.open("a") as file:
        file.write('\n{"id": "')
    again = Counted(judge)
    assert Preferences(again, kept).scores(pairs()) == whole
    assert len(again.seen) == 9 and len(loads) == 2
    done = {(one["id"], one["order"]) for one in map(json.loads, lines)}
    left = {(preference._key(one), order) for one in pairs() for order in ("own first", "own second")} - done
    texts = {(preference._key(one), order): text for one in pairs()
             for order, text in zip(("own first", "own second"), orders(one), strict=True)}  # fmt: skip
    assert sorted(again.seen) == sorted(texts[key] for key in left)
    assert Preferences(again, kept).scores(pairs()) == whole
    assert len(again.seen) == 9 and len(loads) == 2
    other = pairs()[0]._replace(answer="something else")
    Preferences(again, kept).scores([other, *pairs()[1:]])
    assert again.seen[9:] == orders(other) and len(loads) == 3


def test_nonsense_is_no_judgment_and_costs_neither_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said once, since it would be said again; all of it ends the scoring, and where that is allowed all are ties."""
    folder = made(tmp_path / "judge", "xyz")
    judge = Counted(Local(folder, "float32", tmp_path))
    with pytest.raises(UserError, match=r"judge: 24 of 24 replies are no judgment \(0, 1 or 2\); take another judge"):
        Preferences(judge, tmp_path / "judged").scores(pairs())
    monkeypatch.setattr(preference, "UNCLEAR", 1.0)
    kept = Preferences(judge, tmp_path / "judged")
    assert kept.scores(pairs()) == [0.5] * 12 and kept.unclear(pairs()) == 24
    assert len(judge.seen) == 24


def test_a_pair_without_room_is_no_judgment(tmp_path: Path) -> None:
    """One of forty: it counts as a tie and is told, and the others are judged."""
    folder = made(tmp_path / "judge")
    some = [*pairs(39), Pair("long", "Say it", "x" * 600, "y" * 600)]
    kept = Preferences(Local(folder, "float32", tmp_path), tmp_path / "judged")
    found = kept.scores(some)
    assert found[:-1] == points(by_transformers(folder, [prompt for pair in some[:-1] for prompt in orders(pair)]))
    assert found[-1] == 0.5 and kept.unclear(some) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1\n2\n0", 1), ("\n\n 2 \n\n<|user|>\n1", 2), ("Answer 1\nAnswer 2", 1), ("1 or 2\n1", None), ("\n", None)],
)
def test_what_follows_the_first_line_is_no_verdict(text: str, expected: int | None) -> None:
    assert said(first_line(text)) == expected


def test_a_model_that_may_think_is_told_not_to() -> None:
    """By the switch that Qwen 3's template has; a template without one has nothing to switch."""
    thinks = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    for template, end in ((CHAT, "[assistant] "), (CHAT + thinks, "[assistant] <think></think>")):
        tokenizer = chat_tokenizer(template, bos=False)
        (ids,), ends = questions(["Which?"], tokenizer)
        assert tokenizer.decode(ids) == f"[user] Which?</s>\n{end}"
        assert ends == [tokenizer.eos_token_id]


# The whole step


def chats(path: Path, count: int = 30) -> str:
    """A file of chats whose questions the demo's student has room for."""
    rows = [
        {"id": f"c{n}", "messages": [{"role": "user", "content": f"Backwards: ab{n}"},
                                     {"role": "assistant", "content": f"{n}ba" * (1 + n % 4)}]} for n in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_step_judges_once_the_student_is_gone(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[tuple[str, int]]
) -> None:
    """A student with an adapter, and the teacher: scores by hand from the outputs, and never two models at once."""
    monkeypatch.setattr(metric, "NEW", 12)  # the demo's context is short
    folder, store = made(tmp_path / "judge"), Store(tmp_path / "store")
    task = {"name": chats(tmp_path / "own.jsonl"), "metric": "win_rate", "judge_model": folder}
    one = recipe("lora", task=task, evaluate={"examples": 6}, finetune={"examples": 8, "epochs": 1})
    ready = prepare(one)
    trained = evaluate_step(one, ready, "test", adapter=finetune_step(one, ready))
    for step, model in ((trained, "demo-student"), (evaluate_step(one, ready, "test", "teacher"), "demo-teacher")):
        assert step.config["judge"] == {
            "model": resolve(folder, "judge-model").sha256, "dtype": "float32", "asked": preference.ASKED,
        }  # fmt: skip
        made_at = materialise(step, store)
        lines = [json.loads(line) for line in (made_at / "examples.jsonl").read_text().splitlines()]
        kept = json.loads((made_at / "outputs.json").read_text())
        both = [
            Pair("", one["instruction"], one["output"], line["gold"]) for one, line in zip(kept, lines, strict=True)
        ]
        expected = points(by_transformers(folder, [prompt for pair in both for prompt in orders(pair)]))
        assert [line["score"] for line in lines] == expected and len({*expected}) > 1
        figures = json.loads((made_at / "metrics.json").read_text())
        assert figures["metric"] == "win_rate,judge" and figures["unclear"] == 0
        assert 0 < figures["length_controlled"] < 1
        assert loads == [(str(demo_models[model]), 0), (folder, 0)] and not borrowed._kept
        loads.clear()


def test_another_judge_is_another_result_wherever_it_lies(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the checkpoint holds; and a sweep asks the same one of all that it scores by this task."""
    monkeypatch.setattr(metric, "NEW", 12)
    rows = chats(tmp_path / "own.jsonl")
    folders = [made(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    names = []
    for folder in folders:
        one = recipe("lora", task={"name": rows, "metric": "win_rate", "judge_model": folder})
        names.append(evaluate_step(one, prepare(one), "test").fingerprint)
    assert names[0] == names[1] != names[2]
    sweep = {
        "recipe": {"task": "demo", "finetune": {"examples": 8}, "evaluate": {"examples": 6}},
        "axes": {"arm": ["lora"], "rank": [4]},
        "tasks": [{"name": rows, "metric": "win_rate", "judge_model": folders[2]}],
    }
    plan = Plan.of(Sweep.model_validate(complete(sweep)))
    sha = resolve(folders[2], "judge-model").sha256
    for cell in (*plan.cells, *plan.references):
        scored = cell.trial(plan.ready, "test", lr=1, seed=0, stage="trial")
        assert "judge" not in scored.step.config
        assert [one.step.config["judge"]["model"] for one in scored.after] == ([sha] if scored.after else [])
        assert [one.step.where["judge_at"] for one in scored.after] == ([folders[2]] if scored.after else [])
    assert any(cell.trial(plan.ready, "test", lr=1, seed=0, stage="trial").after for cell in plan.cells)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (
            "llama9",
            "judge-model: 'llama9' is no alias (see `pkt models`), no folder and no hub id of the form ORG/NAME",
        ),
        ("empty", "judge-model: {}/empty has no config.json; give a folder saved with save_pretrained"),
        ("demo-student", "judge-model: demo-student reads 128 tokens, and the question alone has"),
        ("endless", "judge-model: {}/endless can't be asked (template: the chat template ends an assistant's turn"),
    ],
)
def test_a_judge_that_can_not_be_is_told_before_any_work(
    pkt: Call, demo_models: dict[str, Path], tmp_path: Path, judge: str, message: str
) -> None:
    chats(tmp_path / "own.jsonl")
    (tmp_path / "empty").mkdir()
    if judge == "endless":
        made(tmp_path / judge, template="{% for turn in messages %}{{ turn.content }}. {% endfor %}")
    before = sorted(tmp_path.iterdir())
    name = str(tmp_path / judge) if (tmp_path / judge).is_dir() else judge
    words = ["--task", "own.jsonl", "--metric", "win_rate", "--judge-model", name, "--force"]
    code, out, err = pkt("sweep", *words)
    assert (code, out) == (2, "")
    assert message.format(tmp_path) in err and len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
