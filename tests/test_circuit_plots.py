"""Figures of the circuits show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from lib.circuits.induction import SHIFTS
from lib.circuits.ioi import effects_table
from lib.circuits.prompts import ROLES
from lib.plots import circuits as circuit_plots, state_animation


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_path_patching_has_three_runs():
    titles = [axes.get_title() for axes in circuit_plots.fig_path_patching().axes]
    assert titles == ["clean run", "corrupted run", "third run: one path patched"]


def test_mamba_circuit_writes_its_effects():
    inputs = {"A1": 0.0, "B1": 0.1, "B1+1": -8.0, "B1+2": -1.0, "B1+3": 0.0}
    figure = circuit_plots.fig_mamba_circuit(inputs, {"B1": -7.5}, {"A1": -6.5, "B1": 0.001}, "B1+1", 17, -9.0)
    shown = words(figure.axes[0])
    assert {"−8.00", "−1.00", "−7.50", "−6.50", "−9.00", "state of layer 17"} <= set(shown)
    assert "+0.00" not in shown and shown.count("0") == 2 and "+0.10" in shown  # small, but not nothing


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
    axes = circuit_plots.fig_state_by_distance({"ours": table}).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_array().reshape(2, 2), [[1, 3], [2, 4]])


@pytest.mark.parametrize("cells, limits", [([-3.0, 0.1], (-3, 0)), ([-3.0, 2.0], (-3, 3)), ([0.5, 0.2], (-0.5, 0.5))])
def test_two_colours_only_where_both_signs_occur(cells, limits):
    assert circuit_plots._limits(np.array(cells)) == limits


def test_all_maps_are_in_logits_and_on_one_scale():
    maps = {"a": np.full((2, 4, 5), -3.0), "b": np.full((2, 4, 5), -1.0)}
    panels = [axes.collections[0] for axes in circuit_plots.fig_circuit_maps(maps).axes if axes.get_title()]
    assert [float(panel.get_array().min()) for panel in panels] == [-3, -3, -1, -1]
    assert {panel.get_clim() for panel in panels} == {(-3, 0)}


def test_every_pair_of_models_is_a_dot():
    rows = [("Transformer, two models", True, "as it is", 0.9), ("Transformer and Mamba", False, "as it is", -0.2),
            ("Transformer and Mamba", False, "Mamba one position earlier", 0.8)]  # fmt: skip
    pairs = pd.DataFrame(rows, columns=["kind", "same", "reading", "roles"]).assign(roles_and_depth=0.1)
    left, right = circuit_plots.fig_similarities(pairs, 0.8).axes
    assert [line.get_xdata()[0] for line in left.lines[:3]] == [0.9, -0.2, 0.8]
    last = left.get_yticklabels()[2].get_text()
    assert last == "Transformer and Mamba,\nMamba one position earlier (n = 1)"


def taken_in(effects):
    """A frame of `induction.taken_in_frame`, the same for A and B."""
    parts = [
        pd.DataFrame({"corrupt": corrupt, "position": range(len(effects)), "mean_logit_diff": effects})
        for corrupt in ("A′", "B′")
    ]
    return pd.concat(parts)


def test_what_is_taken_in_is_a_share_of_the_whole():
    frames = {"Transformer": taken_in([0, 0, -4, *[-4.0] * 7]), "Mamba": taken_in([0, 0, -1, *[-2.0] * 7])}
    np.testing.assert_allclose(circuit_plots.held_shares(frames["Mamba"], "B′")[:4], [0, 0, 0.5, 1])
    lines = circuit_plots.fig_taken_in(frames).axes[1].lines[:2]
    assert [list(line.get_ydata()[:3]) for line in lines] == [[0, 1, 1], [0, 0.5, 1]]
    page = BeautifulSoup(state_animation.taken_in_page(frames), "html.parser")
    assert not page.select("script, link, img") and len(page.select("svg .frame")) == 8
    second = [text.get_text() for text in page.select("svg .frame")[1].select("text")]
    assert second.count("100%") == 2 and second.count("50%") == 2  # after B: Transformer and Mamba, A and B


def test_shifts_and_time_mixing_are_drawn():
    rows = [(shift, "input", "B′", role, -1.0) for shift in SHIFTS for role in ROLES]
    rows += [(shift, "logit", c, None, -2.0) for shift in SHIFTS for c in ("A′", "B′")]
    frame = pd.DataFrame(rows, columns=["shift", "measure", "corrupt", "position", "mean_logit_diff"])
    left, right = circuit_plots.fig_shifts(frame).axes[:2]
    assert [label.get_text() for label in left.get_yticklabels()] == list(SHIFTS)
    assert {bar.get_width() for bar in right.patches} == {2.0}
    values = {0: np.array([1.0, 2.0]), 1: np.array([4.0, 8.0])}
    left, right = circuit_plots.fig_time_mixing(values, {k: v / 10 for k, v in values.items()}).axes
    assert left.get_xscale() == "log" and len(left.lines) == len(right.lines) == 2


@pytest.mark.parametrize("idea", ["induction", "off_by_one", "looking_back"])
def test_ideas_are_drawn_without_data(idea):
    assert getattr(circuit_plots, f"fig_idea_{idea}")().axes
