"""What a training costs elsewhere: against t-tests by hand, and against what is claimed of nothing, many times over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calibration.further import FURTHER, elsewhere
from calibration.simulate import shift_for
from scipy import stats

from orchestrator.verdict.cost import costs, sentence
from orchestrator.verdict.estimates import Beside, Result
from orchestrator.verdict.verdict import judge

SEEDS = tuple(range(6))


def result(arm: str, there: np.ndarray, *, seeds: tuple[int, ...] = SEEDS, task: str = "mmlu") -> Result:
    ids = tuple(f"q{place}" for place in range(there.shape[1]))
    return Result(
        arm, None, None, 4, np.zeros((len(seeds), 10)), seeds, validation=(0.5, 0.0),
        beside={task: Beside(seeds, there.astype(float), ids)},
    )  # fmt: skip


def student(before: np.ndarray) -> Result:
    return Result(
        "student", None, None, None, np.zeros((1, 10)), (0,),
        beside={"mmlu": Beside((0,), before[None].astype(float), tuple(f"q{at}" for at in range(len(before))))},
    )  # fmt: skip


def cost(there: np.ndarray, before: np.ndarray, margin: float = 0.02, enough: int = 6):  # type: ignore[no-untyped-def]
    own = result("lora", there, seeds=tuple(range(len(there))))
    (found,) = costs([student(before), own], {"lora": own}, margin=margin, enough=enough)
    return found


def test_one_seed_is_a_paired_t_test_and_two_one_sided_ones() -> None:
    """Over examples alone, by scipy: the difference's p-value, and the larger of those against either margin."""
    draw = np.random.default_rng(0)
    before, there = draw.normal(size=80), draw.normal(0.1, 1, size=(1, 80))
    found = cost(there, before, margin=0.3, enough=1)
    assert found.p == pytest.approx(stats.ttest_rel(there[0], before).pvalue, rel=1e-6)
    sides = [stats.ttest_1samp(there[0] - before, -0.3, alternative="greater").pvalue,
             stats.ttest_1samp(there[0] - before, 0.3, alternative="less").pvalue]  # fmt: skip
    assert found.p_beyond == pytest.approx(max(sides), rel=1e-6)
    assert found.delta == pytest.approx((there[0] - before).mean())


def test_flips_are_counted_and_named() -> None:
    before = np.array([1, 1, 1, 0, 0, 1])
    there = np.array([[1, 0, 0, 1, 0, 1], [1, 0, 1, 0, 0, 1]])
    flips = cost(there, before).flips
    assert (flips.lost, flips.won) == (3 / 12, 1 / 12)
    assert list(flips.wrong.items()) == [("q1", 2), ("q2", 1)]
    assert cost(there * 0.5, before).flips is None  # no answer is half right where they are right or wrong


def test_nothing_is_claimed_with_too_few_seeds() -> None:
    before = np.ones(400)
    assert cost(np.zeros((6, 400)), before).outcome == "forgot"
    few = cost(np.zeros((5, 400)), before)
    assert few.outcome == "described"
    assert "5 random seeds describe, not prove" in sentence(few)


def test_no_difference_at_all_is_no_proof_where_there_are_few_examples() -> None:
    """Every answer as before: of 20 examples it can't be told that fewer than 2 % change, of 2,000 it can."""
    for count, outcome in ((20, "can't tell"), (2000, "forgot nothing")):
        before = np.arange(count) % 2
        assert cost(np.broadcast_to(before, (6, count)), before).outcome == outcome


@pytest.mark.parametrize("seed_noise", [0.0, 0.02])
def test_how_often_what_is_not_so_is_claimed(seed_noise: float) -> None:
    """At a true difference of the margin "forgot nothing" in 5 % at most, at none "forgot" or "gained" in 5 %."""
    draw, runs, claimed = np.random.default_rng(1), 400, {"margin": 0, "none": 0}
    for _ in range(runs):
        for true, name in ((-0.1, "margin"), (0.0, "none")):
            before = draw.normal(size=120)
            shift = draw.normal(true, seed_noise, size=(6, 1)) + draw.normal(0, 0.3, size=120)
            outcome = cost(before + shift + draw.normal(0, 0.2, size=(6, 120)), before, margin=0.1).outcome
            claimed[name] += outcome == "forgot nothing" if name == "margin" else outcome in ("forgot", "gained")
    limit = stats.binom.ppf(0.999, runs, 0.05)
    assert claimed["margin"] <= limit and claimed["none"] <= limit, claimed
    assert claimed["margin"] > 0  # at the margin itself it is claimed now and then, or the test could not fail


