"""What a recipe refers to, found and checked before any work starts: nothing is computed, nothing written.

ready = prepare(recipe)       # models, task and rows, or the first fault as a UserError
check(recipe, ready)          # whether this trial can be done with them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from orchestrator.carry.pairs import find_pairs
from orchestrator.carry.update import find_adapter
from orchestrator.errors import UserError
from orchestrator.models.dtypes import dtype_name
from orchestrator.models.families import FAMILIES
from orchestrator.models.loading import Checkpoint, load_tokenizer, resolve, source_of, tokens_of
from orchestrator.prepare.native import workers_have_bfloat16
from orchestrator.prepare.rows import find_rows, scored_beside, seeds_of, template_of, texts_of, used_rows
from orchestrator.prepare.shapes import check_shapes
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.scoring.asking import questions
from orchestrator.scoring.judge import check as check_items
from orchestrator.scoring.judge import room
from orchestrator.scoring.local_judge import check as check_judge
from orchestrator.tasks import Task
from orchestrator.tasks.base import Example, Split
from orchestrator.tasks.template import TemplateName, fitted
from orchestrator.tasks.text import windows
from orchestrator.transfer.arms.carried import Carried

Who = Literal["teacher", "student"]


@dataclass(frozen=True)
class Ready:
    """What a recipe refers to, found and checked."""

    teacher: Checkpoint
    student: Checkpoint
    task: Task
    splits: dict[Split, list[Example]]
    fit: dict[str, dict[str, int]]  # by split, and by task beside: rows, and how many had too little room
    dtypes: dict[Who, str]  # what each is computed in: as the recipe says, or what suits the machines that do the work
    beside: Mapping[str, tuple[Task, list[Example]]] = field(default_factory=dict)  # scored only, by name
    seeds: Mapping[str, list[Example]] = field(default_factory=dict)  # of other tasks, by their names
    recompute: bool = False  # what "auto" means for gradient checkpointing: what the plan found
    judges: Mapping[str, tuple[Checkpoint, str]] = field(default_factory=dict)  # here; and their dtypes
    paired: set[Any] = field(default_factory=set)  # texts of which it is known that maps can be made
    update: tuple[str, str] | None = None  # of the teacher, where it was made elsewhere: a folder, and what is in it

    def dtype(self, who: Who, asked: str = "auto") -> str:
        """What a model is computed in, by name: a step is told, so that its fingerprint and its manifest say it."""
        return self.dtypes[who] if asked == "auto" else asked

    def recomputed(self, asked: Literal["auto"] | bool, who: Who = "student") -> bool | None:
        """Whether a training keeps its layers' inputs alone and computes the rest anew: no result depends on it.

        None: on a GPU. The teacher's own training, which comes once, isn't to fail for want of memory.
        """
        if asked != "auto":
            return asked
        return self.recompute if who == "student" else None

    def seeds_for(self, recipe: Recipe) -> list[Example]:
        """By which a trial's teacher is measured: those of the task, or of the one that it names."""
        other = self.seeds.get(recipe.measure.seeds or "")
        return used_rows(recipe, {**self.splits, "seed": other} if other else self.splits, "seed")

    def checkpoint(self, who: Who) -> Checkpoint:
        """The teacher's or the student's."""
        return self.teacher if who == "teacher" else self.student


def prepare(
    recipe: Recipe,
    say: Callable[[str], None] = lambda line: None,
    recompute: bool = False,
    *,
    beside: Sequence[TaskChoice] = (),
    seeds: Sequence[str] = (),
    seeds_alone: bool = False,
) -> Ready:
    """Find models and rows and check all that can be checked before work starts; `say` hears how far that is.

    `beside`: tasks that are scored, and not trained on. `seeds`: those by whose seed examples some trial measures.
    `seeds_alone`: only the teacher is asked, so that no other rows are needed. UserError for the first fault.
    """
    own = [one.own_judge for one in (recipe.task, *beside) if one.own_judge and not seeds_alone]
    if recipe.evaluate.engine == "vllm" and not find_spec("vllm"):
        raise UserError("evaluate.engine: vllm isn't here; pip install 'pkt[vllm]'")
    for who, name in (("teacher", recipe.teacher), ("student", recipe.student), *(("judge-model", one) for one in own)):
        source_of(name, who)  # a misspelt name is told before anything is fetched
    task, splits = find_rows(recipe, seeds_alone=seeds_alone)
    others = _others(recipe, task, beside)
    teacher, student = resolve(recipe.teacher, "teacher", say), resolve(recipe.student, "student", say)
    judges, native = {}, workers_have_bfloat16()
    for name in dict.fromkeys(own):
        check_judge(judge := resolve(name, "judge-model", say))
        judges[name] = judge, dtype_name(judge.config, "auto", native=native)
    fit = _fit(recipe, teacher, student, task, splits)
    dtypes: dict[Who, str] = {
        "teacher": dtype_name(teacher.config, recipe.measure.dtype, native=native),
        "student": dtype_name(student.config, recipe.finetune.dtype, native=native),
    }
    reader = load_tokenizer(student.folder)
    for name, (other, rows) in others.items():
        if template_of(recipe, other) == "text":
            rows = windows(rows, reader, student.config.max_position_embeddings)
            others[name] = (other, rows)
        fit[f"{name}'s"] = _asked(f"of {name}", rows, template_of(recipe, other), reader, other, student)
    asked = {name: seeds_of(name, recipe) for name in seeds}
    for rows in asked.values():  # some of each have room, or it says why not
        fitted(rows, template_of(recipe, task), load_tokenizer(teacher.folder), recipe.measure.max_tokens)
    update = _update(recipe, teacher, say)
    return Ready(teacher, student, task, splits, fit, dtypes, others, asked, recompute, judges, update=update)


