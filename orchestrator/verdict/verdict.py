"""Whether it helped: a claim that a reviewer would accept, or none.

    told = judge(results, "lora", tried={"lora": 8, "transfer": 8}, repeats=6)
    told.headline, told.comparisons[0].outcome

Every arm is represented by its settings of best validation score, so that the test split is looked at once and no row
is picked by its test score; a control answers for transfer's settings, too (`_pairs`). The unit is the random seed: a
bootstrap nested in three seeds claims 17 % of the time where there is nothing, a permutation over examples 47 %.
p-values are corrected by Holm's method for all comparisons that were asked about. Nothing is claimed with fewer than
six seeds, where a training failed (those that ended are the luckier ones), in favour of an arm that had more settings
to choose from (one whose try was lost had fewer), or of a teacher that was seen not to know the task; where that can't
be told, a warning stands beside the claim. What can be known of all that before anything is run is told before it, by
the same objections (`beforehand`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.transfer.arms import ARMS
from orchestrator.verdict.answers import grid, headline, in_columns, many
from orchestrator.verdict.asked import (
    BOUNDS,
    CONTROLS,
    NEEDED,
    OF_TEACHER,
    Comparison,
    Outcome,
    Question,
    counted,
    judged_by,
    questions,
)
from orchestrator.verdict.cost import MARGIN, Cost, costs
from orchestrator.verdict.cost import sentence as told_of
from orchestrator.verdict.estimates import PLACE, Estimate, Result, difference, holm
from orchestrator.verdict.gate import answer_of
from orchestrator.verdict.power import LEVEL, smallest_effect
from orchestrator.verdict.words import low_bar, sentence, warnings

ENOUGH_SEEDS = 6
DOUBTS: tuple[Outcome, ...] = ("worse", "better", "can't tell", "described")  # of an arm's rows the last one counts


@dataclass(frozen=True)
class Verdict:
    """The answer, and what it rests on."""

    questions: tuple[Question, ...]
    chosen: dict[str, str]  # arm → its settings
    scores: dict[str, float]  # arm → their mean on the test split
    comparisons: tuple[Comparison, ...]
    headline: str
    warnings: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()  # on tasks that were not trained on
    twins: tuple[str, ...] = ()  # controls that answered for two rows

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        if (told := self.grid()) is None:
            compared = [f"  {one.arm} {sentence(one, counted(self.questions))}" for one in self.comparisons]
        else:
            about, head, rows, reasons = told
            compared = [about, *in_columns([head, *rows]), *reasons]
        return [self.headline, *self.warnings, *compared, *self.cost_lines()]

    def grid(self) -> tuple[str, list[str], list[list[str]], list[str]] | None:
        """Of many ways all differences in one table: how to read it, its head, its rows, why some are not claimed."""
        if not (many(self.questions) and self.comparisons):
            return None
        return grid(self.questions, self.comparisons)

    def cost_lines(self) -> list[str]:
        """On tasks that were not trained on."""
        return [f"  {told_of(one)}" for one in self.costs]


@dataclass(frozen=True)
class Terms:
    """What a claim depends on besides the scores."""

    arms: Sequence[str]  # that were asked for, whether or not anything came of them
    tried: Mapping[str, int] | None = None  # settings that each had to choose from
    repeats: int = 0  # random seeds that each row was to have
    gate: Mapping[str, Any] | None = None  # what the teacher scored, where it had to know the task
    failed: int = 0  # trainings that are missing

    def objection(self, own: str, other: str, seeds: int, above: bool) -> str:
        """Why a comparison of two arms is described and not claimed; nothing where it may be claimed.

        `above`: that `own` is the better one.
        """
        if self.gate and answer_of(self.gate) in ("doesn't", None):
            if self.gate["set"]:
                return "the teacher did not pass its gate"
            better, worse = (own, other) if above else (other, own)
            if better in OF_TEACHER and (better in NEEDED or worse not in OF_TEACHER):
                return "the teacher was not seen to be better at the task than the untouched student"
        if seeds < self.repeats:
            return f"{seeds} of {self.repeats} random seeds ended in both, and they may be the lucky ones"
        if seeds < ENOUGH_SEEDS:
            return f"{seeds} random seed{'s'[: seeds - 1]} can describe, not prove; {ENOUGH_SEEDS} (--repeats) can"
        mine, theirs = ((self.tried or {}).get(one, 0) for one in (own, other))
        if (above and mine > theirs) or (not above and theirs > mine):
            remedy = "the same command tries again what failed" if self.failed else "several --lr give each as many"
            return f"{own} chooses from {mine} settings, {other} from {theirs}; {remedy}"
        return ""


def beforehand(tried: Mapping[str, int], baseline: str, repeats: int) -> dict[tuple[str, str], str]:
    """What is known before a sweep of the claims that it is run for: by the arm that would be better and the other one,
    the objection that its verdict would have whatever the scores; empty where it has none.
    """
    arms = [arm for arm in tried if arm not in BOUNDS]
    terms, found = Terms(arms, tried, repeats), {}
    for own, other in (pair for question in questions(arms, baseline) for pair in question.pairs()):
        above = own in NEEDED
        found[(own, other) if above else (other, own)] = terms.objection(own, other, repeats, above)
    return found


def judge(
    results: Sequence[Result],
    baseline: str,
    gate: Mapping[str, Any] | None = None,
    *,
    tried: Mapping[str, int] | None = None,
    repeats: int = 0,
    failed: int = 0,
    margin: float = MARGIN,
) -> Verdict:
    """The verdict of a sweep's results. `tried` names every arm that was asked for, with its number of settings."""
    arms = list(tried or dict.fromkeys(one.arm for one in results))
    baseline = judged_by(arms, baseline)
    asked, terms = questions(arms, baseline), Terms(arms, tried, repeats, gate, failed)
    every = list(dict.fromkeys(arm for question in asked for arm in (question.arm, *question.against)))
    chosen = {arm: best for arm in every if (best := choose(results, arm))}
    compared = [pair for question in asked for pair in question.pairs()]
    pairs = {
        pair: found for pair in compared
        if chosen.keys() >= {*pair} and (found := _pairs(results, *(chosen[arm] for arm in pair)))
    }  # fmt: skip
    corrected = holm([*map(_p, pairs.values()), *[1.0] * (len(compared) - len(pairs))])
    told: dict[tuple[str, str], tuple[Result, Comparison]] = {}
    for (pair, found), p in zip(pairs.items(), corrected, strict=False):
        each = [(other, _compared(chosen[pair[0]], other, both, p, terms, len(compared))) for other, both in found]
        told[pair] = max(each, key=lambda one: (DOUBTS.index(one[1].outcome), one[1].p))
    comparisons = tuple(one for _, one in told.values())
    shown = chosen | {arm: row for (_, arm), (row, _) in told.items() if arm in CONTROLS}
    settings = {arm: _settings(result) for arm, result in shown.items()}
    scores = {arm: float(result.scores.mean()) for arm, result in shown.items()}
    lost = [arm for arm in every if arm not in chosen]
    answer = headline(asked, baseline, comparisons, gate, lost)
    paid = costs(results, chosen, margin=margin, enough=max(repeats, ENOUGH_SEEDS))
    twins = tuple(arm for (_, arm), found in pairs.items() if len(found) > 1)
    doubts = (*warnings(gate, shown, lost), *_low_bars(comparisons, shown, baseline))
    return Verdict(asked, settings, scores, comparisons, answer, doubts, tuple(paid), twins)


