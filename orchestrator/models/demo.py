"""A teacher and a student made on the spot, so that the product can be tried without a download, a token or a GPU.

    folder = ensure("demo-teacher", cache)      # pre-trains both models on first use, then finds them

Both are pre-trained from scratch on skills with short strings, in one prompt format (the answer follows "="):

    kdmzQ3 rev=zmdk        kdmz| sort=dkmz        kdmz copy=kdmz

A demo is only worth running if the teacher has a skill to hand over, so it has to master these in about a minute on two
cores. Muon makes that possible: AdamW needs twice the steps. The task that asks for one of the skills in new words is
orchestrator.tasks.demo; its validation and test strings never occur in this text, by `held_out`.
"""

from __future__ import annotations

import math
import os
import random
import string
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

RECIPE = "demo-v1"  # names the folder in the cache: whoever changes what is trained here raises it

FIELDS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SIZES = {"demo-teacher": (6, 128, 8, 4, 384), "demo-student": (4, 64, 4, 2, 192)}
STEPS = {"demo-teacher": 330, "demo-student": 360}
BATCH, MUON_LR, ADAMW_LR, WARMUP = 64, 0.02, 3e-3, 10
THREADS = 2  # fixed, because sums over another number of threads round differently and make other models

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
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(TOKENS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=128,
        additional_special_tokens=list(SPECIAL[3:]), clean_up_tokenization_spaces=False,
    )  # fmt: skip


def ensure(name: Literal["demo-teacher", "demo-student"], cache: Path) -> Path:
    """The model's folder, made together with the other model's on first use; a second process waits for the first."""
    from filelock import FileLock

    folder = cache / RECIPE
    if not (folder / name / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{RECIPE}.lock"):
            if not (folder / name / "config.json").is_file():
                build(folder)
    return folder / name


def build(folder: Path, steps: dict[str, int] | None = None) -> None:
    """Pre-train both models into `folder`, which appears complete or not at all.

    Of two processes at once the first to finish provides the folder; the other's copy, which is the same, goes.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress
    from transformers.utils import logging

    folder.parent.mkdir(parents=True, exist_ok=True)
    console, threads, had_bars = Console(stderr=True), torch.get_num_threads(), logging.is_progress_bar_enabled()
    console.print("Making the demo models: once, about a minute and a half on two cores.")
    try:
        torch.set_num_threads(THREADS)
        logging.disable_progress_bar()
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
            made = Path(scratch, "models")  # made by mkdir, so that it gets the user's usual permissions
            with Progress(console=console, disable=not console.is_terminal) as progress:
                for name in SIZES:
                    count = (steps or STEPS)[name]
                    model = _pretrain(name, progress.track(range(count), description=f"pre-training {name}"), count)
                    model.save_pretrained(made / name)
                    tokenizer().save_pretrained(made / name)
                    console.print(f"pre-trained {name}: {count} steps, {model.num_parameters():,} parameters")
            try:
                os.rename(made, folder)
            except OSError:
                if not (folder / "demo-student" / "config.json").is_file():
                    raise
    finally:
        torch.set_num_threads(threads)
        if had_bars:
            logging.enable_progress_bar()


def config(name: str) -> Any:
    """A demo model's sizes."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **dict(zip(FIELDS, SIZES[name], strict=True)), head_dim=16, vocab_size=VOCABULARY, max_position_embeddings=128,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip


def _pretrain(name: str, steps: Iterable[int], count: int) -> Any:
    """One model, from random weights. The loss covers the answers: the prompts are noise that can't be learnt."""
    import torch
    import torch.nn.functional as F
    from torch.nn.utils.rnn import pad_sequence
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config(name))
    inner = [weight for path, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in path]
    outer = [weight for path, weight in model.named_parameters() if weight.ndim == 1 or ".layers." not in path]
    optimizers = (
        torch.optim.Muon(inner, lr=MUON_LR, weight_decay=0, ns_steps=3),  # 5 would cost more time than they save
        torch.optim.AdamW(outer, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0),
    )
    share = partial(_share, count=count)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share) for optimizer in optimizers]
    lines = pretraining_lines(1)
    for _ in steps:
        pairs = [([*map(TOKENS.get, text)], [*map(TOKENS.get, answer), 1]) for text, answer in islice(lines, BATCH)]
        ids = pad_sequence([torch.tensor(text + answer) for text, answer in pairs], True)
        labels = pad_sequence([torch.tensor([-100] * len(text) + answer) for text, answer in pairs], True, -100)
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state  # padding is on the right: causal, so unseen
        scored = labels[:, 1:] != -100
        F.cross_entropy(model.lm_head(hidden[scored]), labels[:, 1:][scored]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


def _share(step: int, *, count: int) -> float:
    """Of the full learning rate: a short warm-up, then half a cosine down to a fiftieth."""
    return min(1, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / count)))
