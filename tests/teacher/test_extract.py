"""What is cut from where, against arithmetic by hand on the checkpoints' own tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_blocks import exhaustive
from tiny import saved, tiny

from orchestrator.models import adapters
from orchestrator.models.families import AXES, FAMILIES, Geometry, pairs
from orchestrator.models.loading import load
from orchestrator.teacher.extract import extract
from orchestrator.teacher.scores import FILE, layer_scores, save_scores
from orchestrator.teacher.teacher import Teacher
from orchestrator.transfer.place import sums
from orchestrator.transfer.scores import Scores

ALL = ["attention", "ffn", "embedding"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96}


def pair_of(tmp_path: Path, family: str, granularity: int = 1, **student: int) -> dict[str, Any]:
    """A teacher with random sensitivities and a smaller student, both saved."""
    teacher = saved(tmp_path / "teacher", family)
    saved(tmp_path / "student", family, 1, **{**SMALL, **student})
    generator = torch.Generator().manual_seed(3)
    exact = {name: torch.rand(p.shape, generator=generator) ** 4 for name, p in teacher.named_parameters()}
    scores = {}
    for name, values in exact.items():
        score = Scores.zeros(values.shape, granularity, torch.device("cpu"))
        if values.ndim == 1:
            score.tiles += values
        else:
            score.add(0, values)
        scores[name] = score
    (tmp_path / "measured").mkdir()
    save_scores(scores, tmp_path / "measured" / FILE)
    layers = layer_scores(scores, FAMILIES[teacher.config.model_type].layer, 3)
    (tmp_path / "measured" / "layers.json").write_text(json.dumps(layers))
    return {"teacher": teacher, "exact": exact, "layers": layers}


def run(
    tmp_path: Path, structure: str = "window", layers: Any = "sensitivity", modules: Any = ALL, rank: int = 8
) -> Any:
    out = tmp_path / f"out-{structure}"
    out.mkdir()
    extract(
        out,
        measured=tmp_path / "measured",
        teacher=str(tmp_path / "teacher"),
        student=str(tmp_path / "student"),
        student_name="a-student",
        metric={"kind": "taylor"},
        exact=False,
        layers={"kind": layers} if isinstance(layers, str) else layers,
        structure={"kind": structure},
        modules=modules,
        rank=rank,
    )
    return out, json.loads((out / "transfer.json").read_text()), adapters.read_start(out)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_windows_and_factors_are_those_of_the_oracles(family: str, tmp_path: Path) -> None:
    """8 query heads of 8 and 4 K/V heads cut directly: teacher and student have the same head_dim."""
    made = pair_of(tmp_path, family)
    _, record, starts = run(tmp_path)
    best = sorted(sorted(range(3), key=lambda layer: -made["layers"][layer])[:2])
    assert record["layers"] == best
    assert record["layer_scores"] == [made["layers"][layer] for layer in best]
    weights = dict(made["teacher"].named_parameters())
    student = Geometry.of(tiny(family, 1, **SMALL).config)
    row = FAMILIES[family]
    for pair in pairs(Geometry.of(made["teacher"].config), student, tuple(ALL)):
        name = row.parameter(pair.role, None if pair.layer is None else best[pair.layer])
        own = row.parameter(pair.role, pair.layer)
        scores, weight = made["exact"][name], weights[name].detach()
        if pair.repeats > 1:
            continue
        row_, col = exhaustive(scores, pair.student)
        assert record["windows"][own] == [row_, col], own
        block = weight[row_ : row_ + pair.student[0], col : col + pair.student[1]]
        u, s, vh = torch.linalg.svd(block, full_matrices=False)
        b0, a0 = starts[own.removesuffix(".weight")]
        assert torch.allclose(b0 @ a0, u[:, :8] * s[:8] @ vh[:8], atol=1e-4), own
        assert record["singular_values"][own] == pytest.approx(s[:8].tolist(), rel=1e-4)
        assert record["energy_kept"][own] == pytest.approx(float((s[:8] ** 2).sum() / (s**2).sum()), rel=1e-4)


def test_repeated_kv_heads_are_what_attention_sees(tmp_path: Path) -> None:
    """A teacher with 2 K/V heads of 16 for a student with 4 of 16: each head is repeated for its group of 2."""
    made = pair_of(tmp_path, "llama", num_attention_heads=4, num_key_value_heads=4, hidden_size=64)
    teacher = Teacher.open(tmp_path / "teacher", tmp_path / "measured" / FILE)
    student = Geometry.of(tiny("llama", 1, **{**SMALL, "hidden_size": 64, "num_key_value_heads": 4}).config)
    pair = next(p for p in pairs(teacher.geometry, student, ("attention",)) if p.role == "k" and p.layer == 0)
    assert (pair.teacher, pair.repeats) == ((64, 64), 2)
    from transformers.models.llama.modeling_llama import repeat_kv

    name = "model.layers.2.self_attn.k_proj.weight"
    heads = made["teacher"].get_parameter(name).detach().view(1, 2, 16, 64)
    assert torch.equal(teacher.weight(pair, 2), repeat_kv(heads, 2).reshape(64, 64))
    exact = made["exact"][name].view(1, 2, 16, 64)
    assert torch.allclose(teacher.scores(pair, 2).tiles, repeat_kv(exact, 2).reshape(64, 64) / 2)
    _, record, _ = run(tmp_path)
    assert len(record["windows"]) == 7 * 2 + 2


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_tiled_scores_give_windows_on_tiles(family: str, tmp_path: Path) -> None:
    made = pair_of(tmp_path, family, granularity=8)
    _, record, _ = run(tmp_path)
    name = "model.layers.{}.mlp.up_proj.weight"
    scores = made["exact"][name.format(record["layers"][1])]
    tiles = scores.view(20, 8, 8, 8).sum((1, 3))
    row, col = exhaustive(tiles, (12, 4))
    assert record["windows"][name.format(1)] == [row * 8, col * 8]
    head = made["exact"]["lm_head.weight" if family == "llama" else "model.embed_tokens.weight"]
    assert record["windows"]["lm_head.weight"] == [0, exhaustive(head.sum(0, keepdim=True), (1, 32))[1]]


def test_a_tied_head_is_cut_from_the_embedding(tmp_path: Path) -> None:
    pair_of(tmp_path, "llama-tied")
    _, record, starts = run(tmp_path)
    assert record["windows"]["lm_head.weight"] == record["windows"]["model.embed_tokens.weight"]
    assert torch.equal(starts["lm_head"][0], starts["model.embed_tokens"][0])


def test_a_longer_padded_vocabulary_is_filled_up_with_nothing(tmp_path: Path) -> None:
    made = pair_of(tmp_path, "llama", vocab_size=104)
    _, record, starts = run(tmp_path, modules=["embedding"], rank=32)
    _, col = record["windows"]["lm_head.weight"]
    right = made["teacher"].lm_head.weight.detach()[:, col : col + 32]
    b0, a0 = starts["lm_head"]
    assert b0.shape[0] == 104
    assert torch.allclose((b0 @ a0)[:99], right, atol=1e-4)
    assert float((b0 @ a0)[99:].abs().max()) < 1e-5


@pytest.mark.parametrize("structure", ["row_column", "neuron", "random", "random_window", "head_aligned", "consistent"])
def test_every_structure_leaves_its_places(structure: str, tmp_path: Path) -> None:
    made = pair_of(tmp_path, "llama")
    out, record, starts = run(tmp_path, structure, modules=["ffn"], rank=32)
    name = "model.layers.0.mlp.down_proj.weight"
    weight = made["teacher"].get_parameter(name.replace("0", str(record["layers"][0]), 1)).detach()
    b0, a0 = starts[name.removesuffix(".weight")]
    assert b0.shape == (32, 32)
    if structure in ("random_window", "head_aligned"):
        row, col = record["windows"][name]
        block = weight[row : row + 32, col : col + 96]
    elif structure in ("row_column", "consistent"):
        places = record["indices"][name]
        block = weight[places["rows"]][:, places["columns"]]
    else:
        flat = load_file(out / record["indices"][name]["file"])[name]
        block = weight.flatten()[flat].view(32, 96)
    assert torch.allclose(b0 @ a0, block, atol=1e-4)
    assert ("windows" in record) == (structure in ("random_window", "head_aligned"))


def test_only_the_asked_modules_are_extracted(tmp_path: Path) -> None:
    pair_of(tmp_path, "llama")
    out, record, starts = run(tmp_path, modules=["attention"], layers={"kind": "explicit", "layers": [2, 0]})
    assert record["layers"] == [2, 0]
    assert {name.rsplit(".", 1)[-1] for name in starts} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "adds the blocks" in (out / "README.md").read_text()


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
def test_a_matrix_that_roles_share_is_cut_role_by_role(family: str, granularity: int, tmp_path: Path) -> None:
    """Each role's window is the best of its own rows, and at full rank the factors are the blocks put together."""
    heads = {"num_attention_heads": 2} if family == "gpt_neox" else {"num_attention_heads": 2, "num_key_value_heads": 1}
    made = pair_of(tmp_path, family, granularity, **heads)
    _, record, starts = run(tmp_path, modules=["attention"], rank=32)
    own = FAMILIES[family].parameter("q", 1)
    name = FAMILIES[family].parameter("q", record["layers"][1])
    weight, scores = dict(made["teacher"].named_parameters())[name].detach(), made["exact"][name]
    split = by_head if family == "gpt_neox" else one_after_another
    blocks = {}
    for role, part in split(scores).items():
        height = 16 if family == "phi3" and role != "q" else 32
        tiles = part.view(part.shape[0] // granularity, granularity, -1, granularity).sum((1, 3))
        place = [granularity * at for at in exhaustive(tiles, (height // granularity, 32 // granularity))]
        assert record["windows"][own][role] == place
        row, col = place
        blocks[role] = split(weight)[role][row : row + height, col : col + 32]
    teacher = Teacher.open(tmp_path / "teacher", tmp_path / "measured" / FILE)
    student = Geometry.of(tiny(family, 1, **{**SMALL, **heads}).config)
    for pair in (p for p in pairs(teacher.geometry, student, ("attention",)) if p.role in "qkv" and p.layer == 1):
        told = sums(teacher.scores(pair, record["layers"][1]))
        right = split(scores)[pair.role]
        assert torch.allclose(told[0].float(), right.sum(1), rtol=1e-4)
        spread = right.sum(0).view(-1, granularity).mean(1).repeat_interleave(granularity)
        assert torch.allclose(told[1].float(), spread, rtol=1e-4)
    whole = torch.cat([blocks[role] for role in "qkv"])
    if family == "gpt_neox":  # 2 heads
        whole = torch.stack([blocks[role].view(2, 16, 32) for role in "qkv"], 1).reshape(96, 32)
    b0, a0 = starts[own.removesuffix(".weight")]
    assert torch.allclose(b0 @ a0, whole, atol=1e-4)


def by_head(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """4 heads of q, k and v of 16 rows each, told apart by hand."""
    rows = {role: [row for row in range(192) if row // 16 % 3 == place] for place, role in enumerate("qkv")}
    return {role: matrix[some] for role, some in rows.items()}


def one_after_another(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """64 rows of q, 32 of k, 32 of v."""
    return {"q": matrix[:64], "k": matrix[64:96], "v": matrix[96:]}


def test_embeddings_are_matched_by_token(tmp_path: Path) -> None:
    """The student's tokenizer has the teacher's tokens in another order and two of its own."""
    made = pair_of(tmp_path, "llama")
    tokenizer = json.loads((tmp_path / "student" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    plain = [token for token in vocabulary if token not in special]
    turned = dict(zip(plain, [vocabulary[token] for token in reversed(plain)], strict=True))
    strangers = {"strange": turned.pop(plain[0]), "stranger": turned.pop(plain[1])}
    kept = {token: vocabulary[token] for token in special & set(vocabulary)}
    tokenizer["model"]["vocab"] = kept | turned | strangers
    (tmp_path / "student" / "tokenizer.json").write_text(json.dumps(tokenizer))
    _, record, starts = run(tmp_path, modules=["embedding"], rank=32)
    weight = made["teacher"].lm_head.weight.detach()
    _, col = record["windows"]["lm_head.weight"]
    assert col == exhaustive(made["exact"]["lm_head.weight"].sum(0, keepdim=True), (1, 32))[1]
    b0, a0 = starts["lm_head"]
    for token, row in turned.items():
        if row < 99 and vocabulary[token] < 99:
            assert torch.allclose((b0 @ a0)[row], weight[vocabulary[token], col : col + 32], atol=1e-4), token
    assert all(float((b0 @ a0)[row].abs().max()) < 1e-5 for row in strangers.values() if row < 99)
    shared = sum(row < 99 and vocabulary[token] < 99 for token, row in turned.items())
    shared += sum(row < 99 for row in kept.values())
    assert record["vocabulary"] == {"shared": shared, "student": 99}


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_a_network_hidden_in_a_larger_one_is_found_by_consistent(family: str, tmp_path: Path) -> None:
    """A student's weights at scattered residual dimensions, heads and neurons of a noisy teacher come back whole."""
    sizes = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    saved(tmp_path / "teacher", family, head_dim=16, num_attention_heads=8, num_key_value_heads=4)
    student = saved(tmp_path / "student", family, 1, **sizes)
    teacher = load(str(tmp_path / "teacher"))
    generator = torch.Generator().manual_seed(7)
    drawn = {axis: torch.randperm(count, generator=generator) for axis, count in (("residual", 64), ("ffn", 160))}
    at = {"residual": drawn["residual"][:32].sort().values, "ffn": drawn["ffn"][:96].sort().values}
    at |= {"query": torch.cat([torch.arange(32, 64), torch.arange(96, 128)]), "vocabulary": torch.arange(99)}
    at["key"] = torch.cat([torch.arange(16, 32), torch.arange(48, 64)])  # the second and the fourth group
    row, own, theirs = FAMILIES[family], Geometry.of(student.config), Geometry.of(teacher.config)
    exact = {name: 0.01 * torch.rand(p.shape, generator=generator) for name, p in teacher.named_parameters()}
    exact = {name: score + ("layers.1" not in name) for name, score in exact.items()}  # layers 0 and 2 are kept
    for role, axes in AXES.items():
        for layer in [None] if role in ("embed", "head") else [0, 1]:
            name = row.parameter(role, layer and 2 * layer)
            places = at[axes[0]][:, None], at[axes[1]]
            for whole, part in (
                (teacher.get_parameter(name).data, student.get_parameter(row.parameter(role, layer)).data),
                (exact[name], 5.0),
            ):
                of_role = whole[row.rows(role, theirs)]
                of_role[places] = part[row.rows(role, own)] if isinstance(part, torch.Tensor) else part
    teacher.save_pretrained(tmp_path / "teacher")
    scores = {name: Scores(values, torch.zeros(0), torch.zeros(0), 1) for name, values in exact.items()}
    (tmp_path / "measured").mkdir()
    save_scores(scores, tmp_path / "measured" / FILE)
    (tmp_path / "measured" / "layers.json").write_text(json.dumps(layer_scores(scores, row.layer, 3)))
    _, record, starts = run(tmp_path, "consistent", rank=32)
    assert record["layers"] == [0, 2]
    for name, (b0, a0) in starts.items():
        assert torch.allclose(b0 @ a0, student.get_parameter(f"{name}.weight"), atol=1e-4), name
