"""Which neurons of a model say an answer, and what the teacher's make of the student's (LaTen, arXiv 2505.14436)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from orchestrator.carry.pairs import PAIRS, USES, read_pairs
from orchestrator.carry.site import Model
from orchestrator.errors import UserError
from orchestrator.models import adapters
from orchestrator.models.borrowed import borrowed
from orchestrator.models.families import AXES, FAMILIES
from orchestrator.models.loading import load_tokenizer
from orchestrator.step import Track, silent
from orchestrator.tasks import rows as data
from orchestrator.tasks.template import Encoded, TemplateName, collate, fitted
from orchestrator.teacher.teacher_pass import device
from orchestrator.transfer.lowrank import product_svd
from orchestrator.transfer.sensitivity import example_losses

ROLES = ("down", "o")  # of whose matrices a column is a neuron: what it writes into the residual stream
AT_ONCE = 16  # training rows of a step


def answers(
    folder: Path, *, texts: Path, teacher: str, student: str, template: TemplateName, max_tokens: int
) -> dict[str, Any]:
    """Write `pairs.json`: of each text the token from which each model foretells the answer's last one."""
    theirs, own = (
        {row.id: _last(row) for row in _encoded(texts, name, template, max_tokens)} for name in (teacher, student)
    )
    pairs = {id: [(place, own[id])] for id, place in theirs.items() if id in own}
    if not pairs:
        raise UserError("finetune.max_tokens: no text has room for its answer in both models; allow more")
    (folder / PAIRS).write_text(json.dumps({"fitted": pairs, "held": {}}) + "\n")
    return {"texts": len(pairs)}


def _encoded(texts: Path, model: str, template: TemplateName, max_tokens: int) -> list[Encoded]:
    return fitted(data.read(texts), template, load_tokenizer(model), max_tokens).rows


def _last(row: Encoded) -> int:
    """Before the last labelled token but the one that ends the turn, where there is another."""
    labelled = [place for place, label in enumerate(row.labels) if label != -100 and place]
    return labelled[-2 if len(labelled) > 1 else -1] - 1


def gains(model: Model, answers: Int[Tensor, " k"]) -> dict[str, Float[Tensor, "l n"]]:
    """What each neuron adds to the mean log-probability of k answers, to first order at the last layer's state.

    m·vᵀ∇: m is the neuron's activation, v its column, ∇ the gradient of log p with respect to the state before the last
    norm, times that state's length, which is the same for all of a text's neurons.
    """
    final = model.inputs("head", None).to(device()).float()
    head = model.weight("head", None).to(device()).float()
    wanted = -torch.softmax(final @ head.t(), -1)
    wanted[torch.arange(len(answers)), answers.to(wanted.device)] += 1
    weight, bias = (one.to(device()).float() for one in model.last_norm())
    unit, gradient = (final - bias) / weight, (wanted @ head) * weight
    if model.family.centred:
        gradient = gradient - gradient.mean(1, keepdim=True)
    gradient = gradient - unit * (unit * gradient).mean(1, keepdim=True)  # what only lengthens the state says nothing
    found: dict[str, list[Tensor]] = {role: [] for role in ROLES}
    for role in ROLES:
        for layer in range(model.geometry.layers):
            moved = gradient @ model.weight(role, layer).to(device()).float()
            found[role].append((model.inputs(role, layer).to(device()).float() * moved).mean(0).cpu())
    return {role: torch.stack(each) for role, each in found.items()}


@dataclass(frozen=True)
class Chosen:
    """A role's best neurons, best first: each one's layer, its column in that layer's matrix, and the column."""

    layers: Int[Tensor, " k"]
    places: Int[Tensor, " k"]
    columns: Float[Tensor, "k d"]


def best(model: Model, role: str, gain: Float[Tensor, "l n"], count: int) -> Chosen:
    """Those of largest gain of all layers; the first wins a tie."""
    order = gain.flatten().argsort(descending=True, stable=True)[:count]
    layers, places = order // gain.shape[1], order % gain.shape[1]
    columns = torch.empty(count, model.geometry.size(AXES[role][0]))
    for layer in layers.unique().tolist():
        own = layers == layer
        columns[own] = model.weight(role, layer)[:, places[own]].t().float()
    return Chosen(layers, places, columns)


