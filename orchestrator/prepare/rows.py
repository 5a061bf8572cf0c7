"""A recipe's task and the rows of it that a trial takes: all that is known of it without its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.recipe import Recipe, TaskChoice
from orchestrator.tasks import TASKS, Task, chat_task, text_task
from orchestrator.tasks.base import Example, Split, draw, read_jsonl
from orchestrator.tasks.harness import harness_task, names
from orchestrator.tasks.knowedit import edit_task, is_edits, splits_of
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import TemplateName


def used_rows(recipe: Recipe, splits: Mapping[Split, list[Example]], split: Split) -> list[Example]:
    """The rows of a split that a trial takes: to measure, to train on or to be scored by.

    Where more seed examples are asked for than a task sets aside, training rows follow them.
    """
    most = {"seed": recipe.measure.examples, "train": recipe.finetune.examples}.get(split, recipe.evaluate.examples)
    rows = splits[split]
    if split == "seed" and most and most > len(rows) and "train" in splits and not recipe.measure.seeds:
        questions = {row.messages[:-1] for row in rows}
        return [*rows, *draw([row for row in splits["train"] if row.messages[:-1] not in questions], most - len(rows))]
    return draw(rows, most) if most else rows


def find_rows(recipe: Recipe, *, seeds_alone: bool = False) -> tuple[Task, dict[Split, list[Example]]]:
    """A recipe's task and all of its rows, or the seed examples alone: all that a teacher's blocks are taken by.

    Where those are a file of their own, a known task's rows need not be anywhere.
    """
    own = recipe.measure.seeds
    if own in TASKS:
        task, splits = find_task(recipe.task)
        splits["seed"] = seeds_of(own, recipe)
        return task, {"seed": splits["seed"]} if seeds_alone else splits
    if seeds_alone and own and recipe.task.name in TASKS:
        task, splits = TASKS[recipe.task.name], dict[Split, list[Example]]()
    else:
        task, splits = find_task(recipe.task)
    if own:
        splits["seed"] = read_jsonl(Path(own).expanduser(), task.adapt)
    return task, {"seed": splits["seed"]} if seeds_alone else splits


def texts_of(recipe: Recipe, splits: Mapping[Split, list[Example]]) -> list[Example]:
    """What maps between the two models' channels are made of: training rows, or a user's own chats or text.

    UserError for texts that hold a question of the validation or test split, word for word: their ids are named.
    """
    if recipe.carry.texts is None:
        return draw(splits["train"], recipe.carry.examples)
    path = Path(recipe.carry.texts).expanduser()
    if not path.is_file():
        raise UserError(f"carry.texts: there is no file {path}; give a .jsonl of chats or a .txt")
    rows = read_jsonl(path) if path.suffix == ".jsonl" else text_task(path)[1]
    whole = "\n".join(message.content for row in rows for message in row.messages)
    asked = {row.id: row.messages[-2].content for row in (*splits["validation"], *splits["test"]) if row.messages[1:]}
    if held := [id for id, question in asked.items() if question.strip() in whole]:
        more = f" and {len(held) - 5} more" if len(held) > 5 else ""
        raise UserError(
            f"carry.texts: {path} has questions of validation or test ({', '.join(held[:5])}{more}); take them out"
        )
    return draw(rows, recipe.carry.examples)


def template_of(recipe: Recipe, task: Task) -> TemplateName:
    """As a task's rows are shown: a text, and what lm-eval asks, in one way only."""
    return task.template or recipe.task.template


def seeds_of(name: str, recipe: Recipe) -> list[Example]:
    """A task's seed examples, as it shows them: near the rows that are trained on, or from the hub."""
    return TASKS[name].splits(_folder(name, recipe.task))["seed"]


def _folder(name: str, main: TaskChoice) -> str | None:
    """Where a task's rows are: `main`'s in its folder or one within; another's in a folder of its name there or beside.

    None: in no folder, but on the hub.
    """
    if main.data is None:
        return None
    own = Path(main.data).expanduser()
    beside = own if name == main.name else own.parent / name
    return next((str(folder) for folder in (own / name, beside) if folder.is_dir() or folder == own), None)


def find_beside(choice: TaskChoice, main: TaskChoice) -> tuple[Task, list[Example]]:
    """A task that is scored beside `main`, and its test rows: a known one, a file's chats or edits, a .txt's parts."""
    path = Path(choice.name).expanduser()
    if path.suffix == ".txt":
        return text_task(path)
    if choice.name in TASKS:
        known = TASKS[choice.name]
        return _as_asked(known, choice), known.test(choice.data or _folder(choice.name, main), choice.shots)
    if is_edits(path):
        return edit_task(path, choice.metric, choice.shots)  # none is trained on, and all are scored
    if not is_file(choice.name):
        rows_in = choice.data or _folder(choice.name, main)
        task = _of_lm_eval(choice.model_copy(update={"template": main.template}), rows_in)
        return task, task.test(None)
    task, splits = find_task(choice)
    return task, splits["test"]


