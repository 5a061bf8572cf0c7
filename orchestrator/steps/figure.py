"""The leaderboard as a picture: means with their intervals, so that what overlaps is seen to overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)  # Okabe and Ito: safe for colour-blind eyes


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """One line a row of `compare`, best on top; hollow marks are models that no arm trained."""
    from matplotlib.figure import Figure

    arms = sorted({row["arm"] for row in rows if row["rank"]})
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        low, high = row["ci95"]
        colour = COLOURS[arms.index(row["arm"]) % len(COLOURS)] if row["rank"] else "#777777"
        face = colour if row["rank"] else "white"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([row["mean"]], [place], "o", color=colour, markerfacecolor=face, markersize=6)
    axes.set_yticks(range(len(rows)), [name(row) for row in reversed(rows)])
    axes.set_xlabel("score on the test split, with 95 % intervals over random seeds and examples")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def name(row: dict[str, Any]) -> str:
    """What tells a row from the others."""
    parts = [row["arm"], row["layers"], row["structure"], f"rank {row['rank']}" if row["rank"] else None]
    return ", ".join(part for part in parts if part)
