"""Makes a pair of models between which it is known what corresponds to what, and the sweeps that ask about it.

    python experiments/known_answer/build.py known-answer        # half a minute on two cores
    pkt sweep known-answer/sweep.yaml

The teacher is the demo student made twice as wide without a change of its function, disturbed a little and then tuned
on the demo's task: its unit k and its unit k + d are the student's unit k, and it knows the task. If cutting out a
block carries anything over, it has to do so here, at these indices. The random teacher has the same singular values,
matrix by matrix, in random directions: whatever it gives, a teacher's content has no part in. The update is what
tuning added, as a teacher of its own, whose blocks hold nothing that the student has already.
"""

from __future__ import annotations

import argparse
import copy
import json
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml
from sweeps import sweeps
from torch import Tensor
from torch.nn.functional import cross_entropy

from orchestrator.errors import UserError
from orchestrator.models.loading import load, load_tokenizer, source_of
from orchestrator.tasks import TASKS
from orchestrator.tasks.base import Example
from orchestrator.tasks.template import collate, encode

WIDER = 2
NOISE = 0.02  # of each matrix's own spread: the copies' gradients differ, and the function hardly changes
SEED = 0
THREADS = 2  # fixed, because sums over another number of threads round differently and make another teacher
LR, BATCH, ENOUGH, EVERY, MOST = 1e-3, 64, 0.95, 20, 1000  # of tuning: until this score, looked at so often
WIDTHS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def main() -> None:
    """The teachers, the indices and the sweeps, in one folder."""
    parser = argparse.ArgumentParser(description="Make the known-answer pair and its sweeps.")
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder.absolute())


def make(folder: Path) -> None:
    """The student's checkpoint is the demo's; what is made from it is the same at every call."""
    torch.set_num_threads(THREADS)
    source = source_of("demo-student", "student")
    student, tokenizer = load(source, dtype="float32"), load_tokenizer(source)
    teacher = widened(student)
    print(f"widened: logits differ from the student's by at most {furthest(teacher, student):.1e}")
    disturb(teacher, NOISE)
    print(f"disturbed: by at most {furthest(teacher, student):.1e}")
    before = copy.deepcopy(teacher)
    steps, score = tune(teacher, tokenizer)
    print(f"tuned: {steps} steps, {score:.3f} on the validation rows")
    models = {"widened": before, "tuned": teacher, "update": difference(teacher, before), "random": turn(teacher)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    given = indices(student.config)
    (folder / "indices.json").write_text(json.dumps(given) + "\n")
    for name, sweep in sweeps(folder, given).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False, default_flow_style=None, width=120))


def widened(student: Any) -> Any:
    """A model of twice the student's width that computes the same logits.

    Every unit of the residual stream, of attention (query and K/V heads) and of the feed-forward is there twice, one
    copy after the other, so that a copy's query heads read the copy's own K/V heads. What leaves a unit is halved,
    since both copies send it: every matrix but the embedding. An RMSNorm of a doubled vector is the doubled norm.
    """
    config = student.config
    if config.tie_word_embeddings:
        raise UserError("student: its embedding is its head, which would have to be halved in one role alone")
    sizes = {name: WIDER * getattr(config, name) for name in WIDTHS}
    larger = type(config)(**{**config.to_dict(), **sizes, "head_dim": config.head_dim})
    teacher = type(student)(larger).eval()
    teacher.load_state_dict({name: _copied(name, weight) for name, weight in student.state_dict().items()})
    if (apart := furthest(teacher, student)) > 1e-4:
        raise AssertionError(f"widening changed the logits by {apart}")
    return teacher


def _copied(name: str, weight: Tensor) -> Tensor:
    if weight.ndim == 1:
        return weight.repeat(WIDER)
    if "embed_tokens" in name:
        return weight.repeat(1, WIDER)
    return weight.repeat(1 if "lm_head" in name else WIDER, WIDER) / WIDER


@torch.no_grad()
def furthest(one: Any, other: Any) -> float:
    """The largest difference between two models' logits, on random tokens."""
    rows = torch.randint(5, one.config.vocab_size, (8, 24), generator=torch.Generator().manual_seed(SEED))
    return float((one(rows).logits - other(rows).logits).abs().max())


@torch.no_grad()
def disturb(model: Any, share: float) -> None:
    """Add to each matrix noise of this share of its own spread."""
    generator = torch.Generator().manual_seed(SEED)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.add_(share * weight.std() * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def difference(after: Any, before: Any) -> Any:
    """What training added to each matrix, as a model, so that blocks can be cut from it; vectors are those after."""
    result = copy.deepcopy(after)
    for weight, old in zip(result.parameters(), before.parameters(), strict=True):
        if weight.ndim == 2:
            weight.sub_(old)
    return result


@torch.no_grad()
def turn(model: Any) -> Any:
    """A model of which each matrix has the same singular values in random directions."""
    result = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(SEED)
    for weight in result.parameters():
        weight.copy_(turned(weight, generator))
    return result


def turned(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A matrix with the same singular values; a vector as it is."""
    if weight.ndim == 1:
        return weight
    values = torch.linalg.svdvals(weight.double())
    left, right = (
        torch.linalg.qr(torch.randn(side, len(values), dtype=torch.float64, generator=generator)).Q
        for side in weight.shape
    )
    return (left * values @ right.T).to(weight.dtype)


def tune(model: Any, tokenizer: Any, enough: float = ENOUGH) -> tuple[int, float]:
    """Train all parameters on the demo's training rows until the validation rows score enough: steps and score."""
    splits = TASKS["demo"].splits(None)
    rows, asked = (encoded(splits[name], tokenizer) for name in ("train", "validation"))
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    for step in count():
        if step % EVERY == 0 and ((score := exact_match(model, asked, tokenizer)) >= enough or step >= MOST):
            break
        chosen = torch.randperm(len(rows), generator=generator)[:BATCH].tolist()
        batch = collate([rows[place] for place in chosen], tokenizer.pad_token_id)
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if score < enough:
        raise AssertionError(f"tuning reached {score} after {step} steps, and {enough} is needed")
    return step, score


def encoded(examples: list[Example], tokenizer: Any) -> list[Any]:
    """Ids and labels of these rows, as fine-tuning has them."""
    return [encode(example, "plain", tokenizer, 128) for example in examples]


@torch.no_grad()
def exact_match(model: Any, rows: list[Any], tokenizer: Any) -> float:
    """The share of answers that greedy decoding gives whole: that is where every labelled token is the likeliest."""
    batch = collate(rows, tokenizer.pad_token_id)
    labels = batch.pop("labels")[:, 1:]
    right = model(**batch).logits[:, :-1].argmax(-1) == labels
    return float((right | (labels == -100)).all(1).double().mean())


def indices(config: Any) -> dict[str, list[int]]:
    """Where the first copy of each of the student's units lies: at its own number."""
    names = ("residual", "heads", "groups", "neurons")
    return {name: [*range(getattr(config, width))] for name, width in zip(names, WIDTHS, strict=True)}


if __name__ == "__main__":
    main()
