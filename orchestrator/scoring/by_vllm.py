"""Answers by vLLM (arXiv 2309.06180), one engine a process for a student and every adapter that is asked there.

What a model writes comes from it, by the same ids, ends and parsers. How likely choices and gold answers are comes from
transformers: vLLM takes no shared beginning for a prompt's log-probabilities, and where an adapter is on the head it
(0.32) fails at them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.scoring.budgets import SHARE
from orchestrator.scoring.engine import Some
from orchestrator.scoring.generation import spoken
from orchestrator.scoring.judge import Item, Said
from orchestrator.tasks.metric import Metric

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that it has kernels for
AT_ONCE = 256  # questions whose answers are kept before the next are asked

# The last engine, of this process, by its model, type and rank; with its adapters' numbers
_kept: dict[tuple[str, str, int], tuple[Any, dict[str, int]]] = {}


@dataclass(frozen=True)
class Writer:
    """A student with one adapter, as vLLM has it."""

    model: str
    adapter: Path | None
    dtype: str

    def __call__(
        self, tokenizer: Any, items: Sequence[Item], metric: Metric, stops: Sequence[int], known: Mapping[str, Said]
    ) -> Iterator[Some]:
        """Answers by their items' places, so many at a time; those that are known first."""
        from vllm import SamplingParams

        yield [(place, known[item.id]) for place, item in enumerate(items) if item.id in known]
        left = [place for place, item in enumerate(items) if item.id not in known]
        settings = SamplingParams(
            temperature=0, max_tokens=metric.max_new_tokens, stop_token_ids=list(stops), ignore_eos=True,
            stop=list(metric.until) or None,
        )  # fmt: skip
        for start in range(0, len(left), AT_ONCE):
            some = left[start : start + AT_ONCE]
            engine, worn = self._engine()
            asked: Any = [{"prompt_token_ids": list(items[place].ids)} for place in some]
            told = engine.generate(asked, settings, lora_request=worn, use_tqdm=False)
            ids = (list(one.outputs[0].token_ids) for one in told)
            yield [(place, spoken(tokenizer, mine, stops, metric.until)) for place, mine in zip(some, ids, strict=True)]

    def _engine(self) -> tuple[Any, Any]:
        """The process's engine and this adapter's number there: another student's, or of a smaller rank, goes first."""
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        own = _rank(self.adapter) if self.adapter else 0
        key = next((one for one in _kept if one[:2] == (self.model, self.dtype) and own <= one[2]), None)
        if key is None:
            _kept.clear()
            key = (self.model, self.dtype, next(one for one in RANKS if own <= one))
            engine = LLM(
                self.model, dtype=self.dtype, enable_lora=True, max_lora_rank=key[2], gpu_memory_utilization=SHARE,
                seed=0, generation_config="vllm",
            )  # fmt: skip
            _kept[key] = engine, {}
        engine, numbers = _kept[key]
        if not self.adapter:
            return engine, None
        number = numbers.setdefault(str(self.adapter), len(numbers) + 1)
        return engine, LoRARequest(self.adapter.name, number, str(self.adapter))


def _rank(adapter: Path) -> int:
    return int(json.loads((adapter / "adapter_config.json").read_text())["r"])
