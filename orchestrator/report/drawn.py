"""Which pictures a sweep has, in the order of its report, each with a sentence of how to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.report import style
from orchestrator.report.arrivals import arrivals_picture
from orchestrator.report.evidence import Evidence, collect, cross_heats
from orchestrator.report.map_picture import maps_picture
from orchestrator.report.pictures import cost_picture, curves_picture, heat_picture, layers_picture, leaderboard_picture
from orchestrator.store import Store
from orchestrator.verdict.estimates import Result


@dataclass(frozen=True)
class Picture:
    """A figure, the section that it belongs to, and its name as a file."""

    section: str
    name: str
    read: str  # how to
    figure: Any


def drawn(evidence: Evidence, title: str = "") -> list[Picture]:
    """Those for which there are numbers. `title` is the leaderboard's, which is often shown alone."""
    found = []
    if evidence.rows:
        figure = leaderboard_picture(evidence.rows, evidence.names, title)
        found.append(Picture("leaderboard", "leaderboard", READ["leaderboard"], figure))
    if evidence.heats:
        found.append(Picture("heat", "rank-by-strategy", READ["heat"], heat_picture(evidence.heats)))
    if evidence.cross:
        found.append(Picture("cross", "seeds-by-task", READ["cross"], heat_picture(cross_heats(evidence.cross))))
    if evidence.curves:
        found.append(Picture("curves", "curves", READ["curves"], curves_picture(evidence.curves)))
    if evidence.passes:
        found.append(Picture("layers", "layers", READ["layers"], layers_picture(evidence.passes)))
    for at, cut in enumerate((one for one in evidence.extractions if one.maps), 1):
        read = f"{cut.name}, for {', '.join(cut.arms)}."
        found.append(Picture("windows", f"windows-{at}", read, maps_picture(cut.maps)))
    if evidence.arrivals:
        poor = [one.poor for one in evidence.arrivals if one.poor]
        read = " ".join([READ["arrivals"], *poor])
        found.append(Picture("arrivals", "arrivals", read, arrivals_picture(evidence.arrivals)))
    if evidence.costs:
        found.append(Picture("cost", "cost", READ["cost"], cost_picture(evidence.costs)))
    return found


def write_pictures(store: Store, record: dict[str, Any], found: list[Result]) -> None:
    """Put the report's pictures beside the sweep's record, which MLflow keeps."""
    folder = store.root / "sweeps" / record["name"]
    for picture in drawn(collect(record, found, store), f"{record['name']}: {record['task']}, {record['metric']}"):
        style.png(picture.figure, folder / f"{picture.name}.png")


SECTIONS = {
    "leaderboard": "Leaderboard",
    "heat": "Rank by strategy",
    "cross": "Seeds of one task, scores on another",
    "curves": "Learning curves",
    "layers": "Where the teacher is sensitive: layers",
    "windows": "Where the teacher is sensitive: matrices, and what was taken",
    "arrivals": "What arrived of the teacher's update",
    "cost": "Cost and score",
}
READ = {
    "leaderboard": "A mark is a row's mean, its line the 95 % interval; whether two rows differ is told by the verdict,"
    " not by whether their lines overlap. Hollow marks are models that no arm trained.",
    "heat": "A cell is a mean score on the test split over seeds and examples, brighter for higher, on one scale for"
    " all arms; a dash was not run.",
    "cross": "A cell is the mean difference from the baseline on the task of its column, the teacher measured by the"
    " seeds of its row; the table has the intervals, uncorrected.",
    "curves": "A line is the mean training loss over a row's seeds, at its own learning rate, its band the least to"
    " the most; a low loss in training is no high score on the test split.",
    "layers": "A bar is the sum of S over all parameters of a layer; under it each strategy's line has a large mark at"
    " the layers that it took, a dot at those that it left.",
    "windows": "A map is a matrix of the teacher, rows downwards, in the first and the last layer that was kept"
    " (teacher's → student's): brighter cells have larger sums of S, on a logarithmic scale of each map's own. The"
    " frame is the window that was taken; ticks along the margins are rows and columns that were taken one by one (of a"
    " large matrix several a tick, which is as long as the share that was taken).",
    "arrivals": "Layers of the student downwards, matrices along. R² on tokens of texts that no map was made of: 1 is"
    " all that varies, 0 no better than the mean, and below 0 worse; of directions that these texts seldom have and the"
    " update uses it says nothing (carry.texts takes others). The share of the norm may be above 1. Where nothing is"
    " written, nothing was carried, or maps are made of weights and say nothing.",
    "cost": "To the left is cheaper, higher is better; seconds are a mean over a row's trials on the machines that ran"
    " them, with all that it was made from, the teacher's part too, as if it were alone; the search of a learning rate"
    " isn't in them.",
}
LEFT_OUT = {
    "leaderboard": "No row has scores.",
    "heat": "Left out: no arm was run at more than one rank or by more than one strategy.",
    "curves": "Left out: no training history is in the store.",
    "layers": "Left out: no arm of this sweep took anything from the teacher's layers.",
    "windows": "Left out: no arm of this sweep took matrices from the teacher's layers.",
    "arrivals": "Left out: no arm of this sweep carried an update over.",
    "cost": "Left out: no fine-tuning is in the store.",
}
