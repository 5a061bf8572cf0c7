"""Which tokens both models are looked at: drawn once, so that what is kept of a text doesn't grow with the texts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.models.loading import load_tokenizer
from orchestrator.tasks import rows as data
from orchestrator.tasks.aligned import aligned, ends
from orchestrator.tasks.base import Example
from orchestrator.tasks.template import TemplateName

PAIRS = "pairs.json"
USES = ("fitted", "held")  # a map is made of the first, and judged by the second
LEAST = 0.2  # of the shorter text's tokens: with fewer in common, what is left is chance
FEWEST = 32  # pairs that some map is made of; below, it is made of nothing
HELD_OUT = 5  # of the texts one in so many is held out

Pairs = dict[str, dict[str, list[tuple[int, int]]]]


def pairs(
    folder: Path,
    *,
    texts: Path,
    teacher: str,
    student: str,
    template: TemplateName,
    max_tokens: int,
    tokens: int,
) -> dict[str, Any]:
    """Write `pairs.json`: by what they are for ("fitted", "held"), text by text, pairs of the teacher's and the
    student's tokens.

    Texts are held out whole. UserError for tokenizers that have too little in common, and for too few tokens.
    """
    examples = data.read(texts)
    readers = load_tokenizer(teacher, "teacher"), load_tokenizer(student, "student")
    chosen, share = find_pairs(examples, readers, template, max_tokens, tokens)
    counts = {use: sum(map(len, some.values())) for use, some in chosen.items()}
    (folder / PAIRS).write_text(json.dumps(chosen) + "\n")
    return {"texts": len(examples), "share": round(share, 4), **counts}


def find_pairs(
    examples: Sequence[Example], readers: Sequence[Any], template: TemplateName, max_tokens: int, tokens: int
) -> tuple[Pairs, float]:
    """The drawn pairs, and the share of the shorter text's tokens that are in any. UserError as `pairs`."""
    found, shorter = {}, 0
    for example in examples:
        theirs, own = (ends(example, template, reader, max_tokens) for reader in readers)
        found[example.id] = aligned(theirs, own)
        shorter += min(len(theirs), len(own))
    share = sum(map(len, found.values())) / max(shorter, 1)
    if share < LEAST:
        raise UserError(
            f"student: its tokens and the teacher's end at the same character in {share:.0%} of all places, and maps"
            f" between their channels need {LEAST:.0%}; take another pair, or leave such arms out"
        )
    held = {example.id for place, example in enumerate(examples) if place % HELD_OUT == HELD_OUT - 1}
    chosen = {
        "fitted": _drawn({id: some for id, some in found.items() if id not in held}, tokens),
        "held": _drawn({id: some for id, some in found.items() if id in held}, max(1, tokens // (HELD_OUT - 1))),
    }
    if (count := sum(map(len, chosen["fitted"].values()))) < FEWEST:
        raise UserError(
            f"carry: the texts give {count} tokens that both models read, and maps need {FEWEST};"
            f" {FEWEST - count} are missing: give more texts"
        )
    return chosen, share


def read_pairs(folder: Path) -> Pairs:
    """By use and text."""
    return dict(json.loads((folder / PAIRS).read_text()))


def _drawn(found: dict[str, list[tuple[int, int]]], most: int) -> dict[str, list[tuple[int, int]]]:
    """At most so many of all pairs, each as likely as any other."""
    every = [(id, pair) for id, some in found.items() for pair in some]
    if len(every) > most:
        every = [every[place] for place in sorted(random.Random(0).sample(range(len(every)), most))]
    chosen: dict[str, list[tuple[int, int]]] = {}
    for id, pair in every:
        chosen.setdefault(id, []).append(pair)
    return chosen
