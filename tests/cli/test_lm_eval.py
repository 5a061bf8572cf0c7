"""lm-eval's own command on an exported task and adapter: the score of the trial, example by example."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from test_bad_input import pkt  # noqa: F401  (a fixture)
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator import pipeline
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Sweep
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete
from orchestrator.tasks.base import Example, Message
from orchestrator.tasks.metric import Metric

Call = Callable[..., tuple[int, str, str]]
SHORT = {"examples": 320, "batch_size": 16, "epochs": 2, "dropout": 0.0}


def of_letters(row: Example) -> Example:
    """The same question with a letter that follows from it as the answer: nobody knows it, and some learn to."""
    letter = "ABCD"[crc32(row.messages[0].content.encode()) % 4]
    return Example(id=row.id, messages=(row.messages[0], Message(role="assistant", content=letter)), answer=letter)


def of_last_two(row: Example) -> Example:
    return row.model_copy(update={"answer": row.answer[-2:]})


def of_several(row: Example) -> Example:
    """The letter alone is right, and half of it after the one before it in the alphabet."""
    before = chr(ord(row.answer) - 1)
    return row.model_copy(update={"references": (row.answer, f"{before} {row.answer}")})


FORMS = ("cut", "padded", "tied")  # of the student: as many rows as tokens, more, and one matrix for both ends
TASKS: dict[str, tuple[Metric, tuple[str, ...], Callable[[Example], Example]]] = {
    "whole": (Metric("exact_match", "whole-answer", max_new_tokens=12), (), lambda row: row),
    "pattern": (Metric("exact_match", "pairs", r"([a-z]{2})", max_new_tokens=9, ignore=("q",)), (), of_last_two),
    "rouge": (
        Metric("rouge_l", "none", max_new_tokens=9, also=("normalized_match",)),
        (),
        lambda row: of_several(of_letters(row)),
    ),
    "choice": (Metric("multiple_choice", "none"), ("A", "B", "C", "D"), of_letters),
}


@pytest.mark.long
@pytest.mark.parametrize(  # each judgement, and of texts and of likelihoods each form: none is judged by the form
    ("kind", "form"),
    [("whole", "cut"), ("pattern", "padded"), ("rouge", "padded"), *(("choice", form) for form in FORMS)],
)
def test_lm_evals_own_command_gives_the_score_of_every_example(
    kind: str,
    form: str,
    pkt: Call,  # noqa: F811
    demo_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    """The adapter on the student, which may be padded or tied: what the command says, from a folder that moved."""
    metric, choices, changed = TASKS[kind]
    student = AutoModelForCausalLM.from_pretrained(demo_models["demo-student"])
    tokenizer = AutoTokenizer.from_pretrained(demo_models["demo-student"])
    if form != "padded":
        student.resize_token_embeddings(len(tokenizer))
    if form == "tied":  # and no language model any more, until it has learnt a little again
        student.config.tie_word_embeddings = True
        student.tie_weights()
    if kind == "whole":
        student.bfloat16()  # where a merged model would round its weights, and some answers with them
    student.generation_config.repetition_penalty = 5.0  # the model's own settings, which no score may follow
    student.generation_config.eos_token_id = 7
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    long = SHORT | {"examples": 576, "dtype": "float32"} if kind == "whole" else SHORT  # else near ties fall by the CPU
    fields = {"student": "./student", "arm": "lora", "rank": 8, "lr": 2e-2, "finetune": long}
    recipe = Sweep.model_validate(complete({"recipe": fields | {"evaluate": {"examples": 60}}})).recipe
    ready = prepare(recipe)
    splits = {name: [changed(row) for row in rows] for name, rows in ready.splits.items()}
    ready = replace(ready, task=replace(ready.task, metric=metric, choices=choices), splits=splits)
    store, step = Store(tmp_path / "kept"), pipeline.trial(recipe, ready, "test")
    folder = materialise(step, store)
    trained = store.find("finetune", step.inputs["adapter"].fingerprint)
    code, out, err = pkt("export", str(trained), "--lm-eval", "task dir", "--lora", "lora", "--json")
    assert code == 0, err
    told = json.loads(out)["written"]["lm_eval"]
    assert "peft=lora" in told["command"]
    assert (tmp_path / "task dir/tokenizer").exists() == (form == "padded")
    assert (tmp_path / "task dir/student").exists() == (form == "tied")
    figures = json.loads((folder / "metrics.json").read_text())
    assert 0 < figures["score"] < 1
    assert told["score"] == figures["score"]
    if kind == "whole":  # six letters and the end: more can't be right, and would only cost time
        assert "max_gen_toks: 7\n" in (tmp_path / "task dir/task.yaml").read_text()
    (tmp_path / "task dir").rename(tmp_path / "moved")  # to another machine, say
    result, by_task = lm_eval(tmp_path, told["command"].replace("task dir", "moved"))
    samples = by_task[told["task"]]
    name = {
        "whole": "exact_match,whole-answer",
        "pattern": "exact_match,pairs",
        "choice": "acc,none",
        "rouge": "rouge_l,none",
    }[kind]
    assert result[told["task"]][name] == pytest.approx(figures["score"])
    ours = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    assert [sample[name.split(",")[0]] for sample in samples] == [row["score"] for row in ours]
    assert [sample["doc"]["id"] for sample in samples] == [row["id"] for row in ours]
    if kind == "rouge":
        assert result[told["task"]]["normalized_match,none"] == pytest.approx(figures["also"]["normalized_match"])
        assert 0 < figures["also"]["normalized_match"] < figures["score"]


def lm_eval(folder: Path, command: str) -> tuple[Any, dict[str, list[Any]]]:
    """The command as it was told, with its answers kept: the results, and by task the samples in the rows' order."""
    words = shlex.split(command)
    words[0] = str(Path(sys.executable).with_name("lm_eval"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    more = ["--output_path", "answers", "--log_samples"]
    done = subprocess.run([*words, *more], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = folder.glob("answers/**/results_*.json")
    found = {}
    for samples in folder.glob("answers/**/samples_*.jsonl"):
        rows = [json.loads(line) for line in samples.read_text().split("\n") if line]
        name = re.sub(r"^samples_|_[0-9T.-]+$", "", samples.stem)
        found[name] = sorted(rows, key=lambda row: row["doc_id"])
    return json.loads(results.read_text())["results"], found
