import os
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from orchestrator.models import demo
from orchestrator.tasks import demo as task

STEPS = dict.fromkeys(demo.SIZES, 2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / demo.RECIPE
    demo.build(folder, STEPS)
    return folder


def weights(folder: Path) -> list[bytes]:
    return [(folder / name / "model.safetensors").read_bytes() for name in demo.SIZES]


def strings(split: str) -> list[str]:
    return [row["messages"][0]["content"].split()[1] for row in task.rows(split)]


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


def test_tokenizer_gives_back_every_text(built: Path):
    tokenizer = AutoTokenizer.from_pretrained(built / "demo-student")
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


def test_models_load_and_have_no_unused_or_missing_weight(built: Path):
    for name in demo.SIZES:
        model, info = AutoModelForCausalLM.from_pretrained(built / name, output_loading_info=True)
        assert not any(info.values())
        assert all(weight.isfinite().all() for weight in model.parameters())
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        generation = GenerationConfig.from_pretrained(built / name)
        assert (generation.eos_token_id, generation.pad_token_id) == (1, 0)
        assert len(AutoTokenizer.from_pretrained(built / name)) < model.config.vocab_size == demo.VOCABULARY
        asked = AutoTokenizer.from_pretrained(built / name)("kdmz rev=", return_tensors="pt")
        assert model.generate(**asked, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_teacher_is_larger_in_every_dimension_and_both_have_grouped_queries(built: Path):
    teacher, student = (AutoConfig.from_pretrained(built / name) for name in ("demo-teacher", "demo-student"))
    assert all(getattr(teacher, field) > getattr(student, field) for field in demo.FIELDS)
    for config in (teacher, student):
        assert config.num_attention_heads == 2 * config.num_key_value_heads
        assert config.num_attention_heads * config.head_dim == config.hidden_size
        assert config.head_dim == 16


def test_same_bits_twice_whatever_the_callers_threads_and_random_state(built: Path, tmp_path: Path):
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    try:
        torch.set_num_threads(1)
        demo.build(tmp_path / "again", STEPS)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert weights(tmp_path / "again") == weights(built)
    assert torch.equal(torch.get_rng_state(), state)
    demo.build(tmp_path / "other", dict.fromkeys(demo.SIZES, 1))
    assert all(one != other for one, other in zip(weights(tmp_path / "other"), weights(built), strict=True))


def test_who_comes_second_keeps_what_is_there(built: Path, capfd: pytest.CaptureFixture[str]):
    before = os.stat(built).st_ino
    demo.build(built, dict.fromkeys(demo.SIZES, 1))
    assert os.stat(built).st_ino == before
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("pre-trained") == 2
    assert len(err.splitlines()) == 3


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "tokenizer", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.build(tmp_path / "demo", STEPS)
    assert not list(tmp_path.iterdir())


def test_ensure_builds_on_first_use_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build, made = demo.build, []
    monkeypatch.setattr(demo, "build", lambda folder: (made.append(folder), build(folder, STEPS)))
    assert demo.ensure("demo-teacher", tmp_path / "new") == tmp_path / "new" / demo.RECIPE / "demo-teacher"
    assert demo.ensure("demo-student", tmp_path / "new") == tmp_path / "new" / demo.RECIPE / "demo-student"
    assert made == [tmp_path / "new" / demo.RECIPE]
