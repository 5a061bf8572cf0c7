"""Scores that compare with published ones, so lm-eval judges them: its filters, and its metrics where it has them.

    scored = judge(items, said, metric)         # said: texts, or the log-likelihood of each choice

What a model says is computed in orchestrator.scoring.engine, on the ids of training.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.errors import UserError
from orchestrator.scoring.figures import FIGURES, code_of
from orchestrator.tasks.harness import judging
from orchestrator.tasks.metric import Metric

OF_LM_EVAL = ("exact_match", "multiple_choice")
NOT_ASKED = "[too long to be asked]"
OTHER = "[another]"  # than the one answer whose likelihood was asked for


class Forced(NamedTuple):
    """An answer that is not asked for, but shown token by token after a prompt of its own: see `scoring.edits`."""

    of: str  # the figure that it is for, and its kind
    kind: str
    ids: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One thing to score: the question as text and as ids, and for each choice the ids that would answer it."""

    id: str
    prompt: str
    gold: str
    choices: tuple[str, ...] = ()  # empty for generation
    ids: tuple[int, ...] = ()
    choice_ids: tuple[tuple[int, ...], ...] = ()
    references: tuple[str, ...] = ()
    before: str = ""  # and `tests`, around an answer that is a program
    tests: str = ""
    category: str = ""
    instruction: str = ""  # what another judge is shown of the question
    contexts: tuple[tuple[int, ...], ...] = ()  # ids of what is asked with each choice, where that isn't `ids` for all
    doc: str = ""  # JSON of lm-eval's own row
    probes: tuple[Forced, ...] = ()  # of an edit

    @property
    def forced(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """What a model is shown, and not asked: prompts with answers."""
        if self.probes:
            return [(one.ids, one.answer) for one in self.probes]
        asked = self.contexts or (self.ids,) * len(self.choice_ids)
        return list(zip(asked, self.choice_ids, strict=True))


@dataclass(frozen=True)
class Said:
    """What a model said to an item: a text, or how likely each choice is to it."""

    text: str = ""
    cut: bool = False  # the text had not ended when it had as many tokens as it may have
    logs: tuple[float, ...] = ()  # of each choice the sum of its tokens' log-probabilities
    loss: float | None = None  # of the gold answer, where that is known by the way
    asked: bool = True  # False: the question and an answer don't fit into the model's context, so it is wrong
    likeliest: tuple[tuple[int, ...], ...] = ()  # of each probe, or of the one choice, at its tokens' places
    ids: tuple[int, ...] = ()  # the text's, where no end ends it


@dataclass(frozen=True)
class Scored:
    """One scored item, with what a person needs to see why it got its score."""

    id: str
    prompt: str
    output: str  # raw generation, or the chosen letter
    answer: str  # after the filter; "[invalid]", lm-eval's word, where the pattern did not match
    gold: str
    score: float
    cut: bool = False
    also: dict[str, float] = field(default_factory=dict)  # further figures of the same answer
    category: str = ""
    likeliest: tuple[tuple[int, ...], ...] = ()  # where an edit is to leave it: what others are held against


def check(items: Sequence[Item], metric: Metric) -> None:
    """UserError for an item that lm-eval would count as answered wrongly whatever the model says."""
    for item in items:
        if metric.kind == "multiple_choice" and item.gold.strip() not in item.choices:
            raise UserError(f"data: example {item.id!r} has gold {item.gold!r}; it must be in {item.choices}")
        if metric.kind == "pass_at_1" and not item.tests.strip():
            raise UserError(f"data: example {item.id!r} has no tests to run; no answer to it can be scored")
        if metric.kind == "edit_success" and not any(probe.of == "success" for probe in item.probes):
            raise UserError(f"data: example {item.id!r} has no token that could be learnt; give another target_new")


def room(item: Item, metric: Metric) -> int:
    """Tokens that a question and its answer may take."""
    shown = [len(ids) + len(answer) for ids, answer in item.forced]
    if not metric.writes:
        return max(shown, default=len(item.ids))
    return max([len(item.ids) + metric.max_new_tokens, *(shown if item.probes else ())])


def judge(items: Sequence[Item], said: Sequence[Said], metric: Metric) -> list[Scored]:
    """What was said as scores, in the items' order; the one door to lm-eval. What wasn't asked is wrong."""
    from datasets import Dataset

    check(items, metric)
    pairs = [(item, one) for item, one in zip(items, said, strict=True) if one.asked]
    if not pairs:
        return [_unasked(item, metric) for item in items]  # lm-eval refuses an empty task
    evaluate, recorded, task = _harness()
    asked = [item for item, _ in pairs]
    rows = [json.loads(item.doc) for item in asked] if metric.harness else rows_of(asked)
    config = protocol(metric) | {"custom_dataset": lambda: {"test": Dataset.from_list(rows)}}
    if metric.kind not in OF_LM_EVAL and not metric.harness:
        config["process_results"] = functools.partial(_figures, metric, _run(pairs) if metric.runs else {})
    tasks = {"tasks": {metric.kind: task(config=config)}}  # rows in memory: no file, no cache
    samples = evaluate(lm=recorded(pairs), task_dict=tasks, bootstrap_iters=0)["samples"]
    found = {
        item.id: _scored(item, one, metric, sample)
        for (item, one), sample in zip(pairs, samples[metric.kind], strict=True)
    }
    return [found.get(item.id) or _unasked(item, metric) for item in items]


def _figures(
    metric: Metric, ran: dict[tuple[str, str], float], row: dict[str, Any], answers: list[str]
) -> dict[str, float]:
    """What lm-eval is given for the metrics that it doesn't have."""
    (answer,) = answers
    return {
        name: ran[row["prompt"], answer] if name == "pass_at_1" else FIGURES[name](answer, row)
        for name in (metric.kind, *metric.also)
    }


def _run(pairs: Sequence[tuple[Item, Said]]) -> dict[tuple[str, str], float]:
    """Whether each answer's program passes its tests, all of them in sandboxes; by question and answer."""
    from orchestrator.scoring.sandbox import ended_well

    programs = [f"{item.before}{code_of(one.text)}\n{item.tests}" for item, one in pairs]
    return {
        (item.prompt, one.text): float(passed) for (item, one), passed in zip(pairs, ended_well(programs), strict=True)
    }


def rows_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The items as the protocol's columns."""
    rows: list[dict[str, Any]] = [
        {"prompt": item.prompt, "gold": item.gold.strip(), "choices": item.choices} for item in items
    ]
    if any(item.references for item in items):
        rows = [row | {"references": item.references} for row, item in zip(rows, items, strict=True)]
    return rows


def protocol(metric: Metric) -> dict[str, Any]:
    """What lm-eval is told about a metric, as values that YAML can hold: all of a task but its rows and our figures.

    Of its own tasks it is told what it says itself, functions and all.
    """
    if metric.harness:
        return judging(metric)
    filters: list[dict[str, Any]] = [{"function": "take_first"}]
    if metric.kind == "multiple_choice":
        names, config = ["acc"], {"output_type": metric.kind, "doc_to_choice": "choices", "target_delimiter": ""}
    else:
        settings: Any = {"until": list(metric.until), "max_gen_toks": metric.max_new_tokens}
        names, config = [metric.kind, *metric.also], {"output_type": "generate_until", "generation_kwargs": settings}
        if metric.pattern is not None:
            filters.insert(0, {"function": "regex", "regex_pattern": metric.pattern, "group_select": -1})
        elif not metric.runs:
            filters.insert(0, {"function": "remove_whitespace"})
    ignored = {"regexes_to_ignore": list(metric.ignore)} if metric.kind in OF_LM_EVAL else {}
    return config | {
        "test_split": "test",
        "doc_to_text": "prompt",  # the name of a column; anything else is rendered as a Jinja template
        "doc_to_target": "gold",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True, **ignored} for name in names],
        "filter_list": [{"name": metric.filter_name, "filter": filters}],
    }


