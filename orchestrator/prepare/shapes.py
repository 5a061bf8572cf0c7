"""Whether models of these shapes can do what a recipe asks, told from their configs before anything is fetched."""

from __future__ import annotations

from orchestrator.errors import UserError
from orchestrator.models.families import ORIGINS, Geometry, ModelFamily, pairs
from orchestrator.recipe import Recipe
from orchestrator.teacher.scale import check_given, check_structure, scale_of, tiled_sizes
from orchestrator.transfer.arms.carried import ALIKE, Carried
from orchestrator.transfer.arms.laten import Laten
from orchestrator.transfer.arms.semalign import Semalign
from orchestrator.transfer.given import Given


def check_shapes(recipe: Recipe, family: ModelFamily, teacher: Geometry, student: Geometry) -> None:
    """UserError names the field, the value and the remedy. `family` is the teacher's."""
    sides = {role: min(student.shape(role)) for origin in ORIGINS for role in student.roles(origin)}
    role, side = min(sides.items(), key=lambda item: item[1])
    if recipe.rank > side:
        n, m = student.shape(role)
        raise UserError(
            f"rank: {recipe.rank} is larger than the student's {role} matrix, {n} x {m}; take at most {side}"
        )
    try:
        recipe.arm.check(recipe.rank, side)
    except ValueError as error:
        raise UserError(str(error)) from error
    if isinstance(recipe.arm, Laten) and "post_feedforward_layernorm" in family.norms:
        raise UserError(
            f"arm: laten can't tell what neurons of {family.model_type} write, which is normed; leave it out"
        )
    if isinstance(recipe.arm, Semalign) and (recipe.arm.layer or 0) >= student.layers:
        raise UserError(f"arm.layer: {recipe.arm.layer} of semalign, and the student's are 0 to {student.layers - 1}")
    part = recipe.finetune
    if part.micro_batch_size and part.batch_size % part.micro_batch_size:
        raise UserError(
            f"finetune.micro_batch_size: {part.micro_batch_size} doesn't divide the batch size {part.batch_size}"
        )
    if isinstance(recipe.arm, Carried):
        _check_layers(recipe.arm, teacher, student)
    if recipe.layers is None:
        return
    list(pairs(teacher, student, recipe.modules or ()))
    try:
        recipe.layers.select([0.0] * teacher.layers, student.layers)
    except ValueError as error:
        raise UserError(str(error)) from error
    scale = scale_of(recipe.measure, teacher, student)
    g = scale.granularity
    if uneven := [size for size in tiled_sizes(teacher, student) if size % g]:
        raise UserError(f"measure.granularity: {g} doesn't divide {uneven[0]}, a size of the models; 1 always does")
    if recipe.structure:
        check_structure(recipe.structure.kind, scale, family, teacher, student, recipe.modules or ())
    if isinstance(recipe.structure, Given):
        check_given(recipe.structure, teacher, student, recipe.modules or ())


def _check_layers(arm: Carried, teacher: Geometry, student: Geometry) -> None:
    """A carried update's: one of the teacher's layers may serve several of the student's."""
    if isinstance(arm.layers, ALIKE):
        return
    kind = arm.layers.kind
    try:
        chosen = arm.layers.select([0.0] * teacher.layers, student.layers)
    except ValueError as error:
        if kind == "explicit":
            raise UserError(f"arm.{error}") from error
        chosen = (-1,)
    if not all(0 <= layer < teacher.layers for layer in chosen):
        raise UserError(
            f"arm.layers: {kind} wants {student.layers} layers, and the teacher has {teacher.layers}; uniform takes"
            " some twice"
        )
