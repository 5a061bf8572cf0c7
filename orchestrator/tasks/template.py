"""One rendering of a chat, for the loss and for the question.

    plain:  <|user|>\n{content}\n\n<|assistant|>\n{content}{eos}      (Seeking Neural Nuggets, content stripped)
    chat:   the model's own chat template

Labels cover the assistant's turns alone, end-of-sequence token included; all else is -100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Message

TemplateName = Literal["plain", "chat"]


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one example, of equal length."""

    id: str
    ids: list[int]
    labels: list[int]


def render(messages: tuple[Message, ...], template: TemplateName, tokenizer: Any, *, ask: bool = False) -> str:
    """The text of these turns; with `ask`, followed by what opens the assistant's next one."""
    if template == "chat":
        if tokenizer.chat_template is None:
            raise UserError("template: this model's tokenizer has no chat template; use --template plain")
        turns = [message.model_dump() for message in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))
    parts = []
    for message in messages:
        end = tokenizer.eos_token if message.role == "assistant" else "\n\n"
        parts.append(f"<|{message.role}|>\n{message.content.strip()}{end}")
    return "".join(parts) + ("<|assistant|>\n" if ask else "")


def prompt_of(example: Example, template: TemplateName, tokenizer: Any) -> str:
    """Everything before the last assistant's turn, as the model is asked it."""
    return render(example.messages[:-1], template, tokenizer, ask=True)


def tokenize(text: str, tokenizer: Any, **options: Any) -> Any:
    """With the tokenizer's own special tokens, unless the text (a chat template's) already begins with them."""
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not begins, **options)


def encode(example: Example, template: TemplateName, tokenizer: Any, max_tokens: int) -> Encoded:
    """Ids and labels, cut on the right at `max_tokens`. UserError where no labelled token is left.

    The whole text is tokenised at once and a token is labelled when it lies in an assistant's turn, so that the tokens
    are those of generation.
    """
    spans = []
    for place, message in enumerate(example.messages):
        if message.role == "assistant":
            start = len(render(example.messages[:place], template, tokenizer, ask=True))
            spans.append((start, len(render(example.messages[: place + 1], template, tokenizer))))
    text = render(example.messages, template, tokenizer)
    encoded = tokenize(text, tokenizer, return_offsets_mapping=True)
    ids = encoded["input_ids"][:max_tokens]
    offsets = encoded["offset_mapping"][:max_tokens]
    labels = [
        token if any(start <= left and right <= end and right > left for start, end in spans) else -100
        for token, (left, right) in zip(ids, offsets, strict=True)
    ]
    if all(label == -100 for label in labels[1:]):
        raise UserError(
            f"data: example {example.id!r} has no assistant token within its first {max_tokens} tokens;"
            " shorten it or raise max_tokens"
        )
    return Encoded(example.id, ids, labels)


def collate(batch: list[Encoded], pad: int) -> dict[str, Any]:
    """Right-padded tensors input_ids, attention_mask and labels, each (examples, longest)."""
    import torch

    width = max(len(row.ids) for row in batch)

    def fill(rows: list[list[int]], value: int) -> Any:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": fill([row.ids for row in batch], pad),
        "attention_mask": fill([[1] * len(row.ids) for row in batch], 0),
        "labels": fill([row.labels for row in batch], -100),
    }
