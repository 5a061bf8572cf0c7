"""What each way makes of the teacher's update, before any step, on validation rows: where its right form is known, and
where it isn't.

    python experiments/transport/truth.py transport          # some ten minutes on two cores

The known pair's teacher is the student twice as wide, with a little noise: each channel is there twice. So what reads
one reads the sum of both copies, what writes writes their mean, and the teacher's update has one right form in the
student, as far as it changed both copies alike. Of the demo's pair none is known: each way is told at its best scale,
beside a random map. Maps are made of the task's rows, and of what the models were pre-trained on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from orchestrator import pipeline
from orchestrator.models import adapters
from orchestrator.models.loading import load, load_tokenizer
from orchestrator.pipeline.carried import carry_step
from orchestrator.prepare.ready import prepare
from orchestrator.recipe import Recipe
from orchestrator.step import materialise
from orchestrator.store import Store
from orchestrator.sweep.presets import complete
from orchestrator.tasks.template import collate, fitted

Update = dict[str, tuple[Tensor, Tensor]]
WAYS = ("cross_lora", "theseus", "theseus_stream", "theseus_scaled", "ridge", "ridge_bounded")
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
RATE = 8e-3  # of the teacher's training, as in the sweeps known-backwards and demo-backwards


def main() -> None:
    """Two tables: rows answered right and the mean loss; of the known pair, too, where the form is another."""
    folder = Path(sys.argv[1]).absolute()
    truth: Update = {}
    print(
        "### known\n\n| maps of | way | right | loss | cosine with the right form below 0.95 |\n|---|---|---|---|---|"
    )
    for texts, way, found, update, student in carried(folder, "known", WAYS):
        if not truth:
            truth = right_form(update, student.model)
            print(f"| | no update | {student.told({})} | |\n| | the right form | {student.told(truth)} | |")
        cosines = {module: cosine(found[module], truth[module]) for module in found}
        least = ", ".join(f"{_short(module)} {value:.2f}" for module, value in cosines.items() if not value >= 0.95)
        print(f"| {texts} | {way} | {student.told(found)} | {least or '-'} |", flush=True)
    print("\n### demo\n\n| maps of | way | scale | right | loss |\n|---|---|---|---|---|")
    for texts, way, found, _, student in carried(
        folder, "demo", (*WAYS, "theseus_random_map", "cross_lora_random_map")
    ):
        told = {scale: student.told({name: (scale * b, a) for name, (b, a) in found.items()}) for scale in SCALES}
        best = min(told, key=lambda scale: float(told[scale].split()[-1]))
        print(f"| {texts} | {way} | {best:g} | {told[best]} |", flush=True)


def carried(folder: Path, pair: str, ways: tuple[str, ...]) -> Iterator[tuple[str, str, Update, Update, Student]]:
    """For each kind of text and way what arrives, what was to arrive, and who is to use it."""
    asked = complete(yaml.safe_load((folder / f"{pair}-backwards.yaml").read_text()))["recipe"]
    asked["update"]["lr"] = RATE
    lines = {"examples": 1500, "texts": str(folder / "texts.jsonl")}
    store, student = Store(folder / "store"), None
    for texts, carry in {"the task's rows": asked["carry"], "pre-training text": lines}.items():
        for way in ways:
            recipe = Recipe.model_validate({**asked, "carry": carry, "arm": {"kind": way}})
            ready = prepare(recipe)
            made = pipeline.update_step(recipe, ready)
            found, update = (materialise(step, store) for step in (carry_step(recipe, ready, made), made))
            student = student or Student(ready)
            yield texts, way, adapters.read_update(found), adapters.read_update(update), student


def right_form(changed: Update, student: Any) -> Update:
    """The teacher's update in a Llama student: sums of what is read, means of what is written."""
    found = {}
    for module, (b, a) in changed.items():
        rows, columns = student.get_submodule(module).weight.shape
        if module.endswith("embed_tokens"):
            found[module] = (b, sum(a.chunk(a.shape[1] // columns, 1)) / (a.shape[1] // columns))
        else:
            wrote = sum(b.chunk(len(b) // rows)) / (len(b) // rows)
            found[module] = (wrote, sum(a.chunk(a.shape[1] // columns, 1)))
    return found


def cosine(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Of two updates of a matrix; NaN where one is zero."""
    first, second = one[0] @ one[1], other[0] @ other[1]
    lengths = float(first.norm() * second.norm())
    return float((first * second).sum()) / lengths if lengths else math.nan


def _short(module: str) -> str:
    layer = next((part for part in module.split(".") if part.isdigit()), "")
    return f"{module.rpartition('.')[2].removesuffix('_proj').removesuffix('_tokens')}{layer and f' of layer {layer}'}"


class Student:
    """The untouched student and the validation rows."""

    def __init__(self, ready: Any) -> None:
        self.model, tokenizer = load(ready.student.folder, dtype="float32"), load_tokenizer(ready.student.folder)
        encoded = fitted(ready.splits["validation"], "plain", tokenizer, 2048).rows
        self.batches = [collate(encoded[at : at + 50], tokenizer.pad_token_id) for at in range(0, len(encoded), 50)]
        self.rows = len(encoded)

    @torch.no_grad()
    def told(self, update: Update) -> str:
        """With an update added, the share of rows whose whole answer is the likeliest, and its tokens' mean loss."""
        weights = {module: self.model.get_submodule(module).weight for module in update}
        before = {module: weight.clone() for module, weight in weights.items()}
        for module, (b, a) in update.items():
            weights[module].add_(b @ a)
        whole, losses = 0, []
        for batch in self.batches:
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            asked = labels != -100
            whole += int(((logits.argmax(-1) == labels) | ~asked).all(1).sum())
            losses.append(torch.nn.functional.cross_entropy(logits[asked], labels[asked], reduction="none"))
        for module, weight in before.items():
            weights[module].copy_(weight)
        return f"{whole / self.rows:.2f} | {float(torch.cat(losses).mean()):.2f}"


if __name__ == "__main__":
    main()
