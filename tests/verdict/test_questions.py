"""What a sweep with several ways of carrying an update asks, and what it answers of each."""

from __future__ import annotations

import numpy as np

from orchestrator.verdict.asked import Question, questions
from orchestrator.verdict.estimates import Result
from orchestrator.verdict.verdict import Verdict, beforehand, judge

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


def many(repeats: int = 8, **shares: float) -> Verdict:
    """Two ways more, so that they are told of together."""
    arms = {arm: shares.get(arm, 0.2) for arm in [*ARMS, "laten", "laten_random", "titok", "titok_random"]}
    return judge([result(*one) for one in arms.items()], "lora", tried=dict.fromkeys(arms, 3), repeats=repeats)


def test_many_ways_are_told_of_together_and_what_they_share_once() -> None:
    shares = {"theseus": 0.9, "ridge": 0.9, "ridge_random_map": 0.9, "titok": 0.0, "pissa": 0.4}
    verdict = many(**shares)
    assert len(verdict.comparisons) == 15
    first, teacher, not_own, undecided, hurt, than_pissa = verdict.headline.replace(". ", ".\n").splitlines()
    assert first == "1 of 5 ways helped."
    assert teacher == "The teacher helped: theseus is better than lora and than theseus_random_map."
    assert not_own.startswith("Better than lora, but not shown to be the teacher's doing: ridge can't be told from")
    reaches = [
        one.smallest or 0 for one in verdict.comparisons if one.against == "lora" and one.outcome == "can't tell"
    ]
    span = f"only a true difference of {min(reaches):.2f} to {max(reaches):.2f} or more would reliably have been found"
    assert undecided == f"Undecided: transfer and laten may or may not be better than lora ({span} here)."
    assert hurt == "Hurt: titok: the student learns the task better from plain lora."
    assert than_pissa == "pissa did better than transfer and laten."  # than titok, too, of which that says enough
    none = many(lora=0.9, pissa=0.9).headline
    assert none.startswith("None of 5 ways is shown to have helped. Hurt: transfer, ridge, theseus, laten and titok:")
    assert none.endswith("pissa did better than all of them.") and "Undecided" not in none


def test_differences_of_many_ways_are_one_table() -> None:
    verdict = many(theseus=0.9, ridge=0.4, titok=0.0, laten_random=0.9)
    _, head, rows, reasons = verdict.grid() or ("", [], [], [])
    assert head == ["way", "lora", "its own control", "pissa"] and not reasons
    shown = {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}
    own = {"transfer": "spectrum_control", "theseus": "theseus_random_map", "ridge": "ridge_random_map",
           "laten": "laten_random", "titok": "titok_random"}  # fmt: skip
    assert len(shown) == len(verdict.comparisons) and {one.outcome for one in verdict.comparisons} == {
        "better", "worse", "can't tell",
    }  # fmt: skip
    for one in verdict.comparisons:
        cell = shown[one.arm, "its own control" if one.against == own[one.arm] else one.against]
        low, high = one.ci95
        assert cell == f"{one.delta:+.2f} ± {(high - low) / 2:.2f}" + "*" * (one.outcome in ("better", "worse"))
    against_lora = [float(row[1].split()[0]) for row in rows]
    assert against_lora == sorted(against_lora, reverse=True)
    lines = [line for line in verdict.lines() if line.startswith("|")]
    assert len(lines) == 7 and len({len(line) for line in lines}) == 1


def test_of_several_controls_the_least_favourable_one_is_shown() -> None:
    arms = {"ridge": 0.9, "ridge_random_map": 0.2, "ridge_spectrum": 0.85}
    every = dict.fromkeys(ARMS, 0.2) | arms | dict.fromkeys(("laten", "laten_random"), 0.2)
    verdict = judge([result(*one) for one in every.items()], "lora", tried=dict.fromkeys(every, 3), repeats=8)
    own = {one.against: one for one in verdict.comparisons if one.arm == "ridge" and one.against in arms}
    _, head, rows, _ = verdict.grid() or ("", [], [], [])
    (cell,) = (row[head.index("its own control")] for row in rows if row[0] == "ridge")
    assert own["ridge_random_map"].outcome == "better" and own["ridge_spectrum"].outcome == "can't tell"
    assert cell.startswith(f"{own['ridge_spectrum'].delta:+.2f} ± ") and "*" not in cell


def test_what_is_not_claimed_of_many_ways_says_why_once() -> None:
    verdict = many(repeats=9, theseus=0.9)
    assert verdict.headline == f"No claim: {verdict.comparisons[0].why}. What follows is what was seen."
    _, _, rows, reasons = verdict.grid() or ("", [], [], [])
    assert reasons == [f"[1] not claimed: {verdict.comparisons[0].why}"] and reasons[0] in verdict.lines()
    assert all(cell.endswith(" [1]") for row in rows for cell in row[1:])


def test_few_comparisons_are_sentences() -> None:
    few = told(ridge=0.9)
    lines = [line for line in few.lines() if " against " in line]
    assert few.grid() is None and len(lines) == len(few.comparisons) == 9 and all("Holm" in line for line in lines)


def test_what_can_be_claimed_is_known_before_of_every_way() -> None:
    few = beforehand(dict.fromkeys(ARMS, 3), "lora", 3)
    assert len(few) == 9 and all("3 random seeds" in why for why in few.values())
    assert ("ridge", "ridge_random_map") in few and ("theseus", "pissa") in few
