"""A teacher and a student made on the spot, so that the product can be tried without a download, a token or a GPU.

    folder = ensure("demo-teacher", cache)      # pre-trains both models on first use, then finds them

Both are pre-trained from scratch on skills with short strings, in one prompt format (the answer follows "="):

    kdmzQ3 reverse=zmdk        kdmz| sort=dkmz        kdmz copy=kdmz

A demo is only worth running if the teacher has a skill to hand over, so it has to master these in about a minute on two
cores. Muon is what makes that possible: AdamW needs about twice the steps. The task that asks for one of the skills in
new words is orchestrator.tasks.demo; its validation and test strings never occur in this text, by `held_out`.
"""

from __future__ import annotations

import math
import os
import random
import string
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Name = Literal["demo-teacher", "demo-student"]
RECIPE = "demo-v1"  # names the folder in the cache: whoever changes what is trained below raises it

SIZES: dict[str, dict[str, int]] = {
    "demo-teacher": {
        "num_hidden_layers": 6, "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 384,
    },
    "demo-student": {
        "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 192,
    },
}  # fmt: skip
STEPS = {"demo-teacher": 340, "demo-student": 420}
BATCH = 96
MUON_LR, ADAMW_LR, WARMUP = 0.02, 3e-3, 10
THREADS = 2  # fixed, because sums over another number of threads round differently and make other models

SPECIAL = ("<pad>", "<eos>", "<unk>", "<|user|>", "<|assistant|>")  # the last two wait for fine-tuning
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = 104  # the 101 tokens, padded to a multiple of 8 as in most checkpoints

SKILLS: dict[str, Callable[[str], str]] = {
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "copy": lambda text: text,
}
SHARES = ("reverse", "sort", "reverse", "copy")  # reversing takes longest to learn
LENGTHS = (4, 6)
FILLER = "\n" + string.ascii_uppercase + string.digits + 3 * " .,:;!?()'\"-|"


def held_out(text: str) -> bool:
    """Whether a string is kept for the task's validation and test; the task has the same rule."""
    return zlib.crc32(text.encode()) % 10 == 0


def pretraining_lines(seed: int, *, held: bool = False) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs of the pre-training text; with `held`, pairs to measure it by.

    Up to eight characters of filler stand between string and skill: a model that had always seen the string at the same
    distance would look for it there alone.
    """
    draw = random.Random(seed)
    for skill in cycle(SHARES):
        text = _letters(draw)
        while held_out(text) != held:
            text = _letters(draw)
        filler = "".join(draw.choices(FILLER, k=draw.randint(0, 8)))
        yield f"{text}{filler} {skill}=", SKILLS[skill](text)


def _letters(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(*LENGTHS)))


def tokenizer() -> Any:
    """One token per character, so that reversing a string is a matter of attention and not of spelling."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: place for place, token in enumerate((*SPECIAL, *CHARACTERS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:]), clean_up_tokenization_spaces=False, model_max_length=128,
    )  # fmt: skip


def ensure(name: Name, cache: Path) -> Path:
    """The model's folder, made together with the other model's on first use."""
    folder = cache / RECIPE
    if not (folder / name / "config.json").is_file():
        build(folder)
    return folder / name


def build(folder: Path, steps: dict[str, int] | None = None) -> None:
    """Pre-train both models into `folder`, which appears complete or not at all.

    The same machine makes the same bits each time, so of two processes at once the first to finish provides the folder
    and the other's copy goes.
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers.utils import logging

    folder.parent.mkdir(parents=True, exist_ok=True)
    console, threads, had_bars = Console(stderr=True), torch.get_num_threads(), logging.is_progress_bar_enabled()
    console.print("Making the demo models: once, about a minute and a half on two cores.")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        torch.set_num_threads(THREADS)
        logging.disable_progress_bar()
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
            done = Path(scratch, "models")
            with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
                for name in SIZES:
                    count = (steps or STEPS)[name]
                    bar = progress.add_task(f"pre-training {name}", total=count)
                    model = _pretrain(name, count, lambda bar=bar: progress.advance(bar))  # type: ignore[misc]
                    model.save_pretrained(done / name)
                    tokenizer().save_pretrained(done / name)
                    console.print(f"pre-trained {name}: {count} steps, {model.num_parameters():,} parameters")
            try:
                os.rename(done, folder)
            except OSError:
                if not (folder / "demo-student" / "config.json").is_file():
                    raise
    finally:
        torch.set_num_threads(threads)
        (logging.enable_progress_bar if had_bars else logging.disable_progress_bar)()


def _pretrain(name: str, steps: int, advance: Callable[[], object]) -> Any:
    """One model, from random weights. The loss covers the answers: half the prompt is noise that can't be learnt."""
    import torch
    import torch.nn.functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SIZES[name], head_dim=16, vocab_size=VOCABULARY, max_position_embeddings=128, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    matrices = [weight for layer in model.model.layers for weight in layer.parameters() if weight.ndim == 2]
    among = set(map(id, matrices))
    muon = Muon(matrices)
    adamw = torch.optim.AdamW((w for w in model.parameters() if id(w) not in among), betas=(0.9, 0.95), weight_decay=0)
    ids = {token: place for place, token in enumerate((*SPECIAL, *CHARACTERS))}
    lines = pretraining_lines(1)
    for step in range(steps):
        batch = [([ids[c] for c in prompt], [*(ids[c] for c in answer), 1]) for prompt, answer in islice(lines, BATCH)]
        width = max(len(prompt) + len(answer) for prompt, answer in batch)
        tokens, scored = torch.zeros(BATCH, width, dtype=torch.long), torch.zeros(BATCH, width, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(batch):
            tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            scored[row, len(prompt) : len(prompt) + len(answer)] = True
        hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state  # padding is on the right: causal, so unseen
        loss = F.cross_entropy(model.lm_head(hidden[scored[:, 1:]]), tokens[:, 1:][scored[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = min(1, (step + 1) / WARMUP) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        muon.step(MUON_LR * share)
        adamw.param_groups[0]["lr"] = ADAMW_LR * share
        adamw.step()
        model.zero_grad()
        advance()
    return model


class Muon:
    """Momentum whose update is made orthogonal by Newton-Schulz (Jordan 2024), for the layers' matrices.

    PyTorch's own goes matrix by matrix in bfloat16, which small cores don't have; one product per shape is several times
    faster here.
    """

    def __init__(self, weights: list[nn.Parameter]) -> None:
        import torch

        shapes = dict.fromkeys(weight.shape for weight in weights)
        self.groups = [[weight for weight in weights if weight.shape == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    def step(self, lr: float) -> None:
        """Update all weights from their gradients."""
        import torch

        with torch.no_grad():
            for group, momentum in zip(self.groups, self.momenta, strict=True):
                gradient = torch.stack([weight.grad for weight in group])  # type: ignore[misc]
                momentum.lerp_(gradient, 0.05)
                update = orthogonal(gradient.lerp(momentum, 0.95))
                scale = lr * max(1, update.shape[1] / update.shape[2]) ** 0.5
                for weight, change in zip(group, update, strict=True):
                    weight.sub_(change, alpha=scale)


def orthogonal(stack: Tensor) -> Tensor:
    """Each matrix of (matrices, n, m) with its singular values brought near 1, by five quintic steps."""
    if stack.shape[1] > stack.shape[2]:
        return orthogonal(stack.transpose(1, 2)).transpose(1, 2)
    x = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x
