"""A sweep's pictures: numbers in, a figure out.

figure = leaderboard_picture(evidence.rows, evidence.names, title)
style.png(figure, path)      # or style.svg(figure, ...) for a page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.report.evidence import Cost, Curve, Heat, Layers
from orchestrator.report.style import COLOURS, GRID, INK, LINES, MUTED, PAPER, WIDTH, looks, styled

LEADERBOARD = "score on the test split, with 95 % intervals over random seeds and examples"


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


@styled
def leaderboard_picture(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str = "") -> Any:
    """One line a row of `compare`, best on top; hollow marks are models that no arm trained."""
    figure = _figure(0.9 + 0.3 * len(rows))
    axes = figure.add_subplot()
    arms = looks([row["arm"] for row in rows if row["rank"]])
    for place, row in enumerate(rows):
        look = arms[row["arm"]] if row["rank"] else {"color": MUTED, "marker": "o", "markerfacecolor": PAPER}
        axes.plot(row["ci95"], [place, place], color=look["color"], linewidth=2)
        axes.plot([row["mean"]], [place], linestyle="none", markersize=7, **look)
        axes.annotate(
            f"{row['mean']:.3f}", (row["ci95"][1], place), (6, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.set_xlabel(LEADERBOARD)
    axes.set_title(title)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


@styled
def heat_picture(heats: Sequence[Heat]) -> Any:
    """A panel an arm; all of one scale, every cell with its number."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    figure = _figure(sum(0.75 + 0.34 * len(heat.strategies) for heat in heats) + 0.3)
    panels = figure.subplots(len(heats), 1, squeeze=False, height_ratios=[1 + len(h.strategies) for h in heats])[:, 0]
    values = np.concatenate([heat.cells.ravel() for heat in heats])
    norm, shades = Normalize(np.nanmin(values), max(np.nanmax(values), np.nanmin(values) + 1e-9)), colormaps["cividis"]
    for heat, axes in zip(heats, panels, strict=True):
        axes.imshow(np.ma.masked_invalid(heat.cells), norm=norm, cmap=shades, aspect="auto", interpolation="none")
        for (down, along), value in np.ndenumerate(heat.cells):
            if np.isnan(value):
                axes.text(along, down, "-", ha="center", va="center", color=INK)
            else:
                dark = norm(value) < 0.55
                written = "#ffffff" if dark else "#000000"
                axes.text(along, down, f"{value:.3f}", ha="center", va="center", color=written)
        axes.set_xlim(-0.5, max(5, *(len(one.columns) for one in heats)) - 0.5)  # few columns make no broad cells
        axes.set_facecolor("none")
        axes.set_xticks(range(len(heat.columns)), heat.columns)
        axes.set_yticks(range(len(heat.strategies)), [way.removeprefix("-") for way in heat.strategies])
        axes.set_title(heat.arm)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


@styled
def curves_picture(curves: Sequence[Curve]) -> Any:
    """A panel an arm: its rows' mean training loss, and the band from the least to the most of their seeds."""
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    columns = min(3, len(arms))
    lines = -(-len(arms) // columns)
    most = max(sum(curve.arm == arm for curve in curves) for arm in arms)
    figure = _figure(lines * (2.4 + 0.17 * most))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for arm, axes in zip(arms, panels, strict=False):
        own = [curve for curve in curves if curve.arm == arm]
        for at, curve in enumerate(own):
            colour, kind = COLOURS[at % len(COLOURS)], LINES[at % len(LINES)]
            written = curve.name.removeprefix(f"{arm}, ")
            axes.plot(curve.steps, curve.mean, color=colour, linestyle=kind, linewidth=1.8, label=written)
            axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.3, linewidth=0)
        axes.set_title(arm)
        axes.grid()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8.5, handlelength=3.2)
        axes.tick_params(labelbottom=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("step", labelpad=1, loc="right")
    for axes in panels[len(arms) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("training loss")
    return figure


@styled
def layers_picture(passes: Sequence[Layers]) -> Any:
    """The teacher's S by layer; under it a line of marks for each strategy, at the layers that it took."""
    figure = _figure(sum(2.1 + 0.24 * len(one.chosen) for one in passes))
    ratios = [part for one in passes for part in (1.6, 0.24 * len(one.chosen) + 0.1)]
    panels = figure.subplots(2 * len(passes), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for at, one in enumerate(passes):
        bars, marks = panels[2 * at : 2 * at + 2]
        bars.bar(range(len(one.scores)), one.scores, color=COLOURS[0], width=0.75)
        bars.set_ylabel("S, summed")
        bars.set_title(one.name)
        bars.grid(axis="y")
        bars.tick_params(labelbottom=False, length=0)
        for line, (way, look) in enumerate(looks(list(one.chosen)).items()):
            layers = one.chosen[way]
            marks.plot(layers, [line] * len(layers), linestyle="none", markersize=7, **look)
            missing = sorted({*range(len(one.scores))} - {*layers})
            marks.plot(missing, [line] * len(missing), linestyle="none", marker=".", markersize=3, color=MUTED)
        marks.set_yticks(range(len(one.chosen)), sorted(one.chosen))
        marks.set_ylim(len(one.chosen) - 0.4, -0.6)
        marks.set_xlabel("the teacher's layer")
        marks.tick_params(axis="y", length=0)
        marks.spines["left"].set_visible(False)
        for axes in (bars, marks):
            axes.set_xlim(-0.6, len(one.scores) - 0.4)
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def cost_picture(costs: Sequence[Cost]) -> Any:
    """A mark a row; names stand at the margin, so that none lies on another."""
    figure = _figure(max(3.2, 0.5 + 0.24 * len(costs)))
    axes = figure.add_subplot()
    arms = looks([cost.arm for cost in costs])
    by_score = sorted(costs, key=lambda cost: cost.mean)
    scores = np.array([cost.mean for cost in by_score])
    span = max(float(np.ptp(scores)), 0.02)
    bottom, top = scores.min() - 0.08 * span, scores.max() + 0.08 * span
    places = spread(scores, (top - bottom) / max(12, len(costs) + 1))
    axes.set_ylim(min(bottom, places.min()), max(top, places.max()))
    most = max(cost.seconds for cost in costs)
    axes.set_xlim(0, most * 1.06)
    for cost, place in zip(by_score, places, strict=True):
        axes.plot([cost.seconds, most * 1.08], [cost.mean, place], color=GRID, linewidth=1, clip_on=False, zorder=1)
        axes.plot([cost.seconds], [cost.mean], linestyle="none", markersize=8, zorder=3, **arms[cost.arm])
        look = arms[cost.arm]  # again beside the name: lines to marks that lie close together can't be told apart
        axes.plot([most * 1.09], [place], linestyle="none", markersize=5, clip_on=False, **look)
        axes.text(most * 1.11, place, cost.name, va="center", fontsize=9)
    axes.set_xlabel("seconds of a training and of all that it was made from, as if it were alone")
    axes.set_ylabel("mean score")
    axes.grid(axis="y")
    return figure


def spread(values: np.ndarray, gap: float) -> np.ndarray:
    """Ascending values moved apart to at least this gap, as a whole as near to where they were as can be."""
    steps = gap * np.arange(len(values))
    moved = np.maximum.accumulate(values - steps) + steps
    back = np.minimum.accumulate((values - steps)[::-1])[::-1] + steps
    return (moved + back) / 2