def verdict_of(record: Mapping[str, Any], results: Sequence[Result], baseline: str | None = None) -> Verdict:
    """A recorded sweep's."""
    tried = {arm: count for arm, count in record["tried"].items() if arm not in BOUNDS}
    repeats = record["sweep"]["repeats"]
    return judge(
        results, baseline or record["baseline"], record["gate"], tried=tried, repeats=repeats,
        failed=len(record["failed"]), margin=record.get("margin", MARGIN),
    )  # fmt: skip


def choose(results: Sequence[Result], arm: str) -> Result | None:
    """The arm's row with the best validation score, the lower loss among equals; never by its test score."""
    rows = [one for one in results if one.arm == arm]
    if len(rows) > 1:
        rows = [one for one in rows if one.validation]
    return max(rows, key=lambda one: one.validation or (0.0, 0.0), default=None)


def _pairs(results: Sequence[Result], own: Result, best: Result) -> list[tuple[Result, Estimate]]:
    """The rows that answer for an arm, its best and of a control its twin besides, with `own`'s difference from each;
    none where it has no random seed in common with one of them.

    The twin is the control at `own`'s layers, matrices and further axes, but for what makes the control what it is. A
    claim has to hold against both. Against the best alone, settings that happened to be chosen for transfer and not for
    its control would pass for what the teacher knows; against the twin alone, settings that are bad for the control.
    """
    rows = [best]
    if best.arm in CONTROLS:
        place = [name for name in PLACE if name not in ARMS[best.arm](kind=best.arm).fixes(0)]
        rows += [one for one in results if one.arm == best.arm and one is not best and own.same(one, *place)]
    pairs = [(other, both) for other in rows if (both := difference(own, other))]
    return pairs if len(pairs) == len(rows) else []


def _p(pairs: Sequence[tuple[Result, Estimate]]) -> float:
    """Of a difference in one direction from all of these rows: the largest p-value (an intersection-union test)."""
    directions = {both.mean > 0 for _, both in pairs}
    return max(both.p for _, both in pairs) if len(directions) == 1 else 1.0


def _compared(own: Result, other: Result, both: Estimate, p_holm: float, terms: Terms, asked: int) -> Comparison:
    seeds = len({*own.seeds} & {*other.seeds})
    outcome: Outcome = "can't tell"
    if why := terms.objection(own.arm, other.arm, seeds, above=both.mean > 0):
        outcome = "described"
    elif p_holm <= LEVEL:
        outcome = "better" if both.mean > 0 else "worse"
    least = smallest_effect(both, asked) if seeds > 1 else None
    return Comparison(own.arm, other.arm, both.mean, both.limits(), both.p, p_holm, seeds, outcome, least, why)


def _low_bars(comparisons: Sequence[Comparison], shown: Mapping[str, Result], baseline: str) -> list[str]:
    """Of arms that did better than the baseline and than their own control, those whose control is surely worse than
    the baseline: a control that does harm is beaten by what does none.
    """
    better = {(one.arm, one.against) for one in comparisons if one.outcome == "better"}
    found = []
    for arm, control in better:
        if control not in CONTROLS or (arm, baseline) not in better:
            continue
        below = difference(shown[control], shown[baseline])
        if below and below.limits()[1] < 0:
            found.append(low_bar(arm, control, baseline, below))
    return sorted(found)


def _settings(result: Result) -> str:
    everything = "attention,ffn,embedding"
    modules = result.modules and result.modules != everything and f"modules {result.modules}"
    parts = [result.layers and f"layers {result.layers}", result.structure, modules or None]
    parts += [f"rank {result.rank}", f"lr {result.lr:g}" if result.lr else None]
    return ", ".join(part for part in [*parts, *(f"{key} {value}" for key, value in result.other.items())] if part)
