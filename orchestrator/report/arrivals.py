"""How well the maps are by which an update was carried over, matrix by matrix, and how much of it arrived."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.models.families import FAMILIES
from orchestrator.report.style import WIDTH, styled

CARRIED = "carried.json"
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
FIGURES = {  # of carried.json, with what is poor of each
    "read": "R² of what the update reads",
    "written": "R² of what it writes into",
    "arrived": "share of its norm that arrives",
}
POOR = 0.5  # of R²: below, more is guessed than known


@dataclass(frozen=True)
class Arrival:
    """What one arm's maps are worth; NaN where a matrix was not changed or nothing is said of it."""

    arm: str
    roles: list[str]
    figures: dict[str, NDArray[np.float64]]  # by name (layers, roles)

    @property
    def poor(self) -> str:
        """A sentence where maps explain little; nothing where all are good."""
        values = np.stack([self.figures[name] for name in ("read", "written") if name in self.figures] or [np.empty(0)])
        known = values[:, ~np.isnan(values).all(0)] if values.size else values
        if not known.size:
            return ""
        worst = np.nanmin(known, 0)
        if not (few := int((worst < POOR).sum())):
            return ""
        lowest = np.nanmin(np.where(np.isnan(values), np.inf, values), 0)
        layer, role = np.unravel_index(int(np.argmin(lowest)), lowest.shape)
        return (
            f"{self.arm}: of {few} of {len(worst)} matrices the maps explain less than half of what the update reads or"
            f" writes into; least of {self.roles[int(role)]} in layer {int(layer)} ({lowest[layer, role]:.2f})."
        )


def arrival_of(arm: str, folder: Path) -> Arrival | None:
    """From a carried update's folder; None where none of its modules is known here."""
    said: Mapping[str, Mapping[str, float]] = json.loads((folder / CARRIED).read_text())["modules"]
    places: dict[tuple[int, str], Mapping[str, float]] = {}
    depth = 1 + max((int(part) for name in said for part in name.split(".") if part.isdigit()), default=-1)
    for row in FAMILIES.values():
        named = {role: "+".join(row.sharers(role)) for role in row.roles}  # what shares a matrix has one figure
        known = {row.module(role, layer): (layer, name) for role, name in named.items() for layer in range(depth)}
        if found := {known[name]: facts for name, facts in said.items() if name in known}:
            places = max(places, found, key=len)
    if not places:
        return None
    roles = sorted({own for _, own in places}, key=lambda own: ROLES.index(own.split("+")[0]))
    figures = {}
    for name in FIGURES:
        cells = np.full((depth, len(roles)), math.nan)
        for (layer, role), facts in places.items():
            cells[layer, roles.index(role)] = facts.get(name, math.nan)
        if not np.isnan(cells).all():
            figures[name] = cells
    return Arrival(arm, roles, figures)


@styled
def arrivals_picture(arrivals: Sequence[Arrival]) -> Any:
    """A line an arm, a column a figure; layers downwards, matrices along, one scale from 0 to 1 for R²."""
    from matplotlib.figure import Figure

    names = [name for name in FIGURES if any(name in one.figures for one in arrivals)]
    height = sum(0.9 + 0.24 * max(len(cells) for cells in one.figures.values()) for one in arrivals)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(len(arrivals), len(names), squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()
    for down, one in enumerate(arrivals):
        for along, name in enumerate(names):
            if name in one.figures:
                _draw(panels[down, along], one, name)
    return figure


def _draw(axes: Any, one: Arrival, name: str) -> None:
    cells = one.figures[name]
    axes.set_axis_on()
    axes.imshow(np.ma.masked_invalid(cells), vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="none")
    for (layer, role), value in np.ndenumerate(cells):
        if not math.isnan(value):
            axes.text(
                role, layer, f"{value:.2f}", ha="center", va="center", fontsize=7.5,
                color="#000000" if value > 0.55 else "#ffffff",
            )  # fmt: skip
    axes.set_xticks(range(len(one.roles)), one.roles)
    axes.set_yticks(range(len(cells)))
    axes.set_title(f"{one.arm}: {FIGURES[name]}", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
