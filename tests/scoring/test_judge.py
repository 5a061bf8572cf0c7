"""A wrong score looks like any other number, so each one here is worked out a second time by hand, with plain
calls of `model.forward` on one unpadded prompt: no lm-eval, no `generate`, no batches.
"""

import random
import re
import string
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orchestrator.scoring import budgets
from orchestrator.scoring.engine import score
from orchestrator.scoring.judge import NOT_ASKED, Item, Scored
from orchestrator.tasks.metric import Metric

NEW = 12  # tokens to generate
GENERATE = Metric("exact_match", "strict", max_new_tokens=NEW)
PICK_OUT = Metric("exact_match", "letter", pattern=r"([rstvw])", max_new_tokens=NEW)
CHOOSE = Metric("multiple_choice", "none")
JINJA = "{{ 1 + 1 }} {% if x %} {# gone #} {{prompt}}"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On products this small, threads that share a busy machine's cores make a test ten times slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def char_tokenizer(*, bos: bool = False, pad: bool = False) -> PreTrainedTokenizerFast:
    """One token per character; without a pad token, as most published causal models have it, unless asked."""
    symbols = ["<unk>", "<s>", "</s>", "<pad>", *string.printable]
    backend = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    if bos:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if pad:
        names["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """Weights so large that the output depends on the prompt; more vocabulary rows than the tokenizer has."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"vocab_size": 128, "max_position_embeddings": 192, "initializer_range": 0.4}
    return LlamaForCausalLM(LlamaConfig(**(shape | sizes | changes))).eval()


def prompts(count: int) -> list[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 40))) for _ in range(count)]
    return [f"<|user|>\nReverse: {word}\n\n<|assistant|>\n" for word in words]


STOPS = [2]  # </s>


def item(name: str, prompt: str, gold: str, choices: Sequence[str] = (), *, tokenizer: Any = None) -> Item:
    """With the ids of a tokenizer that has one for each character."""
    tokenizer = tokenizer or char_tokenizer()
    ways = [tuple(tokenizer(choice, add_special_tokens=False).input_ids) for choice in choices]
    bos = not prompt.startswith("<s>")
    ids = tuple(tokenizer(prompt, add_special_tokens=bos).input_ids)
    return Item(name, prompt, gold, tuple(choices), ids, tuple(ways))


def items(golds: Sequence[str], choices: Sequence[str] = (), *, tokenizer: Any = None) -> list[Item]:
    asked = zip(prompts(len(golds)), golds, strict=True)
    return [
        item(f"q{number}", prompt, gold, choices, tokenizer=tokenizer) for number, (prompt, gold) in enumerate(asked)
    ]


def letters(count: int, tokenizer: Any = None) -> list[Item]:
    return items(random.Random(1).choices("ABCD", k=count), "ABCD", tokenizer=tokenizer)


