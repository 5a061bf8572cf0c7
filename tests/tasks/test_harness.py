"""lm-eval's tasks by their names: what lm-eval itself says to the same rows, by its own model, prompts and judges."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rows import write
from tiny import tiny
from tokenizers_of_all_kinds import byte_level

from orchestrator.errors import UserError
from orchestrator.prepare.rows import find_beside, find_task, template_of
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.scoring.asking import questions
from orchestrator.scoring.engine import said
from orchestrator.scoring.judge import Said, Scored, judge
from orchestrator.tasks.harness import names
from orchestrator.tasks.template import encode, stops

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"
WORDS = ["ducks", "eggs", "day", "lay", "sells", "bread", "crème", "brûlée", "price", "rest", "nine", "rivers"]


def arc(place: int) -> dict[str, Any]:
    labels = "ABCD" if place % 3 else "1234"
    texts = [f"{WORDS[(place + at) % 12]} {WORDS[(place * at + 1) % 12]}"[: 4 + 3 * at] for at in range(4)]
    question = f"Which of {WORDS[place % 12]} is {WORDS[(place * 5) % 12]} number {place}?"
    return {"question": question, "choices": {"text": texts, "label": list(labels)}, "answerKey": labels[place % 4]}


def hellaswag(place: int) -> dict[str, Any]:
    endings = [f"{WORDS[(place * at + 3) % 12]} [title] {WORDS[at]}" for at in range(4)]
    context = {
        "ctx_a": f"A man sells {WORDS[place % 12]}.",
        "ctx_b": f"he {WORDS[place % 5]}",
        "activity_label": "Selling",
    }
    return {**context, "endings": endings, "label": str(place % 4)}


def winogrande(place: int) -> dict[str, Any]:
    options = {"option1": WORDS[place % 12], "option2": WORDS[(place + 5) % 12]}
    return {
        "sentence": f"The {WORDS[place % 7]} beat the rest because _ lay day {place}.",
        "answer": str(place % 2 + 1),
        **options,
    }


def gsm8k(place: int) -> dict[str, Any]:
    return {
        "question": f"Janet has {place} eggs and sells {place // 2}. How many rest?",
        "answer": f"So #### {place - place // 2}",
    }


def nq(place: int) -> dict[str, Any]:
    return {"question": f"what is {WORDS[place % 12]}", "answer": [WORDS[(place + 1) % 12], WORDS[(place + 2) % 12]]}


def lambada(place: int) -> dict[str, Any]:
    return {"text": f"Janet sells {WORDS[place % 12]} and {WORDS[(place + 3) % 12]}, and then {WORDS[place % 5]}"}


MADE: dict[str, Any] = {
    "lambada_openai": lambada,
    "arc_easy": arc,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "gsm8k_cot": gsm8k,
    "nq_open": nq,
}
SPLITS = {"arc_easy": "test", "gsm8k_cot": "test", "lambada_openai": "test"}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", vocab_size=400, max_position_embeddings=8192)


def rows_of(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    for split, first, count in (("train", 100, 30), (SPLITS.get(name, "validation"), 0, 9)):
        write(folder / name / f"{split}.jsonl", [MADE[name](first + at) for at in range(count)])
    return folder / name


def theirs(model: Any, tokenizer: Any, name: str, rows: Path, shots: int | None, chat: bool) -> list[dict[str, Any]]:
    """What `lm_eval run` does: its task, on these rows by its own reader of JSON files."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = {path.stem: str(path) for path in rows.glob("*.jsonl")}
    config: dict[str, Any] = {"include": str(names()[name]), "task": f"own_{name}", "dataset_path": "json"}
    config |= {"dataset_name": None, "dataset_kwargs": {"data_files": files}}
    if name == "gsm8k_cot":
        config["generation_kwargs"] = {"until": ["Q:", "</s>"], "do_sample": False, "max_gen_toks": 12}
    (rows / "own.yaml").write_text(yaml.safe_dump(config))
    network = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=8192)
    found = simple_evaluate(
        network,
        tasks=[f"own_{name}"],
        num_fewshot=shots,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        task_manager=TaskManager(include_defaults=False, include_path=str(rows)),
        bootstrap_iters=0,
    )
    return [one for one in found["samples"][f"own_{name}"] if one["filter"] == found_filter(found, name)]


def found_filter(found: dict[str, Any], name: str) -> str:
    return str(found["samples"][f"own_{name}"][0]["filter"])


def ours(
    model: Any, tokenizer: Any, name: str, rows: Path, shots: int, chat: bool
) -> tuple[list[Scored], list[Said], Any]:
    choice = TaskChoice(name=name, data=str(rows), shots=shots, template="chat" if chat else "plain")
    task, tests = find_beside(choice, choice)
    template = template_of(Recipe(teacher="a", student="b", task=choice), task)
    metric = task.metric if name != "gsm8k_cot" else type(task.metric)(**{**vars(task.metric), "max_new_tokens": 12})
    items, metric = questions(tests, template, tokenizer, metric, task.choices)
    told = {
        at: one for some in said(model, tokenizer, items, metric, stops=stops(template, tokenizer)) for at, one in some
    }
    answers = [told[at] for at in range(len(items))]
    return judge(items, answers, metric), answers, metric


