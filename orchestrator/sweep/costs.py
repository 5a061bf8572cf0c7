"""What one step takes on so many ranks: memory of the fullest, bytes sent, seconds. From sizes, without a weight.

Parameters are counted on the models' outlines (the meta device), so that biases, norms and tied matrices are exact.
Activations are counted tensor by tensor as these steps keep them; `python -m benchmarks plan` holds the sum against
measured peaks. Times are those of the matrix products at the stated FLOP/s, or of the gathers at the stated bandwidth,
whichever takes longer: attention's own products, loading and evaluation are left out. Examples are as long as the rows
are, or as they may be where nothing is known of the rows, and are batched as the steps batch them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.cluster.ranks import GATHERED
from orchestrator.models.families import pairs
from orchestrator.recipe import Recipe
from orchestrator.scoring import budgets
from orchestrator.student.batches import fitting, steps_of
from orchestrator.sweep.anatomy import Anatomy
from orchestrator.sweep.hardware import Cost, Hardware, PerRank
from orchestrator.sweep.lengths import Lengths, Row
from orchestrator.tasks.template import alike
from orchestrator.teacher.scale import Scale
from orchestrator.transfer.arms.carried import OTHERS
from orchestrator.transfer.metrics import Magnitude, Wanda
from orchestrator.transfer.scores import SLAB

GATHERS = 3  # of each parameter in a pass: forward, recomputed forward, backward
FLOAT32 = 8  # times slower than bfloat16, on tensor cores
STEP = 0.03  # seconds that a GPU takes for a batch's next token, however few: as others report of transformers
KRYLOV = 5  # blocks of the factorisation's basis (transfer/lowrank.py)


def measure_cost(
    teacher: Anatomy, recipe: Recipe, scale: Scale, ranks: int, hardware: Hardware, lengths: Lengths | None = None
) -> Cost:
    """The teacher's pass, or both passes where exact windows take two: shards, one micro-batch, statistics."""
    part, size = recipe.measure, teacher.parameters * teacher.width
    seed = (lengths or Lengths.longest(recipe)).seed
    each = sum(-(-n // scale.granularity) * -(-m // scale.granularity) + n + m for n, m in teacher.matrices)
    statistics = 4 * each
    if isinstance(part.metric, Magnitude):
        largest = max(n * m for n, m in teacher.matrices) * (teacher.width + 4)
        return Cost(1, PerRank(largest, 0, statistics, 0, hardware.process), 0, 0.0, hardware.memory)
    sharded = hardware.shards(ranks)
    recompute = hardware.cuda or sharded
    points, forward = len(part.metric.points()), isinstance(part.metric, Wanda)
    groups = alike([row.tokens for row in seed], hardware.tokens // points, -(-len(seed) // ranks))
    batches = [_batch([seed[place] for place in group]) for group in groups]
    rounds = [max(count * points * longest for count, longest, _ in some) for some in _batched(batches, ranks)]
    activations = max(
        teacher.pass_bytes(
            count * points * longest,
            longest,
            count * points * (longest if forward else kept),
            recompute=recompute,
            backward=not forward,
        )
        for count, longest, kept in dict.fromkeys(batches)
    )
    passes = 2 if scale.exact and not forward else 1
    gathered = len(rounds) * (1 if forward else GATHERS) * size * (ranks - 1) // ranks if sharded else 0
    flops = sum(rounds) * teacher.multiplied * (2 if forward else 8 if recompute else 6)
    seconds = passes * max(flops / hardware.flops, gathered / hardware.bandwidth)
    network = ranks * passes * gathered + statistics * (ranks - 1)
    need = PerRank(_held(teacher, ranks, hardware), activations, statistics, 0, hardware.process)
    return Cost(ranks, need, network, seconds, hardware.memory)


def extract_cost(
    teacher: Anatomy,
    student: Anatomy,
    recipe: Recipe,
    scale: Scale,
    ranks: int,
    hardware: Hardware,
    lengths: Lengths | None = None,
) -> Cost:
    """Blocks and factors, a matrix at a time: no rank holds more of the teacher than one."""
    single = scale.exact or scale.granularity == 1
    seed = (lengths or Lengths.longest(recipe)).seed
    rank, tokens, fullest, flops = recipe.stored_rank, sum(row.tokens for row in seed), PerRank(), 0
    width = rank + rank // 2 + 8
    for pair in pairs(teacher.geometry, student.geometry, recipe.modules or ()):
        (n, m), (height, breadth) = pair.teacher, pair.student
        scored = 1 if single and pair.layer is not None else scale.granularity**2
        sliding = 3 * 8 * SLAB
        recorded = teacher.width * max(row.tokens for row in seed) * (n + m) if scale.exact else 0
        here = PerRank(
            n * m * teacher.width + 4 * height * breadth,
            sliding + recorded,
            4 * n * m // scored,
            4 * (height + breadth) * (width * (KRYLOV + 1) + rank),
            hardware.process,
        )
        fullest = max(fullest, here, key=lambda need: need.peak_bytes)
        flops += FLOAT32 * 2 * height * breadth * width * 3 * KRYLOV + (2 * n * m * tokens if scale.exact else 0)
    return Cost(ranks, fullest, 0, flops / ranks / hardware.flops, hardware.memory)


def recorded_bytes(teacher: Anatomy, student: Anatomy, recipe: Recipe, lengths: Lengths | None = None) -> int:
    """The second pass's: each token's input and output gradient of every matrix of the kept layers, once."""
    if isinstance(recipe.measure.metric, Magnitude | Wanda):
        return 0
    roles = [
        role for origin in recipe.modules or () if origin != "embedding" for role in student.geometry.roles(origin)
    ]
    values = sum(sum(teacher.geometry.shape(role)) for role in roles) * student.geometry.layers
    return values * teacher.width * sum(row.tokens for row in (lengths or Lengths.longest(recipe)).seed)


def finetune_cost(
    student: Anatomy,
    recipe: Recipe,
    rank: int,
    hardware: Hardware,
    lengths: Lengths | None = None,
    *,
    recompute: bool = False,
) -> Cost:
    """One trial: on each device the frozen student, an adapter of rank 2r with AdamW's moments, all activations.

    With `recompute` a layer's inputs are kept, and all else of one layer at a time, for another forward pass.
    """
    part, rows = recipe.finetune, (lengths or Lengths.longest(recipe)).train
    longest = max(row.tokens for row in rows)
    workers = hardware.workers
    at_once = -(-fitting(longest, part.batch_size, part.micro_batch_size, workers) // workers)
    fullest = _batch(sorted(rows, key=lambda row: row.asked - row.tokens)[:at_once])  # rows come in any order
    tokens = fullest.size * longest
    vocab, apart = student.geometry.vocab, student.geometry.layers if recompute else 1
    dropped = [(n == vocab, tokens * (9 * m + 8 * rank)) for n, m in _adapted(student) if m != vocab]
    activations = student.pass_bytes(tokens, longest, fullest.size * fullest.kept, recompute=recompute)
    activations += sum(size if outside else size // apart for outside, size in dropped)
    numbers, steps = _adapter(student, rank), steps_of(len(rows), part.batch_size, part.epochs)
    adapter = (16 if workers == 1 else 20) * numbers  # float32: itself, its gradient, two moments; what is sent
    sent = 2 * 4 * numbers * (workers - 1) * steps  # by a ring, of each gradient
    weights, gathered = student.parameters * student.width, 0
    if hardware.sharded:
        micros = steps * part.batch_size / (at_once * workers)
        gathered = int((3 if recompute else 2) * micros * weights * (workers - 1))  # forward, anew, and backward
        live = GATHERED + max(n * m for n, m in student.matrices)
        weights = weights // workers + min(student.parameters, live) * student.width
    flops = (6 if recompute else 4) * student.multiplied * _padded(rows, at_once) * part.epochs
    need = PerRank(weights, activations, 0, adapter, hardware.process)
    seconds = max(flops / workers / hardware.flops, (sent + gathered) / workers / hardware.bandwidth)
    return Cost(workers, need, sent + gathered, seconds, hardware.trial or hardware.memory)


def score_cost(student: Anatomy, lengths: Lengths, rows: Sequence[Row], rank: int, hardware: Hardware) -> Cost:
    """A student with its adapter asked and scored on some rows: what `generate` keeps for next tokens, or logits.

    On a GPU each token of an answer takes at least STEP: launching a layer's kernels takes longer than they do.
    """
    g, b = student.geometry, student.width
    cache, fixed = 2 * g.layers * g.size("key") * b, student.parameters * b + 4 * _adapter(student, rank)
    fixed += sum(n * m for n, m in _adapted(student)) * b if b >= 4 else 0  # sums of weights and adapter
    room = (hardware.trial or hardware.memory) - fixed
    tokens = budgets.affordable(room, cache) if hardware.cuda else budgets.on_cpu(cache)
    most, seconds = _answering(student, [row.asked for row in rows], lengths.new, tokens, hardware)
    for group in _for_golds(rows, hardware):
        count, longest, _ = group
        seen = 2 * cache * min(tokens, count * longest) if lengths.choices else 0  # a question's, and its choices'
        most = max(most, _gold_bytes(student, group) + seen)
        seconds += 2 * student.multiplied * count * longest / hardware.flops
    need = PerRank(student.parameters * b, most, 0, fixed - student.parameters * b, hardware.process)
    return Cost(1, need, 0, seconds, hardware.trial or hardware.memory)


def scale_cost(
    student: Anatomy, lengths: Lengths, rank: int, hardware: Hardware, scales: int, *, by_role: bool = False
) -> Cost:
    """The losses of the validation rows' gold answers at every scale of a carried update; `by_role`: of each role's."""
    passes = scales + len(OTHERS) * len(student.family.targets) * by_role
    weights, groups = student.parameters * student.width, _for_golds(lengths.validation, hardware)
    flops = passes * 2 * student.multiplied * sum(group.size * group.longest for group in groups)
    most = max(_gold_bytes(student, group) for group in groups)
    need = PerRank(weights, most, 0, 4 * _adapter(student, rank), hardware.process)
    return Cost(1, need, 0, flops / hardware.flops, hardware.trial or hardware.memory)


def _for_golds(rows: Sequence[Row], hardware: Hardware) -> list[Batch]:
    """Rows as they go through a model for the losses of their gold answers."""
    padding = budgets.PADDING["cuda" if hardware.cuda else "cpu"]
    groups = alike([row.tokens for row in rows], budgets.TOKENS, padding=padding)
    return [_batch([rows[place] for place in group]) for group in groups]


def _gold_bytes(student: Anatomy, group: Batch) -> int:
    """What such a batch takes: logits a slice at a time."""
    vocab, b = student.geometry.vocab, student.width
    wide = min(group.size * group.kept * vocab * b, max(budgets.LOGITS, group.kept * vocab * b))
    return student.forward_bytes(group.size * group.longest, wide + 8 * group.kept * vocab)


def judge_cost(judge: Anatomy, lengths: Lengths, rows: Sequence[Row], hardware: Hardware, memory: float) -> Cost:
    """A model that judges the answers to some rows, each pair in both orders, in so many bytes of memory.

    An answer is as long as it may be, and all is counted in the student's tokens.
    """
    g, weights = judge.geometry, judge.parameters * judge.width
    cache = 2 * g.layers * g.size("key") * judge.width
    tokens = budgets.affordable(memory - weights, cache) if hardware.cuda else budgets.on_cpu(cache)
    asked = 2 * [budgets.QUESTION + row.tokens + lengths.new for row in rows]
    most, seconds = _answering(judge, asked, budgets.REPLY, tokens, hardware)
    return Cost(1, PerRank(weights, most, 0, 0, hardware.process), 0, seconds, memory)


def _answering(model: Anatomy, asked: Sequence[int], new: int, tokens: int, hardware: Hardware) -> tuple[int, float]:
    """Bytes beside the model, and seconds, of `new` tokens to questions of so many; so many `tokens` at once."""
    g, b, most, seconds = model.geometry, model.width, 0, 0.0
    cache, device = 2 * g.layers * g.size("key") * b, "cuda" if hardware.cuda else "cpu"
    for group, at_once in budgets.turns(asked, new, tokens, device) if new else ():
        count, longest = min(at_once, len(group)), asked[group[0]]
        logits = count * g.vocab * (b + 8)
        prefill = model.forward_bytes(count * longest, logits) + cache * count * longest
        most = max(most, prefill, cache * count * (longest + new) + logits)
        each = new * max(STEP if hardware.cuda else 0.0, 2 * model.multiplied * count / hardware.flops)
        read = 2 * model.multiplied * sum(asked[place] for place in group) / hardware.flops
        seconds += read + each * math.ceil(len(group) / count)
    return most, seconds


def teacher_score_cost(teacher: Anatomy, lengths: Lengths, rows: Sequence[Row], ranks: int, hardware: Hardware) -> Cost:
    """The untouched teacher asked and scored, by all ranks in step where they hold shards.

    Each forward pass then gathers them all, and an answer takes one for each of its tokens: the larger a batch, the
    fewer. A rank that holds the whole teacher gathers nothing.
    """
    g, b, new = teacher.geometry, teacher.width, lengths.new
    longest, tokens = max(row.asked for row in rows), max(row.tokens for row in rows)
    at_once = hardware.tokens // tokens if lengths.choices else hardware.answers // (longest + new)
    count = max(1, min(at_once, -(-len(rows) // ranks)))
    rounds = math.ceil(math.ceil(len(rows) / count) / ranks)
    cache, kept = 2 * g.layers * g.size("key") * b, tokens + 1 - min(row.asked for row in rows)
    judged = count if lengths.choices else min(count, max(1, budgets.TOKENS // tokens))  # whose golds go at once
    forwards = new + -(-count // judged) + bool(lengths.choices)
    logits = count * g.vocab * (b + 8)
    asking = max(teacher.forward_bytes(count * longest, logits) + cache * count * longest,
                 cache * count * (longest + new) + logits)  # fmt: skip
    golds = teacher.forward_bytes(judged * tokens, judged * kept * g.vocab * b + 8 * kept * g.vocab)
    gathered = rounds * forwards * teacher.parameters * b * (ranks - 1) // ranks if hardware.shards(ranks) else 0
    each = 2 * teacher.multiplied * count / hardware.flops  # seconds of a token of each row
    answering = new * max(STEP if hardware.cuda else 0.0, each)
    seconds = max(rounds * (each * (longest + tokens) + answering), gathered / hardware.bandwidth)
    need = PerRank(_held(teacher, ranks, hardware), max(golds, asking if new else 0), 0, 0, hardware.process)
    return Cost(ranks, need, ranks * gathered, seconds, hardware.memory)


def _held(teacher: Anatomy, ranks: int, hardware: Hardware) -> int:
    """Bytes of the teacher's weights on a rank: all, or its shard and what is gathered at once."""
    size = teacher.parameters * teacher.width
    live = min(teacher.parameters, GATHERED + max(n * m for n, m in teacher.matrices)) * teacher.width
    shard = 0 if hardware.offload and hardware.cuda else size // ranks
    return live + shard if hardware.shards(ranks) else size


def _adapted(student: Anatomy) -> list[tuple[int, int]]:
    """The matrices that get an adapter; a tied one gets two, as embedding and as head."""
    g = student.geometry
    tied = [(g.vocab, g.hidden)] * (2 - sum(shape == (g.vocab, g.hidden) for shape in student.matrices))
    return [(n, m) for n, m in student.matrices if n > 1 and m > 1] + tied


def _adapter(student: Anatomy, rank: int) -> int:
    """Numbers of an adapter whose half is frozen."""
    return sum(2 * rank * (n + m) for n, m in _adapted(student))


class Batch(NamedTuple):
    """Rows that go through a model together: how many, the longest's tokens, and at how many places logits are kept."""

    size: int
    longest: int
    kept: int


def _batch(rows: Sequence[Row]) -> Batch:
    longest = max(row.tokens for row in rows)
    return Batch(len(rows), longest, longest + 1 - max(1, min(row.asked for row in rows)))


def _padded(rows: Sequence[Row], at_once: int) -> int:
    """Tokens of an epoch, padding too: rows come in a random order, so many at once."""
    order = random.Random(0).sample([row.tokens for row in rows], len(rows))
    return sum(len(part) * max(part) for part in _batched(order, at_once))


def _batched(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """So many at once, in their order."""
    return [items[first : first + size] for first in range(0, len(items), size)]
