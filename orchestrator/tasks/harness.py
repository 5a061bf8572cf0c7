"""Any task of lm-eval's by its name: its prompts, shots, choices, filters and figures, as `lm_eval run` has them.

    task = harness_task("arc_easy", data=None, shots=25, as_chat=False)

What is asked is lm-eval's own text, and what an answer scores is computed by lm-eval from its own row, which goes along
as JSON. Rows come from the hub, or from a folder with the data set's splits as JSON lines.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tasks.base import Example, Task, read_lines
from orchestrator.tasks.hub import UNREACHABLE, not_to_be_had
from orchestrator.tasks.metric import Metric

NAMED = re.compile(rb"^['\"]?(?:task|group)['\"]?: *['\"]?([^'\"\s]+)['\"]? *$", re.MULTILINE)
SHOTS_SEED = 1234  # of lm-eval's choice of solved examples
MOST_NAMED = 20  # of a group's tasks
NEW = 256  # tokens of an answer where a task doesn't say: lm-eval's own
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")  # its fields
NOT_SEEN = ("acc_mutual_info", "exact_match")  # of choices: they need more than how likely each is
REST = {"custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs", "metadata", "process_docs", "task", "tag"}


def folder() -> Path:
    """Where lm-eval keeps its tasks."""
    found = find_spec("lm_eval")
    assert found and found.origin
    return Path(found.origin).parent / "tasks"


@functools.cache
def names() -> dict[str, Path]:
    """The file of each task and group: lm-eval's own index parses its 14,000 files, in twenty times as long."""
    found: dict[str, Path] = {}
    for path in sorted(folder().rglob("*.yaml")):
        for name in NAMED.findall(path.read_bytes()):
            found.setdefault(name.decode(), path)
    return found


@functools.cache
def harness_task(name: str, data: str | None, shots: int, *, as_chat: bool) -> Task:
    """The task, asked with so many solved examples, or where `shots` is 0 with as many as lm-eval shows by itself.

    UserError for what can't be asked or scored here: groups, a text's own likelihood, answers drawn at random, code.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    path = names()[name]
    _refuse(name, load_yaml(path, resolve_func=False))
    try:
        config = load_yaml(path)
    except (ImportError, OSError) as error:
        raise UserError(
            f"task: lm-eval's {name} needs what isn't here ({error}); install it, or take another"
        ) from error
    task = _task(name, config if data is None else config | _local(name, Path(data).expanduser(), config))
    as_chat = as_chat and task.OUTPUT_TYPE != "loglikelihood"  # a text that goes on is no turn
    docs = {"test": task.eval_docs}
    if task.has_training_docs():
        docs["train"] = task.training_docs()
    if task.has_test_docs() and task.has_validation_docs():
        docs["validation"] = task.validation_docs()

    @functools.cache  # a command asks several times
    def load() -> dict[str, list[dict[str, Any]]]:
        rows = {}
        for split, some in docs.items():
            task.set_fewshot_seed(SHOTS_SEED)  # as at the start of a run of lm-eval's
            solved = 0 if split == "train" else shots or task.config.num_fewshot or 0
            rows[split] = [_row(f"{name}_{split}_{at}", task, doc, solved, as_chat) for at, doc in enumerate(some)]
        return rows

    return Task(
        name=name,
        about=f"lm-eval's {name}",
        metric=_metric(name, path, task, docs["test"][0]),
        load=load,
        source=str(config.get("dataset_path", "lm-eval")),
        adapt=_with_doc,
        template=None if as_chat else "raw",
        instead=f"score it beside another task with --tasks {name}",
    )


def judging(metric: Metric) -> dict[str, Any]:
    """What lm-eval is told of such a task to judge rows that are at hand: its own words, but for where rows are."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = {key: value for key, value in load_yaml(folder() / metric.harness).items() if key not in REST}
    if config.get("metric_list"):  # without what was left out, which would have more asked
        wanted = (metric.kind, *metric.also)
        config["metric_list"] = [one for one in config["metric_list"] if _called(one["metric"]) in wanted]
    if config.get("filter_list"):
        config["filter_list"] = config["filter_list"][:1]
    shown = (*SPLITS, "fewshot_config", "num_fewshot")
    return {key: value for key, value in config.items() if key not in shown} | {"test_split": "test"}


