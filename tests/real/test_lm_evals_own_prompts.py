"""Plain `lm_eval run` on the published rows, with its own prompts, shots, filters and tokens: the same scores.

Its tasks are written here in its own terms, over files that `json` alone made of the rows: nothing of ours is in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval as package
import pytest
import yaml
from rows import raw
from test_lm_eval import lm_eval

from orchestrator.models.loading import load_tokenizer
from orchestrator.prepare.rows import find_task
from orchestrator.recipe import TaskChoice
from orchestrator.scoring.asking import Asked, questions
from orchestrator.scoring.engine import loaded
from orchestrator.scoring.evaluate import judged, put, read_said
from orchestrator.tasks.base import Example
from orchestrator.tasks.template import stops

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("real")]
MODELS = "PKT_REAL_MODELS"  # folders of further real models, between colons
NEW = 48  # tokens of an answer: fewer than a sweep allows, since each costs
SUBJECTS, ROWS = ("abstract_algebra", "virology"), 2  # of each: every choice's likelihood is compared
NUMBER = r"[Tt]he answer is \$?(-?[0-9][0-9,]*(?:\.[0-9]+)?)"
GENERATE = {"output_type": "generate_until", "metric_list": [], "num_fewshot": 0, "target_delimiter": ""}
STRICT = {
    "generation_kwargs": {"until": ["Question:"], "max_gen_toks": NEW, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True,
                     "regexes_to_ignore": [",", "\\$", "\\.$"]}],
    "filter_list": [{"name": "strict-match", "filter": [
        {"function": "regex", "regex_pattern": NUMBER, "group_select": -1},
        {"function": "take_first"},
    ]}],
}  # fmt: skip
LETTERS = {
    "output_type": "multiple_choice", "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer",
    "doc_to_text": "{{lead}}{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\n"
                   "Answer:",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
OWN = "!function official.results"
OFFICIAL = '''
import re, string
from rouge_score import rouge_scorer


def results(doc, said):
    """As the benchmark's compute_metrics.py has them, written anew from its description."""
    def plain(text):
        return " ".join("".join(one for one in text.lower() if one not in set(string.punctuation)).split())

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    (answer,) = said
    right = [plain(answer) == plain(one) for one in doc["references"]]
    return {"em": float(any(right)),
            "rouge": max(scorer.score(target=one, prediction=answer)["rougeL"].fmeasure for one in doc["references"])}
