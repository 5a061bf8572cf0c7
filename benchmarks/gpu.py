"""`make gpu`: what only a machine with CUDA can say, in at most 25 minutes, as a Markdown file to be committed.

    python -m benchmarks.gpu                  # writes benchmarks/results/NVIDIA-H100-80GB-HBM3.md
    python -m benchmarks.gpu --dry-run        # the same ways on the CPU, tiny, and says what can't be done there

Each section is a process of its own, which gives all of the GPU back to the next; one that fails is a row that says
so, and the exit status is 1. What a section says last is its row.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = [sys.executable, "-m", "benchmarks.gpu"]
MARKED = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu\n" in path.read_text()]
SECTIONS = {  # the command, and seconds that it may take: 25 minutes in all
    "GPU tests": ([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *MARKED], 240),
    "sensitivity kernel": ([sys.executable, "-m", "benchmarks", "gpu_sensitivity"], 300),
    "ranks": ([*OWN, "--section", "ranks"], 240),
    "pkt sweep": ([*OWN, "--section", "sweep"], 420),
    "memory of measure": ([*OWN, "--section", "measure"], 100),
    "memory of finetune": ([*OWN, "--section", "finetune"], 100),
    "memory of score": ([*OWN, "--section", "score"], 100),
}
# What a section says where there is no CUDA device.
NOTHING = re.compile(r"\d+ skipped, \d+ deselected in .*|no tests ran.*|.*: not run, as there is no CUDA device.*")
PAIR = {  # random models, large enough that their own bytes outweigh the kernels' workspaces
    "teacher": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16},
    "student": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8},
}
WORDS = {"vocab_size": 32_000, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
SWEEP = ["--set", "axes.arm=[lora, transfer]", "--rank", "8", "--repeats", "2", "--set", "tuning_seeds=1"]
SWEEP += ["--set", "tuned_teacher=false", "--set", "gate=null", "--name", "gpu", "--json"]
SHORT = ["--lr", "1e-2", "--repeats", "1", "--set", "finetune.examples=36", "--set", "finetune.epochs=1"]
SHORT += ["--set", "evaluate.examples=8"]
APART = 1e-3  # largest relative distance of two measurements in float32, whose sums run in another order


def main(words: list[str] | None = None) -> int:
    """The sections one after the other; 1 if one of them failed."""
    asked = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    asked.add_argument("--dry-run", action="store_true", help="what can be done on a CPU, on tiny models")
    asked.add_argument("--out", type=Path, help="the folder to write to; by default benchmarks/results")
    asked.add_argument("--section", choices=SAYS, help=argparse.SUPPRESS)
    asked.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = asked.parse_args(words)
    if given.section:
        print(SAYS[given.section](given.folder, given.dry_run))
        return 0
    name = hardware()
    if not name and not given.dry_run:
        print("gpu: no NVIDIA GPU tells of itself here; --dry-run does what can be done without", file=sys.stderr)
        return 2
    name = "no GPU (dry run)" if given.dry_run else name
    with tempfile.TemporaryDirectory() as made:
        found = {what: ran(command, limit, Path(made), given.dry_run) for what, (command, limit) in SECTIONS.items()}
    text = page(name, found)
    print(text)
    if out := given.out or (None if given.dry_run else ROOT / "benchmarks" / "results"):
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.md").write_text(text)
    return int(any(said.startswith("failed: ") for said, _, _ in found.values()))


def hardware() -> str:
    """The GPUs by their driver's tool: this process opens none. Empty where there is none."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    names = told.stdout.strip().splitlines()
    return f"{len(names)} x {names[0]}" if len(names) > 1 else "".join(names)


def ran(command: list[str], limit: float, folder: Path, dry: bool) -> tuple[str, float, str]:
    """What a section said last, or why it failed; its seconds; and all that it said. Never raises."""
    began = time.monotonic()
    if "--section" in command:
        command = [*command, "--folder", str(folder), *(["--dry-run"] if dry else [])]
    env = os.environ | {"PYTEST_ADDOPTS": ""} | ({"CUDA_VISIBLE_DEVICES": ""} if dry else {})  # its last line is read
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)  # those that it started, too
            child.communicate()
            return f"failed: not done after {limit:.0f} s", time.monotonic() - began, ""
    lines = [line for line in (out if out.strip() else err).splitlines() if line.strip()] or [""]
    last, seconds = lines[-1].strip(), time.monotonic() - began
    if dry and any(NOTHING.fullmatch(line.strip()) for line in lines):
        return "skipped: it needs a CUDA device", seconds, ""
    if child.returncode:
        why = err.strip().splitlines()[-1:] or [last]
        return f"failed: {why[0]}", seconds, out
    return last, seconds, out


