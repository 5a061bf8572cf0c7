"""One rendering of a chat, for the loss and for the question.

    plain:  <|user|>\n{content}\n\n<|assistant|>\n{content}{eos}      (Seeking Neural Nuggets, content stripped)
    chat:   the model's own chat template

Labels cover the assistant's turns alone, end-of-sequence token included; all else is -100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

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
        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))
        except (TemplateError, ValueError) as error:
            raise UserError(f"template: the model's chat template refuses this chat ({error}); try plain") from error
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
    text = render(example.messages, template, tokenizer)
    places = [place for place, message in enumerate(example.messages) if message.role == "assistant"]
    spans = [_span(text, example, place, template, tokenizer) for place in places]
    encoded = tokenize(text, tokenizer, return_offsets_mapping=True)
    ids = encoded["input_ids"][:max_tokens]
    offsets = encoded["offset_mapping"][:max_tokens]
    labels = [
        token if any(start <= left and start < right <= end for start, end in spans) else -100
        for token, (left, right) in zip(ids, offsets, strict=True)
    ]
    if all(label == -100 for label in labels[1:]):
        raise UserError(
            f"data: example {example.id!r} has no assistant token within its first {max_tokens} tokens;"
            " shorten it or raise max_tokens"
        )
    return Encoded(example.id, ids, labels)


def _span(text: str, example: Example, place: int, template: TemplateName, tokenizer: Any) -> tuple[int, int]:
    """Where an assistant's turn lies in the whole text: from what asks for it to its end-of-sequence token.

    A template may show an earlier turn otherwise than a last one. UserError where what asks for the turn isn't what
    stands before it, or where no end-of-sequence token follows it: the model would learn to go on for ever.
    """
    before = render(example.messages[:place], template, tokenizer, ask=True)
    content = example.messages[place].content.strip()
    end = text.find(content, len(before)) + len(content)
    if not text.startswith(before) or end < len(before) + len(content):
        raise UserError(f"template: the chat template shows example {example.id!r} otherwise when asked; try plain")
    if not text[end:].lstrip().startswith(tokenizer.eos_token):
        raise UserError(
            f"template: the chat template doesn't end a turn with the tokenizer's eos_token {tokenizer.eos_token!r};"
            " set that token in tokenizer_config.json, or use --template plain"
        )
    return len(before), text.index(tokenizer.eos_token, end) + len(tokenizer.eos_token)


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