def _scored(item: Item, said: Said, metric: Metric, sample: dict[str, Any]) -> Scored:
    output, answer = said.text, sample["filtered_resps"][0]
    value = float(sample["acc" if metric.kind == "multiple_choice" else metric.kind])
    if len(said.logs) == 1 and not value:
        output = answer = OTHER
    elif said.logs:
        output = answer = item.choices[said.logs.index(max(said.logs))]  # the first of equals, as acc has it
    also: dict[str, float] = {name: float(sample[name]) for name in metric.also}
    return Scored(item.id, item.prompt, output, answer, item.gold.strip(), value, said.cut, also, item.category)


def _unasked(item: Item, metric: Metric) -> Scored:
    also: dict[str, float] = dict.fromkeys(metric.also, 0.0)
    return Scored(item.id, item.prompt, "", NOT_ASKED, item.gold.strip(), 0.0, also=also, category=item.category)


def _greedy(item: Item, said: Said) -> bool:
    """Whether an answer that is only found likely, the one choice, is what the model would say token by token."""
    return said.likeliest == item.choice_ids


@functools.cache
def _harness() -> tuple[Any, Any, Any]:
    # lm-eval takes seconds to import, so what derives from it is made at the first call.
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    # Its warnings say that model and rows come from memory; what can go wrong is refused beforehand.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    class Recorded(LM):  # type: ignore[misc, unused-ignore]
        def __init__(self, pairs: Sequence[tuple[Item, Said]]) -> None:
            super().__init__()
            self._pairs = pairs

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return [self._pairs[request.doc_id][1].text for request in requests]

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            asked = ((*self._pairs[request.doc_id], request.idx) for request in requests)
            return [(one.logs[at], _greedy(item, one)) for item, one, at in asked]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            raise NotImplementedError("no task here asks for a text's own likelihood")

    class LocalTask(ConfigurableTask):  # type: ignore[misc, unused-ignore]
        def build_all_requests(self, **_: Any) -> None:  # lm-eval's has a progress bar without a switch
            rows = self.doc_iterator()
            shown: Any = [""] * self.multiple_input or ""  # Recorded reads no questions
            made = [self.construct_requests(row, shown, metadata=(None, at, 1)) for at, row in rows]
            self._instances = [one for each in made for one in (each if isinstance(each, list) else [each])]

    return evaluate, Recorded, LocalTask
