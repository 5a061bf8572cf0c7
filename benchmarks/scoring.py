"""Scoring beside lm-eval's own Hugging Face model, in one process and on the same prompts: time, and equal answers.

`PKT_BENCH_MODEL` names a model's folder, `PKT_BENCH_DATA` one with gsm8k/ and mmlu/ in it.

lm-eval is given what it does best, too: batches of eight, as many threads, float32, likelihoods of one token from one
pass a question.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measuring import peak_bytes, table

MODEL, DATA = "PKT_BENCH_MODEL", "PKT_BENCH_DATA"
ROWS, SUBJECTS, NEW = 64, 3, 256  # questions, subjects of 20 questions each, tokens of an answer
BATCH = 8  # of lm-eval: one at a time takes three to four times as long
DTYPE, TEMPLATE = "float32", "chat"


def main() -> None:
    """Answers, then choices, then what else scoring takes."""
    model, data = os.environ.get(MODEL), os.environ.get(DATA)
    if not (model and data):
        print(f"\nscoring: left out; {MODEL} and {DATA} name a model's folder and one with gsm8k/ and mmlu/")
        return
    from transformers.utils import logging as told

    told.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    name = Path(model).name
    header = ["what", "lm-eval, batches of 8", "here", "ratio", "same answers"]
    rows = [
        _answers(model, data, 0, ROWS),
        _answers(model, data, 8, ROWS // 4),
        _choices(model, data, 0),
        _choices(model, data, 5),
    ]
    table(f"Scoring, {name}, {DTYPE}: seconds", header, rows)
    table(f"Around the engine, {name}", ["what", "figure", "against"], _around(model, data))


def _asked(model: str, data: str, task: str, shots: int, count: int) -> Any:
    from orchestrator.models.loading import load_tokenizer
    from orchestrator.scoring.asking import Asked, questions
    from orchestrator.tasks import TASKS
    from orchestrator.tasks.template import fitted

    known, tokenizer = TASKS[task], load_tokenizer(model)
    rows = known.test(str(Path(data) / task), shots)
    rows = rows[:count]
    items, metric = questions(rows, TEMPLATE, tokenizer, known.metric, known.choices)
    metric = replace(metric, max_new_tokens=min(NEW, metric.max_new_tokens))
    return Asked(items, metric, fitted(rows, TEMPLATE, tokenizer, 1 << 20).rows if known.choices else [])


def _answers(model: str, data: str, shots: int, rows: int) -> list[Any]:
    return _beside(model, f"{rows} answers to gsm8k, {shots}-shot", _asked(model, data, "gsm8k", shots, rows))


def _choices(model: str, data: str, shots: int) -> list[Any]:
    return _beside(
        model, f"{20 * SUBJECTS} choices of mmlu, {shots}-shot (here with the gold answers' losses)",
        _asked(model, data, "mmlu", shots, 20 * SUBJECTS),
    )  # fmt: skip


def _beside(model: str, what: str, asks: Any) -> list[Any]:
    from orchestrator.models.loading import load_tokenizer
    from orchestrator.scoring.engine import loaded, said
    from orchestrator.tasks.template import stops

    tokenizer = load_tokenizer(model)
    ends, golds = stops(TEMPLATE, tokenizer), {row.id: row for row in asks.encoded}
    with loaded(model, None, dtype=DTYPE) as engine:
        network: Any = engine.model  # type: ignore[attr-defined]

        def here() -> list[Any]:
            some = said(network, tokenizer, asks.items, asks.metric, stops=ends, golds=golds)
            found = dict(one for batch in some for one in batch)
            return [_picked(found[place].logs) or found[place].text for place in range(len(asks.items))]

        theirs, said_there = _timed(lambda: _theirs(network, tokenizer, asks))
        own, said_here = _timed(here)
    same = sum(one == other for one, other in zip(said_there, said_here, strict=True))
    return [what, theirs, own, theirs / own, f"{same} of {len(asks.items)}"]


def _timed(work: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def _picked(logs: Sequence[float]) -> str:
    return "ABCD"[logs.index(max(logs))] if logs else ""


def _theirs(network: Any, tokenizer: Any, asks: Any) -> list[Any]:
    """What lm-eval's model answers to the same prompts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=BATCH, softmax_dtype=DTYPE)
    if asks.metric.writes:
        until = [*asks.metric.until, tokenizer.eos_token]
        settings = {"until": until, "max_gen_toks": asks.metric.max_new_tokens, "do_sample": False}
        asked = [Instance("generate_until", {}, (one.prompt, settings), at) for at, one in enumerate(asks.items)]
        return list(theirs.generate_until(asked, disable_tqdm=True))
    pairs = [(one.prompt, choice) for one in asks.items for choice in one.choices]
    told = theirs.loglikelihood(
        [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)], disable_tqdm=True
    )
    logs = iter(log for log, _ in told)
    return [_picked([next(logs) for _ in one.choices]) for one in asks.items]