def page(name: str, found: dict[str, tuple[str, float, str]]) -> str:
    """The table, and below it what the kernel's benchmark printed."""
    from orchestrator.step import versions

    rows = [f"| {what} | {said.replace('|', '/')} | {seconds:.0f} |" for what, (said, seconds, _) in found.items()]
    kernel, _, printed = found["sensitivity kernel"]
    lines = [
        f"# {name}", "", ", ".join(f"{library} {number}" for library, number in versions().items()) + ".", "",
        "| section | what came of it | seconds |", "|---|---|---|", *rows,
        "", "Told is what `pkt plan` says, found the most that torch allocated on the device, in a process of its own.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n" + (f"\n{printed.strip()}\n" if printed and kernel else "")


def ranks(folder: Path, dry: bool) -> str:
    """Two ranks, or what one GPU allows, against one: the same sums of the demo's teacher, by NCCL or by gloo."""
    from orchestrator.cluster import gpus
    from orchestrator.cluster.ranks import Placement
    from orchestrator.pipeline import measure_step
    from orchestrator.prepare.ready import prepare
    from orchestrator.recipe import Recipe
    from orchestrator.step import materialise
    from orchestrator.store import Store
    from orchestrator.teacher.scores import FILE

    if dry:
        os.environ.setdefault("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')
    fields = {"teacher": "demo-teacher", "student": "demo-student", "measure": {"dtype": "float32", "granularity": 16}}
    recipe = Recipe.model_validate(fields)
    step = measure_step(recipe, prepare(recipe))
    two = dry or gpus.local() > 1
    ways = {"1 rank": Placement(1)}
    ways |= {"2 ranks, whole": Placement(2, replicate=True)} if two else {}
    if not dry:  # DeepSpeed on CPUs has tests of its own
        ways |= {"2 ranks, shards": Placement(2)} if two else {"1 rank, offloaded": Placement(1, offload="cpu")}
    took, made = {}, {}
    for number, (name, placement) in enumerate(ways.items()):
        began = time.perf_counter()
        made[name] = materialise(step, Store(folder / f"ranks-{number}"), placement=placement) / FILE
        took[name] = time.perf_counter() - began
    most = max(apart(made["1 rank"], other) for other in made.values())
    if most > APART:
        raise SystemExit(f"{' and '.join(ways)} differ by {most:.1e} in what they measured; {APART:.0e} is rounding")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in took.items())
    return f"{'gloo' if dry else 'NCCL'}: {seconds}; they differ by {most:.0e}"


def apart(one: Path, other: Path) -> float:
    """The largest relative distance of two measurements' tensors."""
    from safetensors.torch import load_file

    right, found = load_file(one), load_file(other)
    return max(float((exact - found[name]).norm() / exact.norm()) for name, exact in right.items())


def sweep(folder: Path, dry: bool) -> str:
    """The demo's pair, as it is typed."""
    words = [*SWEEP, *(SHORT if dry else []), "--store", str(folder / "pkt-store")]
    code = "import sys; from cli.main import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "sweep", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(" ".join(done.stderr.strip().splitlines()[-1:]) or f"exit status {done.returncode}")
    told = json.loads(done.stdout)
    return ", ".join(f"{row['arm']} {row['mean']:.3f}" for row in told["rows"])


def memory_of(name: str) -> Callable[[Path, bool], str]:
    """What a step takes at most beside what the plan tells, in a process that does nothing else."""

    def measured(folder: Path, dry: bool) -> str:
        import torch

        from benchmarks.measuring import peak_bytes
        from orchestrator import pipeline
        from orchestrator.prepare.native import workers_have_bfloat16
        from orchestrator.prepare.ready import prepare
        from orchestrator.recipe import Sweep
        from orchestrator.step import materialise
        from orchestrator.store import Store
        from orchestrator.sweep.hardware import Hardware
        from orchestrator.sweep.lengths import lengths_of
        from orchestrator.sweep.plan import forecast

        if not (dry or torch.cuda.is_available()):
            raise SystemExit("torch has no CUDA device")
        teacher, student = ("demo-teacher", "demo-student") if dry else random_pair(folder)
        some = {"measure": {"examples": 32}, "finetune": {"examples": 32 if dry else 256, "epochs": 1}}
        fields = {"teacher": teacher, "student": student, "rank": 8, "modules": "attention,ffn", **some}
        asked = Sweep.model_validate(
            {"recipe": {**fields, "evaluate": {"examples": 8 if dry else 64}}, "baseline": "transfer"}
        )
        recipe, ready = asked.recipe, prepare(asked.recipe)
        steps = {
            "measure": pipeline.measure_step(recipe, ready),
            "finetune": pipeline.finetune_step(recipe, ready),
            "score": pipeline.trial(recipe, ready, "test"),
        }
        room = {"cuda": False} if dry else {"memory": float(torch.cuda.mem_get_info()[1])}
        held = Hardware(gpus=1, native=workers_have_bfloat16(), **room)
        need = forecast(asked, held, lengths_of(recipe)).steps[name].per_rank
        told = need.peak_bytes - need.process_bytes  # what is found begins once libraries are there
        store = Store(folder / "store")
        for one in list(steps[name].ancestors())[:-1]:
            materialise(one, store)
        if dry:
            found = peak_bytes(lambda: materialise(steps[name], store))
        else:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            materialise(steps[name], store)
            found = torch.cuda.max_memory_allocated()
        return f"told {told / 1e9:.3g} GB, found {found / 1e9:.3g} GB: {told / max(found, 1):.2f} of it"

    return measured


def random_pair(folder: Path) -> tuple[str, str]:
    """Llamas with random weights in bfloat16 and the demo's tokenizer, made once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from orchestrator.models.loading import load_tokenizer, source_of

    for name, sizes in PAIR.items():
        if not (folder / name / "config.json").is_file():
            torch.manual_seed(0)
            load_tokenizer(source_of("demo-student", "student")).save_pretrained(folder / name)
            LlamaForCausalLM(LlamaConfig(**sizes, **WORDS)).bfloat16().save_pretrained(folder / name)
    return str(folder / "teacher"), str(folder / "student")


SAYS: dict[str, Callable[[Path, bool], str]] = {
    "ranks": ranks, "sweep": sweep, **{name: memory_of(name) for name in ("measure", "finetune", "score")}
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
