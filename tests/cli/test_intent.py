"""What a dry run tells: counts that are the plan's, a cost that is the forecast's, and what could be found at all."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from test_bad_input import Call, pkt  # noqa: F401

from orchestrator.verdict.estimates import Result
from orchestrator.verdict.power import EXPECTED, smallest_effect
from orchestrator.verdict.verdict import judge


def test_nothing_is_fetched_and_the_cost_is_the_plans(pkt: Call, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = pkt("sweep", "--teacher", "llama2-70b", "--dry-run")
    assert (code, err) == (0, "")
    assert "36 fine-tunings: 12 choose settings on the validation split, 24 are compared on the test split" in out
    assert "Shared by all of them: 1 teacher pass, 1 extraction." in out
    told = json.loads(pkt("plan", "--teacher", "llama2-70b", "--json")[1])["steps"]["sweep"]
    assert f"{told['gpu_hours']:.2g} GPU-hours" in out


def test_the_smallest_effect_is_told_beforehand(pkt: Call) -> None:  # noqa: F811
    _, out, _ = pkt("sweep", "--dry-run", "--repeats", "8")
    asked = 2 * 3  # transfer and theseus, each against lora, pissa and its own control
    least = [smallest_effect(one.expected(8, 200), asked) for one in EXPECTED]
    assert (
        f"a true difference of {', '.join(f'{one:.2f}' for one in least)} where trainings differ by 0.02, 0.05, 0.1"
        in out
    )
    assert (
        "5 random seeds can describe, not claim: --repeats 6 or more can."
        in pkt("sweep", "--dry-run", "--repeats", "5")[1]
    )


RATES = ["--layers", "sensitivity,last", "--lr"]


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ([*RATES, "1e-4,3e-4"], []),  # README's own
        ([*RATES, "1e-4"], ["lora", "pissa"]),
        ([*RATES, "1e-4", "--arms", "lora,transfer"], ["lora"]),
        ([*RATES, "1e-4", "--arms", "lora,transfer,spectrum_control"], ["lora"]),
        ([*RATES, "1e-4", "--search", "grid", "--rank", "8,16", "--arms", "lora,transfer"], ["lora"]),
        ([*RATES, "1e-4,3e-4", "--search", "random"], []),
        ([*RATES, "1e-4", "--arms", "lora,spectrum_control"], ["spectrum_control"]),  # which would be the better one
    ],
)
def test_nothing_is_promised_that_the_verdict_would_refuse(
    pkt: Call,  # noqa: F811
    words: list[str],
    refused: list[str],
) -> None:
    """Clear results at the tries that a dry run counts, judged."""
    told = ["sweep", "--teacher", "llama2-70b", *words, "--dry-run"]
    out, tries = pkt(*told)[1], json.loads(pkt(*told, "--json")[1])["tries"]
    best = "transfer" if "transfer" in tries else "spectrum_control"
    scores = {arm: 1.0 if arm == best else 0.0 for arm in tries}
    results = [
        Result(arm, None, None, 8, np.full((6, 50), score), (*range(6),), validation=(score, 0.0))
        for arm, score in scores.items()
    ]
    outcomes = {one.against: one.outcome for one in judge(results, "lora", tried=tries, repeats=6).comparisons}
    described = [arm for arm, outcome in outcomes.items() if outcome == "described"]
    assert described == refused
    assert out.count("can't be claimed") == len(refused)
    promised = re.search(r"^(It|Of .* it) would claim", out, re.MULTILINE)
    assert bool(promised) == (len(outcomes) > len(refused))
    if promised and refused:
        assert promised[1] == f"Of {', '.join(f'transfer over {arm}' for arm in outcomes if arm not in refused)} it"
    assert ("would claim" in out) == any(outcome in ("better", "worse") for outcome in outcomes.values())


def test_arms_with_fewer_rows_are_said_to_have_more_rates(pkt: Call) -> None:  # noqa: F811
    words = ["sweep", "--teacher", "llama2-13b", "--layers", "sensitivity,last", "--dry-run"]
    out, told = pkt(*words)[1], json.loads(pkt(*words, "--json")[1])
    assert "lora and pissa, with fewer rows: 0.0001, 0.000173, 0.0003," in out and "each arm tries 6 settings" in out
    assert told["tries"] == dict.fromkeys(("lora", "pissa", "transfer", "spectrum_control"), 6)
    assert (told["choosing"], told["fine_tunings"]) == (24, 60)
    assert "fewer rows" not in pkt("sweep", "--dry-run")[1]


def test_what_is_too_small_to_be_seen_is_said(pkt: Call) -> None:  # noqa: F811
    _, out, _ = pkt("sweep", "--dry-run", "--effect", "0.02")
    assert (
        "a difference of 0.02 can't be shown so, even with steady trainings; no --repeats can on 200 test rows" in out
    )
    assert "200 validation rows tell settings apart to about 0.04; for a difference of 0.02" in out
    assert "warning" not in pkt("sweep", "--dry-run", "--effect", "0.4")[1]
    found = re.search(
        r"a difference of 0.1 can't be shown so, .*; --repeats (\d+) could",
        pkt("sweep", "--dry-run", "--effect", "0.1")[1],
    )
    assert found
    assert "warning" not in pkt("sweep", "--dry-run", "--effect", "0.1", "--repeats", found[1])[1]
    assert "half luck" in pkt("sweep", "--dry-run", "--effect", "0.02", "--repeats", "5")[1]  # where nothing is claimed


def test_repeats_that_would_do_are_found_however_many(pkt: Call) -> None:  # noqa: F811
    words = ["sweep", "--teacher", "llama2-70b", "--dry-run", "--effect", "0.001"]
    found = re.search(r"--repeats (\d+) could", pkt(*words)[1])
    assert found and int(found[1]) > 1000
    assert "can't be shown" not in pkt(*words, "--repeats", found[1])[1]


def test_a_cut_evaluation_has_the_rows_that_are_left(pkt: Call) -> None:  # noqa: F811
    words = ["sweep", "--dry-run", "--effect", "0.05"]
    assert pkt(*words, "--set", "evaluate.examples=1000000")[1] == pkt(*words)[1]  # the split has 200
    assert "over 1, over 1, over 1" in pkt(*words, "--set", "evaluate.examples=1")[1]
    cut = pkt(*words, "--set", "evaluate.examples=10")[1]
    assert "no --repeats can on 10 test rows" in cut
    assert "10 validation rows tell settings apart to about 0.16" in cut


def test_a_dry_run_refuses_rungs_that_the_run_would(pkt: Call) -> None:  # noqa: F811
    words = ["sweep", "--dry-run", "--search", "asha", "--set", "finetune.examples=36", "--set", "finetune.epochs=2"]
    code, _, err = pkt(*words)
    assert (code, err[:53]) == (2, "pkt: search: 2 training steps can't end after a 9th o")
    assert "or --set search.rungs=2" in err
    assert pkt(*words, "--set", "search.rungs=2", "--set", "search.reduction=2")[0] == 0


def test_a_budget_buys_no_more_than_the_trials_that_were_said(pkt: Call) -> None:  # noqa: F811
    words = ["sweep", "--dry-run", "--search", "random", "--trials", "70", "--json"]
    both = json.loads(pkt(*words, "--budget", "100gpu-hours")[1])
    assert both["fine_tunings"] == json.loads(pkt(*words)[1])["fine_tunings"] <= 70


def test_trials_that_are_left_over_are_told(pkt: Call) -> None:  # noqa: F811
    words = ["sweep", "--dry-run", "--search", "random", "--trials"]
    assert "61 fine-tunings" in (out := pkt(*words, "65")[1]), out  # 6 arms of 2 x 2 + 6, and the teacher's own
    assert "Of 65 trials no more are made" in out
    assert "no more are made" not in pkt(*words, "61")[1]


def test_more_than_the_limit_is_told_with_the_rows_and_the_rates(pkt: Call) -> None:  # noqa: F811
    code, out, err = pkt("sweep", "--dry-run", "--rank", "4,8,16")
    assert code == 0
    assert "Rows: lora r4; lora r8; lora r16; pissa r4;" in out
    assert "Learning rates: 0.003, 0.008," in out
    assert err.startswith("warning: axes: ")
    assert "say --yes" in err
    told = json.loads(pkt("sweep", "--dry-run", "--json")[1])
    assert told["cost"]["gpu_hours"] > 0
    assert "lora r8" in told["rows"]


@pytest.mark.parametrize("words", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (["--rank", "4096"], "rank: 4096 is larger than the student's"),
        (["--layers", "0,99"], "4 of the teacher's 0..5 are needed"),
        (["--structure", "given"], "structure.heads: 0 attention heads given"),
    ],
)
def test_what_the_configs_tell_is_told_by_a_dry_run_too(
    pkt: Call,  # noqa: F811
    words: list[str],
    axis: list[str],
    message: str,
    demo_models: object,
) -> None:
    code, out, err = pkt("sweep", *axis, "--yes", *words)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu-memory", "80", "--dry-run"], "--gpu-memory: '80' is no amount; write it as 80GB"),
        (["--budget", "lots"], "budget: 'lots' is no amount; write it as 8gpu-hours"),
        (["--teacher", "llama2-70b", "--budget", "1gpu-hours"], "fine-tunings, this sweep makes 36; give more, or"),
        (["--teacher", "llama2-70b", "--budget", "4gpu-hours", "--search", "asha"], "pays for 3 fine-tunings; trials"),
        (["--search", "random", "--trials", "10"], "trials: 10 leave 0 settings to try for each of 6 arms after 37"),
        (["--search", "hyperband"], "search: 'hyperband' is not known; known: grid, random, optuna, asha"),
        (["--rank", "8", "--set", "rank=4"], "axes: rank is an axis, and recipe.rank is fixed to 4"),
        (["--rank", ""], "axes: rank has no values, which makes 0 trials"),
        (["--rank", "1,2,3,4,5,6,7,8", "--lr", "1,2,3,4,5,6,7"], "axes: 961 fine-tunings, more than 150; say --yes"),
        (["--arms", "lora,orthogonal", "--rank", "5"], "rank: 5 is odd, and the arm orthogonal needs an even one"),
        (["--arms", "lora,lora_ga", "--rank", "24"], "rank: 24 is too large for the arm lora_ga; it takes at most 16"),
        (["--resume", "nothing"], "resume: no sweep 'nothing' was begun in"),
    ],
)  # fmt: skip
def test_what_can_not_be(pkt: Call, words: list[str], message: str, demo_models: object) -> None:  # noqa: F811
    code, out, err = pkt("sweep", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_budget_becomes_trials(pkt: Call) -> None:  # noqa: F811
    words = ["sweep", "--teacher", "llama2-70b", "--search", "random", "--dry-run", "--json"]
    told = json.loads(pkt(*words, "--budget", "16gpu-hours")[1])
    plan = json.loads(pkt("plan", "--teacher", "llama2-70b", "--gpus", "1", "--json")[1])
    hours = {name: step["gpu_hours"] for name, step in plan["steps"].items() if step}
    once = sum(hours[name] for name in ("measure", "extract", "teacher_score", "score"))  # both models as they are, too
    compared = told["compared"] * (hours["finetune"] + hours["score"])
    tries = int((16 - once - compared) / (hours["finetune"] + plan["choosing_gpu_hours"]))
    assert tries - 4 < told["choosing"] <= tries  # what is left over doesn't make one more for each arm
