"""What a sweep with several ways of carrying an update asks, and what it answers of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cli.compare import footer
from orchestrator.verdict.answers import _reaches, grid
from orchestrator.verdict.asked import Comparison, Question, counted, questions
from orchestrator.verdict.estimates import Result
from orchestrator.verdict.verdict import Verdict, beforehand, judge
from orchestrator.verdict.words import reach

ARMS = ["lora", "pissa", "transfer", "spectrum_control", "ridge", "ridge_random_map", "theseus", "theseus_random_map"]
SEEDS = tuple(range(8))


def result(arm: str, share: float) -> Result:
    """Half of the examples are answered by every arm, and a share of the others by this one, by luck of the seed."""
    draw = np.random.default_rng(sum(map(ord, arm)))
    scores = np.concatenate([np.ones((8, 100)), draw.random((8, 100)) < share], 1).astype(float)
    return Result(arm, 8, None, None, scores, SEEDS, lr=1e-3, validation=(0.5, -1.0))


def told(**shares: float) -> Verdict:
    arms = {arm: shares.get(arm, 0.2) for arm in ARMS}
    return judge([result(*one) for one in arms.items()], "lora", tried=dict.fromkeys(arms, 3), repeats=8)


def test_each_way_is_asked_about_against_who_owes_the_teacher_nothing_and_its_own_controls() -> None:
    assert questions(["student", *ARMS, "teacher_tuned"], "lora") == (
        Question("transfer", ("lora", "spectrum_control", "pissa")),
        Question("ridge", ("lora", "ridge_random_map", "pissa")),
        Question("theseus", ("lora", "theseus_random_map", "pissa")),
    )
    assert questions(["lora", "pissa", "transfer"], "lora") == (Question("transfer", ("lora", "pissa")),)
    assert questions(["lora", "pissa"], "lora") == (Question("lora", ("pissa",)),)


def test_a_way_that_beats_all_but_its_random_map_is_not_the_teachers_doing() -> None:
    verdict = told(ridge=0.9, ridge_random_map=0.9, theseus=0.9)
    outcomes = {(one.arm, one.against): one.outcome for one in verdict.comparisons}
    assert len(outcomes) == 9
    assert outcomes["ridge", "lora"] == outcomes["theseus", "theseus_random_map"] == "better"
    assert outcomes["ridge", "ridge_random_map"] == "can't tell"
    assert "The teacher helped: theseus is better than lora and than theseus_random_map." in verdict.headline
    assert "not shown to be the teacher's doing: ridge can't be told from ridge_random_map" in verdict.headline
    assert "Undecided: transfer" in verdict.headline


def test_what_owes_the_teacher_nothing_is_judged_by_its_own_control_and_not_by_the_gate() -> None:
    arms = {"lora": 0.2, "spectral": 0.9, "spectral_random": 0.2, "titok": 0.9, "titok_random": 0.2}
    for gate in (None, {"set": False, "passed": False, "score": 0.2, "least": 0.2}):
        verdict = judge([result(*one) for one in arms.items()], "lora", gate, tried=dict.fromkeys(arms, 3), repeats=8)
        assert "Spectral helped: spectral is better than lora and than spectral_random." in verdict.headline
        assert ("titok is better than lora" in verdict.headline) == (gate is None)


def test_p_values_are_corrected_for_the_comparisons_of_all_ways() -> None:
    alone = judge([result("lora", 0.2), result("ridge", 0.9)], "lora", tried={"lora": 3, "ridge": 3}, repeats=8)
    (one,) = alone.comparisons
    among = next(pair for pair in told(ridge=0.9).comparisons if (pair.arm, pair.against) == ("ridge", "lora"))
    assert one.p_holm == one.p and among.p == one.p and among.p_holm > one.p


MORE = ["laten", "laten_random", "titok", "titok_random"]  # with them ways are told of together


def many(
    repeats: int = 8, without: tuple[str, ...] = (), few: tuple[str, ...] = (), baseline: str = "lora", **shares: float
) -> Verdict:
    """Five ways, and what else has a share. Of arms `without` no trial ended, of `few` some did."""
    arms = {arm: shares.get(arm, 0.2) for arm in dict.fromkeys([*ARMS, *MORE, *shares])}
    tried = {arm: 2 if arm in few else 3 for arm in arms}
    ended = [result(*one) for one in arms.items() if one[0] not in without]
    return judge(ended, baseline, tried=tried, repeats=repeats, failed=len(few))


def said(verdict: Verdict) -> list[str]:
    return verdict.headline.replace(". ", ".\n").splitlines()


def test_many_ways_are_told_of_together_and_what_they_share_once() -> None:
    verdict = many(theseus=0.9, ridge=0.9, ridge_random_map=0.9, titok=0.0, pissa=0.4)
    assert len(verdict.comparisons) == 15
    first, teacher, not_own, undecided, hurt, own, than = said(verdict)
    assert first == "1 of 5 ways helped."
    assert teacher == "The teacher helped: theseus is better than lora and than theseus_random_map."
    assert not_own.startswith("Better than lora, but not shown to be the teacher's doing: ridge can't be told from")
    reaches = [
        one.smallest or 0 for one in verdict.comparisons if one.against == "lora" and one.outcome == "can't tell"
    ]
    span = reach(min(reaches), max(reaches))
    assert undecided == (
        f"Undecided: transfer and laten may or may not be better than lora ({span} would reliably have been found"
        " here)."
    )
    assert hurt == "Hurt: titok: the student learns the task better from plain lora."
    assert own == "titok did worse than its own control."
    assert than == "Did better than these ways: pissa than 3."
    none = many(lora=0.9, pissa=0.9, theseus=0.6)
    assert said(none)[:2] == [
        "None of 5 ways is shown to have helped.",
        "Hurt: transfer, ridge, theseus, laten and titok: the student learns the task better from plain lora.",
    ]
    assert said(none)[2:] == ["Did better than these ways: pissa than all 5."]


def test_what_is_not_known_of_ways_is_said_of_all_at_once() -> None:
    assert said(many(without=("lora",))) == [
        "None of 5 ways is shown to have helped.",
        "Whether transfer, ridge, theseus, laten and titok helped isn't known: no trial of lora ended.",
    ]
    lost = said(many(without=("ridge", "theseus")))
    assert "No verdict of ridge and theseus: no trial ended." in lost
    chosen = many(few=("lora",), theseus=0.9, ridge=0.9)
    assert said(chosen)[0] == "None of 5 ways is shown to have helped."
    assert [
        line
        for line in said(chosen)
        if "No claim of" in line and "theseus" in line and "3 settings, lora from 2" in line
    ]
    alone = said(many(without=("ridge_random_map", "theseus_random_map"), theseus=0.9, ridge=0.9))
    assert alone[1] == (
        "Better than lora; whether by what the teacher knows can't be said of ridge and theseus, without each one's"
        " control."
    )


def test_a_claim_of_one_way_stands_beside_none_of_another() -> None:
    arms = {"theseus": 0.9, "ridge": 0.9}
    every = {arm: arms.get(arm, 0.2) for arm in [*ARMS, *MORE]}
    found = [result(*one) for one in every.items()]
    short = [replace(one, scores=one.scores[:7], seeds=one.seeds[:7]) if one.arm == "ridge" else one for one in found]
    verdict = judge(short, "lora", tried=dict.fromkeys(every, 3), repeats=8)
    assert said(verdict)[:2] == [
        "1 of 5 ways helped.",
        "The teacher helped: theseus is better than lora and than theseus_random_map.",
    ]
    assert "No claim of ridge: 7 of 8 random seeds ended in both, and they may be the lucky ones." in said(verdict)


def test_a_way_of_which_nothing_would_have_been_found_is_named() -> None:
    assert _reaches({"ridge": 0.143, "laten": 0.1431}) == "only a true difference of 0.14 or more"
    assert _reaches({"ridge": 0.2, "laten": 1.3, "titok": None}) == (
        "only a true difference of 0.20 or more, and of laten and titok not even the largest true difference,"
    )
    assert _reaches({"ridge": None}) == reach(None)
    assert _reaches({"ridge": 0.004, "laten": 0.3}) == "only a true difference of 0.004 to 0.30 or more"


def test_differences_of_many_ways_are_one_table() -> None:
    verdict = many(theseus=0.9, ridge=0.4, titok=0.0, laten_random=0.9)
    about, head, rows, reasons = verdict.grid() or ("", [], [], [])
    assert head == ["way", "lora", "its own control", "pissa"] and not reasons and "15 comparisons" in about
    shown = {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}
    own = {"transfer": "spectrum_control", "theseus": "theseus_random_map", "ridge": "ridge_random_map",
           "laten": "laten_random", "titok": "titok_random"}  # fmt: skip
    assert len(shown) == len(verdict.comparisons) and {one.outcome for one in verdict.comparisons} == {
        "better", "worse", "can't tell",
    }  # fmt: skip
    for one in verdict.comparisons:
        cell = shown[one.arm, "its own control" if one.against == own[one.arm] else one.against]
        low, high = one.ci95
        assert cell == f"{one.delta:+.3f} ± {(high - low) / 2:.3f}" + "*" * (one.outcome in ("better", "worse"))
    against_lora = [float(row[1].split()[0]) for row in rows]
    assert against_lora == sorted(against_lora, reverse=True)
    lines = [line for line in verdict.lines() if line.startswith("|")]
    assert len(lines) == 7 and len({len(line) for line in lines}) == 1
    missing = many(without=("pissa", "ridge_random_map")).grid() or ("", [], [], [])
    assert missing[1] == ["way", "lora", "its own control"] and sum(row[2] == "-" for row in missing[2]) == 1


@pytest.mark.parametrize("spectrum", [0.85, 1.0], ids=["not told from", "worse than"])
def test_of_several_controls_the_one_that_speaks_most_against_is_shown(spectrum: float) -> None:
    verdict = many(ridge=0.9, ridge_random_map=0.2, ridge_spectrum=spectrum)
    own = {
        one.against: one for one in verdict.comparisons if one.arm == "ridge" and one.against not in ("lora", "pissa")
    }
    _, head, rows, _ = verdict.grid() or ("", [], [], [])
    (cell,) = (row[head.index("its own control")] for row in rows if row[0] == "ridge")
    hard = own["ridge_spectrum"]
    assert (own["ridge_random_map"].outcome, hard.outcome) == ("better", "can't tell" if spectrum < 1 else "worse")
    half, star = hard.ci95[1] - hard.delta, "*" * (spectrum == 1)
    assert cell == f"{hard.delta:+.3f} ± {half:.3f}{star} (ridge_spectrum)"


def test_a_control_that_was_lost_is_not_taken_for_the_one_that_is_left() -> None:
    verdict = many(without=("theseus_random_map",), theseus=0.9, theseus_spectrum=0.2)
    _, head, rows, _ = verdict.grid() or ("", [], [], [])
    (cell,) = (row[head.index("its own control")] for row in rows if row[0] == "theseus")
    assert cell.endswith("* (theseus_spectrum)") and "can't be said of theseus" in verdict.headline


def test_a_claimed_worse_control_is_shown_before_an_uncertain_one() -> None:
    noisy = Comparison("ridge", "ridge_spectrum", -0.06, (-0.2, 0.08), 0.5, 1.0, 8, "can't tell", 0.3)
    worse = Comparison("ridge", "ridge_random_map", -0.1, (-0.15, -0.05), 1e-4, 1e-3, 8, "worse", 0.1)
    for pair in ((noisy, worse), (worse, noisy)):
        _, _, ((_, cell),), _ = grid([Question("ridge", ("ridge_spectrum", "ridge_random_map"))], pair)
        assert cell == "-0.100 ± 0.050* (ridge_random_map)"


def test_what_is_not_claimed_of_many_ways_says_why_once() -> None:
    verdict = many(repeats=9, theseus=0.9)
    every = "transfer, ridge, theseus, laten and titok"
    why = verdict.comparisons[0].why
    assert said(verdict) == ["None of 5 ways is shown to have helped.", f"No claim of {every}: {why}."]
    about, _, rows, reasons = verdict.grid() or ("", [], [], [])
    assert reasons == [f"[1] not claimed: {why}"] and reasons[0] in verdict.lines() and "[n] not claimed" in about
    assert all(cell.endswith(" [1]") for row in rows for cell in row[1:])


def test_a_ways_own_control_is_no_baseline_of_the_others() -> None:
    by_control, by_lora = many(baseline="theseus_random_map", theseus=0.9), many(theseus=0.9)
    assert by_control.headline == by_lora.headline and by_control.grid() == by_lora.grid()


def test_twelve_comparisons_are_told_one_by_one_and_thirteen_are_not() -> None:
    few = dict.fromkeys([*ARMS, "laten", "laten_random"], 0.2)
    for more, count in ((("distil",), 16), ((), 12), (("theseus_spectrum",), 13)):
        arms = few | dict.fromkeys(more, 0.2)
        verdict = judge([result(*one) for one in arms.items()], "lora", tried=dict.fromkeys(arms, 3), repeats=8)
        assert (counted(verdict.questions), verdict.grid() is None) == (count, count == 12)


def test_the_footer_tells_settings_where_rows_do_not() -> None:
    verdict = many(theseus=0.9)
    rows = [{"arm": arm, "mean": 0.5} for arm in verdict.chosen]
    same = {"name": "small", "tried": dict.fromkeys(verdict.chosen, 3)}
    assert footer(same, verdict, rows, "store")[1] == "  of 3 tried, the one in its row"
    for record, more in ((same | {"tried": {**same["tried"], "lora": 2}}, []), (same, [{"arm": "lora", "mean": 0.5}])):
        told = footer(record, verdict, rows + more, "store")
        assert len([line for line in told if line.startswith("  ")]) == len(verdict.chosen)


def test_few_comparisons_are_sentences() -> None:
    few = told(ridge=0.9)
    lines = [line for line in few.lines() if " against " in line]
    assert few.grid() is None and len(lines) == len(few.comparisons) == 9 and all("Holm" in line for line in lines)


def test_what_can_be_claimed_is_known_before_of_every_way() -> None:
    few = beforehand(dict.fromkeys(ARMS, 3), "lora", 3)
    assert len(few) == 9 and all("3 random seeds" in why for why in few.values())
    assert ("ridge", "ridge_random_map") in few and ("theseus", "pissa") in few