def _called(metric: Any) -> str:
    return str(getattr(metric, "__name__", metric))


def _refuse(name: str, config: dict[str, Any]) -> None:
    if "group" in config:
        members = _members(config)
        more = f" and {len(members) - MOST_NAMED} more" if len(members) > MOST_NAMED else ""
        raise UserError(
            f"task: {name} is a group of lm-eval's tasks; name one of {', '.join(members[:MOST_NAMED])}{more}"
        )
    settings = config.get("generation_kwargs") or {}
    why = {
        "is made by lm-eval in Python": "class" in config,
        "has pictures or sound": bool(config.get("doc_to_image") or config.get("doc_to_audio")),
        "runs code outside of any sandbox; humaneval and mbpp of `pkt tasks` run theirs in one": config.get(
            "unsafe_code", False
        ),
        "draws answers at random": bool(
            settings.get("do_sample") or settings.get("temperature") or config.get("repeats", 1) > 1
        ),
        f"asks for {config.get('output_type')}, and here answers are written, chosen or found likely (of a text:"
        " --tasks FILE.txt)": config.get("output_type") not in ("generate_until", "multiple_choice", "loglikelihood"),
    }
    for reason in (reason for reason, holds in why.items() if holds):
        raise UserError(f"task: lm-eval's {name} can't be had here: it {reason}; take another")


def _members(group: dict[str, Any]) -> list[str]:
    """A group's tasks and groups, those of its tags by lm-eval's own index."""
    from lm_eval.tasks import TaskManager

    listed = [str(one if isinstance(one, str) else one.get("task", one.get("group"))) for one in group["task"]]
    index = TaskManager().task_index if set(listed) - set(names()) else {}
    tagged = [sorted(index[one].tags) if one in index and one not in names() else [one] for one in listed]
    return [one for some in tagged for one in some]