@pytest.mark.parametrize(
    ("name", "shots", "chat"),
    [
        ("arc_easy", 0, False),
        ("arc_easy", 3, False),
        ("arc_easy", 3, True),
        ("hellaswag", 0, False),
        ("winogrande", 0, False),
        ("winogrande", 2, False),
        ("winogrande", 2, True),
        ("gsm8k_cot", 0, False),
        ("gsm8k_cot", 0, True),
        ("nq_open", 0, False),
        ("lambada_openai", 0, False),
        ("lambada_openai", 2, False),
    ],
)
def test_every_figure_is_lm_evals_own(name: str, shots: int, chat: bool, model: Any, tmp_path: Path) -> None:
    tokenizer = deepcopy(byte_level())
    tokenizer.chat_template = CHAT
    rows = rows_of(tmp_path, name)
    scored, answers, metric = ours(model, tokenizer, name, rows, shots, chat)
    found = theirs(model, tokenizer, name, rows, shots or None, chat)
    assert len(found) == len(scored) == 9
    for own, answer, other in zip(scored, answers, sorted(found, key=lambda one: one["doc_id"]), strict=True):
        assert own.score == other[metric.kind]
        assert own.also == {kind: other[kind] for kind in metric.also}
        if metric.writes:
            assert answer.text == other["resps"][0][0]
        else:
            assert answer.logs == pytest.approx([one[0][0] for one in other["resps"]], abs=1e-4)


def test_an_answer_that_is_found_likely_is_right_where_the_model_would_say_it(model: Any, tmp_path: Path) -> None:
    """A model that says one token of " a" after about half of all texts, and the other after the others."""
    tokenizer, rows, sometimes = deepcopy(byte_level()), rows_of(tmp_path, "lambada_openai"), deepcopy(model)
    space, letter = tokenizer(" a", add_special_tokens=False).input_ids
    with torch.no_grad():
        sometimes.lm_head.weight *= 0.01
        sometimes.lm_head.weight[space], sometimes.lm_head.weight[letter] = 1.0, -1.0
    write(rows / "test.jsonl", [{"text": f"Janet sells {WORDS[at]} and lays {WORDS[at - 3]} a"} for at in range(12)])
    scored, _, _ = ours(sometimes, tokenizer, "lambada_openai", rows, 0, False)
    found = theirs(sometimes, tokenizer, "lambada_openai", rows, None, False)
    assert [one.score for one in scored] == [one["acc"] for one in found]
    assert {(one.score, one.answer) for one in scored} == {(1.0, " a"), (0.0, "[another]")}


def test_a_task_with_training_rows_is_split_and_its_answers_are_lm_evals_targets(tmp_path: Path) -> None:
    """Its own splits; what is learnt is the right choice, with the delimiter that lm-eval puts before it."""
    rows, tokenizer = rows_of(tmp_path, "arc_easy"), byte_level()
    task, splits = find_task(TaskChoice(name="arc_easy", data=str(tmp_path)))  # a folder of its name within
    assert {name: len(some) for name, some in splits.items()} == {"seed": 24, "train": 24, "validation": 6, "test": 9}
    made = [json.loads(line) for line in (rows / "test.jsonl").read_text().splitlines()]
    for row, doc in zip(splits["test"], made, strict=True):
        right = doc["choices"]["text"][doc["choices"]["label"].index(doc["answerKey"])]
        assert [one.content for one in row.messages] == [f"Question: {doc['question']}\nAnswer:", f" {right}"]
    one = encode(splits["train"][0], "raw", tokenizer, 500)
    assert (
        tokenizer.decode([label for label in one.labels if label != -100])
        == f"{splits['train'][0].messages[1].content}</s>"
    )
    assert (task.metric.kind, task.metric.also) == ("acc", ("acc_norm",))
    assert find_task(TaskChoice(name="arc_easy", data=str(rows), metric="acc_norm"))[0].metric.also == ("acc",)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("arc_esay", "arc_easy"),
        ("mmlu_stem", "is a group of lm-eval's tasks; name one of mmlu_abstract_algebra, mmlu_anatomy"),
        ("wikitext", "loglikelihood_rolling"),
        ("humaneval_instruct", "runs code outside of any sandbox"),
        ("gsm8k_cot_self_consistency", "draws answers at random"),
        ("arc_challenge", "has no test.jsonl, rows of allenai/ai2_arc that arc_challenge scores"),
        ("hellaswag", "rows lack what lm-eval's hellaswag needs"),
        ("winogrande", "isn't JSON lines of one form"),
        ("piqa", r"validation.jsonl:2 is not a JSON object"),
        ("copa", r"validation.jsonl has no rows"),
        ("gsm8k_cot", "has no rows to train on; score it beside another task with --tasks gsm8k_cot"),
        ("openbookqa", "the hub can't be reached"),
    ],
)
def test_what_cant_be_had_is_told_with_a_remedy(
    name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "validation.jsonl", [{"ctx": "A man"}])
    if name == "winogrande":
        (tmp_path / "validation.jsonl").write_text('{"sentence": "a"}\n{"sentence": {"b": 1}}\n')
    if name == "piqa":
        (tmp_path / "validation.jsonl").write_text('{"goal": "a"}\n[1]\n')
    if name == "copa":
        (tmp_path / "validation.jsonl").write_text("")
    if name == "gsm8k_cot":
        write(tmp_path / "test.jsonl", [gsm8k(1)])
    with pytest.raises(UserError, match=remedy):
        find_task(TaskChoice(name=name, data=None if name == "openbookqa" else str(tmp_path)))
