"""Figures show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest

from lib import plots


def density():
    return plots.fig_mppc_density({"Pythia → Mamba": [0.2, 0.4, np.nan], "SAE seed": [0.8]}, {"SAE seed": (0.7, 0.9)})


def test_density_leaves_out_dead_features_and_cuts_nothing_off():
    axes = density().axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["Pythia → Mamba: mean 0.300, n = 2", "SAE seed: mean 0.800 [0.700, 0.900], n = 1"]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > max(line.get_ydata().max() for line in axes.lines if len(line.get_ydata()) > 2)


def test_a_comparison_looks_the_same_in_every_figure():
    alone = plots.fig_mppc_density({"SAE seed": [0.5]}).axes[0].lines[0]
    second = density().axes[0].lines[2]
    assert (alone.get_color(), alone.get_linestyle()) == (second.get_color(), second.get_linestyle())


def test_intervals_are_explained_where_there_are_some():
    assert density().axes[0].get_legend().get_title().get_text() == "mean [95 % interval, documents resampled]"
    assert plots.fig_mppc_density({"SAE seed": [0.5]}).axes[0].get_legend().get_title().get_text() == ""


def test_share_above_falls_from_one_and_leaves_out_dead_features():
    axes = plots.fig_share_above({"SAE seed": [0.2, 0.4, 0.6, 0.8, np.nan], "null: SAE seed": [0.1, 0.1]}).axes[0]
    real, null = axes.lines
    assert dict(zip(real.get_xdata(), real.get_ydata()))[0.4] == pytest.approx(0.5)  # two of four lie above
    assert real.get_ydata().max() == 1 and real.get_ydata().min() == 0 and null.get_xdata().max() == 0.1
    assert real.get_color() == null.get_color() and real.get_linestyle() != null.get_linestyle()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SAE seed, n = 4", "null: SAE seed, n = 2"]


def test_numbers_have_the_minus_of_print():
    assert (plots.signed(-0.256), plots.signed(1, 1)) == ("−0.26", "+1.0")


def test_depth_map_has_own_layers_along_x():
    shares = np.array([[1.0, 0, 0, 0], [0, 0, 0.5, 0.5]])
    axes = plots.fig_depth_map(shares, "Pythia", "Mamba").axes[0]
    mesh = axes.collections[0].get_array().reshape(4, 2)
    np.testing.assert_array_equal(mesh, shares.T)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1.5, 3.5])  # the centres of layers 1 and 3
    assert axes.get_ylim() == (0, 4)  # layer 0 at the bottom


def test_difference_names_its_middle_90_percent():
    axes = plots.fig_mppc_difference(pd.Series(np.linspace(-0.5, 0.5, 1001))).axes[0]
    assert "90 % of features: [−0.45, +0.45]" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_layers_are_grouped_from_early_to_late():
    frame = pd.DataFrame({"layer": np.repeat(range(8), 5), "mppc": np.linspace(0, 1, 40)})
    labels = [text.get_text() for text in plots.fig_density_by_layer(frame).axes[0].get_legend().get_texts()]
    assert [label.split(":")[0] for label in labels] == ["layers 0–1", "layers 2–3", "layers 4–5", "layers 6–7"]


def test_trade_off_has_a_panel_per_choice_and_measure():
    rows = [{"choice": choice, "value": v, "reproducibility": 0.5, "explained_variance": 0.9, "l0": 30, "seconds": 9}
            for choice in ("expansion", "sae_tokens") for v in (1, 250_000)]  # fmt: skip
    figure = plots.fig_sae_trade_off(pd.DataFrame(rows))
    assert len(figure.axes) == 8
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["1", "250k"]