def _update(recipe: Recipe, teacher: Checkpoint, say: Callable[[str], None]) -> tuple[str, str] | None:
    """A LoRA, or the checkpoint that the teacher was trained from; None where the sweep trains the teacher itself."""
    if recipe.update.adapter:
        return find_adapter(recipe.update.adapter, teacher, say)
    if not recipe.update.base:
        return None
    base = resolve(recipe.update.base, "teacher-base", say)
    if (base.config.model_type, base.geometry) != (teacher.config.model_type, teacher.geometry):
        raise UserError(f"teacher-base: {base.name} has other sizes than {teacher.name}; name what it was trained from")
    return base.folder, base.sha256


def _others(recipe: Recipe, task: Task, beside: Sequence[TaskChoice]) -> dict[str, tuple[Task, list[Example]]]:
    """By their names, as many rows of each as are scored of the one that is trained on."""
    found: dict[str, tuple[Task, list[Example]]] = {}
    for choice in beside:
        other, rows = scored_beside(recipe, choice)
        if other.name in (task.name, *found):
            raise UserError(f"tasks: {other.name} is scored already; leave it out")
        found[other.name] = (other, rows)
    return found


def _fit(
    recipe: Recipe, teacher: Checkpoint, student: Checkpoint, task: Task, splits: Mapping[Split, list[Example]]
) -> dict[str, dict[str, int]]:
    """Each split's rows as they will be taken, with how many have too little room. UserError where none has enough."""
    fit: dict[str, dict[str, int]] = {}
    template, learns = template_of(recipe, task), load_tokenizer(student.folder, "student")
    reads: tuple[tuple[Split, Any, int], ...] = (
        ("seed", load_tokenizer(teacher.folder, "teacher"), recipe.measure.max_tokens),
        ("train", learns, recipe.finetune.max_tokens),
    )
    for split, tokenizer, most in (read for read in reads if read[0] in splits):
        fit[split] = fitted(used_rows(recipe, splits, split), template, tokenizer, most).facts()
    asks: tuple[Split, ...] = ("validation", "test")
    for split in (one for one in asks if one in splits):
        rows = used_rows(recipe, splits, split)
        fit[split] = _asked(f"of the {split} split", rows, template, learns, task, student)
    return fit


def _asked(
    of: str, rows: list[Example], template: TemplateName, reader: Any, task: Task, student: Checkpoint
) -> dict[str, int]:
    """How many rows are asked, and how many have no room for it. UserError where none has."""
    items, metric = questions(rows, template, reader, task.metric, task.choices)
    check_items(items, metric)
    long = sum(room(item, metric) > student.config.max_position_embeddings for item in items)
    if long == len(items):
        raise UserError(f"data: no question {of} fits into the student's context; give shorter")
    return {"rows": len(items), "not_asked": long}


def check(recipe: Recipe, ready: Ready) -> None:
    """Whether this trial can be done with these models. UserError names the field, the value and the remedy."""
    learnt, edits = recipe.finetune.examples, len(ready.splits.get("train", ()))
    if ready.task.metric.kind == "edit_success" and learnt < edits:
        raise UserError(
            f"finetune.examples: {learnt} of {edits} edits would be learnt, and all are scored; --set"
            f" finetune.examples={edits}"
        )
    if isinstance(recipe.arm, Carried) and recipe.arm.reads == "texts" and recipe.carry not in ready.paired:
        texts = texts_of(recipe, ready.splits)
        readers = load_tokenizer(ready.teacher.folder), load_tokenizer(ready.student.folder)
        asked = template_of(recipe, ready.task), recipe.finetune.max_tokens, recipe.carry.tokens
        find_pairs(texts, readers, *asked)
        ready.paired.add(recipe.carry)
    check_shapes(recipe, FAMILIES[ready.teacher.config.model_type], ready.teacher.geometry, ready.student.geometry)
    if recipe.measure.shuffled and min(recipe.measure.examples, len(ready.splits["seed"])) < 2:
        raise UserError("arm: shuffled_seeds needs two seed examples to exchange answers; give more, or leave it out")
    if recipe.arm.one_vocabulary:
        own, theirs = (load_tokenizer(one.folder) for one in (ready.student, ready.teacher))
        alike = own.get_vocab() == theirs.get_vocab() and own.eos_token == theirs.eos_token
        if not alike or (recipe.task.template == "chat" and own.chat_template != theirs.chat_template):
            raise UserError(
                f"arm: {recipe.arm.kind} needs one vocabulary and template, and {ready.teacher.name} and"
                f" {ready.student.name} have two; leave it out of --arms"
            )
    if recipe.layers and "embedding" in (recipe.modules or ()):
        tokens = tokens_of(Path(ready.teacher.folder), Path(ready.student.folder))
        if (shared := int((tokens >= 0).sum())) < len(tokens) / 2:
            raise UserError(
                f"modules: embedding needs tokens that both have, and of {ready.student.name}'s {len(tokens)}"
                f" {ready.teacher.name} has {shared}; leave it out with --modules attention,ffn"
            )
