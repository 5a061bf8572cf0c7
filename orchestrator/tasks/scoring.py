"""Scores that compare with published ones, so lm-eval computes them: batches, likelihoods, filters, metrics.

A sweep calls this a hundred times in one process, on models still in training: no bars, nothing left changed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import tokenize

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Item:
    """One thing to score; the prompt is the full text before the answer, already templated."""

    id: str
    prompt: str
    gold: str
    choices: tuple[str, ...] = ()  # empty for generation


@dataclass(frozen=True)
class Scored:
    """One scored item, with what a person needs to see why it got its score."""

    id: str
    prompt: str
    output: str  # raw generation, or the chosen letter
    answer: str  # after the filter; "[invalid]", lm-eval's word, where the pattern did not match
    gold: str
    score: float


def score(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    metric: Metric,
    *,
    batch_size: int = 32,
    device: Any = None,
) -> list[Scored]:
    """The one door to lm-eval: results in the items' order. UserError names an item that can't be scored.

    `device`: where a model computes that can't tell by its parameters, since they lie elsewhere.
    """
    from datasets import Dataset

    if not items:
        return []  # lm-eval refuses an empty task
    if tokenizer.eos_token_id is None:
        raise UserError("model: its tokenizer has no end-of-sequence token, so no answer ends; set eos_token")
    evaluate, local_lm, local_task = _harness()
    lm = local_lm(model, tokenizer, batch_size, device or model.device)
    check(items, metric, tokenizer, lm.max_length)
    with _greedy_inference(model, tokenizer.eos_token_id, metric.max_new_tokens):
        config = protocol(metric) | {"custom_dataset": lambda: {"test": Dataset.from_list(rows_of(items))}}
        tasks = {"tasks": {metric.kind: local_task(config=config)}}  # rows in memory: no file, no cache
        samples = evaluate(lm=lm, task_dict=tasks, bootstrap_iters=0)["samples"][metric.kind]
    return [_scored(item, sample) for item, sample in zip(items, samples, strict=True)]


def check(items: Sequence[Item], metric: Metric, tokenizer: Any, context: int) -> None:
    """Whether each item can be scored by a model of `context` tokens, before any is. UserError names the first."""
    chooses = metric.kind == "multiple_choice"
    for item in items:
        if chooses and item.gold.strip() not in item.choices:  # lm-eval would count it as answered wrongly
            raise UserError(f"data: example {item.id!r} has gold {item.gold!r}; it must be in {item.choices}")
        ends, room = (item.choices, 0) if chooses else (("",), metric.max_new_tokens)
        length = max(len(tokenize(item.prompt + end, tokenizer, verbose=False).input_ids) for end in ends) + room
        if length > context:  # lm-eval would cut off the beginning and go on
            raise UserError(f"data: example {item.id!r} needs {length} tokens, the model has {context}; shorten it")


def rows_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The items as the protocol's columns."""
    return [{"prompt": item.prompt, "gold": item.gold.strip(), "choices": item.choices} for item in items]


def protocol(metric: Metric) -> dict[str, Any]:
    """What lm-eval is told about a metric, as values that YAML can hold: all of a task but its rows."""
    filters: list[dict[str, Any]] = [{"function": "take_first"}]
    if metric.kind == "multiple_choice":
        name, config = "acc", {"output_type": metric.kind, "doc_to_choice": "choices", "target_delimiter": ""}
    else:
        settings: Any = {"until": [], "max_gen_toks": metric.max_new_tokens}
        name, config = "exact_match", {"output_type": "generate_until", "generation_kwargs": settings}
        regex = {"function": "regex", "regex_pattern": metric.pattern, "group_select": -1}
        filters.insert(0, regex if metric.pattern is not None else {"function": "remove_whitespace"})
    return config | {
        "test_split": "test",
        "doc_to_text": "prompt",  # the name of a column; anything else is rendered as a Jinja template
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True, "regexes_to_ignore": list(metric.ignore)}
        ],
        "filter_list": [{"name": metric.filter_name, "filter": filters}],
    }


def _scored(item: Item, sample: dict[str, Any]) -> Scored:
    output, answer = sample["resps"][0][0], sample["filtered_resps"][0]
    if "acc" in sample:
        pairs = zip(sample["filtered_resps"], item.choices, strict=True)
        output = answer = max(pairs, key=lambda pair: pair[0][0])[1]  # the first of equals, as acc has it
    value = float(sample["acc" if "acc" in sample else "exact_match"])
    return Scored(item.id, sample["arguments"][0][0], output, answer, item.gold.strip(), value)


def _greedy_inference(model: Any, eos: int, length: int) -> ExitStack:
    from transformers import GenerationConfig

    # `generate` fills what a call leaves open from the model's own settings, a repetition penalty for one.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    restore = ExitStack()
    restore.callback(setattr, base, "generation_config", base.generation_config)
    for module in model.modules():  # one by one: a frozen part may be in another mode than the rest
        restore.callback(setattr, module, "training", module.training)
    base.generation_config = GenerationConfig(max_new_tokens=length, eos_token_id=eos, pad_token_id=eos)
    model.eval()
    return restore


@functools.cache
def _harness() -> tuple[Any, Any, Any]:
    # lm-eval takes seconds to import, so what derives from it is made at the first call.
    import torch
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from torch.nn.utils.rnn import pad_sequence

    # Its warnings say that model and rows come from memory; what can go wrong is refused beforehand.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    class LocalLM(HFLM):  # type: ignore[misc, unused-ignore]
        def __init__(self, model: Any, tokenizer: Any, batch_size: int, device: Any) -> None:
            # HFLM ties a module's weights anew, which undoes edits: it gets only what it reads of it.
            read = SimpleNamespace(config=model.config, device=device)
            unpadded = "pad_token" not in tokenizer.special_tokens_map
            super().__init__(read, "causal", tokenizer=tokenizer, batch_size=batch_size)
            if unpadded:
                tokenizer.pad_token = None  # HFLM has just given it one
            self._model, self.softmax_dtype = model, torch.float32  # sums in bfloat16 make choices tie
            # As in training; HFLM would give all texts of a batch a BOS token, or none, after the first one.
            self.tok_encode = functools.cache(lambda s, **_: tokenize(s, tokenizer, verbose=False).input_ids)

        def tok_batch_encode(self, strings: Sequence[str], **_: Any) -> tuple[Any, Any]:
            rows = [torch.tensor(self.tok_encode(string)) for string in strings]
            ids = pad_sequence(rows, True, self.eot_token_id, "left")
            return ids, pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")

        def _model_generate(self, context: Any, *, attention_mask: Any, **_: Any) -> Any:
            # HFLM would decode the batch at each step, in search of the eos token's name; its id is enough.
            return self.model.generate(input_ids=context, attention_mask=attention_mask)

        generate_until = functools.partialmethod(HFLM.generate_until, disable_tqdm=True)
        loglikelihood = functools.partialmethod(HFLM.loglikelihood, disable_tqdm=True)

    class LocalTask(ConfigurableTask):  # type: ignore[misc, unused-ignore]
        def build_all_requests(self, **_: Any) -> None:  # lm-eval's has a progress bar without a switch
            rows = self.doc_iterator()
            made = [self.construct_requests(row, row["prompt"], metadata=(None, at, 1)) for at, row in rows]
            self._instances = [one for each in made for one in (each if isinstance(each, list) else [each])]

    return evaluate, LocalLM, LocalTask
