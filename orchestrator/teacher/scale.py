"""How finely a teacher's scores are kept: every weight's where there is room, sums over tiles above.

The rule looks at the models alone, never at the machine: the same recipe means the same numbers everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.models.families import AXES, Geometry, ModelFamily, pairs
from orchestrator.recipe import Measure
from orchestrator.transfer.given import UNITS, Given
from orchestrator.transfer.metrics import IntegratedGradients
from orchestrator.transfer.place import enough_heads, head_dims

ROOM = 4_000_000_000  # parameters: their scores are 16 GB of float32, on every rank
LARGEST_TILE = 128
WHOLE_HEADS = ("head_aligned", "consistent", "given")
NEEDS_SUMS = ("row_column", "consistent")


@dataclass(frozen=True)
class Scale:
    """The granularity of the pass over all layers, and whether the kept layers' single weights are scored after it."""

    granularity: int
    exact: bool = False

    def __str__(self) -> str:
        """For people."""
        if self.exact:
            return "exact windows in two passes"
        return "exact windows" if self.granularity == 1 else f"windows on tiles of {self.granularity}"


def scale_of(measure: Measure, teacher: Geometry, student: Geometry) -> Scale:
    """What the recipe asks for; by default 1, or the largest common tile where a teacher is too large for that.

    UserError for what can't go together.
    """
    fits = scored(teacher) <= ROOM
    g = measure.granularity if measure.granularity != "auto" else 1 if fits or measure.passes == 2 else None
    if g is None:
        return Scale(common_tile(teacher, student))
    twice = measure.passes == 2 or (measure.passes == "auto" and g == 1 and not fits)
    if not twice:
        return Scale(g)
    if g != 1:
        raise UserError(f"measure.granularity: {g} needs one pass, two are for exact scores; leave measure.passes out")
    if isinstance(measure.metric, IntegratedGradients):
        raise UserError(
            "measure.metric: integrated_gradients has exact scores in one pass only; set measure.passes=1 if there is"
            " room for them, or leave measure.granularity out"
        )
    return Scale(common_tile(teacher, student), exact=True)


def check_structure(
    structure: str, scale: Scale, family: ModelFamily, teacher: Geometry, student: Geometry, modules: tuple[str, ...]
) -> None:
    """UserError where these scores, or these models' heads, can't give the structure what it needs.

    `family` is the teacher's.
    """
    g, fused = scale.granularity, family.fused and any(origin != "embedding" for origin in modules)
    if structure in WHOLE_HEADS and "attention" in modules:
        keys = next(pair.teacher[0] for pair in pairs(teacher, student, ("attention",)) if pair.role == "k")
        try:
            head_dims(teacher.head_dim, student.head_dim)
            enough_heads(teacher.heads, student.heads)
            if structure == "head_aligned":
                enough_heads(keys // teacher.head_dim, student.kv_heads)
        except ValueError as error:
            raise UserError(str(error)) from error
    if g == 1:
        return
    if structure == "head_aligned" and teacher.head_dim != student.head_dim and not scale.exact:
        raise UserError(
            f"structure: head_aligned needs exact scores to cut heads of {student.head_dim} from heads of"
            f" {teacher.head_dim}, and these are tiles of {g}; set measure.granularity=1"
        )
    if structure == "neuron" and not scale.exact:
        raise UserError(f"structure: neuron needs exact scores, and these are tiles of {g}; set measure.granularity=1")
    if structure == "neuron" and "embedding" in modules:
        raise UserError(
            "structure: neuron needs exact scores, which two passes don't have of embeddings; leave them out with"
            " --modules attention,ffn"
        )
    if structure in NEEDS_SUMS and fused and not scale.exact:
        raise UserError(
            f"structure: {structure} needs the column sums of each matrix, and of those that {family.model_type} fuses"
            f" tiles of {g} tell only one sum; set measure.granularity=1"
        )


def check_given(structure: Given, teacher: Geometry, student: Geometry, modules: tuple[str, ...]) -> None:
    """UserError where the listed indices are not as many as the student has units, or the teacher lacks one."""
    for pair in pairs(teacher, student, modules):
        for axis, theirs, own in zip(AXES[pair.role], pair.teacher, pair.student, strict=True):
            heads = (teacher.head_dim, student.head_dim) if axis in ("query", "key") else (1, 1)
            try:
                if axis in UNITS:
                    structure.units(axis, theirs // heads[0], own // heads[1])
            except ValueError as error:
                raise UserError(str(error)) from error


def scored(teacher: Geometry) -> int:
    """How many weights of the teacher's are in matrices that can be cut."""
    inner = sum(math.prod(teacher.shape(role)) for origin in ("attention", "ffn") for role in teacher.roles(origin))
    return teacher.layers * inner + 2 * math.prod(teacher.shape("embed"))


def common_tile(teacher: Geometry, student: Geometry) -> int:
    """The largest granularity at which windows start and end on tiles."""
    common = math.gcd(*tiled_sizes(teacher, student))
    return max(g for g in range(1, LARGEST_TILE + 1) if common % g == 0)


def tiled_sizes(teacher: Geometry, student: Geometry) -> list[int]:
    """The sizes that tiles have to divide."""
    return [size for model in (teacher, student) for size in (model.head_dim, model.hidden, model.ffn)]
