"""The same place in a text, as two tokenizers have it.

Two models have read the same once their tokens end at the same character: that is where what they compute may be
compared, whatever their tokens are. Only the messages' own characters count, so that templates may differ, too.
"""

from __future__ import annotations

from typing import Any

from orchestrator.tasks.base import Example
from orchestrator.tasks.template import Encoded, TemplateName, render, tokenize


def ends(example: Example, template: TemplateName, tokenizer: Any, max_tokens: int) -> dict[int, int]:
    """By how many characters of the messages' contents were read, the token that ends there.

    Tokens of the template, special ones and such as end in neither are nowhere among them; of several that end at one
    character, as the bytes of one do, the last.
    """
    text, at, read, spans = render(example.messages, template, tokenizer), 0, 0, []
    for message in example.messages:
        content = message.content.strip()
        if (begins := text.find(content, at)) >= 0:  # else the template shows it otherwise
            at = begins + len(content)
            spans.append((begins, at, read))
        read += len(content)
    offsets = tokenize(text, tokenizer, return_offsets_mapping=True, verbose=False)["offset_mapping"][:max_tokens]
    found, span = {}, 0
    for token, (left, right) in enumerate(offsets):
        while span < len(spans) and spans[span][1] < right:
            span += 1
        if left < right and span < len(spans) and spans[span][0] < right:
            found[spans[span][2] + right - spans[span][0]] = token
    return found


def read_by(example: Example, template: TemplateName, tokenizer: Any, max_tokens: int) -> Encoded:
    """The whole text's ids, of which nothing is learnt: texts without an answer are read, too."""
    ids = list(tokenize(render(example.messages, template, tokenizer), tokenizer, verbose=False).input_ids)[:max_tokens]
    return Encoded(example.id, ids, ids)


def aligned(one: dict[int, int], other: dict[int, int]) -> list[tuple[int, int]]:
    """Pairs of tokens that end at the same character, in reading order."""
    return [(one[place], other[place]) for place in sorted(one.keys() & other.keys())]
