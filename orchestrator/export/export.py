"""Adapters for others: what a sweep found, in the forms that other people's tools open without this project.

A whole model for whoever only knows `from_pretrained`, a LoRA of a size that serving limits, and the very questions
that the score was taken on, for lm-eval. Each folder has a card, and appears whole or not at all.
"""

from __future__ import annotations

import json
import shlex
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch.nn.functional import pad

from orchestrator.errors import UserError
from orchestrator.export.merging import merged, untie
from orchestrator.export.source import CONFIG, WEIGHTS, Source, protocol_of
from orchestrator.models import adapters
from orchestrator.models.dtypes import dtype_name, name_of
from orchestrator.models.loading import Checkpoint, load, load_tokenizer, source_of
from orchestrator.scoring import figures
from orchestrator.scoring.asking import questions
from orchestrator.scoring.evaluate import read_metrics
from orchestrator.scoring.judge import OF_LM_EVAL, Item, protocol, rows_of
from orchestrator.store.files import placing
from orchestrator.student.card import write_card
from orchestrator.tasks import rows as data
from orchestrator.tasks.metric import Metric
from orchestrator.tasks.template import stops, tokenize
from orchestrator.transfer.lowrank import product_svd

NOT_TOLD = {
    "pass_at_1": "it would run what a model wrote outside of any sandbox",
    "win_rate": "another model's preference is no metric of its tasks",
    "loss": "the loss of gold answers is no metric of its tasks",
    "edit_success": "which tokens are the likeliest is no metric of its tasks",
}
BATCH = 8  # of the command that is told; in float32 no score depends on it
WHOLE = """    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = (kind.from_pretrained("<this folder>") for kind in (AutoModelForCausalLM, AutoTokenizer))"""
ROWS = '''"""The rows beside this file, wherever the folder lies."""

import json
from pathlib import Path

from datasets import Dataset


def test_split(**_):
    lines = (Path(__file__).parent / "rows.jsonl").read_text(encoding="utf-8").split("\\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines if line])}
'''
RESULTS = """

def results(row, answers):
    return {{name: FIGURES[name](answers[0], row) for name in {names}}}
"""
PLAIN = {"bias": "none", "lora_bias": False, "modules_to_save": None, "use_dora": False, "rank_pattern": {}}
PLAIN |= {"alpha_pattern": {}, "fan_in_fan_out": False, "target_parameters": None, "trainable_token_indices": None}


def check_target(target: Path, option: str) -> None:
    """UserError where something is there already."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{option}: {target} exists and is not empty; name a folder that doesn't")


def check_source(
    source: Source, student: Checkpoint | None, rank: int | None, *, asks: bool, packs: bool = False
) -> None:
    """UserError where what is asked for can't be made of this adapter: before anything is loaded."""
    config = source.config
    if config.get("peft_type") != "LORA":
        raise UserError(f"source: {source.folder} is {config.get('peft_type')}, no LoRA; give a LoRA adapter")
    try:
        found = adapters.read_start(source.folder)
    except (SafetensorError, KeyError) as error:
        raise UserError(f"source: {source.folder / WEIGHTS} can't be read ({error}); copy it again") from error
    if not found:
        raise UserError(f"source: {source.folder / WEIGHTS} has no LoRA factors; give a LoRA adapter")
    if student and source.identity not in (None, student.sha256):
        raise UserError(f"student: {source.student!r} isn't the model that was trained; name that one with --student")
    if rank and rank > source.rank:
        raise UserError(f"rank: {rank} is larger than the adapter's, {source.rank}; take at most {source.rank}")
    other = next((key for key, value in PLAIN.items() if (config.get(key) or value) != value), None)
    if other and (rank or packs):
        field = "rank" if rank else "pack"
        raise UserError(
            f"{field}: the adapter has {other} = {config[other]}; only plain LoRA is compressed, leave it out"
        )
    if asks and (source.evaluation is None or protocol_of(source.evaluation)[1] is None):
        raise UserError(f"lm-eval: no store has the rows that {source.folder} was scored on; give a sweep's name")
    if asks and source.evaluation and (kind := protocol_of(source.evaluation)[0]["metric"]["kind"]) in NOT_TOLD:
        raise UserError(f"lm-eval: {NOT_TOLD[kind]}; leave --lm-eval out")
    if asks and source.evaluation and (own := protocol_of(source.evaluation)[0]["metric"].get("harness")):
        raise UserError(f"lm-eval: the task is its own ({own}); give it the model that --merged DIR writes")


