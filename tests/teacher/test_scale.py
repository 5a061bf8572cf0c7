"""The rule looks at the models alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.errors import UserError
from orchestrator.models.families import FAMILIES, Geometry
from orchestrator.recipe import Measure
from orchestrator.teacher.scale import Scale, check_given, check_structure, scale_of
from orchestrator.transfer.given import Given

L7 = Geometry(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000)
L70 = Geometry(layers=80, hidden=8192, ffn=28672, heads=64, kv_heads=8, head_dim=128, vocab=32000)
TINY = Geometry(layers=4, hidden=64, ffn=160, heads=4, kv_heads=2, head_dim=16, vocab=99)


@pytest.mark.parametrize(
    ("asked", "teacher", "student", "scale"),
    [
        ({}, TINY, TINY, Scale(1)),
        ({}, L70, L7, Scale(128)),  # 128 divides 8192, 28672, 4096 and 11008
        ({"granularity": 64}, L70, L7, Scale(64)),
        ({"granularity": 1}, L70, L7, Scale(128, exact=True)),
        ({"passes": 2}, L70, L7, Scale(128, exact=True)),
        ({"granularity": 1, "passes": 1}, L70, L7, Scale(1)),
        ({"passes": 2}, TINY, TINY, Scale(16, exact=True)),
        ({"granularity": 1, "metric": "wanda"}, L70, L7, Scale(128, exact=True)),
    ],
)
def test_what_is_asked_for(asked: dict[str, object], teacher: Geometry, student: Geometry, scale: Scale) -> None:
    assert scale_of(Measure.model_validate(asked), teacher, student) == scale


def test_what_cannot_go_together() -> None:
    with pytest.raises(UserError, match=r"measure\.granularity: 64 needs one pass"):
        scale_of(Measure(granularity=64, passes=2), L70, L7)
    with pytest.raises(UserError, match=r"measure\.metric: integrated_gradients has exact scores in one pass only"):
        scale_of(Measure.model_validate({"granularity": 1, "metric": "integrated_gradients"}), L70, L7)


@pytest.mark.parametrize(
    ("structure", "scale", "family", "modules", "message"),
    [
        ("neuron", Scale(64), "llama", ("ffn",), r"neuron needs exact scores, and these are tiles of 64"),
        ("neuron", Scale(64, True), "llama", ("ffn", "embedding"), r"two passes don't have of embeddings"),
        ("row_column", Scale(64), "phi3", ("ffn",), r"those that phi3 fuses tiles of 64 tell only one sum"),
        ("consistent", Scale(64), "gpt_neox", ("attention",), r"those that gpt_neox fuses"),
    ],
)
def test_what_scores_cannot_tell(
    structure: str, scale: Scale, family: str, modules: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_structure(structure, scale, FAMILIES[family], TINY, TINY, modules)


@pytest.mark.parametrize(
    ("structure", "teacher", "student", "message"),
    [
        ("consistent", {"head_dim": 8}, {}, r"attention heads of 16 can't be whole heads of the teacher's 8"),
        ("consistent", {"heads": 2, "head_dim": 32}, {}, r"wants 4 attention heads of a teacher's matrix that has 2"),
        ("head_aligned", {"kv_heads": 1, "head_dim": 32}, {"kv_heads": 2}, r"wants 2 attention heads .* that has 1"),
        ("head_aligned", {"heads": 8, "head_dim": 32}, {}, r"needs exact scores to cut heads of 16 from heads of 32"),
    ],
)
def test_heads_that_cannot_be_cut(
    structure: str, teacher: dict[str, int], student: dict[str, int], message: str
) -> None:
    given = replace(TINY, **{"heads": 8, **teacher}), replace(TINY, **student)
    with pytest.raises(UserError, match=message):
        check_structure(structure, Scale(8), FAMILIES["llama"], *given, ("attention",))


def test_what_scores_can_tell() -> None:
    for structure, scale, family in (("neuron", Scale(1), "llama"), ("neuron", Scale(64, True), "llama")):
        check_structure(structure, scale, FAMILIES[family], TINY, TINY, ("ffn",))
    check_structure("row_column", Scale(64), FAMILIES["llama"], TINY, TINY, ("ffn", "embedding"))
    check_structure("row_column", Scale(64, True), FAMILIES["phi3"], TINY, TINY, ("ffn",))
    check_structure("row_column", Scale(64), FAMILIES["phi3"], TINY, TINY, ("embedding",))


@pytest.mark.parametrize(
    ("fields", "modules", "message"),
    [
        (
            {"residual": [*range(63), 128]},
            ("ffn",),
            r"residual: 128 given, and the teacher's residual dimensions are 0\.\.127",
        ),
        ({"neurons": [0]}, ("ffn",), r"neurons: 1 feed-forward neurons given, and the student has 160"),
        ({"groups": [0, 5]}, ("attention",), r"groups: 5 given, and the teacher's K/V heads are 0\.\.3"),
        ({"heads": [0]}, ("attention",), r"heads: 1 attention heads given, and the student has 4"),
        ({"residual": []}, ("embedding",), r"residual: 0 residual dimensions given, and the student has 64"),
    ],
)
def test_given_indices_that_do_not_fit(fields: dict[str, list[int]], modules: tuple[str, ...], message: str) -> None:
    wide = replace(TINY, hidden=128, heads=8, kv_heads=4, ffn=320)
    named = {"residual": [*range(64)], "heads": [4, 5, 6, 7], "groups": [3, 2], "neurons": [*range(160, 320)]}
    for parts in (("attention",), ("ffn",), ("embedding",), ("attention", "ffn", "embedding")):
        check_given(Given(**named), wide, TINY, parts)
    with pytest.raises(UserError, match=message):
        check_given(Given(**{**named, **fields}), wide, TINY, modules)
