"""What a carried update's folder says of its maps is what the picture shows; a sentence names where they are poor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from orchestrator.report.arrivals import CARRIED, Arrival, arrival_of, arrivals_picture


def folder(tmp_path: Path, modules: dict[str, dict[str, float]]) -> Path:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / CARRIED).write_text(json.dumps({"layers": [[[0, 1.0]]], "modules": modules}))
    return tmp_path


def said(read: float, written: float, arrived: float = 1.0) -> dict[str, float]:
    return {"read": read, "written": written, "arrived": arrived, "norm": 2.0}


def test_a_figure_a_matrix_and_the_worst_is_named(tmp_path: Path) -> None:
    modules = {
        "model.layers.0.self_attn.q_proj": said(0.9, 0.8, 1.2), "model.layers.1.mlp.down_proj": said(0.7, -0.25, 0.4),
        "model.embed_tokens": said(math.nan, 0.9),
    }  # fmt: skip
    one = arrival_of("ridge", folder(tmp_path, modules))
    assert one and one.roles == ["q", "down"]
    np.testing.assert_allclose(one.figures["written"], [[0.8, math.nan], [math.nan, -0.25]])
    np.testing.assert_allclose(one.figures["arrived"], [[1.2, math.nan], [math.nan, 0.4]])
    assert one.poor.startswith("ridge: of 1 of 2 matrices the maps explain less than half")
    assert one.poor.endswith("least of down in layer 1 (-0.25).")
    figure = arrivals_picture([one])
    shown = [axes for axes in figure.axes if axes.axison]
    titles = ["R² of what the update reads", "R² of what it writes into", "share of its norm that arrives"]
    assert [axes.get_title("left") for axes in shown] == [f"ridge: {title}" for title in titles]
    assert [text.get_text() for text in shown[2].texts] == ["1.20", "0.40"]
    np.testing.assert_allclose(shown[1].images[0].get_array().filled(9), [[0.8, 9], [9, -0.25]])


def test_what_shares_a_matrix_has_one_figure(tmp_path: Path) -> None:
    phi = {"model.layers.0.self_attn.qkv_proj": said(0.9, 0.8), "model.layers.0.mlp.down_proj": said(0.9, 0.9)}
    one = arrival_of("ridge", folder(tmp_path, phi))
    assert one and one.roles == ["q+k+v", "down"] and not one.poor


@pytest.mark.parametrize("modules", [{"other.weights": said(0.1, 0.1)}, {}])
def test_nothing_is_said_of_what_is_not_known(tmp_path: Path, modules: dict[str, dict[str, float]]) -> None:
    assert arrival_of("ridge", folder(tmp_path, modules)) is None


def test_maps_of_weights_say_nothing_of_how_good_they_are(tmp_path: Path) -> None:
    one = arrival_of("cross_lora", folder(tmp_path, {"model.layers.0.self_attn.q_proj": {"arrived": 0.4, "norm": 1.0}}))
    assert one and one.figures.keys() == {"arrived"} and not one.poor
    assert isinstance(one, Arrival)
