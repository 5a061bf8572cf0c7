"""One rendering of a chat and one place for its token ids: for the loss, for generation and for likelihoods.

    plain:  <|user|>\n{content}\n\n<|assistant|>\n{content}{eos}      (Seeking Neural Nuggets, content stripped)
    chat:   the model's own chat template
    raw:    {content}{content}{eos}                                   (lm-eval's, whose tasks bring their own spaces)

Labels cover the assistant's turns alone, with the token that ends them; all else is -100. What is asked are the ids
before the last turn's labels, and a choice's ids are those that training on it would label: a tokenizer that joins
">" and a line's end (Qwen's) would otherwise have a model scored on tokens that it never learnt.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Message

TemplateName = Literal["plain", "chat", "raw", "text"]  # text: as it is, and all of it counts
TODAY = datetime.date(2024, 7, 26)  # for templates that tell the model the date (Llama 3's): never the machine's own
DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")  # how they ask for it


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one example, of equal length."""

    id: str
    ids: list[int]
    labels: list[int]


def render(
    messages: tuple[Message, ...], template: TemplateName, tokenizer: Any, *, ask: bool = False, **more: Any
) -> str:
    """The text of these turns; with `ask`, and what opens the assistant's next one. A chat template is told `more`."""
    if template == "chat":
        if tokenizer.chat_template is None:
            raise UserError("template: this model's tokenizer has no chat template; use --template plain")
        turns = [message.model_dump() for message in messages]
        try:
            dated = DATE.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
            options = {"chat_template": dated, "tokenize": False, "add_generation_prompt": ask, **more}
            return str(tokenizer.apply_chat_template(turns, **options))
        except (TemplateError, ValueError) as error:
            raise UserError(f"template: the model's chat template refuses this chat ({error}); try plain") from error
    if template == "raw":
        return "".join(f"{one.content}{tokenizer.eos_token if one.role == 'assistant' else ''}" for one in messages)
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
    whole = _whole(example, template, tokenizer)
    cut = Encoded(example.id, whole.ids[:max_tokens], whole.labels[:max_tokens])
    if not _answers(cut):
        raise UserError(
            f"data: example {example.id!r} has no assistant token within its first {max_tokens} tokens;"
            " shorten it or raise max_tokens"
        )
    return cut


@dataclass(frozen=True)
class Fitted:
    """Examples as ids within a number of tokens, and what had no room."""

    rows: list[Encoded]
    cut: int  # rows of them whose end is missing
    left_out: int  # rows of whose answer nothing is left: they are not among `rows`

    def facts(self) -> dict[str, int]:
        """For manifests."""
        return {"rows": len(self.rows), "cut": self.cut, "left_out": self.left_out}


def fitted(examples: Sequence[Example], template: TemplateName, tokenizer: Any, max_tokens: int) -> Fitted:
    """`encode` of all examples that have room, and how many haven't. UserError where none has."""
    whole = [_whole(example, template, tokenizer) for example in examples]
    rows = [Encoded(one.id, one.ids[:max_tokens], one.labels[:max_tokens]) for one in whole]
    kept = [row for row in rows if _answers(row)]
    if not kept:
        encode(examples[0], template, tokenizer, max_tokens)  # says why
    cut = sum(len(one.ids) > max_tokens and _answers(row) for one, row in zip(whole, rows, strict=True))
    return Fitted(kept, cut, len(rows) - len(kept))


