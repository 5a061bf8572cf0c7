"""An edit's figures against plain transformers and PEFT, a prompt at a time, and against numpy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from trainings import recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.errors import UserError
from orchestrator.pipeline import evaluate_step, trial
from orchestrator.prepare.ready import Ready, prepare
from orchestrator.recipe import Recipe
from orchestrator.scoring import budgets
from orchestrator.scoring.edits import fluency
from orchestrator.scoring.evaluate import SAID
from orchestrator.scoring.judge import Item, check
from orchestrator.step import Step, lacking, materialise
from orchestrator.store import Store
from orchestrator.tasks.knowedit import METRIC

WORDS = ["kdm", "abcd", "xyzzy", "pq", "rstu", "mnop", "lk", "hgfe", "vw", "zzz", "cab"]


def edit(word: str) -> dict[str, Any]:
    """A word is to be said forwards; others backwards, as before."""
    other = word[::-1] + "e"
    found: dict[str, Any] = {"prompt": f"Backwards: {word}", "target_new": word}
    if word not in ("pq", "lk"):
        found["rephrase_prompt"] = f"Backward: {word}"
        found["portability"] = {
            "Reasoning": [{"prompt": f"Twice: {word}", "ground_truth": [[word + word, "x"]]}],
            "Subject_Aliasing": [{"prompt": f"Say: {word}", "ground_truth": word}],
        }
    if word != "vw":
        found["locality"] = {
            "Forgetfulness": [{"prompt": f"Backwards: {other}", "ground_truth": [other[::-1]]}],
            "Relation_Specificity": [
                {"prompt": f"Sorted: {other}", "ground_truth": "".join(sorted(other))},
                {"prompt": f"Copy: {other}", "ground_truth": other},
            ],
        }
    return found


def asked(path: Path, lr: float = 2e-2) -> tuple[Recipe, Ready]:
    path.write_text(json.dumps([edit(word) for word in WORDS] + [edit("longerthanthecontexthas")]))
    often = {"examples": 12, "epochs": 12, "batch_size": 4, "dropout": 0.0}
    one = recipe("lora", task={"name": str(path)}, finetune=often, lr=lr)
    return one, prepare(one)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]


class ByHand:
    """The figures of one model, from one plain pass a prompt."""

    def __init__(self, folder: Path, adapter: Path | None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if adapter:
            self.model = PeftModel.from_pretrained(self.model, str(adapter)).eval()

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @torch.no_grad()
    def likeliest(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of the answer, and those that the model finds the likeliest there."""
        before, own = self.ids(f"<|user|>\n{prompt}\n\n<|assistant|>\n"), self.ids(answer)
        best = self.model(torch.tensor([before + own])).logits[0].argmax(-1).tolist()
        return own, best[len(before) - 1 : -1]

    def right(self, prompt: str, answer: str) -> float:
        own, best = self.likeliest(prompt, answer)
        return float(np.mean(np.equal(own, best)))

    @torch.no_grad()
    def fluency(self, prompt: str) -> float:
        before = torch.tensor([self.ids(f"<|user|>\n{prompt}\n\n<|assistant|>\n")])
        made = self.model.generate(
            input_ids=before, attention_mask=torch.ones_like(before), max_new_tokens=100, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        row = [one for one in made[0, before.shape[1] :].tolist() if one not in self.tokenizer.all_special_ids]
        return by_numpy(row)


def by_numpy(ids: list[int]) -> float:
    weighted = []
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = np.array(list(Counter(tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)).values()))
        share = counts / counts.sum() if len(counts) else counts
        weighted.append(weight * float(-(share * np.log2(share)).sum()))
    return float(np.mean(weighted))


def expected(row: dict[str, Any], now: ByHand, before: ByHand) -> tuple[float, dict[str, float]]:
    """The score and what is told beside it."""
    found: dict[str, list[float]] = {}
    for kind, prompt in (("prompt", row["prompt"]), ("rephrase", row.get("rephrase_prompt"))):
        if prompt:
            share = now.right(prompt, row["target_new"])
            found.setdefault("success", []).append(share)
            found.setdefault(f"success.{kind}", []).append(share)
    for of in ("portability", "locality"):
        for kind, some in row.get(of, {}).items():
            for one in some:
                answer = one["ground_truth"]
                while isinstance(answer, list):
                    answer = answer[0]
                share = now.right(one["prompt"], answer)
                if of == "locality":
                    both = [model.likeliest(one["prompt"], answer)[1] for model in (now, before)]
                    share = float(np.mean(np.equal(*both)))
                found.setdefault(of, []).append(share)
                found.setdefault(f"{of}.{kind}", []).append(share)
    also = {name: float(np.mean(shares)) for name, shares in found.items()}
    return also.pop("success"), also | {"fluency": now.fluency(row["prompt"])}


def adapter_of(step: Step, store: Store) -> Path:
    found = store.find("finetune", step.inputs["adapter"].fingerprint)
    assert found
    return found


