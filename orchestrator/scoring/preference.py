"""Which of two answers is better, by another model: the win rate over reference answers (AlpacaFarm, arXiv 2305.14387).

    found = Preferences(Endpoint("http://host/v1", "judge"), folder / "judged.jsonl").scores(pairs)

Each pair is judged in both orders, since judges prefer a place (arXiv 2305.17926); a tie counts half. Every judgment is
on disk as soon as it is there, and nothing is asked twice. What a judge says that is no judgment counts as a tie and is
told; too many of those, and nothing is scored. A judge that is no server: orchestrator.scoring.local_judge.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import optimize, special

from orchestrator.errors import UserError
from orchestrator.scoring.budgets import REPLY

AT_ONCE = 8  # questions that a judge is asked
RETRIES = 6  # of a request that a server refuses, or doesn't answer; openai waits longer each time, or as it is told
SECONDS = 120.0  # for one reply
UNCLEAR = 0.05  # share of judgments that may be none
PROMPT = """Two assistants were given the same instruction. Which one followed it better?
Judge what is said, not how long it is or which came first.

### Instruction
{instruction}

### Answer 1
{first}

### Answer 2
{second}

Reply with one digit alone: 1 if the first answer is better, 2 if the second is, 0 if neither is."""
ASKED = hashlib.sha256(PROMPT.encode()).hexdigest()[:12]  # another wording is another judge


Told = Callable[[int, str], None]  # hears a reply with its prompt's place, in any order and from any thread


class Pair(NamedTuple):
    """An answer and the one that it is held against."""

    id: str
    instruction: str
    answer: str
    reference: str


class Judge(Protocol):
    """Whoever says 1, 2 or 0 when asked in PROMPT's words."""

    def __call__(self, prompts: Sequence[str], told: Told) -> None:
        """Ask all of these; each reply is `told` as soon as it is there."""


@dataclass(frozen=True)
class Endpoint:
    """Any server that speaks OpenAI's protocol. The key is OPENAI_API_KEY's, where it asks for one."""

    url: str
    model: str

    def __call__(self, prompts: Sequence[str], told: Told) -> None:
        """Some at once; what is no judgment is asked for once more, since servers say now this, now that."""

        def ask(place: int) -> None:
            text = self._reply(prompts[place])
            told(place, text if said(text) is not None else self._reply(prompts[place]))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(ask, range(len(prompts))))

    def _reply(self, prompt: str) -> str:
        """What is said, greedily; UserError where nothing can be had."""
        import openai

        try:
            reply = _client(self.url).chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=REPLY
            )
            return str(reply.choices[0].message.content or "")
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(f"judge: {self.url} refuses {self.model} ({_short(error)}); set OPENAI_API_KEY") from error
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            raise UserError(
                f"judge: {self.url} doesn't answer ({_short(error)}); what was judged is kept, and the same command"
                " goes on from there"
            ) from error
        except (ValueError, AttributeError, TypeError, IndexError, openai.APIError):
            return ""  # no reply that its own protocol knows


@functools.cache
def _client(url: str) -> Any:
    import openai

    key = os.environ.get("OPENAI_API_KEY") or "none"
    return openai.OpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=SECONDS)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def said(text: str) -> int | None:
    """1, 2 or 0; None where it is no judgment."""
    found = re.findall(r"(?<![\d.])[012](?![\d.]*\d)", text)
    return int(found[0]) if len({*found}) == 1 else None


@dataclass
class Preferences:
    """A judge's judgments of some pairs, and the file that keeps them."""

    judge: Judge
    kept: Path
    known: dict[tuple[str, str], int | None] = field(default_factory=dict)  # by (pair, order)
    _writing: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for line in self.kept.read_text(encoding="utf-8").split("\n") if self.kept.is_file() else ():
            try:
                found = json.loads(line)
                self.known[found["id"], found["order"]] = found["said"]
            except (ValueError, KeyError, TypeError):
                continue  # half a line of a process that was killed

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        """Per pair 1 where the answer was preferred in both orders, 0 where the reference was, else between the two.

        UserError where too much of what the judge said is no judgment.
        """
        asked = [(pair, order) for pair in pairs for order in ("own first", "own second")]
        left = [(pair, order) for pair, order in asked if (_key(pair), order) not in self.known]
        if left:
            self.judge([_prompt(*one) for one in left], lambda place, text: self._keep(*left[place], said(text)))
        told = [self.known[_key(pair), order] for pair, order in asked]
        unclear = sum(one is None for one in told)
        if unclear > UNCLEAR * len(told):
            raise UserError(f"judge: {unclear} of {len(told)} replies are no judgment (0, 1 or 2); take another judge")
        points = [_points(one, order) for one, (_, order) in zip(told, asked, strict=True)]
        return [(first + second) / 2 for first, second in zip(points[::2], points[1::2], strict=True)]

    def unclear(self, pairs: Sequence[Pair]) -> int:
        """Replies that were no judgment: each counts as a tie."""
        mine = {_key(pair) for pair in pairs}
        return sum(one is None for (key, _), one in self.known.items() if key in mine)

    def _keep(self, pair: Pair, order: str, found: int | None) -> None:
        with self._writing:
            with self.kept.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps({'id': _key(pair), 'order': order, 'said': found})}\n")
            self.known[_key(pair), order] = found


def _prompt(pair: Pair, order: str) -> str:
    answers = (pair.answer, pair.reference) if order == "own first" else (pair.reference, pair.answer)
    return PROMPT.format(instruction=pair.instruction, first=answers[0], second=answers[1])


def _key(pair: Pair) -> str:
    """By all that the judge is shown: another answer is another pair."""
    return hashlib.sha256(json.dumps(list(pair)).encode()).hexdigest()[:16]


def _points(found: int | None, order: str) -> float:
    if not found:
        return 0.5
    return float((found == 1) == (order == "own first"))


def length_controlled(scores: Sequence[float], pairs: Sequence[Pair]) -> float:
    """The win rate at equal lengths: judges like longer answers, and a student may learn to give them.

    A logistic model of the scores with a term in tanh of the standardised difference of lengths, at a difference of
    none; the idea of AlpacaEval 2 (arXiv 2404.04475) without its term for each instruction.
    """
    lengths = np.array([len(pair.answer) - len(pair.reference) for pair in pairs], dtype=float)
    spread = float(lengths.std()) or 1.0
    x, y = np.tanh(lengths / spread), np.asarray(scores, dtype=float)

    def loss(at: Any) -> float:
        z = at[0] + at[1] * x
        return float(np.sum(np.logaddexp(0, z) - y * z) + 0.5 * 1e-2 * at @ at)  # a little ridge: all may be won

    return float(special.expit(optimize.minimize(loss, np.zeros(2), method="BFGS").x[0]))


def as_alpaca_eval(pairs: Sequence[Pair], generator: str = "pkt") -> list[dict[str, str]]:
    """The outputs in the form that AlpacaEval reads as `model_outputs`."""
    return [
        {"instruction": pair.instruction, "output": pair.answer, "generator": generator, "dataset": "pkt"}
        for pair in pairs
    ]
