"""An edit's figures: whether it took, what follows from it, what it left alone, and whether the model still speaks.

    success, portability    share of an answer's tokens that are the likeliest, each after those before it
    locality                share of the tokens at which the likeliest is the one that the untouched model has there
    fluency                 entropy of the n-grams of what the model goes on with, in bits: it falls with repetition

KnowEdit's (arXiv 2401.01286), as EasyEdit computes them: a mean over an edit's prompts, then over edits. An answer's
own tokens count, and not the one that ends the turn. Fluency is ROME's (arXiv 2202.05262): two thirds of the bigrams'
entropy and four thirds of the trigrams', halved. Here it is of tokens and not of words, of a greedy continuation and
not of one that is drawn, and without the prompt. As there it goes on where a turn would end: else a short answer would
pass for a stammer.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.scoring.judge import NOT_ASKED, Forced, Item, Said, Scored
from orchestrator.tasks.base import Example, Message
from orchestrator.tasks.template import TemplateName, choice_ids, question

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # by the length of an n-gram
Likeliest = Sequence[Sequence[int]]  # tokens, for each prompt of locality


def forced(example: Example, template: TemplateName, tokenizer: Any) -> tuple[Forced, ...]:
    """An edit's prompts as ids, in the form in which it is learnt, and their answers'; without those that have none."""
    found = []
    for probe in example.probes:
        turns = (Message(role="user", content=probe.prompt), Message(role="assistant", content=probe.answer))
        asked = example.model_copy(update={"messages": turns})
        _, ids = question(asked, template, tokenizer)
        answer = choice_ids(asked, probe.answer, ids, template, tokenizer)
        found.append(Forced(probe.of, probe.kind, tuple(ids), tuple(answer)))
    return tuple(one for one in found if one.answer)


def untouched_in(folder: Path) -> dict[str, Likeliest]:
    """By the edits' ids, what an evaluation of the untouched model found the likeliest."""
    lines = (folder / "examples.jsonl").read_text(encoding="utf-8").split("\n")  # texts may hold U+2028
    return {one["id"]: one.get("likeliest", ()) for one in map(json.loads, filter(None, lines))}


def scored(
    items: Sequence[Item], told: Sequence[Said], untouched: Mapping[str, Likeliest] | None = None
) -> list[Scored]:
    """Each edit's success, and the others beside it; an edit lacks those of which it has no prompt.

    `untouched`: None where the model is that itself, whose locality is 1.
    """
    return [_scored(item, one, untouched) for item, one in zip(items, told, strict=True)]


def _scored(item: Item, said: Said, untouched: Mapping[str, Likeliest] | None) -> Scored:
    if not said.asked:
        return Scored(item.id, item.prompt, "", NOT_ASKED, item.gold, 0.0)
    pairs = list(zip(item.probes, said.likeliest, strict=True))
    kept = tuple(tokens for probe, tokens in pairs if probe.of == "locality")
    before = iter(kept if untouched is None else untouched[item.id])
    shares: dict[str, list[float]] = {}
    for probe, tokens in pairs:
        right = next(before) if probe.of == "locality" else probe.answer
        share = sum(one == other for one, other in zip(tokens, right, strict=True)) / len(tokens)
        for name in (probe.of, f"{probe.of}.{probe.kind}"):
            shares.setdefault(name, []).append(share)
    also = {name: sum(some) / len(some) for name, some in shares.items()}
    success, also["fluency"] = also.pop("success"), fluency(said.ids)
    text = said.text
    return Scored(item.id, item.prompt, text, text.strip(), item.gold, success, also=also, likeliest=kept)


def fluency(ids: Sequence[int]) -> float:
    """The weighted entropy of a text's bigrams and trigrams, in bits; 0 of none."""
    return sum(weight * entropy(Counter(zip(*(ids[at:] for at in range(n)), strict=False)))
               for n, weight in WEIGHTS.items()) / len(WEIGHTS)  # fmt: skip


def entropy(counts: Counter[Any]) -> float:
    """Of a distribution that is given by counts, in bits."""
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values())