@pytest.mark.parametrize("count", [200, 500, 1000])
@pytest.mark.parametrize("rows", [1, 2, 6, 24])
def test_answers_that_only_go_wrong_are_told_as_seldom_as_binomial_chance_has_it(count: int, rows: int) -> None:
    """Each answer is lost with the margin's probability, in all seeds alike: what is claimed, by the exact binomial."""
    before, level, margin = np.ones(count), 0.05 / rows, 0.02  # Holm's first step
    lost = [np.tile(np.arange(count) >= wrong, (6, 1)) for wrong in range(round(margin * count) + 1)]
    claimed = [wrong for wrong, there in enumerate(lost) if cost(there, before, margin).p_beyond <= level]
    assert sum(stats.binom.pmf(claimed, count, margin)) <= level
    assert claimed or count < 1000  # of so many rows a few lost ones do show it, in the largest family, too


def test_a_spread_at_the_margin_is_asked_of_shares_alone() -> None:
    """A likelihood that falls by as much everywhere is known exactly; of shares 50 rows may hide the rare loss."""
    before = np.linspace(-2.9, -2.1, 50)
    steady = before - 0.01 + np.random.default_rng(0).normal(0, 1e-4, (6, 50))
    assert cost(steady, before).outcome == "forgot nothing"
    found, least = cost(steady + 3, before + 3), (0.02 * 0.98 / 50) ** 0.5
    assert found.outcome == "forgot"
    assert found.p_beyond == pytest.approx(stats.t.sf((found.delta + 0.02) / least, 49), rel=1e-3)


@pytest.mark.slow
def test_a_lost_margin_is_no_loss_in_few_sweeps_where_few_answers_change() -> None:
    """Whole sweeps: three arms, two tasks of 200 rows. By the spread that is seen it would be one in six."""
    world, runs = next(one for one in FURTHER if one.name == "hardly any change"), 300
    shift, rng = shift_for(replace(world, examples=200), -0.02), np.random.default_rng(3)
    assert shift is not None
    found = [elsewhere(replace(world, examples=200), rng, [[shift] * 3] * 2) for _ in range(runs)]
    claimed = sum(any(one.outcome == "forgot nothing" for one in some) for some in found)
    assert claimed <= stats.binom.ppf(0.999, runs, 0.05)
    assert np.mean([one.delta for some in found for one in some]) == pytest.approx(-0.02, abs=0.002)


def test_the_family_grows_with_rows_and_tasks() -> None:
    """Holm's correction by hand: of ten tasks the smallest p-value counts tenfold."""
    draw = np.random.default_rng(2)
    before = (draw.random(200) < 0.5).astype(float)
    one = np.where(draw.random((6, 200)) < 0.06, 1 - before, before)
    alone = cost(one, before)
    beside = {f"task {at}": Beside(SEEDS, one, ()) for at in range(10)}
    own = Result("lora", None, None, 4, one, SEEDS, validation=(0.5, 0.0), beside=beside)
    own_student = Result("student", None, None, None, one[:1], (0,), beside={
        name: Beside((0,), before[None], ()) for name in beside})  # fmt: skip
    found = costs([own_student, own], {"lora": own}, margin=0.02, enough=6)
    assert len(found) == 10
    for each in found:
        assert each.p == pytest.approx(min(1.0, 10 * alone.p))
        assert each.p_beyond == pytest.approx(min(1.0, 10 * alone.p_beyond))


def test_a_verdict_carries_what_it_cost() -> None:
    """Of each arm's chosen row; the untouched models have none, and a sweep without further tasks has none."""
    before = np.arange(1500) % 2
    rows = [student(before), result("lora", np.broadcast_to(before, (6, 1500))),
            result("pissa", np.zeros((6, 1500)))]  # fmt: skip
    told = judge(rows, "lora", tried={"lora": 1, "pissa": 1}, repeats=6)
    assert {(one.arm, one.outcome) for one in told.costs} == {("lora", "forgot nothing"), ("pissa", "forgot")}
    text = "\n".join(told.lines())
    assert "lora forgot nothing that matters (within 0.02) on mmlu: +0.000" in text
    assert "pissa forgot on mmlu: -0.500" in text and "50.0% of the answers went wrong, 0.0% right" in text
    plain = [Result(arm, None, None, 4, np.zeros((6, 9)), SEEDS) for arm in ("lora", "pissa")]
    assert judge(plain, "lora", repeats=6).costs == ()


def test_a_texts_cost_is_its_perplexity() -> None:
    found = cost(np.full((6, 50), -2.0), np.full(50, -1.0))
    assert "perplexity 2.718 to 7.389" in sentence(found)
