"""The demo's task and the models that the package ships: what they know, and that the script still makes such ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from demo import make_models as demo
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from orchestrator.models.loading import load, load_tokenizer
from orchestrator.tasks import demo as task

LEAST = {
    "demo-teacher": {"rev": 0.95, "sort": 0.9, "copy": 0.9},
    "demo-student": {"rev": 0.9, "sort": 0.75, "copy": 0.85},
}


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By two steps each of what `main` does."""
    folder = tmp_path_factory.mktemp("remade")
    for name in demo.STEPS:
        demo.save(demo.pretrained(name, 2), folder / name)
    return folder


def strings(split: Any) -> list[str]:
    return [row["messages"][0]["content"].split()[1] for row in task.rows(split)]


def held_out_lines() -> Iterator[tuple[str, str]]:
    return demo.pretraining_lines(5, held=True)


def skills(folder: Path, lines: int = 800) -> dict[str, float]:
    """The share of held-out strings that a model copies, sorts and reverses without a fault."""
    model, tokenizer = load(str(folder)), load_tokenizer(str(folder))
    tokenizer.padding_side = "left"
    asked = list(islice(held_out_lines(), lines))
    batch = tokenizer([prompt for prompt, _ in asked], return_tensors="pt", padding=True)
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    made = model.generate(**ids, max_new_tokens=8, do_sample=False)[:, batch.input_ids.shape[1] :]
    right: dict[str, list[bool]] = {skill: [] for skill in demo.SKILLS}
    for (prompt, answer), said in zip(asked, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
        right[prompt.removesuffix("=").rsplit(" ", 1)[1]].append(said == answer)
    return {skill: sum(each) / len(each) for skill, each in right.items()}


def test_rows_are_the_same_at_every_call_and_the_golds_are_the_strings_backwards():
    for split, count in task.ROWS.items():
        rows = task.rows(split)
        assert rows == task.rows(split)
        assert len(rows) == count
        assert len({row["id"] for row in rows}) == count
        for row, text in zip(rows, strings(split), strict=True):
            assert row["answer"] == row["messages"][1]["content"] == text[::-1]
            assert row["messages"][0]["content"] == f"Backwards: {text}"


def test_no_string_is_in_two_splits():
    everything = [text for split in task.ROWS for text in strings(split)]
    assert len(everything) == len(set(everything)) == 1432


def test_pretraining_text_has_no_string_of_validation_and_test():
    asked = {*strings("validation"), *strings("test")}
    assert all(demo.held_out(text) and task.held_out(text) for text in asked)
    assert not any(demo.held_out(text) for text in (*strings("seed"), *strings("train")))
    for prompt, answer in islice(demo.pretraining_lines(1), 20_000):
        if prompt.endswith((" rev=", " copy=")):
            text = answer[::-1] if " rev=" in prompt else answer
            assert prompt.startswith(text)
            assert text not in asked
            assert not demo.held_out(text)
            assert len(text) in range(task.LENGTHS[0], task.LENGTHS[1] + 1)


def test_pretraining_text_is_the_same_at_every_call_and_right():
    lines = list(islice(demo.pretraining_lines(7, held=True), 300))
    assert lines == list(islice(demo.pretraining_lines(7, held=True), 300))
    for prompt, answer in lines:
        skill = prompt.removesuffix("=").rsplit(" ", 1)[1]
        assert answer == demo.SKILLS[skill](prompt[: len(answer)])
        assert demo.held_out(prompt[: len(answer)])


def test_tokenizer_gives_back_every_text(demo_models: dict[str, Path]):
    tokenizer = AutoTokenizer.from_pretrained(demo_models["demo-student"])
    row = task.rows("test")[0]
    text = f"<|user|>\n{row['messages'][0]['content']}\n\n<|assistant|>\n{row['answer']}<eos>"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert len(encoded.input_ids) == len(text) - len("<|user|><|assistant|><eos>") + 3
    assert tokenizer.decode(encoded.input_ids) == text
    assert [text[left:right] for left, right in encoded.offset_mapping] == [
        tokenizer.decode([token]) for token in encoded.input_ids
    ]
    assert tokenizer.unk_token_id not in tokenizer(demo.CHARACTERS).input_ids
    assert tokenizer.decode(tokenizer(demo.CHARACTERS).input_ids) == demo.CHARACTERS
    assert tokenizer("é").input_ids == [tokenizer.unk_token_id]
    assert tokenizer.decode([*tokenizer("zmdk").input_ids, 1, 0], skip_special_tokens=True) == "zmdk"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)