def test_the_figures_are_those_of_a_prompt_at_a_time(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Of the untouched student and of one that has learnt the edits; means are over the edits that have the figure."""
    one, ready = asked(tmp_path / "edits.json")
    step, store = trial(one, ready, "test"), Store(tmp_path / "store")
    trained = materialise(step, store)
    untouched = store.find("evaluate", step.inputs["untouched"].fingerprint)
    assert untouched
    rows = {row["prompt"]: row for row in json.loads((tmp_path / "edits.json").read_text())}
    prompts = {f"edit_{number}": prompt for number, prompt in enumerate(rows, 1)}
    before = ByHand(demo_models["demo-student"], None)
    after = ByHand(demo_models["demo-student"], adapter_of(step, store))
    assert "edit_12" not in {row.id for row in ready.splits["validation"]}  # the draw is fixed
    for folder, model in ((untouched, before), (trained, after)):
        told = lines(folder)
        assert [line["id"] for line in told] == [row.id for row in ready.splits["test"]]
        by_hand = {
            line["id"]: expected(rows[prompts[line["id"]]], model, before) for line in told if line["id"] != "edit_12"
        }
        for line in told[:-1]:
            score, also = by_hand[line["id"]]
            assert line["score"] == pytest.approx(score)
            assert line["also"] == pytest.approx(also)
        assert (told[-1]["id"], told[-1]["score"], told[-1].get("also")) == ("edit_12", 0.0, None)  # no room
        figures = json.loads((folder / "metrics.json").read_text())
        assert (figures["not_asked"], figures["cut"], figures["metric"]) == (1, 0, "edit_success,teacher-forced")
        assert figures["score"] == pytest.approx(sum(score for score, _ in by_hand.values()) / len(told))
        for name in {name for _, also in by_hand.values() for name in also}:
            values = [also[name] for _, also in by_hand.values() if name in also]
            assert figures["also"].pop(name) == pytest.approx(np.mean(values))
        assert figures["also"] == {}
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (untouched, trained))
    assert second["score"] > first["score"] + 0.2  # what was learnt shows
    assert first["also"]["locality"] == 1.0 > second["also"]["locality"] > 0


def test_what_learnt_nothing_left_all_as_it_was(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """An adapter that was trained at next to no learning rate, held against the untouched student's own tokens."""
    one, ready = asked(tmp_path / "edits.json", lr=1e-12)
    step, store = trial(one, ready, "test"), Store(tmp_path / "store")
    before = materialise(step.inputs["untouched"], store)
    after = materialise(step, store)
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (before, after)]
    assert figures[1]["also"]["locality"] == 1.0
    assert figures[1]["also"] == pytest.approx(figures[0]["also"])
    kept = lines(before)
    for line in kept[:-1]:
        line["likeliest"] = [[*tokens[:-1], tokens[-1] + 1] for tokens in line.get("likeliest", ())]
    (before / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    store.remove(step.name, step.fingerprint)
    again = materialise(step, store)  # against what the untouched one is said to have found: no longer its own
    assert json.loads((again / "metrics.json").read_text())["also"]["locality"] < 0.9


def test_the_untouched_model_is_scored_once_for_all(demo_models: dict[str, Path], tmp_path: Path) -> None:
    """Its evaluation is the one that a sweep makes of it anyway, and what trials wait for in common."""
    one, ready = asked(tmp_path / "edits.json")
    trials = [trial(one.model_copy(update={"seed": seed}), ready, "test") for seed in (0, 1)]
    own = evaluate_step(one, ready, "test")
    assert {step.inputs["untouched"].fingerprint for step in trials} == {own.fingerprint}
    assert "untouched" not in own.inputs
    assert [step.fingerprint for step in lacking(trials[0], Store(tmp_path / "store"))] == [own.fingerprint]
    plain = recipe("lora")
    assert "untouched" not in trial(plain, prepare(plain), "test").inputs


def test_an_evaluation_that_was_ended_goes_on(
    demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same lines; what was continued before is seen, by a kept text that the model would not write."""
    monkeypatch.setattr(budgets, "TURN", 1)
    monkeypatch.setattr(budgets, "ROWS", 3)
    one, ready = asked(tmp_path / "edits.json")
    step, whole, again = evaluate_step(one, ready, "test"), Store(tmp_path / "whole"), Store(tmp_path / "again")
    right = lines(materialise(step, whole))

    def ended(some: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        yield from islice(some, 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise(step, again, ended)
    (path,) = again.root.glob(f"**/{SAID}")
    said = [json.loads(line) for line in path.read_text().split("\n") if line]
    kept = next(line for line in said if line["asked"])
    kept["text"] = "something else"
    path.write_text("".join(f"\n{json.dumps(line)}" for line in said) + '\n{"id": "edit_2", "te')
    found = lines(materialise(step, again))
    changed = [row["id"] for row, other in zip(found, right, strict=True) if row["output"] != other["output"]]
    assert changed == [kept["id"]]
    same = ("score", "also", "likeliest", "loss")
    assert [[row.get(name) for name in same] for row in found] == [[row.get(name) for name in same] for row in right]


@given(st.lists(st.integers(0, 4), max_size=100))
def test_fluency_is_the_weighted_entropy_of_bigrams_and_trigrams(ids: list[int]) -> None:
    assert fluency(ids) == pytest.approx(by_numpy(ids), abs=1e-12)


def test_fluency_by_hand() -> None:
    """Eight tokens that differ: seven bigrams and six trigrams, each once. One token over and over: nothing."""
    assert fluency(range(8)) == pytest.approx((2 / 3 * np.log2(7) + 4 / 3 * np.log2(6)) / 2)
    assert (fluency([7] * 100), fluency([1, 2]), fluency([])) == (0.0, 0.0, 0.0)


def test_an_edit_that_leaves_nothing_to_learn_is_told() -> None:
    with pytest.raises(UserError, match="'edit_3' has no token that could be learnt; give another target_new"):
        check([Item("edit_3", "p", "t")], METRIC)
