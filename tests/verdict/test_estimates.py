"""Oracles: textbook t intervals in the cases that are textbook ones, simulated coverage in the crossed one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from orchestrator.verdict.estimates import Result, estimate, interval, leaderboard, share_interval, told_apart_by


def test_one_seed_is_the_t_interval_over_examples() -> None:
    scores = np.random.default_rng(0).normal(size=(1, 40))
    right = stats.ttest_1samp(scores[0], 0).confidence_interval(0.95)
    assert interval(scores) == pytest.approx((scores.mean(), right.low, right.high))


def test_without_differences_between_examples_it_is_the_t_interval_over_seeds() -> None:
    by_seed = np.random.default_rng(0).normal(size=7)
    scores = np.repeat(by_seed[:, None], 30, axis=1)
    right = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    assert interval(scores) == pytest.approx((by_seed.mean(), right.low, right.high))


def test_p_is_the_textbooks_and_agrees_with_the_limits() -> None:
    rng = np.random.default_rng(5)
    by_seed = rng.normal(0.4, 1, 6)
    only_seeds = estimate(np.repeat(by_seed[:, None], 30, axis=1))
    assert only_seeds.p == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    crossed = estimate(rng.normal(0.3, 0.2, (6, 1)) + rng.normal(0, 1, (1, 50)) + rng.normal(0, 0.3, (6, 50)))
    assert 0 < crossed.by_seeds < 1
    assert min(crossed.limits(1 - crossed.p), key=abs) == pytest.approx(0, abs=1e-9)
    assert estimate(np.ones((6, 50)) + rng.normal(0, 1e-9, (6, 50))).p < 1e-30


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_the_smaller_levels_of_holms_steps_hold(level: float) -> None:
    """Where seeds matter most: with Satterthwaite's freedom 0.005 is 0.009."""
    rng, hits, runs = np.random.default_rng(3), 0, 20_000
    for _ in range(runs):
        found = estimate(rng.normal(0, 0.12, (6, 1)) + rng.normal(0, 0.3, (1, 40)) + rng.normal(0, 0.3, (6, 40)))
        hits += abs(found.mean) > found.needed(level) * found.error
    assert hits / runs <= level + 3 * (level * (1 - level) / runs) ** 0.5


@pytest.mark.parametrize(("seed_sd", "example_sd", "noise_sd"), [(0.1, 0.3, 0.3), (0.3, 0.05, 0.3), (0.02, 0.02, 0.5)])
def test_it_covers_the_mean_under_crossed_variance(seed_sd: float, example_sd: float, noise_sd: float) -> None:
    rng, hits, runs = np.random.default_rng(1), 0, 1500
    for _ in range(runs):
        scores = rng.normal(0, seed_sd, (6, 1)) + rng.normal(0, example_sd, (1, 50)) + rng.normal(0, noise_sd, (6, 50))
        _, low, high = interval(scores)
        hits += low <= 0 <= high
    assert hits / runs > 0.95 - 3 * (0.05 * 0.95 / runs) ** 0.5


def test_all_right_or_all_wrong_still_has_an_interval() -> None:
    exact = stats.binomtest(0, 200).proportion_ci(method="exact")
    assert share_interval(np.zeros((6, 200))) == pytest.approx((0.0, 0.0, exact.high))
    assert share_interval(np.ones((6, 200))) == pytest.approx((1.0, 1 - exact.high, 1.0))


def result(arm: str, rank: int | None, scores: np.ndarray) -> Result:
    return Result(arm=arm, layers=None, structure=None, rank=rank, scores=scores, seeds=tuple(range(len(scores))))


def test_differences_are_paired_with_the_baseline_of_the_same_rank() -> None:
    rng = np.random.default_rng(2)
    easy = np.repeat(rng.integers(0, 2, (1, 60)), 6, axis=0).astype(float)
    better = np.clip(easy + (rng.random((6, 60)) < 0.2), 0, 1)
    rows = leaderboard(
        [
            result("lora", 8, easy),
            result("transfer", 8, better),
            result("lora", 16, 1 - easy),
            result("teacher", None, better[:1]),
        ],
        "lora",
    )
    by_name = {(row["arm"], row["rank"]): row for row in rows}
    row = by_name["transfer", 8]
    assert row["delta"] == pytest.approx(better.mean() - easy.mean())
    _, low, high = interval(better - easy)
    assert row["delta_ci95"] == [low, high]
    assert high - low < row["ci95"][1] - row["ci95"][0]  # pairing takes the examples' difficulty out
    assert by_name["lora", 8]["delta"] is None
    assert by_name["teacher", None]["delta"] is None
    assert [row["mean"] for row in rows] == sorted((row["mean"] for row in rows), reverse=True)
    assert set(rows[0]) >= {"arm", "layers", "structure", "rank", "mean", "ci95", "delta", "delta_ci95", "seeds"}


def test_a_failed_seed_leaves_the_pairs_and_nothing_else() -> None:
    """Two arms that are the same, seed by seed, of which one lost its first trial: no difference may appear."""
    easy = np.repeat([[0.2], [0.5], [0.8]], 50, axis=1)
    scores = (np.random.default_rng(0).random((3, 50)) < easy).astype(float)
    whole = result("lora", 8, scores)
    lost = Result(arm="transfer", layers=None, structure=None, rank=8, scores=scores[1:], seeds=(1, 2))
    row = next(row for row in leaderboard([whole, lost], "lora") if row["arm"] == "transfer")
    assert row["delta"] == 0.0
    assert row["delta_ci95"] == pytest.approx([-0.0711, 0.0711], abs=1e-3)  # 50 examples, none seen to differ
    assert row["seeds"] == 2
    apart = Result(arm="transfer", layers=None, structure=None, rank=8, scores=scores[:1], seeds=(7,))
    assert leaderboard([whole, apart], "lora")[0]["delta"] is None


PLACES = {"lora": None, "transfer": "last", "spectrum_control": "last", "ridge": None, "ridge_random_map": None}


def test_partners_share_rank_and_further_axes() -> None:
    rng = np.random.default_rng(1)
    rows = {
        (arm, epochs): Result(
            arm=arm, layers=place, structure=place, rank=8, scores=rng.random((2, 30)), seeds=(0, 1),
            other={"finetune.epochs": epochs},
        )
        for arm, place in PLACES.items()
        for epochs in (1, 3)
    }  # fmt: skip
    told = {(row["arm"], row["other"]["finetune.epochs"]): row for row in leaderboard(list(rows.values()), "lora")}
    for epochs in (1, 3):
        own = rows["transfer", epochs].scores
        assert told["transfer", epochs]["delta"] == pytest.approx((own - rows["lora", epochs].scores).mean())
        right = (own - rows["spectrum_control", epochs].scores).mean()
        assert told["transfer", epochs]["control_delta"] == pytest.approx(right)
        carried = (rows["ridge", epochs].scores - rows["ridge_random_map", epochs].scores).mean()
        assert told["ridge", epochs]["control_delta"] == pytest.approx(carried)
        assert told["lora", epochs]["delta"] is None
        assert told["spectrum_control", epochs]["control_delta"] is None


def test_rows_that_differ_are_told_apart() -> None:
    """By their modules and further axes, where these differ; a sweep of one kind of matrices has no such column."""
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    alike = [result("lora", 8, scores), replace(result("transfer", 8, scores), modules="ffn")]
    assert told_apart_by(leaderboard(alike, "lora")) == ([], [])
    other = replace(alike[1], modules="attention", other={"measure.examples": 4})
    assert told_apart_by(leaderboard([*alike, other], "lora")) == (["modules"], ["measure.examples"])