def test_models_load_in_float32_and_have_no_unused_or_missing_weight(demo_models: dict[str, Path]):
    for name, folder in demo_models.items():
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        assert all(weight.isfinite().all() and weight.dtype == torch.float32 for weight in model.parameters())
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        generation = GenerationConfig.from_pretrained(folder)
        assert (generation.eos_token_id, generation.pad_token_id) == (1, 0)
        assert len(AutoTokenizer.from_pretrained(folder)) < model.config.vocab_size == demo.VOCABULARY
        assert model.num_parameters() == {"demo-teacher": 1_207_936, "demo-student": 210_496}[name]


def test_teacher_is_larger_in_every_dimension_and_both_have_grouped_queries(demo_models: dict[str, Path]):
    teacher, student = (AutoConfig.from_pretrained(demo_models[name]) for name in ("demo-teacher", "demo-student"))
    assert all(getattr(teacher, field) > getattr(student, field) for field in demo.FIELDS)
    for config in (teacher, student):
        assert config.num_attention_heads == 2 * config.num_key_value_heads
        assert config.num_attention_heads * config.head_dim == config.hidden_size
        assert config.head_dim == 16


def test_the_shipped_models_know_their_skills(demo_models: dict[str, Path]):
    for name, least in LEAST.items():
        known = skills(demo_models[name])
        assert all(known[skill] >= share for skill, share in least.items()), (name, known)


def test_the_script_makes_what_is_shipped_but_for_the_weights(remade: Path, demo_models: dict[str, Path]):
    for name, folder in demo_models.items():
        assert {path.name for path in folder.iterdir()} == {path.name for path in (remade / name).iterdir()}
        for path in folder.glob("*.json"):
            own, theirs = (json.loads(one.read_text()) for one in (path, remade / name / path.name))
            versions = own.pop("transformers_version", None), theirs.pop("transformers_version", None)
            assert own == theirs, (path.name, versions)
        own, theirs = (load_file(one / "model.safetensors") for one in (folder, remade / name))
        assert {key: weight.shape for key, weight in own.items()} == {
            key: weight.shape for key, weight in theirs.items()
        }
        assert {weight.dtype for weight in (*own.values(), *theirs.values())} == {torch.float16}
        assert any(not torch.equal(own[key], theirs[key]) for key in own)


def loss(model: Any) -> float:
    """Of answers to held-out strings."""
    rows = [(demo.tokenizer()(left + right).input_ids, len(left)) for left, right in islice(held_out_lines(), 64)]
    each = [
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([[-100] * at + ids[at:]])).loss for ids, at in rows
    ]
    return float(torch.stack(each).mean().detach())


def test_the_script_trains_and_leaves_the_callers_random_state(remade: Path):
    state = torch.get_rng_state()
    model = demo.pretrained("demo-student", 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert loss(model) < loss(load(str(remade / "demo-student"))) - 0.5


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (64, 64)])
def test_muon_is_torchs_but_for_bfloat16(shape: tuple[int, int]):
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=draw)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    steps = [demo.Muon([ours], 0.02), torch.optim.Muon([theirs], lr=0.02, weight_decay=0, ns_steps=3)]
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=draw)
        theirs.grad = ours.grad.clone()
        for one in steps:
            one.step()
    moved = (ours - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.01 * moved  # bfloat16 keeps 8 bits


@pytest.mark.long
def test_models_that_the_script_makes_know_their_skills(tmp_path: Path):
    for name, least in LEAST.items():
        demo.save(demo.pretrained(name, demo.STEPS[name]), tmp_path / name)
        known = skills(tmp_path / name)
        assert all(known[skill] >= share for skill, share in least.items()), (name, known)
