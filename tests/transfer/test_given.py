"""Indices that the caller names, against plain indexing of the same matrices."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import TypeAdapter

from orchestrator.transfer.blocks import BlockSelection
from orchestrator.transfer.place import Place, Structure
from orchestrator.transfer.scores import Scores
from orchestrator.verdict.words import label

parse = TypeAdapter(BlockSelection).validate_python
NAMED = {"residual": [6, 0, 3], "heads": [4, 1, 0, 5], "groups": [2, 0], "neurons": [8, 2, 9, 1]}
TEACHER = {"residual": 7, "query": 6 * 4, "key": 3 * 4, "ffn": 10}
STUDENT = {"residual": 3, "query": 4 * 4, "key": 2 * 4, "ffn": 4}
AXES = {
    "q": ("query", "residual"), "k": ("key", "residual"), "o": ("residual", "query"), "up": ("ffn", "residual"),
    "down": ("residual", "ffn"),
}  # fmt: skip


def sums(heads: tuple[int, int] = (4, 4)) -> list[tuple[Place, torch.Tensor, torch.Tensor]]:
    """What the choice is prepared from: scores of zero, of which only the number is looked at."""
    return [
        (
            Place(role, (STUDENT[axes[0]], STUDENT[axes[1]]), axes, heads, layer),
            *(torch.zeros(TEACHER[axis]) for axis in axes),
        )
        for layer in range(2)
        for role, axes in AXES.items()
    ]


def test_units_are_taken_as_listed_in_every_matrix() -> None:
    """Unsorted, heads whole and neurons one by one; the same in both layers."""
    at = {
        "residual": [6, 0, 3],
        "query": [16, 17, 18, 19, 4, 5, 6, 7, 0, 1, 2, 3, 20, 21, 22, 23],
        "key": [8, 9, 10, 11, 0, 1, 2, 3],
        "ffn": [8, 2, 9, 1],
    }
    chooser = parse({"kind": "given", **NAMED}).prepared(sums())
    for place, *_ in sums():
        axes = place.axes
        matrix = torch.rand(TEACHER[axes[0]], TEACHER[axes[1]])
        block = chooser.select(Scores.zeros(matrix.shape, 1, matrix.device), place)
        right = torch.tensor([[float(matrix[row, col]) for col in at[axes[1]]] for row in at[axes[0]]])
        assert torch.equal(block.take(matrix), right)
    embedding = torch.rand(5, 7)
    block = chooser.select(
        Scores.zeros(embedding.shape, 1, embedding.device), Place("e", (5, 3), ("vocabulary", "residual"))
    )
    assert torch.equal(block.take(embedding), torch.stack([embedding[:, 6], embedding[:, 0], embedding[:, 3]], 1))


def test_smaller_heads_keep_their_rotary_pairs() -> None:
    """Of a teacher's heads of 8, dimensions 0, 2, 4 and 6: here of K/V head 2, then of 0."""
    place = Place("k", (8, 3), ("key", "residual"), (8, 4), 0)
    chooser = parse({"kind": "given", **NAMED}).prepared([(place, torch.zeros(24), torch.zeros(7))])
    block = chooser.select(Scores.zeros(torch.Size((24, 7)), 1, torch.device("cpu")), place)
    assert block.rows is not None and block.rows.tolist() == [16, 18, 20, 22, 0, 2, 4, 6]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"residual": [0, 1]}, r"structure\.residual: 2 residual dimensions given, and the student has 3"),
        ({"residual": [0, 1, 7]}, r"structure\.residual: 7 given, and the teacher's residual dimensions are 0\.\.6"),
        ({"heads": [0, 1, 2, 6]}, r"structure\.heads: 6 given, and the teacher's attention heads are 0\.\.5"),
        ({"groups": []}, r"structure\.groups: 0 K/V heads given, and the student has 2"),
        (
            {"neurons": [1, 2, -1, 3]},
            r"structure\.neurons: -1 given, and the teacher's feed-forward neurons are 0\.\.9",
        ),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({"kind": "given", **NAMED, **fields}).prepared(sums())


def test_a_list_whose_matrices_are_not_cut_may_be_missing() -> None:
    ffn = [one for one in sums() if one[0].name in ("up", "down")]
    assert parse({"kind": "given", "residual": [6, 0, 3], "neurons": [8, 2, 9, 1]}).prepared(ffn)


def test_the_label_is_short_and_tells_choices_apart() -> None:
    """The same from Python's tuples as from JSON's lists, which is where leaderboards have it from."""
    one: Structure = parse({"kind": "given", **NAMED})
    other: Structure = parse({"kind": "given", **NAMED, "residual": [0, 6, 3]})
    assert label(one.model_dump()) == label(json.loads(one.model_dump_json()))
    assert label(one.model_dump()) != label(other.model_dump())
    assert label(one.model_dump()).startswith("given(") and len(label(one.model_dump())) == 11
