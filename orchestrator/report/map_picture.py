"""The maps of one extraction as a picture: where the sensitivity lies, and what was taken of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.report.maps import ROLES, Map
from orchestrator.report.style import MUTED, WIDTH, styled

TICKS = 128  # along a margin


@styled
def maps_picture(maps: Sequence[Map]) -> Any:
    """A line a layer, a column a role; brighter is more sensitive, by its own logarithmic scale in every matrix."""
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(one.student for one in maps))
    roles = [role for role in ROLES if any(one.role == role for one in maps)]
    figure = Figure(figsize=(WIDTH, 2.5 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), len(roles), squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()
    for one in maps:
        axes = panels[layers.index(one.student), roles.index(one.role)]
        axes.set_axis_on()
        draw_map(axes, one)
        if one.role == roles[0]:
            axes.set_ylabel(f"layer {one.layer} \N{RIGHTWARDS ARROW} {one.student}")
    return figure


def draw_map(axes: Any, one: Map) -> None:
    """One matrix, its rows downwards; the window as a frame, chosen rows and columns as ticks along the margins."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    (n, m), (down, along) = one.shape, one.step
    positive = one.cells[one.cells > 0]
    norm = LogNorm(positive.min(), positive.max() * (1 + 1e-9)) if len(positive) else None
    extent = (0, one.cells.shape[1] * along, one.cells.shape[0] * down, 0)
    axes.set_facecolor("none")
    axes.imshow(np.ma.masked_less_equal(one.cells, 0), norm=norm, cmap="cividis", extent=extent, interpolation="none")
    axes.set_xlim(0, m)
    axes.set_ylim(n, 0)
    if one.window:
        row, column, height, width = one.window
        for colour, thick in (("#000000", 3.2), ("#ffffff", 1.4)):  # seen on bright and on dark cells
            axes.add_patch(Rectangle((column, row), width, height, fill=False, edgecolor=colour, linewidth=thick))
    if one.rows is not None and one.columns is not None:
        unit = max(n, m) / 100
        for chosen, size, ticks in ((one.rows, n, axes.hlines), (one.columns, m, axes.vlines)):
            middles, shares = taken(chosen, size)
            ticks(middles, -2 * unit - 7 * unit * shares, -2 * unit, colors=MUTED, linewidth=0.6)
        axes.set_xlim(-10 * unit, m)
        axes.set_ylim(n, -10 * unit)
    axes.set_title(f"{one.role}  {n} × {m}", fontsize=8.5, loc="center")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if one.note:
        axes.set_xlabel(one.note.replace(": ", ":\n"), fontsize=7.5)


def taken(chosen: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles of at most TICKS parts of a margin of which something was taken, and what share of each was."""
    edges = np.linspace(0, size, min(size, TICKS) + 1)
    counts, _ = np.histogram(np.asarray(chosen) + 0.5, edges)
    shares = np.minimum(1.0, counts / np.diff(edges))
    return ((edges[:-1] + edges[1:]) / 2)[counts > 0], shares[counts > 0]
