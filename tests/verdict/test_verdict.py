"""Calibration by whole simulated sweeps; the textbook where there is one; and every answer in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from calibration.further import by_seeds, seeded
from calibration.simulate import ARMS, WORLDS, World, claims, shift_for, told_effect
from scipy import stats

from orchestrator.verdict.asked import CONTROLS, Question
from orchestrator.verdict.estimates import Result
from orchestrator.verdict.power import Spread, smallest_effect
from orchestrator.verdict.verdict import Verdict, holm, judge
from orchestrator.verdict.words import cut_line, gate_line, reach

SWEEPS = 2000
AT_MOST = 0.05 + 3 * (0.05 * 0.95 / SWEEPS) ** 0.5  # three standard deviations above the level: one run in 700
BY_NAME = {world.name: world for world in WORLDS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        "usual", "steady trainings", "unsteady trainings", "one in six trainings fails", "strong interaction",
        "arms good at different examples", "eleven arms, good at different examples",
    ],
)  # fmt: skip
def test_nothing_is_claimed_of_nothing(world: str) -> None:
    anything, _ = claims(BY_NAME[world], SWEEPS, seed=5)
    assert anything <= AT_MOST


@pytest.mark.slow
@pytest.mark.parametrize("world", ["usual", "examples alike", "arms good at different examples", "ten seeds"])
def test_the_told_effect_is_found_four_times_of_five(world: str) -> None:
    shift = shift_for(BY_NAME[world], told_effect(BY_NAME[world]))
    assert shift is not None
    _, found = claims(BY_NAME[world], 500, shift, seed=6)
    assert found >= 0.8 - 2 * (0.16 / 500) ** 0.5


def test_seeds_tasks_are_settings_of_an_arm_and_no_comparisons() -> None:
    """One comparison for each arm, at the seeds' task of its best validation score; Holm's for these two by hand."""
    told, cells = seeded(World("usual"), np.random.default_rng(2))
    assert [one.against for one in told.comparisons] == ["lora", "spectrum_control"]
    low, high = sorted(told.comparisons, key=lambda one: one.p)
    assert (low.p_holm, high.p_holm) == (min(1, 2 * low.p), max(high.p, min(1, 2 * low.p)))
    assert len(cells) == 2 * 4 * 4  # arm, seeds' task, scored task: shown, and none of them claimed
    chosen = told.chosen["transfer"].split("seeds ")[-1]
    own = next(one for one in cells if (one.arm, one.seeds, one.task) == ("transfer", f"seeds {chosen}", "own"))
    assert own.delta == pytest.approx(told.comparisons[0].delta)


@pytest.mark.slow
def test_nothing_is_claimed_of_nothing_with_seeds_of_four_tasks() -> None:
    assert by_seeds(World("usual"), 0.0, 500, seed=5)["any claim"] <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5


def test_a_verdict_without_the_seeds_variance_would_claim_too_much() -> None:
    """That the simulation can find a fault at all: a t interval over examples alone claims far too often in it."""
    rng, world, hits = np.random.default_rng(0), World("unsteady", seed=1.5), 0
    for _ in range(300):
        one, other = world.scores(rng, (0.0, 0.0))
        hits += stats.ttest_1samp((one - other).mean(0), 0).pvalue < 0.05
    assert hits / 300 > 0.3


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_smallest_effect_is_that_of_the_paired_t_test() -> None:
    """With examples that don't matter it is the textbook's: simulated, found in four of five samples of six seeds."""
    effect = smallest_effect(Spread(0.1, 0.0, 0.0).expected(6, 200))
    draws = np.random.default_rng(0).normal(effect, 0.1, (20_000, 6))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert smallest_effect(Spread(0.1).expected(6, 200), 3) > smallest_effect(Spread(0.1).expected(6, 200))
    assert smallest_effect(Spread(0.1).expected(1, 200)) == float("inf")


def rows(means: dict[str, float], seeds: int = 6, **fields: Any) -> list[Result]:
    rng = np.random.default_rng(4)
    easy = rng.random(200)
    return [
        Result(
            arm=arm, layers=None, structure=None, rank=8, seeds=tuple(range(seeds)),
            scores=(rng.random((seeds, 200)) * 0.2 + easy * 0.8 < mean).astype(float), **fields,
        )
        for arm, mean in means.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("means", "says"),
    [
        ({"transfer": 0.8, "lora": 0.4, "spectrum_control": 0.5}, "The teacher helped: transfer is better than lora"),
        ({"transfer": 0.8, "lora": 0.4, "spectrum_control": 0.8}, "Better than lora, but not shown to be"),
        ({"transfer": 0.8, "lora": 0.4, "pissa": 0.9}, "Better than lora; whether by what the teacher knows"),
        ({"transfer": 0.6, "lora": 0.3, "pissa": 0.95, "spectrum_control": 0.3}, "The teacher helped"),
        ({"transfer": 0.3, "lora": 0.7, "spectrum_control": 0.2}, "Transfer hurt"),
        ({"transfer": 0.5, "lora": 0.5, "spectrum_control": 0.2}, "Undecided: transfer may or may not be better"),
        ({"transfer": 0.5, "spectrum_control": 0.2}, "Whether transfer helped isn't known: lora was not run."),
        ({"lora": 0.5, "pissa": 0.9}, "Against lora: pissa better."),
        ({"transfer": 0.5}, "No verdict: transfer has no other arm"),
    ],
)  # fmt: skip
def test_each_answer_in_words(means: dict[str, float], says: str) -> None:
    told = judge(rows(means), "lora")
    assert told.headline.startswith(says)
    assert len(told.comparisons) == len(means) - 1


def test_an_arm_that_does_better_without_a_teacher_is_named() -> None:
    told = judge(rows({"transfer": 0.6, "lora": 0.3, "pissa": 0.95, "spectrum_control": 0.3}), "lora")
    assert told.headline.endswith("pissa did better than transfer.")
    told = judge(rows({"transfer": 0.5, "lora": 0.5, "spectrum_control": 0.9}), "lora")
    assert told.headline.endswith("found here). spectrum_control did better than transfer.")


def test_with_too_few_seeds_nothing_is_claimed() -> None:
    told = judge(rows({"transfer": 0.9, "lora": 0.1}, seeds=5), "lora")
    assert told.headline.startswith("No claim: 5 random seeds can describe, not prove; 6 (--repeats) can.")
    assert [one.outcome for one in told.comparisons] == ["described"]
    assert judge(rows({"transfer": 0.9, "lora": 0.1}, seeds=6), "lora").comparisons[0].outcome == "better"


def test_a_teacher_that_does_not_know_the_task_speaks_for_nothing() -> None:
    told = judge(
        rows({"transfer": 0.9, "lora": 0.1}), "lora", {"set": True, "passed": False, "score": 0.2, "least": 0.8}
    )
    assert told.headline.startswith("No verdict: the teacher scores 0.20 on the task, below the gate of 0.80")


@pytest.mark.parametrize(("arm", "outcome"), [("distil", "described"), ("pissa", "worse")])
def test_no_arm_of_such_a_teacher_is_better_than_one_without_it(arm: str, outcome: str) -> None:
    gate = {"set": False, "passed": False, "score": 0.2, "least": 0.2}
    told = judge(rows({"lora": 0.1, arm: 0.9}), "lora", gate)
    assert [one.outcome for one in told.comparisons] == [outcome]
    told = judge(rows({"lora": 0.9, arm: 0.1}), "lora", gate)
    assert [one.outcome for one in told.comparisons] == ["better"]


def test_nothing_is_claimed_in_favour_of_a_teacher_no_better_than_the_student() -> None:
    gate = {"set": False, "passed": False, "score": 0.2, "least": 0.2}
    told = judge(rows({"transfer": 0.9, "lora": 0.1, "spectrum_control": 0.1}), "lora", gate)
    assert told.headline.startswith("No claim: the teacher was not seen to be better at the task than the untouched")
    assert told.warnings[0].startswith("Warning: the teacher scores 0.20 on the task and the untouched student 0.20")
    assert {one.outcome for one in told.comparisons} == {"described"}
    assert judge(rows({"transfer": 0.1, "lora": 0.9}), "lora", gate).headline.startswith("Transfer hurt")
    assert judge(rows({"pissa": 0.9, "lora": 0.1}), "lora", gate).comparisons[0].outcome == "worse"
    helped = judge(rows({"transfer": 0.9, "lora": 0.1, "spectrum_control": 0.1}), "lora", gate | {"passed": True})
    assert helped.headline.startswith("The teacher helped")


@pytest.mark.parametrize(
    ("gate", "line"),
    [  # the first three as an older version recorded them
        (
            {"set": True, "least": 0.8, "score": 0.855, "of": "teacher_tuned", "passed": True},
            "teacher_tuned scores 0.855; at least 0.8 is needed for a claim: passed",
        ),
        (
            {"set": False, "least": 0.0, "score": 0.0, "of": "teacher", "passed": False},
            "teacher scores 0.000; more than the student's 0.000 is needed for a claim: not passed",
        ),
        (
            {"set": True, "least": 0.8, "score": None, "of": "teacher", "passed": False},
            "no score; at least 0.8 is needed for a claim: not passed",
        ),
    ],
)
def test_the_gate_in_a_line(gate: dict[str, Any], line: str) -> None:
    assert gate_line(gate) == line


def test_rows_that_look_alike_are_told_apart_where_they_are_named() -> None:
    place = {"layers": "last", "structure": "window", "modules": "ffn", "rank": 8, "cut": 0.1}
    rows = [{"arm": "lora", "rank": 8, "cut": 0.1}, {"arm": "student", "rank": None, "cut": 0.5}]
    rows += [{**place, "arm": "transfer", "layers": layers, "other": {"measure.examples": count}}
             for layers, count in (("first", 1), ("last", 1), ("last", 2))]  # fmt: skip
    rows.append({**place, "arm": "transfer", "rank": 4, "other": {"measure.examples": 1}})
    assert cut_line(rows).endswith(
        ": lora r8 10.0%, student 50.0%, transfer r8 (first, measure.examples 1) 10.0%, transfer r8 (last,"
        " measure.examples 1) 10.0%, transfer r8 (last, measure.examples 2) 10.0%, transfer r4 10.0%."
    )


def test_of_many_rows_those_with_many_answers_that_do_not_end_are_named() -> None:
    rows = [{"arm": f"arm{place}", "rank": 8, "cut": place / 1000} for place in range(13)]
    assert cut_line(rows).count("%") == 12
    rows += [{"arm": "student", "rank": None, "cut": 0.85}]
    assert cut_line(rows).endswith(": student 85.0%, in the others at most 1.2%.")
    assert cut_line([{"arm": "lora", "rank": 8, "cut": 0.01}] * 13).endswith(": in all rows at most 1.0%.")


def test_a_difference_that_no_score_can_have_is_not_named() -> None:
    none = "not even the largest true difference"
    assert [reach(one) for one in (None, 3.96, 0.181)] == [none, none, "only a true difference of 0.18 or more"]


def test_a_learning_rate_on_the_edge_is_a_warning() -> None:
    told = judge([*rows({"transfer": 0.9}, lr_at_edge=True), *rows({"lora": 0.1})], "lora")
    assert told.warnings[0].startswith("Warning: the learning rate of transfer lies on the edge")
    assert told.warnings[0] in told.lines()


def test_settings_are_chosen_by_validation_never_by_the_test() -> None:
    (worse,) = rows({"transfer": 0.2}, validation=(0.9, -1.0), lr=0.1)
    (better,) = rows({"transfer": 0.9}, validation=(0.5, -0.1), lr=0.2)
    told = judge([worse, better, *rows({"lora": 0.5})], "lora")
    assert told.chosen["transfer"] == "rank 8, lr 0.1"
    assert told.comparisons[0].delta < 0


def placed(arm: str, mean: float, layers: str, *, best: bool, seeds: int = 6, structure: str = "window") -> Result:
    (found,) = rows({arm: mean}, seeds=seeds, validation=(0.9 if best else 0.5, 0.0))
    return replace(found, layers=layers, structure=structure)


@pytest.mark.parametrize("control", sorted(CONTROLS))
def test_a_control_answers_for_its_best_row_and_for_transfers_settings(control: str) -> None:
    """Of two choices of layers, of which validation took another one for each arm."""
    own = placed("transfer", 0.8, "first", best=True)
    spectrum = [placed("spectrum_control", 0.2, "first", best=True)] if control != "spectrum_control" else []
    fixed = {"structure": "random_window"} if control == "random_window" else {}

    def told(best: float, twin: float, seeds: int = 6) -> Verdict:
        row = placed(control, best, "last", best=True, seeds=seeds, **fixed)
        return judge(
            [own, row, placed(control, twin, "first", best=False, **fixed), *spectrum, *rows({"lora": 0.4})], "lora"
        )

    both_are_better = told(0.3, 0.8)  # at the first layers
    assert both_are_better.headline.startswith("Better than lora, but not shown to be the teacher's doing")
    assert both_are_better.chosen[control].startswith("layers first")
    assert both_are_better.twins == (control,)
    found_its_own = told(0.75, 0.3)
    assert found_its_own.chosen[control].startswith("layers last")
    assert told(0.3, 0.3).headline.startswith("The teacher helped")
    for best, twin in ((0.95, 0.3), (0.3, 0.95)):  # worse than one of them, and better than the other
        (one,) = (one for one in told(best, twin).comparisons if one.against == control)
        assert (one.outcome, one.p_holm) == ("can't tell", 1.0)
    (one,) = (one for one in told(0.3, 0.3, seeds=5).comparisons if one.against == control)
    assert one.outcome == "described" and "5 random seeds" in one.why  # the twin's six don't speak for them


@pytest.mark.slow
def test_seeds_tasks_that_differ_do_not_pass_for_the_teachers_knowledge() -> None:
    """Each arm by its own best row alone tells transfer from its control in 11 % of such sweeps."""
    assert by_seeds(World("usual"), 0.5, 500, seed=5)["of its control"] <= 0.05


def test_a_perfect_difference_is_a_claim() -> None:
    told = judge(rows({"transfer": 1.5, "lora": -0.5, "spectrum_control": -0.5}), "lora")
    assert [one.outcome for one in told.comparisons] == ["better", "better"]
    assert [one.delta for one in told.comparisons] == [1.0, 1.0]


def test_the_question_is_known_before_the_answer() -> None:
    asked = Question.of(["lora", "pissa", "transfer", "spectrum_control", "student", "teacher_tuned"], "lora")
    assert (asked.arm, asked.against) == ("transfer", ("lora", "spectrum_control", "pissa"))
    assert set(ARMS[:4]) == {asked.arm, *asked.against}


def test_an_arm_with_more_settings_to_choose_from_can_not_win() -> None:
    """The best of eighteen is better than the best of three where all are drawn from one urn."""
    better = rows({"transfer": 0.9, "lora": 0.3})
    told = judge(better, "lora", tried={"transfer": 18, "lora": 3})
    assert told.comparisons[0].outcome == "described"
    assert told.headline.startswith("No claim: transfer chooses from 18 settings, lora from 3")
    assert judge(better, "lora", tried={"transfer": 3, "lora": 18}).comparisons[0].outcome == "better"
    worse = rows({"transfer": 0.3, "lora": 0.9})
    assert judge(worse, "lora", tried={"transfer": 18, "lora": 3}).comparisons[0].outcome == "worse"
    assert judge(worse, "lora", tried={"transfer": 3, "lora": 18}).comparisons[0].outcome == "described"


def test_the_luckier_trainings_carry_no_claim() -> None:
    (own,), (other,) = rows({"transfer": 0.9}, seeds=10), rows({"lora": 0.3}, seeds=10)
    survived = replace(own, scores=own.scores[:7], seeds=own.seeds[:7])
    told = judge([survived, other], "lora", repeats=10)
    assert told.comparisons[0].outcome == "described"
    assert "7 of 10 random seeds ended in both, and they may be the lucky ones" in told.headline
    assert judge([own, other], "lora", repeats=10).comparisons[0].outcome == "better"


def test_what_was_asked_and_failed_is_said_and_counts_in_the_correction() -> None:
    tried = dict.fromkeys(("lora", "transfer", "spectrum_control", "pissa"), 3)
    results = rows({"transfer": 0.5, "lora": 0.4})
    told = judge(results, "lora", tried=tried)
    assert [one.against for one in told.comparisons] == ["lora"]
    assert told.comparisons[0].p_holm == pytest.approx(min(1.0, 3 * told.comparisons[0].p))
    assert told.warnings[:2] == (
        "Warning: no trial of spectrum_control ended; nothing is said of it.",
        "Warning: no trial of pissa ended; nothing is said of it.",
    )
    assert (
        judge(rows({"lora": 0.4, "pissa": 0.9}), "lora", tried=tried).headline
        == "No verdict: no trial of transfer ended."
    )
    lost = judge(rows({"transfer": 0.4, "pissa": 0.9}), "lora", tried=tried)
    assert lost.headline == "Whether transfer helped isn't known: no trial of lora ended."
    better = judge(rows({"transfer": 0.95, "lora": 0.2}), "lora", tried=tried)
    assert better.headline.endswith("can't be said: no trial of spectrum_control ended.")


def test_a_gate_that_is_not_passed_leaves_nothing_claimed() -> None:
    told = judge(
        rows({"transfer": 0.9, "lora": 0.1}), "lora", {"set": True, "passed": False, "score": 0.2, "least": 0.8}
    )
    assert [one.outcome for one in told.comparisons] == ["described"]
    unscored = {"set": True, "passed": False, "score": None, "least": 0.8}
    assert "could not be scored" in judge(rows({"transfer": 0.9, "lora": 0.1}), "lora", unscored).headline


def test_one_short_arm_does_not_silence_the_others() -> None:
    short = [replace(one, scores=one.scores[:5], seeds=one.seeds[:5]) for one in rows({"pissa": 0.5})]
    told = judge([*rows({"transfer": 0.9, "lora": 0.3, "spectrum_control": 0.3}), *short], "lora", repeats=6)
    assert told.headline.startswith("The teacher helped")
    assert told.comparisons[-1].outcome == "described"


def test_only_the_spectrum_control_tells_content_from_size() -> None:
    told = judge(rows({"transfer": 0.9, "lora": 0.3, "random_window": 0.3}), "lora")
    assert (
        told.headline
        == "Better than lora; whether by what the teacher knows can't be said: spectrum_control wasn't run."
    )


def test_a_control_that_does_harm_is_a_low_bar() -> None:
    """Said where it carries a claim: of an arm that is better than both, and of a control that is surely worse."""
    built = rows({"transfer": 0.8, "lora": 0.6, "spectrum_control": 0.3, "random_window": 0.6})
    told, below = judge(built, "lora"), built[2].scores.mean() - built[1].scores.mean()
    assert told.headline.startswith("The teacher helped")
    (line,) = told.warnings
    assert line.startswith(
        f"Warning: spectrum_control, the control of transfer, is itself worse than lora ({below:+.3f}, "
    )
    assert told.lines()[1] == line
    for means in (
        {"transfer": 0.8, "lora": 0.6, "spectrum_control": 0.6},
        {"transfer": 0.4, "lora": 0.6, "spectrum_control": 0.1},
        {"transfer": 0.8, "lora": 0.6, "pissa": 0.3, "spectrum_control": 0.7},
    ):
        assert judge(rows(means), "lora").warnings == ()


def test_transfer_as_the_baseline_is_judged_against_lora() -> None:
    told = judge(rows({"transfer": 0.9, "lora": 0.3, "spectrum_control": 0.3}), "transfer")
    assert told.headline.startswith("The teacher helped")


def test_a_verdict_of_one_seed_is_json() -> None:
    import json

    json.dumps(judge(rows({"transfer": 0.9, "lora": 0.3}, seeds=1), "lora").as_json(), allow_nan=False)
