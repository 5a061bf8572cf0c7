"""How flags, a YAML file and defaults become one sweep. What is said nearest wins: defaults, the file, flags, --set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.recipe import Sweep

SHORT = {"task": "name", "search": "kind"}  # fields for which a name stands in


def sweep_of(
    file: Path | None,
    flags: dict[str, Any],
    axes: dict[str, str | list[str] | None],
    sets: list[str],
    begun: Sweep | None = None,
) -> Sweep:
    """The sweep that was asked for; without a file, flags change the one that was `begun`.

    UserError that names the field, the value and the remedy.
    """
    from pydantic import ValidationError

    from orchestrator.recipe import Sweep, one_line
    from orchestrator.sweep.presets import complete

    begun = None if file else begun
    document = _read(file) if file else begun.model_dump(mode="json") if begun else {}
    for path, value in flags.items():
        if value is not None:
            _put(document, path, value)
    for axis, value in axes.items():
        if value is not None:
            document.setdefault("axes", {})[axis] = listed(value) if isinstance(value, str) else value
    for item in sets:
        path, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set: {item!r} has no value; write PATH=VALUE, as in finetune.epochs=1")
        _put(document, path.strip(), _yaml(value, f"--set {path}"))
    try:
        return Sweep.model_validate(document if begun else complete(document))
    except ValidationError as error:
        raise UserError(one_line(error)) from error


def models_and_task(
    teacher: str | None,
    student: str | None,
    task: str | None,
    data: str | None = None,
    template: str | None = None,
    seeds: str | None = None,
    skip_bad: bool | None = None,
    metric: str | None = None,
    run_code: bool | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
) -> dict[str, Any]:
    """The flags that say what a recipe is about, under their fields."""
    return {
        "recipe.teacher": teacher, "recipe.student": student, "recipe.task.name": task, "recipe.task.data": data,
        "recipe.task.template": template, "recipe.measure.seeds": seeds, "recipe.measure.skip_bad_examples": skip_bad,
        "recipe.task.metric": metric, "recipe.task.run_code": run_code,
        "recipe.task.judge": judge, "recipe.task.judge_model": judge_model,
    }  # fmt: skip


def axes_of(
    arms: str | None,
    rank: str | None,
    layers: str | None,
    structure: str | None,
    modules: list[str] | None,
    seed_tasks: str | None = None,
) -> dict[str, Any]:
    """The flags that are a sweep's axes. `0,2,5` is one choice of layers; names are one value each."""
    numbers = layers is not None and layers.replace(",", "").replace(" ", "").isdigit()
    chosen = [layers] if numbers else listed(layers)
    fields = {"arm": arms, "rank": rank, "layers": chosen, "structure": structure, "modules": modules}
    return {**fields, "measure.seeds": seed_tasks}


def listed(text: str | None) -> list[Any] | None:
    """Comma-separated values; numbers as numbers, and a list of layer numbers as the one value that it is."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [_yaml(part, text) for part in parts]


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"file: {file} can't be read ({error.strerror}); give a sweep as YAML") from error
    document = _yaml(text, str(file))
    if not isinstance(document, dict):
        raise UserError(f"file: {file} is no mapping; it needs fields such as recipe, axes, repeats")
    return document


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML ({str(error).splitlines()[0]})") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted field of the sweep, or of its recipe where the sweep has no such field."""
    from orchestrator.recipe import Sweep

    keys = path.split(".")
    if keys[0] not in Sweep.model_fields:
        keys = ["recipe", *keys]
    place = document
    for key in keys[:-1]:
        if isinstance(place.get(key), str) and key in SHORT:
            place[key] = {SHORT[key]: place[key]}
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise UserError(f"--set: {path} is no field; `pkt strategies` lists the fields")
    place[keys[-1]] = value