def _whole(example: Example, template: TemplateName, tokenizer: Any) -> Encoded:
    if template == "text":
        ids = list(tokenize(example.messages[-1].content, tokenizer, verbose=False).input_ids)
        return Encoded(example.id, ids, ids)
    text = render(example.messages, template, tokenizer)
    places = [place for place, message in enumerate(example.messages) if message.role == "assistant"]
    turns = [_turn(text, example, place, template, tokenizer) for place in places]
    encoded = tokenize(text, tokenizer, return_offsets_mapping=True, verbose=False)
    labels = [
        token if any(start <= left and start < right <= end for start, _, end in turns) else -100
        for token, (left, right) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return Encoded(example.id, list(encoded["input_ids"]), labels)


def _answers(row: Encoded) -> bool:
    return any(label != -100 for label in row.labels[1:])


def question(example: Example, template: TemplateName, tokenizer: Any) -> tuple[str, list[int]]:
    """What is asked before the last turn: its text, and its ids as training has them before that turn's labels.

    UserError where the tokenizer joins the question's end with the answer, so that no ids are both.
    """
    prompt = prompt_of(example, template, tokenizer)
    ids = list(tokenize(prompt, tokenizer, verbose=False).input_ids)
    _answer(example, ids, template, tokenizer)
    return prompt, ids


def choice_ids(example: Example, choice: str, asked: list[int], template: TemplateName, tokenizer: Any) -> list[int]:
    """The ids that training on this choice labels after the question `asked`, but for the one that ends the turn."""
    turn = example.messages[-1].model_copy(update={"content": choice})
    chosen = example.model_copy(update={"messages": (*example.messages[:-1], turn)})
    return _answer(chosen, asked, template, tokenizer)


def _answer(example: Example, asked: list[int], template: TemplateName, tokenizer: Any) -> list[int]:
    text = render(example.messages, template, tokenizer)
    _, end, _ = _turn(text, example, len(example.messages) - 1, template, tokenizer)
    encoded = tokenize(text, tokenizer, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    if ids[: len(asked)] != asked:
        raise UserError(
            f"template: the tokenizer joins the end of what is asked in example {example.id!r} with the answer; try"
            f" --template {'chat' if template == 'plain' else 'plain'}"
        )
    offsets = encoded["offset_mapping"]
    return [ids[place] for place in range(len(asked), len(ids)) if offsets[place][1] <= end]


def turn_end(template: TemplateName, tokenizer: Any) -> str:
    """The token that ends an assistant's turn: eos, or what the chat template has there (Gemma's <end_of_turn>).

    UserError where a template ends it with no token of its own: the model would learn to go on for ever.
    """
    if template in ("plain", "raw"):
        return str(tokenizer.eos_token)
    word = "answer"
    probe = (Message(role="user", content="question"), Message(role="assistant", content=word))
    text = render(probe, template, tokenizer)
    rest = text[text.rindex(word) + len(word) :].lstrip()
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = [token for token in known | set(tokenizer.all_special_tokens) if rest.startswith(token)]
    if not ends:
        raise UserError(
            "template: the chat template ends an assistant's turn with no special token, so no answer would end;"
            " use --template plain"
        )
    return max(ends, key=len)


def stops(template: TemplateName, tokenizer: Any) -> list[int]:
    """Ids after which an answer has ended."""
    end = int(tokenizer.convert_tokens_to_ids(turn_end(template, tokenizer)))
    return list(dict.fromkeys([end, int(tokenizer.eos_token_id)]))


def _turn(text: str, example: Example, place: int, template: TemplateName, tokenizer: Any) -> tuple[int, int, int]:
    """Where an assistant's turn lies in the whole text: from what asks for it, to its last word, to its end token.

    A template may show an earlier turn otherwise than a last one. UserError where what asks for the turn isn't what
    stands before it.
    """
    before = render(example.messages[:place], template, tokenizer, ask=True)
    content, token = example.messages[place].content, turn_end(template, tokenizer)
    if not example.doc or content not in text[len(before) :]:  # lm-eval scores an answer's last spaces, too
        content = content.strip()
    end = text.find(content, len(before)) + len(content)
    if not text.startswith(before) or end < len(before) + len(content):
        raise UserError(f"template: the chat template shows example {example.id!r} otherwise when asked; try plain")
    if not text[end:].lstrip().startswith(token):
        raise UserError(f"template: example {example.id!r} has a turn that doesn't end with {token!r}; try plain")
    return len(before), end, text.index(token, end) + len(token)


def batches(encoded: Sequence[Encoded], tokens: int, at_most: int | None = None) -> list[list[Encoded]]:
    """Examples of like length together, at most that many padded tokens at once: nothing computed depends on it."""
    groups = alike([len(example.ids) for example in encoded], tokens, at_most)
    return [[encoded[place] for place in group] for group in groups]


def alike(
    lengths: Sequence[int], tokens: int, at_most: int | None = None, padding: float = math.inf
) -> list[list[int]]:
    """The places of these lengths in batches, longest first, with no more tokens of padding in any than that."""
    groups: list[list[int]] = []
    longest = padded = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        last = groups[-1] if groups else []
        padded += longest - lengths[place]
        if last and longest * (len(last) + 1) <= tokens and len(last) != at_most and padded <= padding:
            last.append(place)
        else:
            longest, padded = lengths[place], 0
            groups.append([place])
    return groups


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


def labelled(labels: Any) -> Any:
    """The places (p,) from which all labelled tokens of a batch are predicted, and the last of them: others' logits,
    each as wide as the vocabulary, nobody needs. All places where no token is labelled.

    `example_losses(logits at these places, labels at these places)` is that of all.
    """
    import torch

    asked = (labels[:, 1:] != -100).any(0).nonzero()[:, 0]
    if not len(asked):
        return torch.arange(labels.shape[1], device=labels.device)
    return torch.arange(int(asked[0]), int(asked[-1]) + 2, device=labels.device)
