"""Maps between channels: what they must give back where it is known, and what they must agree with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy
import torch
from scipy import optimize
from torch import Tensor

from orchestrator.transfer.arms import ARMS
from orchestrator.transfer.arms.carried import Carried
from orchestrator.transfer.random_map import RandomMap
from orchestrator.transfer.regression import PENALTIES, fitted, through
from orchestrator.transfer.rotation import rotation
from orchestrator.transfer.sides import Matrix, Side, Tokens, explained, norm_of


def rotated(z: Tensor, teacher: Tensor, student: Tensor, **how: Any) -> Tensor:
    u, vh = rotation(teacher, student, **how)
    return z @ u @ vh


GENERATOR = torch.Generator()
METHODS = [
    kind
    for kind, arm in ARMS.items()
    if issubclass(arm, Carried)
    and not arm.is_control
    and arm.takes_update
    and arm.reads == "texts"
    and kind != "merged"
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    GENERATOR.manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(drawn(size, size)).Q


def carried(kind: str, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], held: int = 40) -> tuple[Tensor, ...]:
    """B and A of the teacher, B' and A' of the student, and how good the maps are."""
    b, a = drawn(y[0].shape[1], 4), drawn(4, x[0].shape[1])
    arm = ARMS[kind]()
    assert isinstance(arm, Carried)
    (b_s, a_s), good = arm.carry(Matrix(b, a, Side(*x, held), Side(*y, held)))
    return b, a, b_s, a_s, torch.tensor([good["read"], good["written"]])


@pytest.mark.parametrize("tokens", [200, 60])  # more than channels, and fewer: then inside what they span
@pytest.mark.parametrize("kind", METHODS)
def test_a_teacher_that_is_the_student_gives_the_update_itself(kind: str, tokens: int) -> None:
    basis = drawn(12, 48), drawn(10, 40)  # directions that both the tokens and the update have
    x, y = drawn(tokens, 12) @ basis[0], drawn(tokens, 10) @ basis[1]
    b, a = (drawn(4, 10) @ basis[1]).t(), drawn(4, 12) @ basis[0]
    (b_s, a_s), good = ARMS[kind]().carry(Matrix(b, a, Side(x, x, 20), Side(y, y, 20)))  # type: ignore[attr-defined]
    torch.testing.assert_close(b_s @ a_s, b @ a, rtol=1e-4, atol=1e-4)
    assert min(good.values()) > 0.999


@pytest.mark.parametrize("kind", METHODS)
def test_rotated_and_permuted_channels_give_the_rotated_update(kind: str) -> None:
    x, y, turn, shuffle = drawn(300, 32), drawn(300, 24), orthogonal(32), torch.randperm(24, generator=GENERATOR)
    b, a, b_s, a_s, good = carried(kind, (x, x @ turn), (y, y[:, shuffle]))
    torch.testing.assert_close(b_s @ a_s, (b @ a @ turn)[shuffle], rtol=1e-4, atol=1e-4)
    assert good.min() > 0.999


def test_ridge_undoes_any_invertible_map_and_a_wider_student() -> None:
    """What the update does to the student's inputs is what it did to the teacher's, seen in the student's outputs."""
    x, y, mix, wide = drawn(400, 32), drawn(400, 24), drawn(32, 32), drawn(24, 36)
    b, a, b_s, a_s, good = carried("ridge", (x, x @ mix), (y, y @ wide))
    torch.testing.assert_close(x @ mix @ (b_s @ a_s).t(), x @ (b @ a).t() @ wide, rtol=1e-4, atol=1e-3)
    assert good.min() > 0.999


def test_a_bound_keeps_what_texts_seldom_have_from_growing() -> None:
    """Ridge follows directions of which there is next to nothing; within the bound the others are followed as well."""
    directions, weak = orthogonal(32), torch.ones(32, dtype=torch.float64)
    weak[16:] = 1e-4
    x = drawn(400, 32)
    student = (x * weak) @ directions
    y = drawn(400, 24)
    b, a, *free, good = carried("ridge", (x, student), (y, y))
    arm = ARMS["ridge_bounded"]()
    assert isinstance(arm, Carried)
    kept, bounded = arm.carry(Matrix(b, a, Side(x, student, 40), Side(y, y, 40)))
    longer = float(x[:-40].norm() / student[:-40].norm())
    assert norm_of(*free) > 100 * norm_of(b, a)
    assert norm_of(*kept) <= norm_of(b, a) * longer * (1 + 1e-5)
    assert good[0] > 0.99 and 0.3 < bounded["read"] < 0.7  # half of what is read is of the weak directions