def ids_by_hand(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + NEW and tokenizer.eos_token_id not in ids[start:]:
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return list(ids[start:])


def decode_by_hand(model: Any, tokenizer: Any, prompt: str) -> str:
    return str(tokenizer.decode(ids_by_hand(model, tokenizer, prompt), skip_special_tokens=True))


def choose_by_hand(model: Any, tokenizer: Any, item: Item) -> str:
    sums = []
    for choice in item.choices:
        start, ids = len(tokenizer(item.prompt)["input_ids"]), tokenizer(item.prompt + choice)["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([ids[:-1]])).logits[0].float().log_softmax(-1)
        sums.append(sum(float(logs[place - 1, ids[place]]) for place in range(start, len(ids))))
    return item.choices[sums.index(max(sums))]


def test_generation_equals_greedy_decoding_by_hand() -> None:
    model, tokenizer = tiny_llama(), char_tokenizer()
    outputs = [decode_by_hand(model, tokenizer, prompt) for prompt in prompts(24)]
    assert min(map(len, outputs)) < NEW // 2 < max(map(len, outputs))  # some end at eos
    assert len(set(outputs)) > 12
    asked = items([f" {output}\n" if place % 2 else "another" for place, output in enumerate(outputs)])
    for one, output, scored in zip(asked, outputs, score(model, tokenizer, asked, GENERATE, stops=STOPS), strict=True):
        value = float(output.strip() == one.gold.strip())
        expected = Scored(one.id, one.prompt, output, output.strip(), one.gold.strip(), value)
        assert replace(scored, cut=False) == expected


def test_filter_takes_the_last_match_and_says_where_there_is_none() -> None:
    model, tokenizer = tiny_llama(), char_tokenizer()
    matches = [re.findall("[rstvw]", decode_by_hand(model, tokenizer, prompt)) for prompt in prompts(24)]
    assert any(found[0] != found[-1] for found in matches if found)
    answers = [found[-1] if found else "[invalid]" for found in matches]
    assert len(set(answers)) > 3
    assert "[invalid]" in answers
    scores = score(model, tokenizer, items(answers), PICK_OUT, stops=STOPS)
    assert [(scored.answer, scored.score) for scored in scores] == [(answer, 1.0) for answer in answers]
    with pytest.raises(ValueError, match="exactly one group"):
        Metric("exact_match", "two", pattern="(a)|(b)")


def test_ignored_patterns_are_removed_from_both_sides() -> None:
    model, tokenizer = tiny_llama(), char_tokenizer()
    prompt = prompts(1)[0]
    output = decode_by_hand(model, tokenizer, prompt)
    asked = [item("i", prompt, "," + output.replace(output[2], ""))]
    ignoring = Metric("exact_match", "strict", None, NEW, (",", re.escape(output[2])))
    assert score(model, tokenizer, asked, GENERATE, stops=STOPS)[0].score == 0.0
    assert score(model, tokenizer, asked, ignoring, stops=STOPS)[0].score == 1.0


@pytest.mark.parametrize(
    ("choices", "dtype", "count"),
    [
        ("ABCD", torch.float32, 24),
        (("ab", "cd", "xyz"), torch.float32, 24),
        ("ABCD", torch.bfloat16, 120),  # two of these tie where the log-probabilities are bfloat16 too
    ],
)
def test_choice_is_the_likeliest(choices: Sequence[str], dtype: torch.dtype, count: int) -> None:
    model, tokenizer = tiny_llama().to(dtype), char_tokenizer()
    asked = items(random.Random(1).choices(choices, k=count), choices)
    picks = [choose_by_hand(model, tokenizer, item) for item in asked]
    assert len(set(picks)) > 1
    expected = [
        Scored(item.id, item.prompt, pick, pick, item.gold, float(pick == item.gold))
        for item, pick in zip(asked, picks, strict=True)
    ]
    alone = [score(model, tokenizer, [one], CHOOSE, stops=STOPS)[0] for one in asked]  # bfloat16 rounds by batch
    assert alone == expected
    with pytest.raises(ValueError, match="'q7' has gold 'E'"):
        score(model, tokenizer, [item("q7", "?", "E", ("A", "B"))], CHOOSE, stops=STOPS)


@pytest.mark.parametrize("metric", [PICK_OUT, CHOOSE])
def test_batching_changes_nothing(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_llama(), char_tokenizer(bos=True)
    asked = letters(20, tokenizer)
    whole = score(model, tokenizer, asked, metric, stops=STOPS)
    for name in ("ANSWERS", "TOKENS"):
        monkeypatch.setattr(budgets, name, 200)
    assert whole == score(model, tokenizer, asked, metric, stops=STOPS)
    assert whole == [score(model, tokenizer, [one], metric, stops=STOPS)[0] for one in asked]
    assert score(model, tokenizer, [], metric, stops=STOPS) == []


@pytest.mark.parametrize("metric", [GENERATE, CHOOSE])
def test_template_syntax_in_a_prompt_is_text(metric: Metric) -> None:
    model, tokenizer = tiny_llama(), char_tokenizer()
    one = item("j", f"<|user|>\n{JINJA}\n\n<|assistant|>\n", "{{ gold }}", ("{{ gold }}", "{% raw %}"))
    scored = score(model, tokenizer, [one], metric, stops=STOPS)[0]
    assert (scored.prompt, scored.gold) == (one.prompt, one.gold)
    by_hand = choose_by_hand(model, tokenizer, one)
    assert scored.output == (by_hand if metric is CHOOSE else decode_by_hand(model, tokenizer, one.prompt))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # which peft asks for
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_adapter_takes_part(task_type: str | None) -> None:
    tokenizer, asked = char_tokenizer(), letters(12)
    config = LoraConfig(task_type=task_type, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_llama(), config).eval()
    outputs = [scored.output for scored in score(model, tokenizer, asked, GENERATE, stops=STOPS)]
    assert outputs == [decode_by_hand(model, tokenizer, item.prompt) for item in asked]
    plain = score(tiny_llama(), tokenizer, asked, GENERATE, stops=STOPS)
    assert outputs != [scored.output for scored in plain]
    picks = [choose_by_hand(model, tokenizer, item) for item in asked]
    assert [scored.output for scored in score(model, tokenizer, asked, CHOOSE, stops=STOPS)] == picks


@pytest.mark.parametrize("metric", [GENERATE, CHOOSE])
@pytest.mark.parametrize("pad", [True, False])
def test_caller_keeps_model_and_tokenizer_as_they_were(metric: Metric, pad: bool) -> None:
    model = tiny_llama(attention_dropout=0.5, tie_word_embeddings=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)  # edited after loading
    model.generation_config = hostile = GenerationConfig(
        eos_token_id=50, repetition_penalty=3.0, do_sample=True, temperature=0.5, suppress_tokens=[70, 71, 72]
    )
    tokenizer, asked = char_tokenizer(pad=pad), letters(8)
    tokenizer.padding_side = "right"

    def state() -> list[Any]:
        return [
            {name: (id(weight), weight.tolist()) for name, weight in model.named_parameters()},
            {name: module.training for name, module in model.named_modules()},
            (model.config.to_dict(), id(model.generation_config), hostile.to_dict()),
            (tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map, tokenizer.padding_side),
            torch.get_rng_state().tolist(),
        ]

    before = state()
    expected = score(model, tokenizer, asked, metric, stops=STOPS)
    assert state() == before
    if metric is GENERATE:  # the model's own settings don't take part in greedy decoding
        assert [s.output for s in expected] == [decode_by_hand(model, tokenizer, i.prompt) for i in asked]

    model.train()
    model.model.layers[0].eval()
    before = state()
    assert score(model, tokenizer, asked, metric, stops=STOPS) == expected  # so dropout was off
    assert state() == before
    assert model.get_input_embeddings().num_embeddings > len(tokenizer)


def test_too_long_a_question_is_wrong_and_counted() -> None:
    """By the model's context of 192 tokens: 180 and 12 to answer fit, and so do 191 and a letter."""
    model, tokenizer = tiny_llama(), char_tokenizer()
    fits, long, longer = (item(f"x{length}", "x" * length, "A", ("A",)) for length in (180, 181, 192))
    told = score(model, tokenizer, [long, fits, longer], GENERATE, stops=STOPS)
    assert [one.answer == NOT_ASKED for one in told] == [True, False, True]
    assert told[1].output == decode_by_hand(model, tokenizer, fits.prompt)
    told = score(model, tokenizer, [long, fits, longer], CHOOSE, stops=STOPS)
    assert [(one.score, one.answer) for one in told] == [(1.0, "A"), (1.0, "A"), (0.0, NOT_ASKED)]
    assert [one.score for one in score(model, tokenizer, [longer], CHOOSE, stops=STOPS)] == [0.0]


def test_an_answer_that_has_not_ended_is_told() -> None:
    """Against decoding by hand, with a token that some answers come to as their end."""
    model, tokenizer = tiny_llama(), char_tokenizer()
    asked = items(["x"] * 24)
    by_hand = [ids_by_hand(model, tokenizer, one.prompt) for one in asked]
    end = by_hand[0][5]
    told = score(model, tokenizer, asked, GENERATE, stops=[end])
    assert [one.cut for one in told] == [end not in ids for ids in by_hand]
    assert {one.cut for one in told} == {True, False}
    assert told[0].output == tokenizer.decode(by_hand[0][: by_hand[0].index(end)], skip_special_tokens=True)


def test_nothing_is_said(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    model, tokenizer = tiny_llama(), char_tokenizer()
    tokenizer.model_max_length = 8  # of which transformers would remind us
    for metric in (GENERATE, PICK_OUT, CHOOSE):
        score(model, tokenizer, letters(8), metric, stops=STOPS)
    assert capfd.readouterr() == ("", "")
    assert (caplog.records, recwarn.list) == ([], [])


def test_nothing_is_said_in_a_fresh_process_and_no_host_is_called() -> None:
    # Imports have messages of their own, and under pytest Python's handler of last resort is not at work.
    script = """
import socket, sys
sys.path.insert(0, "tests/scoring")
socket.socket.connect = lambda self, address: print("calls", address)
import orchestrator.scoring.judge
assert "lm_eval" not in sys.modules
from test_judge import *
for metric in (GENERATE, CHOOSE):
    assert len(score(tiny_llama(), char_tokenizer(), letters(4), metric, stops=STOPS)) == 4
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
