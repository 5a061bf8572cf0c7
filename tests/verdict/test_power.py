"""What could be found at all, against scipy's own noncentral t distribution."""

from __future__ import annotations

import pytest
from scipy import optimize, stats

from orchestrator.verdict.estimates import Estimate
from orchestrator.verdict.power import LEVEL, POWER, smallest_effect


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 11, 47, 199, 6_143, 6_291_455])
@pytest.mark.parametrize("comparisons", [1, 3, 10, 55])
@pytest.mark.parametrize("examples", [1, 9, 1000])
def test_the_smallest_effect_is_claimed_four_times_of_five(freedom: int, comparisons: int, examples: int) -> None:
    """With two test rows and millions of seeds, too, where the distribution's far end has no value."""
    found = Estimate(0.0, 0.02, 0.5, (freedom, examples))
    level = LEVEL / comparisons
    needed = float(stats.t.isf(level / 2, freedom) + stats.t.isf(level / 2, examples)) / 2
    shift = optimize.brentq(lambda by: stats.nct.sf(needed, freedom, by) - POWER, 0, needed * 4 + 10)
    assert smallest_effect(found, comparisons) == pytest.approx(shift * 0.02, rel=1e-4)
