"""Makes the pairs and the tasks on which the field's ways are compared, and a sweep for each.

    python experiments/transport/make.py transport           # some minutes on two cores
    pkt sweep transport/demo-backwards.yaml

Four pairs: the demo's; a known answer, whose teacher is the student twice as wide and a little disturbed; one of
another ratio of widths (3 : 1) and one of another of depths (8 : 3; 3 : 2 in width), both pre-trained from scratch on
the demo's text. Three tasks in words that no model has seen: backwards and in order, which pre-training has in other
words, and in falling order, which is both one after the other. The sweeps whose names end in "-again" are the second
stage, on rows drawn anew; aside are those in "-starts", on the first stage's, and in "-steady", on the second's.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from orchestrator.models.cloning import widen
from orchestrator.models.loading import load, source_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))
import make_models as demo

THREADS = 2  # sums over another number of threads round differently and make other models
NOISE = 0.02  # of each matrix's own spread, as in experiments/known_answer
ROWS = 1500  # of each task
TASKS: dict[str, tuple[str, Callable[[str], str]]] = {
    "backwards": ("Backwards", lambda text: text[::-1]),
    "ordered": ("In order", lambda text: "".join(sorted(text))),
    "falling": ("Falling", lambda text: "".join(sorted(text, reverse=True))),
}
MADE = {  # layers, width, heads, K/V heads, neurons; steps of pre-training
    "wide-teacher": ((4, 192, 12, 6, 576), 330),
    "deep-teacher": ((8, 96, 6, 3, 288), 400),
    "deep-student": ((3, 64, 4, 2, 192), 400),
}
WAYS = [  # each brings its own control, but for transfer
    "lora", "pissa", "lora_equal", "distil", "distil_tuned", "transfer", "spectrum_control", "consistent_transfer",
    "cross_lora", "ridge", "theseus", "transport_merge", "laten", "merged", "spectral", "sta", "semalign", "titok",
    "distil_titok",
]  # fmt: skip
AGAIN = ["lora", "pissa", "cross_lora", "theseus", "theseus_scaled", "ridge_bounded"]
STARTS = [  # what needs no teacher, and two ways and their controls that are taken away from the base, not injected
    "lora", "pissa", "olora", "orthogonal", "eva", "lora_ga",
    *({"kind": f"{way}{own}", "arrives": "start"} for way in ("cross_lora", "theseus") for own in ("", "_random_map")),
]  # fmt: skip
STEADY = ["lora", "pissa", "theseus"]
STAGES: dict[str, dict[str, Any]] = {  # by what their names end in: every way, then a few on new rows with more seeds
    "": {"axes": {"arm": WAYS}, "repeats": 8},
    "-again": {"axes": {"arm": AGAIN}, "repeats": 16, "search": {"kind": "random", "settings": 10}},
    # aside: whether it is what arrives, or where a LoRA starts; and whether it is the settings, chosen by one seed each
    "-starts": {"axes": {"arm": STARTS}, "repeats": 8},
    "-steady": {
        "axes": {"arm": STEADY}, "repeats": 16, "search": {"kind": "random", "settings": 13}, "tuning_seeds": 8,
        "max_trials": 600,
    },
}  # fmt: skip
NEW = {"-again": "-again", "-steady": "-again"}  # on rows drawn anew; maps of training or of pre-training text
TEXTS = 1500  # lines of it
UP_TO_ONE = (0.0, 0.125, 0.25, 0.5, 1.0)  # in the second stage: larger ones had least loss before any step, not after
PAIRS = {
    "demo": ("demo-teacher", "demo-student"),
    "known": ("known-teacher", "demo-student"),
    "wide": ("wide-teacher", "demo-student"),
    "deep": ("deep-teacher", "deep-student"),
}


def main() -> None:
    """All of it, in one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    torch.set_num_threads(THREADS)
    known(folder / "known-teacher")
    for name, (sizes, steps) in MADE.items():
        demo.SIZES[name] = sizes
        model = demo.pretrained(name, steps)
        demo.save(model, folder / name)
        scores = {skill: knows(model, skill) for skill in demo.SKILLS}
        told = ", ".join(f"{skill} {score:.2f}" for skill, score in scores.items())
        print(f"{name}: {steps} steps, {model.num_parameters():,} parameters; held-out strings: {told}", flush=True)
    write_texts(folder / "texts.jsonl")
    for stage, asked in STAGES.items():
        rows = NEW.get(stage, "")
        for task in TASKS:
            write_task(folder / "tasks" / f"{task}{rows}.jsonl", task, f"transport {task}{rows}")
        for pair in PAIRS:
            for task in TASKS:
                name = f"{pair}-{task}{stage}"
                document = sweep(folder, pair, f"{task}{rows}") | asked | {"name": f"transport-{name}"}
                if rows:
                    document["recipe"]["carry"] |= {"examples": TEXTS, "scales": list(UP_TO_ONE)}
                    document["axes"] = {**asked["axes"], "carry.texts": [None, str(folder / "texts.jsonl")]}
                (folder / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def known(folder: Path) -> None:
    """The demo student twice as wide, with noise in every matrix, so that no two copies are the same."""
    widen(source_of("demo-student", "student"), folder, 2)
    model, draw = load(str(folder), dtype="float32"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.add_(NOISE * weight.std() * torch.randn(weight.shape, generator=draw))
    model.save_pretrained(folder)


@torch.no_grad()
def knows(model: Any, skill: str, count: int = 200) -> float:
    """The share of held-out strings of one skill that the model answers whole, in pre-training's own words."""
    right = 0
    lines = (line for line in demo.pretraining_lines(7, held=True) if f" {skill}=" in line[0])
    for _, (prompt, answer) in zip(range(count), lines, strict=False):
        ids = [demo.TOKENS[letter] for letter in prompt + answer]
        logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 :]
        right += logits.argmax(-1).tolist() == [*ids[len(prompt) :], demo.TOKENS["<eos>"]]
    return right / count


def write_task(file: Path, name: str, seed: str) -> None:
    """Chat rows of strings that pre-training left out, each once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    said, answer = TASKS[name]
    draw = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < ROWS:
        text = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 6)))
        if demo.held_out(text):
            texts[text] = None
    lines = []
    for place, text in enumerate(texts):
        turns = (("user", f"{said}: {text}"), ("assistant", answer(text)))
        messages = [{"role": role, "content": content} for role, content in turns]
        lines.append(json.dumps({"id": f"{name}_{place}", "messages": messages}))
    file.write_text("\n".join(lines) + "\n")


def write_texts(file: Path) -> None:
    """Lines of the pre-training text, in its own words, whose strings no task has."""
    lines = []
    for place, (prompt, answer) in zip(range(TEXTS), demo.pretraining_lines(11), strict=False):
        turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
        lines.append(json.dumps({"id": f"text_{place}", "messages": turns}))
    file.write_text("\n".join(lines) + "\n")


def sweep(folder: Path, pair: str, task: str) -> dict[str, Any]:
    """What both stages have in common; nothing is chosen by which arm wins."""
    teacher, student = (str(folder / name) if (folder / name).is_dir() else name for name in PAIRS[pair])
    return {
        "recipe": {
            "teacher": teacher, "student": student, "rank": 8,
            "task": {"name": str(folder / "tasks" / f"{task}.jsonl")},
            "finetune": {"examples": 576, "batch_size": 36, "dropout": 0.0},
            "update": {"rank": 8, "epochs": 6}, "carry": {"examples": 576},
        },
        "lr": [1.0e-3, 3.0e-3, 8.0e-3, 2.0e-2, 5.0e-2],
        "tuning_seeds": 1,
        "gate": 0.8,
        "portable": False,  # as the demo's own sweep has it, which takes half as long again
        "tuned_teacher": False,  # not beside the one that the update makes
        "max_trials": 400,
    }  # fmt: skip


if __name__ == "__main__":
    main()