def _local(name: str, rows: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The task on a folder's rows. UserError where those that are scored are none of its files."""
    import datasets

    named = {field: config.get(field) for field in SPLITS}
    there = {split: rows / f"{split}.jsonl" for split in set(named.values()) if split}
    kept = {split: path for split, path in there.items() if path.is_file()}
    scored = named["test_split"] or named["validation_split"]
    if scored not in kept:
        raise UserError(f"data: {rows} has no {scored}.jsonl, rows of {config.get('dataset_path')} that {name} scores")
    found = {}
    for split, path in kept.items():
        try:
            found[split] = datasets.Dataset.from_list(read_lines(path)[0])
        except (ValueError, TypeError) as error:
            raise UserError(
                f"data: {path} isn't JSON lines of one form ({error}); one row of the data set a line"
            ) from error
    return {
        **{field: split if split in kept else None for field, split in named.items()},
        "custom_dataset": lambda **_: datasets.DatasetDict(found),
        "metadata": None,
    }


def _task(name: str, config: dict[str, Any]) -> Any:
    from jinja2 import UndefinedError
    from lm_eval.api.task import ConfigurableTask

    for talks in ("lm_eval", "huggingface_hub"):  # what matters of it is an error below
        logging.getLogger(talks).setLevel(logging.ERROR)
    try:
        return ConfigurableTask(config=config)
    except UNREACHABLE as error:
        form = "its splits as JSON lines"
        raise not_to_be_had(str(config.get("dataset_path")), form) from error
    except (KeyError, UndefinedError) as error:
        raise UserError(f"data: rows lack what lm-eval's {name} needs ({error}); give rows of its data set") from error


def _metric(name: str, path: Path, task: Any, doc: dict[str, Any]) -> Metric:
    """Its own figures that are means over rows of numbers, more being better: the first is the score."""
    from lm_eval.api.registry import get_aggregation

    chooses = task.OUTPUT_TYPE != "generate_until"
    said: Any = [""]
    if chooses:
        said = [(0.0, False)] * (len(task.doc_to_choice(doc)) if task.OUTPUT_TYPE == "multiple_choice" else 1)
    mean, better, how = get_aggregation("mean"), task.higher_is_better(), task.aggregation()
    if "acc_mutual_info" in how:
        said = [*said, *said]
    kinds = [
        kind
        for kind, value in task.process_results(doc, said).items()
        if isinstance(value, int | float) and how.get(kind) is mean and better.get(kind, True)
        and not (chooses and kind in NOT_SEEN)
    ]  # fmt: skip
    if not kinds:
        raise UserError(f"task: lm-eval's {name} has no figure that is a mean over rows; take another")
    settings = task.config.generation_kwargs or {}
    until = settings.get("until", [])
    filters = task.config.filter_list or [{"name": "none"}]
    return Metric(
        kinds[0],
        filters[0]["name"],
        max_new_tokens=int(settings.get("max_gen_toks", NEW)),
        also=tuple(kinds[1:]),
        until=() if chooses else tuple([until] if isinstance(until, str) else until),
        harness=path.relative_to(folder()).as_posix(),
        of_choices=chooses,
    )


def _row(identity: str, task: Any, doc: dict[str, Any], solved: int, as_chat: bool) -> dict[str, Any]:
    """One of lm-eval's rows as a chat: what it asks, what is right, and, of choices, all of them."""
    options: Any = {"gen_prefix": task.doc_to_prefix(doc)}
    if as_chat:
        if options["gen_prefix"]:
            raise UserError(
                f"template: lm-eval's {task.task_name} begins the answers itself; leave --template chat out"
            )
        options |= {"apply_chat_template": True, "fewshot_as_multiturn": True, "chat_template": _turns}
    asked = task.fewshot_context(doc, solved, **options)
    contexts = [asked] if isinstance(asked, str) else asked
    chosen, likely = task.OUTPUT_TYPE == "multiple_choice", task.OUTPUT_TYPE == "loglikelihood"
    before = "" if as_chat or likely else task.config.target_delimiter  # of what is answered
    if not as_chat and (chosen or likely):  # an asked text's last spaces are the answer's first
        before = contexts[0][len(contexts[0].rstrip()) :] + before
        contexts = [one.rstrip() for one in contexts]
    right, target = 0, task.doc_to_target(doc)
    target = target[0] if isinstance(target, list) else target
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else []
    if task.multiple_input:
        right, choices = task.doc_to_text(doc), [target] * len(contexts)
    elif choices and isinstance(target, int):
        target = choices[target]
    offered = choices if chosen else [target] if likely else []
    asked = [json.loads(one) if as_chat else [{"role": "user", "content": one}] for one in contexts]
    if not all(turns[-1]["content"].strip() for turns in asked):
        raise UserError(f"task: lm-eval's {task.task_name} asks nothing before an answer; give its text to --tasks")
    return {
        "id": identity,
        "messages": [*asked[right], {"role": "assistant", "content": f"{before}{target}"}],
        "answer": str(target),
        "choices": [f"{before}{one}" for one in offered],
        "contexts": [turns[-1]["content"] for turns in asked] if task.multiple_input else [],
        "doc": json.dumps(doc, ensure_ascii=False, default=str),
    }


def _turns(turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """In place of a chat template: the turns themselves, for ours to show."""
    return json.dumps(turns)


def _with_doc(example: Example, row: dict[str, Any]) -> Example:
    return example.model_copy(update={"contexts": tuple(row.get("contexts", ())), "doc": row.get("doc", "")})
