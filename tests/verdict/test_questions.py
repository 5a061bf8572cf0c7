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


def test_of_many_comparisons_each_is_told_in_short_and_what_they_share_once() -> None:
    few = told(ridge=0.9)
    many = ["laten", "laten_random", "titok", "titok_random"]
    arms = {arm: 0.9 if arm == "titok" else 0.2 for arm in [*ARMS, *many]}
    both = judge([result(*one) for one in arms.items()], "lora", tried=dict.fromkeys(arms, 3), repeats=9)
    lines = [line for line in both.lines() if " against " in line and ", p " in line]
    assert len(few.comparisons) == 9 and all("Holm" in line for line in few.lines() if " against " in line)
    assert len(lines) == len(both.comparisons) == 15 and not any("Holm" in line for line in lines)
    shown = {tuple(line.split()[:3:2]): line for line in lines}
    for one in both.comparisons:
        line = shown[one.arm, one.against]
        assert f"{one.delta:+.3f} [{one.ci95[0]:+.3f}, {one.ci95[1]:+.3f}]" in line and f": {one.outcome} [1]" in line
    assert [line for line in both.lines() if line.startswith("  [")] == [
        f"  [1] not claimed: {both.comparisons[0].why}"
    ]


def test_what_can_be_claimed_is_known_before_of_every_way() -> None:
    few = beforehand(dict.fromkeys(ARMS, 3), "lora", 3)
    assert len(few) == 9 and all("3 random seeds" in why for why in few.values())
    assert ("ridge", "ridge_random_map") in few and ("theseus", "pissa") in few
