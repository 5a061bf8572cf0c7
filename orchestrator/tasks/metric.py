"""How an answer is judged."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orchestrator.errors import UserError

Kind = Literal[
    "exact_match", "multiple_choice", "contains", "normalized_match", "rouge_l", "pass_at_1", "win_rate", "loss"
]
NEW = 256  # tokens of an answer to rows of a user's own
LATER = (
    "also",
    "until",
    "harness",
    "of_choices",
)  # fields that say nothing where they are empty: results of before them are found again
# What a user may name, for rows of their own
WORDS: tuple[Kind, ...] = ("exact_match", "contains", "rouge_l", "multiple_choice", "loss", "win_rate")


@dataclass(frozen=True)
class Metric:
    """What counts as right: of a greedy answer, of the likeliest choice, or how likely the gold answer is.

    `exact_match` and `multiple_choice` are lm-eval's own. `also` are figures of the same answers beside the score.
    """

    kind: Kind | str  # of lm-eval's task one of its own figures
    filter_name: str
    pattern: str | None = None  # the answer is group 1 of its last match; without one, the stripped output
    max_new_tokens: int = 64
    ignore: tuple[str, ...] = ()  # regexes removed from answer and gold before they are compared
    also: tuple[Kind | str, ...] = ()
    until: tuple[str, ...] = ()  # an answer ends before the first of these
    harness: str = ""  # lm-eval's task whose figures these are: its file, below lm-eval's folder of tasks
    of_choices: bool = False  # whether such figures are of how likely choices are, and not of what is written

    def __post_init__(self) -> None:
        # With no group lm-eval's filter takes the whole match, with several the first that is not empty.
        if self.pattern is not None and re.compile(self.pattern).groups != 1:
            raise ValueError(f"pattern {self.pattern!r} must have exactly one group, the answer")

    @property
    def name(self) -> str:
        """As records and leaderboards have it."""
        return f"{self.kind},{self.filter_name}"

    @property
    def chooses(self) -> bool:
        """Whether the likeliest of given answers is its answer."""
        return self.kind == "multiple_choice" or self.of_choices

    @property
    def writes(self) -> bool:
        """Whether a model has to write an answer, and not only to find one likely."""
        return not (self.chooses or self.kind == "loss") or self.filter_name == "outputs"

    @property
    def keeps(self) -> bool:
        """Whether what a model writes is kept for another judge."""
        return self.kind == "win_rate" or self == self.unjudged()

    def unjudged(self) -> Metric:
        """The same answers, where nobody is there to judge them: the score is how likely the references are."""
        return Metric("loss", "outputs", max_new_tokens=self.max_new_tokens)

    @property
    def runs(self) -> bool:
        """Whether answers are programs, which are run."""
        return self.kind == "pass_at_1"

    def as_json(self) -> dict[str, Any]:
        """For a step's config."""
        fields: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return {key: value for key, value in fields.items() if value or key not in LATER}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Metric:
        """From `as_json`."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**plain)


def named(text: str) -> Metric:
    """What a user says of rows of their own: a word, or regex:PATTERN. UserError with the words that there are."""
    if text.startswith("regex:"):
        try:
            return Metric("exact_match", "regex", text.removeprefix("regex:"), max_new_tokens=NEW)
        except (ValueError, re.error) as error:
            raise UserError(f"metric: {text!r}: {error}") from error
    kind = next((word for word in WORDS if word == text), None)
    if kind is None:
        raise UserError(f"metric: {text!r} is not known; known: {', '.join(WORDS)}, regex:PATTERN")
    return Metric(kind, "judge" if kind == "win_rate" else "none", max_new_tokens=NEW)
