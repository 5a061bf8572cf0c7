"""Remakes the demo's teacher and student, which the package ships, by pre-training both from scratch.

    python experiments/demo/make_models.py orchestrator/models/demo       # a minute and a half on two cores

Both learn skills with short strings, in one prompt format (the answer follows "="):

    kdmzQ3 rev=zmdk        kdmz| sort=dkmz        kdmz copy=kdmz

A demo is only worth running if the teacher has a skill to hand over. Muon makes it master these soon: AdamW needs twice
the steps. The task that asks for one of the skills in new words is orchestrator.tasks.demo; its validation and test
strings never occur in this text, by `held_out`. Another CPU rounds otherwise and makes other models of the same skill:
that is why they are shipped, and why the demo's figures have to be made anew after this.
"""

from __future__ import annotations

import argparse
import math
import random
import string
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FIELDS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SIZES = {"demo-teacher": (6, 128, 8, 4, 384), "demo-student": (4, 64, 4, 2, 192)}
STEPS = {"demo-teacher": 330, "demo-student": 360}
BATCH, MUON_LR, ADAMW_LR, WARMUP = 64, 0.02, 3e-3, 10

SPECIAL = ("<pad>", "<eos>", "<unk>", "<|user|>", "<|assistant|>")  # the last two wait for fine-tuning
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
TOKENS = {token: place for place, token in enumerate((*SPECIAL, *CHARACTERS))}
VOCABULARY = 104  # the 101 tokens, padded to a multiple of 8 as in most checkpoints

SKILLS: dict[str, Callable[[str], str]] = {
    "rev": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "copy": lambda text: text,
}
SHARES = ("rev", "sort", "rev", "copy")  # reversing takes longest to learn
FILLER = "\n" + string.ascii_uppercase + string.digits + 3 * " .,:;!?()'\"-|"


def main() -> None:
    """Both models, in one folder."""
    parser = argparse.ArgumentParser(description="Pre-train the demo's models.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, steps in STEPS.items():
        model = pretrained(name, steps)
        save(model, folder / name)
        print(f"pre-trained {name}: {steps} steps, {model.num_parameters():,} parameters")


def save(model: Any, folder: Path) -> None:
    """A checkpoint as the package ships it: numbers of two bytes, which its config says to compute with in float32."""
    model.save_pretrained(folder)
    halves = {name: weight.half() for name, weight in model.state_dict().items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    tokenizer().save_pretrained(folder)


def held_out(text: str) -> bool:
    """Whether a string is kept for the task's validation and test; the task has the same rule."""
    return zlib.crc32(text.encode()) % 10 == 0


def pretraining_lines(seed: int, *, held: bool = False) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs of the pre-training text; with `held`, pairs to measure it by.

    Filler keeps the distance between string and answer from being always the same, which a model would rely on.
    """
    draw = random.Random(seed)
    for skill in cycle(SHARES):
        while held_out(text := "".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 6)))) != held:
            pass
        filler = "".join(draw.choices(FILLER, k=draw.randint(0, 4)))
        yield f"{text}{filler} {skill}=", SKILLS[skill](text)


def tokenizer() -> Any:
    """One token per character, so that reversing a string is a matter of attention and not of spelling."""
    inner = Tokenizer(models.WordLevel(TOKENS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=128,
        additional_special_tokens=list(SPECIAL[3:]), clean_up_tokenization_spaces=False,
    )  # fmt: skip


def config(name: str) -> Any:
    """A demo model's sizes."""
    return LlamaConfig(
        **dict(zip(FIELDS, SIZES[name], strict=True)), head_dim=16, vocab_size=VOCABULARY, max_position_embeddings=128,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip


def pretrained(name: str, steps: int) -> Any:
    """One model, from random weights. The loss covers the answers: the prompts are noise that can't be learnt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config(name)).float()
    inner = [weight for path, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in path]
    outer = [weight for path, weight in model.named_parameters() if weight.ndim == 1 or ".layers." not in path]
    optimizers = (Muon(inner, MUON_LR), torch.optim.AdamW(outer, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0))
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, partial(share, count=steps)) for one in optimizers]
    lines = pretraining_lines(1)
    for _ in range(steps):
        pairs = [([*map(TOKENS.get, text)], [*map(TOKENS.get, answer), 1]) for text, answer in islice(lines, BATCH)]
        ids = pad_sequence([torch.tensor(text + answer) for text, answer in pairs], True)
        labels = pad_sequence([torch.tensor([-100] * len(text) + answer) for text, answer in pairs], True, -100)
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state  # padding is on the right: causal, so unseen
        scored = labels[:, 1:] != -100
        cross_entropy(model.lm_head(hidden[scored]), labels[:, 1:][scored]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


def share(step: int, *, count: int) -> float:
    """Of the full learning rate: a short warm-up, then half a cosine down to a fiftieth."""
    return min(1, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / count)))


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan, 2024) for matrices, in the weights' own precision.

    torch's orthogonalises in bfloat16, at which a CPU without units for it takes 13 times as long.
    """

    def __init__(self, weights: list[Tensor], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """W ← W - lr · √max(1, n/m) · orthogonalised Nesterov momentum."""
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                n, m = weight.shape
                weight.sub_(orthogonalised(weight.grad.lerp(momentum, 0.95)), alpha=group["lr"] * max(1, n / m) ** 0.5)


def orthogonalised(matrix: Tensor, steps: int = 3) -> Tensor:
    """Its singular values brought near 1 by Newton and Schulz's iteration; 5 steps would cost more than they save."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


if __name__ == "__main__":
    main()
