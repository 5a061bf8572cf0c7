"""How finely a teacher's scores are kept: every weight's where there is room, sums over tiles above.

The rule looks at the models alone, never at the machine: the same recipe means the same numbers everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.models.families import Geometry, ModelFamily
from orchestrator.recipe import Measure
from orchestrator.transfer.metrics import IntegratedGradients
from orchestrator.transfer.place import head_dims

ROOM = 4_000_000_000  # parameters: their scores are 16 GB of float32, on every rank
LARGEST_TILE = 128
WHOLE_HEADS = ("head_aligned", "consistent")
NEEDS_SUMS = ("row_column", "consistent")


@dataclass(frozen=True)
class Scale:
    """The granularity of the pass over all layers, and whether the kept layers' single weights are scored after it."""

    granularity: int
    exact: bool = False


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
    structure: str, scale: Scale, teacher: ModelFamily, modules: Sequence[str], heads: tuple[int, int] = (1, 1)
) -> None:
    """UserError where these scores can't tell what the structure needs to know.

    `heads` are the sizes of the teacher's and the student's attention heads.
    """
    g, fused = scale.granularity, teacher.fused and any(origin != "embedding" for origin in modules)
    if structure in WHOLE_HEADS and "attention" in modules:
        try:
            head_dims(*heads)
        except ValueError as error:
            raise UserError(str(error)) from error
    if g == 1:
        return
    if structure == "head_aligned" and heads[0] != heads[1] and not scale.exact:
        raise UserError(
            f"structure: head_aligned needs exact scores to cut heads of {heads[1]} from heads of {heads[0]}, and these"
            f" are tiles of {g}; set measure.granularity=1"
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
            f"structure: {structure} needs the column sums of each matrix, and of those that {teacher.model_type} fuses"
            f" tiles of {g} tell only one sum; set measure.granularity=1"
        )


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
