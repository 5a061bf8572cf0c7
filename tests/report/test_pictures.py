"""How pictures put what they show in order."""

from __future__ import annotations

import numpy as np

from orchestrator.report.map_picture import taken
from orchestrator.report.maps import summed
from orchestrator.report.pictures import spread


def test_cells_names_and_ticks_are_put_in_order() -> None:
    tiles = np.arange(130.0 * 3).reshape(130, 3)
    cells, factors = summed(tiles)
    assert (cells.shape, factors) == ((44, 3), (3, 1))
    assert cells[43, 0] == tiles[129, 0]
    places = spread(np.array([0.0, 0.0, 0.1, 5.0]), 1.0)
    assert np.all(np.diff(places) >= 1 - 1e-9)
    assert np.all(np.diff(spread(np.array([0.0, 2.0, 4.0]), 1.0)) == 2.0)
    middles, shares = taken([0, 5], 10)
    assert (middles.tolist(), shares.tolist()) == ([0.5, 5.5], [1.0, 1.0])
    middles, shares = taken(list(range(128)), 256)
    assert (len(middles), set(shares)) == (64, {1.0})