def sized(**options: Any) -> tuple[Carried, Carried]:
    """Rotations with sizes and without."""
    arms = tuple(ARMS[kind].model_validate({"kind": kind, **options}) for kind in ("theseus_scaled", "theseus"))
    assert isinstance(arms[0], Carried) and isinstance(arms[1], Carried)
    return arms[0], arms[1]


def test_a_scaled_copy_gives_the_update_at_its_scale() -> None:
    turn = torch.linalg.qr(drawn(24, 24))[0]
    x, y, b, a = drawn(400, 24), drawn(400, 24), drawn(24, 4), drawn(4, 24)
    (up, down), good = sized()[0].carry(Matrix(b, a, Side(x, 3 * x @ turn, 40), Side(y, y @ turn / 5, 40)))
    torch.testing.assert_close(up, turn.t() @ b / 5, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(down, a @ turn / 3, rtol=1e-5, atol=1e-6)
    assert good == pytest.approx({"read": 1, "written": 1})


@pytest.mark.parametrize("options", [{}, {"centre": True}, {"whiten": 0.5}], ids=str)
@pytest.mark.parametrize("held", [40, 0])
@pytest.mark.parametrize(("tokens", "theirs", "own"), [(400, 24, 16), (400, 16, 24), (52, 24, 16), (52, 16, 24)])
def test_the_size_of_a_rotation_is_that_of_least_squares(
    tokens: int, theirs: int, own: int, held: int, options: dict[str, Any]
) -> None:
    """By a search over sizes on the tokens that it is taken on; with more and fewer channels, and fewer tokens."""
    common = drawn(tokens, 20)
    side = Side(
        common @ drawn(20, theirs) + drawn(tokens, theirs) + 3, common @ drawn(20, own) + drawn(tokens, own) - 3, held
    )
    arm, plain = sized(**options)
    rotated, a = plain.read(torch.eye(theirs, dtype=torch.float64), side), drawn(4, theirs)  # T (m_T, m_S)
    judged = side.unseen if held else side
    x, y = judged.teacher, judged.student
    if options.get("centre"):
        x, y = x - x.mean(0), y - y.mean(0)
    for way, error in (
        (arm.read, lambda size: float((x - size * y @ rotated.t()).square().sum())),
        (arm.written, lambda size: float((y - size * x @ rotated).square().sum())),
    ):
        best = optimize.minimize_scalar(error, bounds=(0, 5), method="bounded", options={"xatol": 1e-10}).x
        torch.testing.assert_close(way(a, side), best * (a @ rotated), rtol=1e-4, atol=1e-5)


def test_what_has_nothing_in_common_has_no_size_and_what_is_opposed_none_below_zero() -> None:
    x, a = drawn(400, 96), drawn(4, 96)
    arm, plain = sized()
    apart = Side(x, drawn(400, 96), 80)
    assert float(arm.read(a, apart).norm()) < 0.05 * float(plain.read(a, apart).norm())
    until = len(x) - 80
    opposed = Side(x, torch.cat([x[:until], -x[until:]]), 80)
    for side in (opposed, Side(0 * x, x, 80), Side(x, 0 * x, 80)):
        assert float(arm.read(a, side).norm()) == float(arm.written(a, side).norm()) == 0


@pytest.mark.parametrize("held", [40, 0])
def test_a_bounded_update_is_no_longer_however_it_is_factored(held: int) -> None:
    """Where a direction that grows is small in A and large in B; where no penalty is within the bound; with no token
    to choose a penalty by."""
    weak = torch.ones(32, dtype=torch.float64)
    weak[16:] = 1e-4
    x, y = drawn(400, 32), drawn(400, 24)
    narrow = torch.zeros(24, dtype=torch.float64)
    narrow[0] = 1  # all that the student writes is in one channel
    b, a = drawn(24, 4), drawn(4, 32)
    a[0], b[:, 0] = a[0] * (weak < 1) / 20, b[:, 0] * 20
    arm = ARMS["ridge_bounded"]()
    assert isinstance(arm, Carried)
    for student, written in ((x * weak, y), (x, y.sum(1, keepdim=True) * narrow)):
        sides = Side(x, student, held), Side(y, written, held)
        fitted = [side.fitted for side in sides]
        read, wrote = (float(side.student.norm() / side.teacher.norm()) for side in fitted)
        kept, _ = arm.carry(Matrix(b, a, *sides))
        assert norm_of(*kept) <= norm_of(b, a) / read * wrote * (1 + 1e-5)
        uneven = torch.tensor([10.0, 0.1, 1, 1], dtype=torch.float64)
        again, _ = arm.carry(Matrix(b * uneven, a / uneven[:, None], *sides))
        torch.testing.assert_close(again[0] @ again[1], kept[0] @ kept[1], rtol=1e-4, atol=1e-5)


def test_shuffled_texts_explain_nothing() -> None:
    x, y = drawn(300, 16), drawn(300, 16)
    shuffle = torch.randperm(300, generator=GENERATOR)
    *_, good = carried("ridge", (x, x[shuffle]), (y, y[shuffle]))
    assert good.max() < 0.05


@pytest.mark.parametrize("tokens", [60, 30])
def test_the_regression_is_numpys_and_needs_no_whole_map(tokens: int) -> None:
    """Least squares where tokens are more than channels; the interpolation of least norm where they are fewer."""
    x, y, z = drawn(tokens, 40), drawn(tokens, 7), drawn(3, 40)
    whole = torch.from_numpy(np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0])
    torch.testing.assert_close(fitted(x, y, 0), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(through(z, x, y, 0), z @ whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [90, 50])
def test_the_penalty_is_the_best_of_the_grid_on_what_is_held_out(tokens: int) -> None:
    x = drawn(tokens, 40)
    y = x @ drawn(40, 5) + 4 * drawn(tokens, 5)
    seen, held = x[:-20], 20
    gram = seen.t() @ seen
    mean = (gram if len(seen) >= 40 else seen @ seen.t()).diagonal().mean()
    each = [torch.linalg.solve(gram + one * mean * torch.eye(40), seen.t() @ y[:-20]) for one in PENALTIES]
    best = max(each, key=lambda found: explained(y[-20:], x[-20:] @ found))
    torch.testing.assert_close(fitted(x, y, held), best, rtol=1e-6, atol=1e-6)
    z = drawn(3, 40)
    torch.testing.assert_close(through(z, x, y, held), z @ best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tokens", [200, 20])
@pytest.mark.parametrize("centre", [False, True])
def test_the_rotation_is_procrustes_own(tokens: int, centre: bool) -> None:
    """Of the whole cross-covariance's SVD, by NumPy; from fewer tokens within what they span."""
    teacher, student, z = drawn(tokens, 48), drawn(tokens, 30), drawn(3, 48)
    one, other = (part - part.mean(0) if centre else part for part in (teacher, student))
    u, s, vh = np.linalg.svd((one.t() @ other).numpy(), full_matrices=False)
    kept = s > 1e-10 * s.max()
    whole = torch.from_numpy(u[:, kept] @ vh[kept])
    torch.testing.assert_close(rotated(z, teacher, student, centre=centre), z @ whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("tokens", [200, 20])
@pytest.mark.parametrize("power", [0.25, 0.5])
def test_a_whitened_rotation_is_procrustes_of_whitened_activations(tokens: int, power: float) -> None:
    """Each side through a power of its own Gram matrix, by SciPy's eigenvalues; the larger of 30 channels by scale."""
    teacher, student, z = drawn(tokens, 48), drawn(tokens, 30) * torch.arange(1, 31), drawn(3, 48)
    sides = []
    for one in (teacher.numpy(), student.numpy()):
        values, vectors = scipy.linalg.eigh(one.T @ one)
        kept = values > 1e-9 * values.max()
        sides.append(one @ (vectors[:, kept] * values[kept] ** -power) @ vectors[:, kept].T)
    u, s, vh = np.linalg.svd(sides[0].T @ sides[1], full_matrices=False)
    kept = s > 1e-10 * s.max()
    found = rotated(z, teacher, student, whiten=power)
    torch.testing.assert_close(found, z @ torch.from_numpy(u[:, kept] @ vh[kept]), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, rotated(z, teacher, student), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("widths", [(48, 48), (48, 64), (64, 48)])
def test_a_random_map_is_orthogonal_and_one_for_all_that_share_channels(widths: tuple[int, int]) -> None:
    theirs, own = widths
    side = Side(torch.empty(0, theirs), torch.empty(0, own), 0, "residual", 3)
    whole = RandomMap(1).read(torch.eye(theirs, dtype=torch.float64), side)
    square = whole @ whole.t() if own >= theirs else whole.t() @ whole
    torch.testing.assert_close(square, torch.eye(min(widths), dtype=torch.float64), rtol=1e-9, atol=1e-9)
    z = drawn(3, theirs)
    elsewhere = Side(side.teacher, side.student, 0, "residual", 0)
    torch.testing.assert_close(RandomMap(1).written(z, elsewhere), z @ whole, rtol=1e-9, atol=1e-9)
    for other in (RandomMap(2).read(z, side), RandomMap(1).read(z, Side(side.teacher, side.student, 0, "ffn", 3))):
        assert float((other - z @ whole).norm()) > 0.5 * float(z.norm())


def test_tokens_are_matched_by_name_and_what_the_teacher_lacks_is_zero() -> None:
    z = drawn(2, 5)
    found = Tokens(torch.tensor([4, -1, 0])).pick(z)
    assert torch.equal(found[:, 0], z[:, 4]) and torch.equal(found[:, 2], z[:, 0]) and not found[:, 1].any()


def test_norms_and_explained_shares_are_those_of_whole_matrices() -> None:
    b, a, y = drawn(20, 3), drawn(3, 30), drawn(50, 4)
    assert norm_of(b, a) == pytest.approx(float((b @ a).norm()))
    assert explained(y, y) == 1.0 and explained(y, y.mean(0).expand_as(y)) == pytest.approx(0.0)


def test_cross_lora_is_the_identity_between_equal_bases_within_their_main_directions() -> None:
    w = drawn(20, 30)
    u, _, vh = np.linalg.svd(w.numpy(), full_matrices=False)
    b, a = torch.from_numpy(u[:, :9]) @ drawn(9, 3), drawn(3, 9) @ torch.from_numpy(vh[:9])
    nothing = Side(torch.empty(0, 30), torch.empty(0, 30)), Side(torch.empty(0, 20), torch.empty(0, 20))
    arm = ARMS["cross_lora"](directions=9)  # type: ignore[call-arg]
    assert isinstance(arm, Carried)
    (b_s, a_s), _ = arm.carry(Matrix(b, a, *nothing, weights=(w.float(), w.float())))
    torch.testing.assert_close(b_s @ a_s, (b @ a).float(), rtol=1e-4, atol=1e-4)


def test_cross_lora_is_theseus_without_data() -> None:
    """The nearest rotation to what both Gram matrices' leading eigenvectors make, however they are weighted."""
    theirs, own, k = drawn(20, 30), drawn(12, 16), 5
    b, a = drawn(20, 3), drawn(3, 30)
    turned = []
    for weights, grams in ((drawn(k).abs() + 0.1, (0, 0)), (drawn(k).abs() + 0.1, (1, 1))):
        ends = []
        for w, side in zip((theirs, own), grams, strict=True):
            gram = (w @ w.t() if side == 0 else w.t() @ w).numpy()
            leading = scipy.linalg.eigh(gram)[1][:, ::-1][:, :k].copy()
            left = np.linalg.svd(w.numpy())[0][:, :k]
            own_left = leading if side == 0 else w.numpy() @ leading
            leading *= np.sign((own_left * left).sum(0)) * np.sign(left[np.abs(left).argmax(0), np.arange(k)])
            ends.append(torch.from_numpy(leading))
        turned.append((ends[0] * weights, ends[1]))
    (y_t, y_s), (x_t, x_s) = turned
    by_theseus = rotated(b.t(), y_t.t(), y_s.t()).t() @ rotated(a, x_t.t(), x_s.t())
    nothing = Side(torch.empty(0, 30), torch.empty(0, 16)), Side(torch.empty(0, 20), torch.empty(0, 12))
    (b_s, a_s), _ = ARMS["cross_lora"](directions=k).carry(  # type: ignore[attr-defined, call-arg]
        Matrix(b, a, *nothing, weights=(theirs.float(), own.float()))
    )
    torch.testing.assert_close((b_s @ a_s).double(), by_theseus, rtol=1e-3, atol=1e-3)


def test_cross_lora_takes_each_of_the_teachers_main_directions_to_the_students_of_the_same_rank() -> None:
    theirs, own, k = drawn(20, 30), drawn(12, 16), 5
    (u_t, _, v_t), (u_s, _, v_s) = (np.linalg.svd(w.numpy(), full_matrices=False) for w in (theirs, own))
    b, a = torch.from_numpy(u_t[:, 2:3].copy()), torch.from_numpy(v_t[4:5].copy())
    nothing = Side(torch.empty(0, 30), torch.empty(0, 16)), Side(torch.empty(0, 20), torch.empty(0, 12))
    (b_s, a_s), _ = ARMS["cross_lora"](directions=k).carry(  # type: ignore[attr-defined, call-arg]
        Matrix(b, a, *nothing, weights=(theirs.float(), own.float()))
    )
    whole = (b_s @ a_s).double().numpy()
    assert abs(float(u_s[:, 2] @ whole @ v_s[4])) == pytest.approx(1, abs=1e-4)
    assert np.linalg.norm(whole) == pytest.approx(1, abs=1e-4)
