"""How pictures look on a screen, in the dark and on paper: one drawing, whose colours a page may change.

    Figures are drawn in the light theme's colours. `svg` puts names in place of those that a theme changes
    (var(--ink), var(--grid), ...), so that the page's style sheet decides; `png` keeps them.

Data are in the colours of Okabe and Ito, which colour-blind eyes tell apart, and never in colour alone: each arm has a
marker and a kind of line of its own, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

THEME = {"ink": "#1b1d21", "muted": "#5c6068", "grid": "#dcdee3", "paper": "#fefefd"}  # no datum has these colours
INK, MUTED, GRID, PAPER = THEME.values()
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c8c8c")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)))
WIDTH = 10.5  # inches, at 72 dots: what fits a page of 1,200 px between its margins, once enlarged
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.edgecolor": MUTED, "grid.color": GRID, "axes.grid": False,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.titlelocation": "left",
    "font.size": 10, "axes.titlesize": 10.5, "legend.fontsize": 9, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "svg.fonttype": "none", "svg.hashsalt": "pkt", "text.parse_math": False,
}  # fmt: skip
P = ParamSpec("P")


def styled(draw: Callable[P, Any]) -> Callable[P, Any]:
    """A picture in this style, whatever the user's own matplotlib is set to."""

    @wraps(draw)
    def call(*args: P.args, **more: P.kwargs) -> Any:
        import matplotlib as mpl

        with mpl.rc_context({**mpl.rcParamsDefault, "backend": mpl.rcParams["backend"], **STYLE}):
            return draw(*args, **more)

    return call


def looks(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each arm's colour and marker, the same in all of a report's pictures."""
    return {
        arm: {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]}
        for at, arm in enumerate(sorted(set(arms)))
    }


@styled
def png(figure: Any, path: Path) -> None:
    """The picture as a file of its own, in light colours."""
    figure.savefig(path, dpi=120, metadata={"Software": None})


@styled
def svg(figure: Any, name: str, described: str) -> str:
    """The picture as a part of a page: names of its own, colours by the page's theme, fonts by the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)  # several pictures share a page
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for variable, colour in THEME.items():
        text = text.replace(colour, f"var(--{variable})")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    return re.sub(
        r"<svg[^>]*>",
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{described}">',
        text,
        count=1,
    )