def merge(source: Source, student: Checkpoint, target: Path) -> dict[str, Any]:
    """The student with the adapter in its weights, in its own dtype; the arithmetic is float32."""
    dtype = student.config.dtype or torch.float32
    with placing(target, "merged") as folder:
        try:
            model, untied = merged(load(student.folder, dtype="float32"), source.folder)
        except ValueError as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"student: the adapter doesn't fit {student.name} ({why}); name its own with --student"
            ) from error
        _save(model.to(dtype), student, folder)
        facts = {"dtype": name_of(dtype), "embedding and head untied": "yes" if untied else "no"}
        about = "The student with the adapter merged into its weights: a whole model, loaded without PEFT."
        about += "" if dtype == torch.float32 else f" The sum is rounded to {facts['dtype']}, which may change answers."
        write_card(folder, {**_public(source), **facts}, about=about, load=WHOLE)
    return {"folder": str(target), "dtype": facts["dtype"], "untied": untied}


def write_lora(source: Source, target: Path, rank: int | None) -> dict[str, Any]:
    """The portable adapter as it is, or the best one of this rank, with what that loses."""
    facts, base = _public(source), _public(source)["student"]
    with placing(target, "lora") as folder:
        if rank is None:
            shutil.copyfile(source.folder / WEIGHTS, folder / WEIGHTS)
            settings = {**source.config, "base_model_name_or_path": base}
            (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
            write_card(folder, facts | {"rank of this file": source.rank})
            return {"folder": str(target), "rank": source.rank}
        told = _compress(source, folder, rank, base)
        error = f"{told['error']:.3g} of the update's Frobenius norm; worst module {told['worst_module']}"
        facts = {"score before compression" if name == "score" else name: value for name, value in facts.items()}
        facts |= {"rank of this file": f"{rank}, of {source.rank}"}
        facts |= {"error": f"{error}: {told['worst_error']:.3g}", "energy kept": f"{told['energy_kept']:.4%}"}
        about = (
            "A LoRA adapter for the untouched student, compressed: each module's update is the nearest of this rank."
        )
        write_card(folder, facts, about=about)
    return {"folder": str(target), "rank": rank, "of_rank": source.rank, **told}


def _compress(source: Source, folder: Path, rank: int, base: str) -> dict[str, Any]:
    """Module by module, the best factors of this rank of B·A, which is never formed."""
    starts, lost, energy = {}, {}, {}
    for name, (up, down) in adapters.read_start(source.folder).items():
        product = product_svd(up, down)
        kept, squares = product.truncate(rank), product.s.double().square()
        lost[name], energy[name] = float(squares[rank:].sum()), float(squares.sum())
        room = rank - len(kept.s)  # PEFT has one rank for all; a matrix smaller than it is filled up with zeros
        starts[name] = (pad(kept.u * kept.s, (0, room)), pad(kept.vh, (0, 0, 0, room)))
    scale = source.config["lora_alpha"] / source.rank ** (0.5 if source.config.get("use_rslora") else 1)
    embeddings = adapters.embeddings_of(source.folder)
    adapters.write_start(folder, starts, base_name=base, embeddings=embeddings, scale=scale)
    errors = {name: (lost[name] / energy[name]) ** 0.5 if energy[name] else 0.0 for name in starts}
    worst = max(errors, key=lambda name: errors[name])
    share = sum(lost.values()) / (sum(energy.values()) or 1.0)
    told = {"error": share**0.5, "energy_kept": 1 - share}
    return told | {"worst_module": worst, "worst_error": errors[worst]}


def write_task(source: Source, student: Checkpoint, adapter: Path, target: Path) -> dict[str, Any]:
    """The evaluation as an lm-eval task: the same rows, tokens, stops, filters and metric, in YAML.

    lm-eval's peft= resizes a student to as many rows as its tokenizer has tokens, and no adapter fits what it cuts from
    a padded vocabulary: a tokenizer with names for the padding goes along. It also ties embedding and head anew, which
    fails where a tied head is adapted: such a student goes along untied, and not merged, which would round otherwise.
    """
    assert source.evaluation
    asked, kept = protocol_of(source.evaluation)
    assert kept
    tokenizer = load_tokenizer(student.folder)
    examples, metric = data.read(kept), Metric.of(asked["metric"])
    items, judged = questions(examples, asked["template"], tokenizer, metric, asked["choices"])
    letters = "".join(letter if letter.isalnum() else "_" for letter in str(source.facts.get("task", "task")))
    name = f"pkt_{letters}"  # lm-eval has a gsm8k of its own
    config = {"task": name, **protocol(judged), "num_fewshot": 0}
    if "generation_kwargs" in config:  # what a model's own settings would fill in, as the sweep leaves it out
        ends = stops(asked["template"], tokenizer)
        config["generation_kwargs"] |= {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": ends}
    dtype = dtype_name(student.config, asked["dtype"])
    more = f",dtype={dtype}" + (",softmax_dtype=float32" if metric.chooses else "")
    padding = [f"<|padding {place}|>" for place in range(len(tokenizer), student.config.vocab_size)]

    def command(model: str, adapter: str, folder: str) -> str:
        arguments = f"pretrained={model},peft={adapter}{more}" + (f",tokenizer={folder}/tokenizer" if padding else "")
        tail = f"--tasks {name} --batch_size {BATCH} --include_path {shlex.quote(folder)}"
        return f"lm_eval run --model hf --model_args {shlex.quote(arguments)} {tail}"

    with placing(target, "lm-eval") as folder:
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        text += "custom_dataset: !function rows.test_split\n"
        if metric.kind not in OF_LM_EVAL:
            text += "process_results: !function figures.results\n"
            own = Path(figures.__file__).read_text(encoding="utf-8") + RESULTS.format(names=(metric.kind, *metric.also))
            (folder / "figures.py").write_text(own, encoding="utf-8")
        (folder / "task.yaml").write_text(text, encoding="utf-8")
        (folder / "rows.py").write_text(ROWS)
        rows = [outside(item, row, tokenizer) for item, row in zip(items, rows_of(items), strict=True)]
        lines = [json.dumps({"id": item.id, **row}, ensure_ascii=False) for item, row in zip(items, rows, strict=True)]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        about = f"The {len(items)} examples that the adapter was scored on, asked as they were, as a task for lm-eval."
        if dtype == "bfloat16":
            about += " In bfloat16, near ties may fall otherwise in other batches: lm-eval's score moves with its own."
        if padding:
            padded = deepcopy(tokenizer)  # the process' own is nobody's to change
            padded.add_tokens(padding, special_tokens=True)
            padded.save_pretrained(folder / "tokenizer")
        untied = _write_untied(student, source.folder, folder / "student")
        if untied:
            about += " `student` is the student with a head of its own, since lm-eval can't adapt a tied one."
        load = command("THIS_FOLDER/student" if untied else public_name(source.student), "ADAPTER", "THIS_FOLDER")
        write_card(folder, _public(source), about=about, load=f"    {load}")
    scores, model = read_metrics(source.evaluation), str(target / "student") if untied else student.folder
    return {"folder": str(target), "task": name, "examples": len(items), "score": scores["score"], "untied": untied,
            "metric": scores["metric"], "command": command(model, str(adapter), str(target))}  # fmt: skip


def _write_untied(student: Checkpoint, adapter: Path, folder: Path) -> bool:
    """The student with its tokenizer, its head untied, where this adapter needs that; whether it does."""
    if not student.config.tie_word_embeddings:
        return False
    model = load(student.folder, dtype=name_of(student.config.dtype or torch.float32))
    if untied := untie(model, adapter):
        _save(model, student, folder)
    return untied


def _save(model: Any, student: Checkpoint, folder: Path) -> None:
    """A whole model as transformers loads it, with the student's tokenizer."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(student.folder).save_pretrained(folder)


def outside(item: Item, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A row of choices as lm-eval has to be given it to score the tokens of training.

    It moves a question's trailing space to the choice, and takes the tokens of both less those of the question: where a
    tokenizer joins that space with what is before it, the model would be asked after other tokens. So the question ends
    before such a token, and what it lacks stands before every choice: their order stays. UserError where no end does.
    """
    from lm_eval.api.model import TemplateLM

    if not item.choices:
        return row
    reader = SimpleNamespace(backend="causal", tok_encode=lambda text: list(tokenize(text, tokenizer).input_ids))
    offsets = tokenize(item.prompt, tokenizer, return_offsets_mapping=True)["offset_mapping"]
    learnt = [[*item.ids, *ids] for ids in item.choice_ids]
    for end in [len(item.prompt), *(left for left, right in reversed(offsets) if 0 < left < right)]:
        context, rest = item.prompt[:end], item.prompt[end:]
        choices = [rest + choice for choice in item.choices]
        pairs = (TemplateLM._encode_pair(reader, context, choice) for choice in choices)
        if [asked + chosen for asked, chosen in pairs] == learnt:
            return {"prompt": context, "gold": rest + row["gold"], "choices": choices}
    raise UserError(f"lm-eval: it can't score the tokens of example {item.id!r} that were trained; leave --lm-eval out")


def _public(source: Source) -> dict[str, Any]:
    """The card's facts, the student by the name that others know it by: an alias is ours alone."""
    return source.facts | {"student": public_name(source.student)}


def public_name(student: str) -> str:
    """An alias's hub id; any other name, of a folder or of the demo, as it is."""
    try:
        found = source_of(student, "student")
    except UserError:
        return student  # a folder on the machine that trained it
    return student if found.startswith("/") else found
