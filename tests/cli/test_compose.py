"""What `pkt compose` refuses, before a model is loaded."""

from __future__ import annotations

import pytest
from test_bad_input import Call
from test_bad_input import pkt as call

__all__ = ["call"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "lora"], "arms: a composition is of two arms or more"),
        (["--arms", "lora,lora"], "arms: a composition is of two arms or more"),
        (["--arms", "lora,pissa", "--by", "turns"], "by: 'turns' is neither composite nor switch"),
        (["mine", "--arms", "lora,pissa"], "sweep: "),
    ],
)
def test_it_says_what_it_needs(words: list[str], message: str, call: Call) -> None:
    status, _, error = call("compose", *words)
    assert status == 2 and message in error
