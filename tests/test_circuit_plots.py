"""Figures of the circuits show the numbers that they are given."""

import numpy as np
import pandas as pd

from lib.circuits.ioi import effects_table
from lib.plots import circuits as circuit_plots


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_path_patching_has_three_runs():
    titles = [axes.get_title() for axes in circuit_plots.fig_path_patching().axes]
    assert titles == ["clean run", "corrupted run", "third run: one path patched"]


def test_mamba_circuit_writes_its_effects():
    inputs = {"A1": 0.0, "B1": 0.1, "B1+1": -8.0, "B1+2": -1.0, "B1+3": 0.0}
    figure = circuit_plots.fig_mamba_circuit(inputs, {"B1": -7.5}, {"A1": -6.5, "B1": 0.001}, "B1+1", 17, -9.0)
    shown = words(figure.axes[0])
    assert {"−8.00", "−1.00", "−7.50", "−6.50", "−9.00", "state h, layer 17"} <= set(shown)
    assert "+0.00" not in shown  # effects too small to draw are left out


def test_transformer_circuit_names_the_heads_that_matter():
    heads = pd.DataFrame(
        {"layer": [5, 9, 8], "head": [0, 4, 2], "mean_logit_diff": [-2.0, -1.2, -0.1], "attention": 0.9}
    )
    shown = " ".join(words(circuit_plots.fig_transformer_circuit(heads.iloc[:1], heads).axes[0]))
    assert "induction head L5H0: −2.00" in shown and "L9H4" in shown and "L8H2" not in shown
    assert "previous-token head L5H0" in shown


def test_names_are_split_into_two_halves_per_token():
    effects = np.arange(12.0).reshape(2, 3, 2)
    axes = circuit_plots.fig_names(effects_table(effects, ["BOS", "x", "\n"])).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_array().reshape(2, 6), effects.reshape(2, 6))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["BOS", "x", "\\n"]
    assert axes.get_ylim() == (0, 2)  # layer 0 at the bottom


def test_heads_and_states_have_layer_zero_at_the_bottom():
    heads = pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "mean_logit_diff": [0.0, -1.0, 0.5, 0.0]})
    panels = circuit_plots.fig_head_effects({"one": heads, "two": heads}).axes[:2]
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    np.testing.assert_array_equal(panels[0].collections[0].get_array().reshape(2, 2), [[0, -1], [0.5, 0]])
    assert words(panels[0]) == ["0", "−1.0", "+0.5", "0"]
    table = pd.DataFrame({"distance": [8, 8, 16, 16], "layer": [0, 1, 0, 1], "mean_logit_diff": [1.0, 2, 3, 4]})
    axes = circuit_plots.fig_state_by_distance(table).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_array().reshape(2, 2), [[1, 3], [2, 4]])


def test_maps_are_shares_of_their_strongest_cell():
    figure = circuit_plots.fig_circuit_maps({"a": np.full((2, 4, 5), -3.0), "b": np.ones((2, 4, 5))})
    values = [axes.collections[0].get_array() for axes in figure.axes if axes.get_title()]
    assert len(values) == 4 and {float(v.min()) for v in values} == {-1.0, 1.0}