'''


@pytest.fixture(scope="module", params=["smollm2", *filter(None, os.environ.get(MODELS, "").split(":"))])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("smollm") if request.param == "smollm2" else Path(request.param)


def tasks(shared: Path, folder: Path) -> Iterator[tuple[str, str, list[str], dict[str, Any]]]:
    """lm-eval's name, ours, the ids of the rows that are asked, and lm-eval's task of them.

    What stands above a prompt is in its first row (`lead`): a description would be a system's turn.
    """
    gsm8k = raw(shared / "gsm8k/test.jsonl")[:2]
    heading = "Answer the following question.\n\nQuestion: "
    for one in gsm8k:
        one |= {"lead": "", "question": one["messages"][0]["content"].removeprefix(heading)}
    asked = "{{messages[0].content}}"
    yield "zero", "gsm8k", ids(gsm8k), files(folder, "zero", gsm8k) | GENERATE | STRICT | {
        "doc_to_text": asked, "doc_to_target": "{{answer}}",
    }  # fmt: skip
    path = Path(package.__file__).parent / "tasks/gsm8k/gsm8k-cot.yaml"
    samples = [one | {"lead": ""} for one in yaml.safe_load(path.read_text())["fewshot_config"]["samples"]]
    samples[0]["lead"] = "Answer the following questions.\n\n"
    yield "eight", "gsm8k:8", ids(gsm8k), files(folder, "eight", gsm8k) | GENERATE | STRICT | {
        "doc_to_text": "{{lead}}Question: {{question}}",
        "doc_to_target": "{{target if target is defined else answer}}", "num_fewshot": 8,
        "fewshot_config": {"sampler": "first_n", "samples": samples}, "target_delimiter": "\nAnswer: ",
    }  # fmt: skip
    told = [{key: row[key] for key in ("id", "messages", "answer", "references")}
            for row in raw(shared / "super_ni/test.jsonl")[95:100:2]]  # fmt: skip
    (folder / "official.py").write_text(OFFICIAL)
    yield "super", "super_ni", ids(told), files(folder, "super", told) | GENERATE | {
        "doc_to_text": asked, "doc_to_target": "{{answer}}", "process_results": OWN,
        "generation_kwargs": {"until": [], "max_gen_toks": NEW, "do_sample": False},
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("em", "rouge")],
    }  # fmt: skip
    for subject in SUBJECTS:
        heading = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        for shots in (0, 5):
            rows, dev = (
                [row | {"lead": ""} for row in raw(shared / f"mmlu/{split}.jsonl") if row["category"] == subject]
                for split in ("test", "dev")
            )
            for one in dev[:1] if shots else rows:
                one["lead"] = heading
            yield f"{subject}_{shots}", f"mmlu:{shots}" if shots else "mmlu", ids(rows[:ROWS]), (
                files(folder, f"{subject}_{shots}", rows[:ROWS], dev) | LETTERS | {
                    "num_fewshot": shots, "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"},
                }
            )  # fmt: skip


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def files(
    folder: Path, name: str, rows: list[dict[str, Any]], dev: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    found = {}
    for split, some in (("test", rows), ("dev", dev)):
        if some:
            found[split] = str(folder / f"{name}-{split}.jsonl")
            Path(found[split]).write_text("".join(json.dumps(row) + "\n" for row in some))
    return {"dataset_path": "json", "dataset_kwargs": {"data_files": found}, "test_split": "test"}


def test_the_same_scores_from_lm_evals_own_prompts(model: Path, shared: Path, tmp_path: Path) -> None:
    """Example by example, in float32: what is asked, how it is cut into tokens, where it ends and how it is judged."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    made = {name: (ours, asked, config) for name, ours, asked, config in tasks(shared, folder)}
    for name, (_, _, config) in made.items():
        text = yaml.safe_dump({"task": f"own_{name}", **config}, sort_keys=False, allow_unicode=True)
        (folder / f"{name}.yaml").write_text(text.replace("'!function official.results'", "!function official.results"))
    command = f"lm_eval run --model hf --model_args pretrained={model},dtype=float32,softmax_dtype=float32"
    command += f" --tasks {','.join(f'own_{name}' for name in made)} --include_path {folder} --batch_size 4"
    results, samples = lm_eval(tmp_path, f"{command} --apply_chat_template --fewshot_as_multiturn false")
    tokenizer = load_tokenizer(str(model))
    with loaded(str(model), None, dtype="float32") as engine:
        for name, (ours, asked, _) in made.items():
            data = shared / ours.split(":")[0]
            task, splits = find_task(TaskChoice(name=ours, data=str(data)))
            metric = replace(task.metric, max_new_tokens=min(NEW, task.metric.max_new_tokens))
            rows: list[Example] = [row for row in splits["test"] if row.id in asked]
            items, metric = questions(rows, "chat", tokenizer, metric, task.choices)
            told, losses = put(engine, Asked(items, metric, []), stops("chat", tokenizer), tmp_path / f"{name}.said")
            scored = judged(items, told, losses, metric)
            theirs = samples[f"own_{name}"]
            names = {"super": [("rouge", "score"), ("em", "also")]}.get(
                name, [("acc" if metric.kind == "multiple_choice" else "exact_match", "score")]
            )
            for key, field in names:
                own = [one.score if field == "score" else one.also["normalized_match"] for one in scored]
                assert [one[key] for one in theirs] == own, (name, key)
                found = {label.split(",")[0]: value for label, value in results[f"own_{name}"].items()}
                assert found[key] == pytest.approx(sum(own) / len(own), abs=1e-12)
            if metric.kind != "multiple_choice":
                assert [one["resps"][0][0] for one in theirs] == [one.output for one in scored], name
                continue
            said = read_said(tmp_path / f"{name}.said")
            for one in theirs:  # against the first choice: all that they have in common is no choice's
                likely, logs = [float(choice[0][0]) for choice in one["resps"]], said[one["doc"]["id"]].logs
                assert [log - logs[0] for log in logs] == pytest.approx([log - likely[0] for log in likely], abs=2e-4)
