"""What each way makes of an update whose right form is known, beside that form: before any step, on validation rows.

    python experiments/transport/truth.py transport          # some minutes on two cores, once the sweeps have run

The known pair's teacher is the student twice as wide, with a little noise: each channel is there twice. So what reads
one reads the sum of both copies, what writes writes their mean, and the teacher's update has one right form in the
student. Each way is held against it twice: with maps made of the task's rows, and of what both were pre-trained on.
"""

from __future__ import annotations

import sys
from collections import defaultdict
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

WAYS = ("cross_lora", "theseus", "theseus_stream", "theseus_scaled", "ridge", "ridge_bounded")
RATE = 8e-3  # of the teacher's training: the one that its own validation score chose in the sweep known-backwards


def main() -> None:
    """A line a way and kind of text: rows answered right, loss, and by role the least cosine with the right form."""
    folder = Path(sys.argv[1]).absolute()
    asked = complete(yaml.safe_load((folder / "known-backwards.yaml").read_text()))["recipe"]
    asked["update"]["lr"] = RATE
    texts = {
        "the task's rows": asked["carry"],
        "pre-training": {"examples": 1500, "texts": str(folder / "texts.jsonl")},
    }
    store, truth = Store(folder / "store"), None
    for name, carry in texts.items():
        for way in WAYS:
            recipe = Recipe.model_validate({**asked, "carry": carry, "arm": {"kind": way}})
            ready = prepare(recipe)
            update = pipeline.update_step(recipe, ready)
            found = adapters.read_update(materialise(carry_step(recipe, ready, update), store))
            student = Student(ready)
            if truth is None:
                truth = right(adapters.read_update(materialise(update, store)), student.model)
                print("| maps of | way | right | loss | least cosine with the right form |\n|---|---|---|---|---|")
                print(f"| | no update | {student.told({})} | |\n| | the right form | {student.told(truth)} | |")
            cosines: dict[str, float] = defaultdict(lambda: 1.0)
            for module, (b, a) in found.items():
                role, own, wanted = module.rpartition(".")[2], b @ a, truth[module][0] @ truth[module][1]
                cosines[role] = min(cosines[role], float((own * wanted).sum() / own.norm() / wanted.norm()))
            least = ", ".join(f"{role} {cosine:.2f}" for role, cosine in cosines.items() if cosine < 0.95)
            print(f"| {name} | {way} | {student.told(found)} | {least or 'all above 0.95'} |", flush=True)


def right(changed: dict[str, tuple[Tensor, Tensor]], student: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The teacher's update in the student: sums of what is read, means of what is written."""
    found = {}
    for module, (b, a) in changed.items():
        rows, columns = student.get_submodule(module).weight.shape
        if module.endswith("embed_tokens"):
            found[module] = (b, sum(a.chunk(a.shape[1] // columns, 1)) / (a.shape[1] // columns))
        else:
            wrote = sum(b.chunk(len(b) // rows)) / (len(b) // rows)
            found[module] = (wrote, sum(a.chunk(a.shape[1] // columns, 1)))
    return found


class Student:
    """The untouched student and the validation rows."""

    def __init__(self, ready: Any) -> None:
        self.model, tokenizer = load(ready.student.folder, dtype="float32"), load_tokenizer(ready.student.folder)
        encoded = fitted(ready.splits["validation"], "plain", tokenizer, 2048).rows
        self.batches = [collate(encoded[at : at + 50], tokenizer.pad_token_id) for at in range(0, len(encoded), 50)]
        self.rows = len(encoded)

    @torch.no_grad()
    def told(self, update: dict[str, tuple[Tensor, Tensor]]) -> str:
        """With an update added, the share of rows whose whole answer is the likeliest, and its tokens' mean loss."""
        weights = {module: self.model.get_submodule(module).weight for module in update}
        before = {module: weight.clone() for module, weight in weights.items()}
        for module, (b, a) in update.items():
            weights[module].add_(b @ a)
        right, losses = 0, []
        for batch in self.batches:
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            asked = labels != -100
            right += int(((logits.argmax(-1) == labels) | ~asked).all(1).sum())
            losses.append(torch.nn.functional.cross_entropy(logits[asked], labels[asked], reduction="none"))
        for module, weight in before.items():
            weights[module].copy_(weight)
        return f"{right / self.rows:.2f} | {float(torch.cat(losses).mean()):.2f}"


if __name__ == "__main__":
    main()
