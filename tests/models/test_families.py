"""Every row of the tables against the real models that transformers builds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES, tiny
from transformers import AutoConfig

from orchestrator.errors import UserError
from orchestrator.models.aliases import ALIASES
from orchestrator.models.dtypes import dtype_of
from orchestrator.models.families import FAMILIES as ROWS
from orchestrator.models.families import ORIGINS, Geometry, pairs
from orchestrator.models.loading import outline
from orchestrator.sweep.anatomy import Anatomy

SMALL = Geometry(layers=2, hidden=32, ffn=64, heads=4, kv_heads=4, head_dim=8, vocab=50)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_model(family: str) -> None:
    model = tiny(family)
    row, geometry = ROWS[model.config.model_type], Geometry.of(model.config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    covered: dict[str, int] = {}
    for origin, roles in ORIGINS.items():
        for role in roles:
            for layer in [None] if origin == "embedding" else range(geometry.layers):
                if role in geometry.roles(origin):
                    name = row.parameter(role, layer)
                    part = torch.empty(parameters[name].shape, device="meta")[row.rows(role, geometry)]
                    assert tuple(part.shape) == geometry.shape(role), name
                    covered[name] = covered.get(name, 0) + part.numel()
    assert covered == {name: p.numel() for name, p in parameters.items() if p.ndim == 2}


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_counted(family: str, biases: bool) -> None:
    config = tiny(family).config
    if biases:
        config.attention_bias = config.mlp_bias = True
    row, model = ROWS[config.model_type], outline(config)
    assert sorted(row.shapes(Geometry.of(config), config)) == sorted(tuple(one.shape) for one in model.parameters())
    assert row.eager == (model.config._attn_implementation == "eager")


@pytest.mark.parametrize("alias", ["llama3.2-1b", "mistral-7b", "qwen2.5-7b", "qwen3-0.6b"])
def test_a_published_config_is_what_transformers_makes_of_it(alias: str) -> None:
    published = ALIASES[alias].config
    assert published
    config = AutoConfig.for_model(**published)
    found = Anatomy.of(alias, "teacher")
    assert found.geometry == Geometry.of(config)
    assert sorted(found.shapes) == sorted(tuple(one.shape) for one in outline(config).parameters())
    assert found.width == dtype_of(config, "auto").itemsize


def test_a_teacher_with_enough_kv_rows_is_cut_directly() -> None:
    teacher = Geometry(layers=4, hidden=64, ffn=128, heads=8, kv_heads=4, head_dim=8, vocab=50)
    found = {(pair.role, pair.layer): pair for pair in pairs(teacher, SMALL, ("attention",))}
    assert found["k", 0].teacher == (32, 64)
    assert found["k", 0].repeats == 1
    assert len(found) == 4 * 2


def test_a_teacher_with_too_few_repeats_its_kv_heads() -> None:
    """Llama-2-70B and a Llama-2-7B student, by their published sizes: K and V grow from 1024 to 8192 rows."""
    teacher = Geometry(layers=80, hidden=8192, ffn=28672, heads=64, kv_heads=8, head_dim=128, vocab=32000)
    student = Geometry(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000)
    found = {pair.role: pair for pair in pairs(teacher, student, ("attention", "ffn", "embedding"))}
    assert found["k"].teacher == (8192, 8192)
    assert found["v"].repeats == 8
    assert found["q"].repeats == 1
    assert found["up"].teacher == (28672, 8192)
    assert found["head"].student == (32000, 4096)


@pytest.mark.parametrize(
    ("change", "origins", "message"),
    [
        ({"ffn": 63}, ("ffn",), r"its gate matrix is 63 x 64, smaller than the student's 64 x 32"),
        ({"hidden": 31}, ("embedding",), r"its embed matrix is 50 x 31, smaller than the student's 50 x 32"),
        ({"layers": 1}, ("ffn",), r"2 layers, the teacher has only 1"),
        ({"heads": 2, "kv_heads": 1}, ("attention",), r"its q matrix is 16 x 64, smaller than the student's 32 x 32"),
    ],
)
def test_a_smaller_teacher_is_refused_with_both_shapes(change, origins, message: str) -> None:
    sizes = {"layers": 4, "hidden": 64, "ffn": 128, "heads": 8, "kv_heads": 4, "head_dim": 8, "vocab": 50, **change}
    with pytest.raises(UserError, match=message):
        list(pairs(Geometry(**sizes), SMALL, origins))


def test_a_gate_that_the_teacher_lacks_is_told() -> None:
    sizes = {"layers": 4, "hidden": 64, "ffn": 128, "heads": 8, "kv_heads": 8, "head_dim": 8, "vocab": 50}
    ungated = Geometry(**sizes, gated=False)
    with pytest.raises(UserError, match=r"no gate matrix, .* take another --teacher, or leave such matrices out"):
        list(pairs(ungated, SMALL, ("attention", "ffn")))
    assert {pair.role for pair in pairs(Geometry(**sizes), replace(SMALL, gated=False), ("ffn",))} == {"up", "down"}


def test_every_students_alias_exists_and_the_smallest_has_none() -> None:
    students = {row.student for row in ALIASES.values() if row.student}
    assert students <= set(ALIASES)
    assert ALIASES["llama2-70b"].student == "llama2-7b"
    assert ALIASES["llama2-7b"].student is None