def _around(model: str, data: str) -> list[list[Any]]:
    """What scoring takes besides: a second adapter's start, all that is not the model's own time, and memory."""
    from orchestrator.models.borrowed import borrowed
    from orchestrator.models.loading import load_tokenizer
    from orchestrator.scoring.engine import loaded
    from orchestrator.scoring.evaluate import judged, put
    from orchestrator.tasks.template import stops

    asks, tokenizer = _asked(model, data, "gsm8k", 0, ROWS // 2), load_tokenizer(model)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with borrowed(model, dtype=DTYPE, device="cpu") as base:
            for name in ("one", "other"):
                _adapter(base, folder / name)
        starts = []
        for name in ("one", "other"):
            began = time.perf_counter()
            with loaded(model, folder / name, dtype=DTYPE):
                starts.append(time.perf_counter() - began)
        with loaded(model, folder / "other", dtype=DTYPE) as engine, _counted(engine) as own:
            began = time.perf_counter()

            def scored() -> None:
                told, losses = put(engine, asks, stops(TEMPLATE, tokenizer), folder / "said")
                judged(asks.items, told, losses, asks.metric)

            ended = peak_bytes(scored)
            taken = time.perf_counter() - began
        with loaded(model, folder / "other", dtype=DTYPE) as engine:  # the plan knows of no answer's end
            endless = asks._replace(metric=replace(asks.metric, until=()))
            whole = peak_bytes(lambda: put(engine, endless, (), folder / "endless"))
    planned = _planned(model, asks)
    return [
        ["a second adapter on the same base starts in", f"{starts[1]:.2f} s", "1 s"],
        [f"scoring {ROWS // 2} rows beyond the model's own time", f"{taken / own[0] - 1:.1%}", "5 %"],
        ["memory for answers that never end, by the plan", f"{planned / whole:.2f} x", f"{whole / 1e9:.2f} GB found"],
        ["memory for answers as they end, by the plan", f"{planned / ended:.2f} x", f"{ended / 1e9:.2f} GB found"],
        _continuous(model, data),
    ]  # fmt: skip


def _continuous(model: str, data: str) -> list[Any]:
    """transformers' own continuous batching of a few answers: it is taken where it is faster."""
    from transformers import GenerationConfig

    from orchestrator.models.loading import load_tokenizer
    from orchestrator.scoring.engine import loaded, said
    from orchestrator.tasks.template import stops

    asks, tokenizer = _asked(model, data, "gsm8k", 0, ROWS // 8), load_tokenizer(model)
    metric, ends = replace(asks.metric, max_new_tokens=NEW // 8), stops(TEMPLATE, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=NEW // 8, eos_token_id=ends, pad_token_id=ends[0], do_sample=False, max_length=None
    )
    with loaded(model, None, dtype=DTYPE) as engine:
        network: Any = engine.model  # type: ignore[attr-defined]
        prompts = [list(item.ids) for item in asks.items]
        own, _ = _timed(lambda: list(said(network, tokenizer, asks.items, metric, stops=ends)))
        theirs, _ = _timed(lambda: list(network.generate_batch(inputs=prompts, generation_config=settings)))
    return [f"generate_batch, {ROWS // 8} answers of {NEW // 8} tokens", f"{theirs / own:.1f} x this", "1 x"]


def _adapter(base: Any, folder: Path) -> None:
    """A LoRA of rank 32 on all matrices, as a sweep's trial leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    from orchestrator.models.adapters import take_off, without_own_warnings

    names = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    with without_own_warnings():
        worn = get_peft_model(base, LoraConfig(r=32, target_modules=names, task_type="CAUSAL_LM"))
        worn.save_pretrained(folder, save_embedding_layers=False)
    take_off(worn)


@contextmanager
def _counted(engine: Any) -> Any:
    """The seconds that go by within the model's forward passes."""
    spent, began = [0.0], [0.0]

    def before(*_: Any) -> None:
        began[0] = time.perf_counter()

    def after(*_: Any) -> None:
        spent[0] += time.perf_counter() - began[0]

    hooks = [engine.model.register_forward_pre_hook(before), engine.model.register_forward_hook(after)]
    yield spent
    for hook in hooks:
        hook.remove()


def _planned(model: str, asks: Any) -> int:
    """Bytes above the weights and the adapter that the plan sets aside for this scoring."""
    from orchestrator.sweep.anatomy import Anatomy
    from orchestrator.sweep.costs import score_cost
    from orchestrator.sweep.hardware import Hardware
    from orchestrator.sweep.lengths import Lengths, Row

    rows = tuple(Row(len(item.ids) + asks.metric.max_new_tokens, len(item.ids)) for item in asks.items)
    lengths = Lengths((), (), (), rows, asks.metric.max_new_tokens, 0)
    return score_cost(
        Anatomy.of(model, "student", DTYPE), lengths, rows, 32, Hardware(cuda=False)
    ).per_rank.activations_bytes