def laten(
    folder: Path,
    *,
    answers: Path,
    texts: Path,
    of_teacher: Path,
    of_student: Path,
    teacher: str,
    student: str,
    student_name: str,
    arm: dict[str, Any],
    seed: int,
    template: TemplateName,
    max_tokens: int,
    dtype: str,
    partial: Path | None = None,
    track: Track[Any] = silent,
) -> dict[str, Any]:
    """Write what is added to the student's matrices as an adapter, each cut to `kept` directions.

    `seed`: of the random columns of their lengths that stand for the teacher's where the arm is its control.
    """
    pairs = {}
    for name, place in ((teacher, of_teacher), (student, of_student)):
        model = Model.open(name, place)
        rows = {row.id: row for row in _encoded(texts, name, template, max_tokens)}
        ids = [rows[id].ids[_last(rows[id]) + 1] for id in read_pairs(answers)[USES[0]]]
        pairs[name, place] = model, gains(model, torch.tensor(ids))
    (theirs, theirs_gain), (own, own_gain) = pairs.values()
    count = {role: max(1, round(arm["share"] * own_gain[role].numel())) for role in ROLES}
    count = {role: min(many, theirs_gain[role].numel()) for role, many in count.items()}
    chosen = {role: best(own, role, own_gain[role], count[role]) for role in ROLES}
    columns = {role: best(theirs, role, theirs_gain[role], count[role]).columns for role in ROLES}
    if arm["at_random"]:
        draw = torch.Generator().manual_seed(seed)
        for role, some in columns.items():
            drawn = torch.randn(some.shape, generator=draw)
            columns[role] = drawn * (some.norm(dim=1) / drawn.norm(dim=1))[:, None]
    with borrowed(student, dtype=dtype, device=str(device())) as base:
        encoded = _encoded(texts, student, template, max_tokens)
        added, losses = taught(base, chosen, columns, encoded, load_tokenizer(student).pad_token_id, arm, track)
    starts = {}
    for role, one in chosen.items():
        for layer in one.layers.unique().tolist():
            mine = one.layers == layer
            pick = torch.zeros(int(mine.sum()), own.geometry.size(AXES[role][1]))
            pick[torch.arange(len(pick)), one.places[mine]] = 1
            factors = product_svd(added[role][mine].t(), pick).truncate(arm["kept"])
            starts[own.family.module(role, layer)] = (factors.u * factors.s, factors.vh)
    adapters.write_start(folder, adapters.of_one_rank(starts), base_name=student_name, embeddings=frozenset())
    return {"modules": len(starts), "neurons": sum(count.values()), "losses": losses}


def taught(
    model: Any,
    chosen: Mapping[str, Chosen],
    columns: Mapping[str, Float[Tensor, "k dt"]],
    encoded: list[Encoded],
    pad: int,
    arm: Mapping[str, Any],
    track: Track[Any] = silent,
) -> tuple[dict[str, Float[Tensor, "k ds"]], list[float]]:
    """What each role's network makes of its columns after its steps, and the loss before each of them."""
    at, parts = model.device, {}
    torch.manual_seed(0)
    for role, some in columns.items():
        theirs, own = some.shape[1], chosen[role].columns.shape[1]
        parts[role] = nn.Sequential(
            nn.Linear(theirs, theirs, bias=False), nn.ReLU(), nn.Linear(theirs, own, bias=False)
        ).to(at)
    inputs = {role: some.to(at) for role, some in columns.items()}
    optimizer = torch.optim.AdamW([one for part in parts.values() for one in part.parameters()], lr=arm["step_lr"])
    model.requires_grad_(False)
    turns, losses = cycle(range(0, len(encoded), AT_ONCE)), []
    for start in track(islice(turns, arm["steps"]), "teaching the networks", arm["steps"]):
        batch = {name: one.to(at) for name, one in collate(encoded[start : start + AT_ONCE], pad).items()}
        labels = batch.pop("labels")
        added = {role: part(inputs[role]) for role, part in parts.items()}
        with adding(model, chosen, added):
            loss = example_losses(model(**batch, use_cache=False).logits, labels).mean()
        whole = loss + arm["penalty"] * sum(one.square().mean() for one in added.values())
        optimizer.zero_grad()
        whole.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return {role: part(inputs[role]).cpu() for role, part in parts.items()}, losses


@contextmanager
def adding(model: Any, chosen: Mapping[str, Chosen], added: Mapping[str, Float[Tensor, "k d"]]) -> Iterator[None]:
    """While open, the neurons' columns are longer by what is `added`."""
    row = FAMILIES[model.config.model_type]
    with ExitStack() as stack:
        for role, one in chosen.items():
            for layer in one.layers.unique().tolist():
                own = one.layers == layer
                places, more = one.places[own].to(model.device), added[role][own.to(added[role].device)]

                def hook(_: Any, given: Any, out: Tensor, places: Tensor = places, more: Tensor = more) -> Tensor:
                    return out + given[0][..., places] @ more.to(out.dtype)

                stack.callback(model.get_submodule(row.module(role, layer)).register_forward_hook(hook).remove)
        yield
