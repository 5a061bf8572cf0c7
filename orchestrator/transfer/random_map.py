"""Maps that know nothing: orthogonal ones drawn at random, the same for all matrices that share channels."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.transfer.arms.twosided import TwoSided
from orchestrator.transfer.sides import Side


@dataclass(frozen=True)
class RandomMap(TwoSided):
    """The control of every map: whatever an update through it does, no correspondence of channels did.

    One map serves the residual stream of all layers, and one each axis of a layer, so that what the update's matrices
    have to do with each other stays. A map is orthogonal where the student is no narrower, and keeps random
    orthonormal directions of the teacher's where it is: two rounds of random signs and a Hartley transform, in random
    order, take r·m·log m operations and no m x m matrix.
    """

    seed: int
    neurons: str = "after"

    def read(self, z: Float[Tensor, "r mt"], side: Side) -> Float[Tensor, "r ms"]:
        """z through the map of these channels."""
        layer = None if side.axis == "residual" else side.layer
        draw = random.Random(f"{self.seed} {side.axis} {layer}")  # a string's seed is the same on every machine
        generator = torch.Generator().manual_seed(draw.getrandbits(63))
        theirs, own = side.widths
        width = max(theirs, own)
        kept = torch.randperm(width, generator=generator)[:own]
        found = torch.nn.functional.pad(z.double(), (0, width - theirs))
        for _ in range(2):
            signs = torch.randint(2, (width,), generator=generator).double() * 2 - 1
            found = _hartley(found * signs.to(z.device))
        return found[:, kept.to(z.device)].to(z.dtype)

    written = read


def _hartley(z: Float[Tensor, "r m"]) -> Float[Tensor, "r m"]:
    """The orthonormal discrete Hartley transform: real, and its own inverse."""
    found = torch.fft.fft(z, norm="ortho")
    return found.real - found.imag