def scored_beside(recipe: Recipe, choice: TaskChoice) -> tuple[Task, list[Example]]:
    """A further task of a recipe's sweep, and as many of its rows as are scored of the one that is trained on."""
    allowed, most = choice.run_code or recipe.task.run_code, recipe.evaluate.examples
    task, rows = find_beside(choice.model_copy(update={"run_code": allowed}), recipe.task)
    return task, draw(rows, most) if most else rows


def find_task(choice: TaskChoice) -> tuple[Task, dict[Split, list[Example]]]:
    """A known task, a file's chats or edits by its path, or one of lm-eval's. UserError with what is known."""
    if choice.name in TASKS:
        known = TASKS[choice.name]
        return _as_asked(known, choice), known.splits(_folder(choice.name, choice), choice.shots)
    path = Path(choice.name).expanduser()
    if is_edits(path):
        task, rows = edit_task(path, choice.metric, choice.shots)
        return _judged(task, choice), splits_of(task, rows)
    if is_file(choice.name):
        task, splits = chat_task(path, choice.metric or "exact_match", choice.shots)
        return _named(_judged(task, choice), choice), splits
    task = _of_lm_eval(choice, _folder(choice.name, choice))
    return task, task.splits(None)


def is_file(name: str) -> bool:
    """Whether a task is a file of a user's own."""
    path = Path(name).expanduser()
    return path.suffix == ".jsonl" or path.is_file()


def at_hand(choice: TaskChoice, main: TaskChoice | None = None) -> bool:
    """Whether no hub has to be asked for a task's rows; `main`: of the one that it is scored beside."""
    known = TASKS.get(choice.name)
    made = known.source == "generated" if known else is_file(choice.name) or choice.name.endswith(".txt")
    return made or choice.data is not None or bool(main and _folder(choice.name, main))


def _of_lm_eval(choice: TaskChoice, data: str | None) -> Task:
    if choice.name not in names():
        near = get_close_matches(choice.name, dict.fromkeys((*TASKS, *names())), 3, 0.75)
        known = f"known: {', '.join(TASKS)}, any task of lm-eval, or a FILE.jsonl of chats or edits"
        hint = f"did you mean {', '.join(near)}?" if near else known
        raise UserError(f"task: {choice.name!r} is not known; {hint}")
    task = harness_task(choice.name, data, choice.shots, as_chat=choice.template == "chat")
    return _as_asked(task, choice)


def _as_asked(task: Task, choice: TaskChoice) -> Task:
    """By the metric and with the shots that were asked for. UserError where the task's answers can't be judged so, or
    would be run unasked."""
    metric, kinds = task.metric, (task.metric.kind, *task.metric.also)
    if choice.metric == "loss":
        metric = Metric("loss", "none")
    elif choice.metric:
        if choice.metric not in kinds:
            raise UserError(f"metric: {task.name} is scored by {', '.join((*kinds, 'loss'))}, not by {choice.metric!r}")
        also = tuple(kind for kind in kinds if kind != choice.metric)
        metric = replace(metric, kind=choice.metric, also=also)
    if metric.runs and not choice.run_code:
        raise UserError(f"task: {task.name} runs programs that a model wrote; --run-code has them run, in sandboxes")
    if metric.runs:
        from orchestrator.scoring import sandbox

        sandbox.check()
    return _named(_judged(replace(task, metric=metric), choice), choice)


def _named(task: Task, choice: TaskChoice) -> Task:
    return replace(task, name=f"{task.name}-{choice.shots}shot") if choice.shots else task


def _judged(task: Task, choice: TaskChoice) -> Task:
    """With whoever judges its win rate; without one, by how likely the references are. UserError for a judge that
    nobody asks, or that can't be asked."""
    if task.metric.kind != "win_rate":
        if said := "--judge" if choice.judge else "--judge-model" if choice.judge_model else "":
            raise UserError(f"judge: {task.name} is scored by {task.metric.kind}; leave {said} out")
        return task
    if not choice.judge_model:
        if choice.judge:
            raise UserError(f"judge: {choice.judge} has to be told which model judges; name it with --judge-model")
        return replace(task, metric=task.metric.unjudged())
    if choice.judge and not find_spec("openai"):
        raise UserError("judge: it is asked by the openai package; pip install 'pkt[judge]'")
    return replace(task, judge=(choice.judge or "", choice.judge_model))
