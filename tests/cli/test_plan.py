"""`pkt plan` as it is typed."""

from __future__ import annotations

import json

import pytest
from test_bad_input import Call, pkt  # noqa: F401  (a fixture)

# What runs here has this machine's numbers, and CPUs without bfloat16 take float32
BFLOAT16 = ("--set", "measure.dtype=bfloat16", "--set", "finetune.dtype=bfloat16")


def test_the_json_has_the_fields_that_are_promised(pkt: Call) -> None:  # noqa: F811
    code, out, err = pkt("plan", "--teacher", "llama2-70b", "--gpus", "8", "--gpu-memory", "80GB", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    steps = {name: step for name, step in told["steps"].items() if step}
    assert set(steps) == {"measure", "teacher_score", "extract", "finetune", "score", "sweep"}
    assert told["steps"].keys() - steps == {"tune", "read", "ask", "scale"}  # nothing is carried over
    for step in steps.values():
        assert {"fits", "per_rank", "network_bytes", "seconds", "gpu_hours", "smallest_cluster"} <= set(step)
        parts = dict(step["per_rank"])
        assert parts.pop("peak_bytes") == sum(parts.values())
        assert set(parts) == {
            "weights_bytes",
            "activations_bytes",
            "statistics_bytes",
            "factors_bytes",
            "process_bytes",
        }
    assert told["teacher"] == {"name": "llama2-70b", "parameters": 68_976_648_192}


def test_the_table_says_what_does_not_fit(pkt: Call) -> None:  # noqa: F811
    _, out, _ = pkt("plan", "--teacher", "llama2-70b", "--gpus", "2")
    measure = next(line for line in out.splitlines() if line.startswith("measure"))
    assert measure.endswith("NO")
    assert "Smallest cluster that fits: 3 GPUs." in out


def test_a_teacher_that_no_gpu_can_train_is_planned_over_several(pkt: Call) -> None:  # noqa: F811
    words = ("plan", "--teacher", "llama2-70b", "--arms", "lora,theseus", "--gpus", "8")
    hint = "--workers-per-trial N --shard-student shares it among N"
    for more, fits in (((), "NO"), (("--workers-per-trial", "8", "--shard-student"), "yes")):
        _, out, _ = pkt(*words, *more)
        tune = next(line for line in out.splitlines() if line.startswith("tune the teacher"))
        assert tune.endswith(fits) and (hint in out) is (fits == "NO")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "--gpu-memory", "80X"), "--gpu-memory: '80X' is no amount; write it as 80GB or 400T"),
        (("plan", "--teacher", "nothing"), "teacher: 'nothing' is not known"),
        (("plan", "--teacher", "some/thing"), "student: 'some/thing' has no natural student"),
        (("plan", "--teacher", "nothing", "--student", "llama2-7b"), "teacher: 'nothing' is no alias"),
        (
            ("extract", "--teacher", "llama2-70b", "--out", "x", "--ranks", "2", "--gpu-memory", "80GB", *BFLOAT16),
            "plan: measure (llama2-70b -> llama2-7b) takes 79.9 GB on each of 2 ranks",
        ),
        (
            (
                "sweep",
                "--teacher",
                "llama2-70b",
                "--gpu-memory",
                "40GB",
                "--ranks",
                "8",
                "--set",
                "finetune.gradient_checkpointing=false",
                *BFLOAT16,
            ),
            "plan: finetune",
        ),
    ],
)
def test_bad_input_is_one_line(pkt: Call, words: tuple[str, ...], message: str) -> None:  # noqa: F811
    code, _, err = pkt(*words)
    assert code == 2
    assert message in err and err.count("\n") == 1
