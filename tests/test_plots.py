"""Figures show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from lib import plots
from lib.plots import ideas
from lib.plots.style import PALETTE
from lib.sae import SparseAutoencoder


def density():
    return plots.fig_mppc_density({"Pythia → Mamba": [0.2, 0.4, np.nan], "SAE seed": [0.8]}, {"SAE seed": (0.7, 0.9)})


def test_density_leaves_out_dead_features_and_cuts_nothing_off():
    axes = density().axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words == ["Pythia → Mamba: mean 0.300, n = 2", "SAE seed: mean 0.800 [0.700, 0.900], n = 1"]
    tops = [patch.get_data().values.max() for patch in axes.patches]
    heights = [text.get_position()[1] for text in axes.texts]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > max(*tops, *heights)
    assert tops[0] < heights[0] and tops[-1] < heights[1]  # each row's words stand above it


def test_a_comparison_looks_the_same_in_every_figure_and_has_the_colour_of_its_model():
    alone = plots.fig_mppc_density({"SAE seed": [0.5]}).axes[0].patches[1]
    second = density().axes[0].patches[3]
    assert alone.get_edgecolor() == second.get_edgecolor()
    models = {"Pythia → Mamba": "mamba", "Mamba → Pythia": "mamba", "Pythia → RWKV": "rwkv", "model seed": "seed"}
    models |= {"mini-pythia → mini-mamba": "mamba", "gpt2 → RWKV/rwkv-4": "rwkv", "SAE seed, gpt2": "pythia"}
    for label, model in (models | {"SAE seed": "pythia"}).items():
        line = plots.fig_share_above({label: [0.5, 0.6]}).axes[0].lines[0]
        assert to_rgb(line.get_color()) == to_rgb(PALETTE[model])
    unknown = plots.fig_share_above({"gpt2 → llama": [0.5, 0.6]}).axes[0].lines[0]
    assert to_rgb(unknown.get_color()) not in [to_rgb(colour) for colour in PALETTE.values()]


def test_intervals_are_explained_where_there_are_some():
    said = "vertical line: mean [95 % interval]"
    assert density().axes[0].get_title(loc="left") == said
    assert plots.fig_mppc_density({"SAE seed": [0.5]}).axes[0].get_title(loc="left") == "vertical line: mean"


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
    assert [frame.get_xy() for frame in axes.patches[:2]] == [(0, 1), (1, 3)]  # around layers 1 and 3
    assert axes.get_ylim() == (0, 4)  # layer 0 at the bottom


def test_cells_of_a_small_map_have_their_values():
    words = [
        text.get_text() for text in plots.fig_depth_map(np.array([[1.0, 0], [0.25, 0.75]]), "a", "b").axes[0].texts
    ]
    assert sorted(words) == ["0.00", "0.25", "0.75", "1.00"]
    assert not plots.fig_depth_map(np.full((12, 24), 1 / 24), "a", "b").axes[0].texts


def test_nulls_stand_beside_what_they_are_held_against():
    panels = {name: {"Pythia → Mamba": [0.2, 0.6, np.nan], name: [0.1, 0.1]} for name in ("one", "other")}
    figure = plots.fig_nulls(panels, {"one": "+0.30", "other": "+0.31"})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one\n+0.30", "other\n+0.31"]
    for axes, name in zip(figure.axes, panels):
        assert [text.get_text() for text in axes.texts] == ["Pythia → Mamba\nn = 2", f"{name}\nn = 2"]


def test_controls_have_a_marker_for_every_mean():
    table = pd.DataFrame([("SAE seed", "all", 0.7, 0.69, 0.71), ("model seed", "all", 0.6, 0.59, 0.61),
                          ("SAE seed", "half", 0.65, 0.65, 0.65)],
                         columns=["comparison", "measure", "mean", "low", "high"])  # fmt: skip
    axes = plots.fig_controls(table).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.700", "0.600", "0.650"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["SAE seed", "model seed"]


def test_lines_by_depth_are_named_at_their_ends():
    heights = {"SAE seed": 0.7, "Pythia → Mamba": 0.5}
    rows = [(name, layer, y, y - 0.01, y + 0.01) for name, y in heights.items() for layer in range(3)]
    table = pd.DataFrame(rows, columns=["comparison", "layer", "mean", "low", "high"])
    top, bottom = plots.fig_depth_lines(table, table[table["comparison"] == "Pythia → Mamba"].assign(mean=0.2)).axes
    assert [text.get_text() for text in top.texts] == ["Pythia → Mamba", "SAE seed"]
    assert [text.get_text() for text in bottom.texts] == ["Pythia → Mamba"]
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), 0.2)


def test_difference_names_its_middle_90_percent():
    axes = plots.fig_mppc_difference(pd.Series(np.linspace(-0.5, 0.5, 1001))).axes[0]
    assert "90 % of features: [−0.45, +0.45]" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_trade_off_has_a_panel_per_setting_and_measure_and_marks_the_own_setting():
    tried = {"expansion": (7, 8), "sae_tokens": (7, 250_000)}
    rows = [{"setting": setting, "value": v, "mppc": v / 1e6, "explained_variance": 0.9, "l0": 30, "dead": 0.1}
            for setting in tried for v in tried[setting]]  # fmt: skip
    figure = plots.fig_sae_trade_off(pd.DataFrame(rows))
    assert len(figure.axes) == 8
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["7", "250k"]
    faces = figure.axes[0].collections[0].get_facecolors()
    assert faces[0].tolist() == [1, 1, 1, 1] and faces[1].tolist() != [1, 1, 1, 1]  # 7 stands under both settings


def test_models_stand_in_their_own_colours_beside_the_cells_between_them():
    names = ["mini-pythia", "mini-pythia-seed1", "mini-mamba-seed1"]
    values = np.array([[0.7, 0.6, 0.5], [0.61, 0.71, 0.51], [0.52, 0.53, 0.72]])
    means = pd.DataFrame(values, names, names)
    axes = plots.fig_between_models(means, means / 100).axes[0]
    assert [text.get_text() for text in axes.texts] == [f"{v:.2f}\n±{v / 100:.3f}" for v in values.ravel()]
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["pythia", "pythia-seed1", "mamba-seed1"]
        colours = [plots.ink(PALETTE[family]) for family in ("pythia", "seed", "mamba")]
        assert [to_rgb(tick.get_color()) for tick in ticks] == colours


def test_retraining_has_a_panel_per_setting_and_a_line_per_comparison_named_once():
    tried = {"sae_tokens": (1e6, 2e6, 4e6), "expansion": (4, 8), "model_tokens": (1.2e7, 2.4e7)}
    names = ["SAE seed", "model seed", "Pythia → Mamba"]
    rows = [{"setting": s, "value": v, "comparison": name, "mppc": 0.7 - 0.1 * k}
            for s in tried for v in tried[s] for k, name in enumerate(names)]  # fmt: skip
    figure = plots.fig_retraining(pd.DataFrame(rows), dict.fromkeys(names, 0.01))
    drawn = [axes for axes in figure.axes if axes.lines]
    assert len(drawn) == 3 and all(len(axes.containers) == 3 for axes in drawn)
    assert np.ptp(drawn[0].containers[0].lines[2][0].get_segments()[0][:, 1]) == pytest.approx(0.04)
    assert len({axes.get_ylim() for axes in drawn}) == 1 and all(axes.get_xscale() == "log" for axes in drawn)
    assert [sorted(t.get_text() for t in axes.texts) for axes in drawn] == [[], sorted(names), []]
    assert len({line.get_color() for line in drawn[0].lines}) == 3
    assert [tick.get_text() for tick in drawn[0].get_xticklabels()] == ["1M", "2M", "4M"]


def test_a_model_has_one_colour_whatever_its_full_name():
    assert plots.model_colour("mini-mamba") == plots.model_colour("state-spaces/mamba-130m-hf")
    names = ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m-seed1", "mini-mamba", "RWKV/rwkv-4-169m-pile")
    assert len({plots.model_colour(name) for name in names}) == 4


def test_training_shows_every_value_even_where_an_sae_is_worse_than_the_mean():
    history = pd.DataFrame({"model": "mini-mamba", "layer": 0, "tokens": range(3), "l0": [900, 40, 30],
                            "explained_variance": [0.9, -20.0, 0.8]})  # fmt: skip
    lower = plots.fig_sae_training(history).axes[1]
    assert lower.get_ylim()[1] >= 21 and lower.get_ylim()[0] <= 0.1


def test_what_models_can_do_has_a_panel_for_each_ability_and_a_colour_for_each_model():
    names = ["mini-pythia", "mini-pythia-seed1", "mini-mamba", "mini-rwkv"]
    training = pd.DataFrame({"model": np.repeat(names, 2), "tokens": [1e6, 2e6] * 4})
    training[["bits_per_byte", "repeats_8", "repeats_64", "association_8", "ioi", "cost_of_a_8"]] = 0.5
    axes = plots.fig_abilities(training).axes
    assert len(axes) == 6 and {tuple(line.get_color()) for line in axes[0].lines} == {*map(plots.model_colour, names)}
    assert len(axes[0].lines) == 4 and len(axes[3].lines) == 5  # and chance


def test_both_sae_seeds_are_seen():
    quality = pd.DataFrame({"model": "mini-pythia", "layer": [0, 1, 0, 1], "seed": [0, 0, 1, 1], "l0": 30,
                            "explained_variance": 0.9, "ce_recovered": 0.9, "dead": 0.0})  # fmt: skip
    first, second = plots.fig_sae_quality(quality).axes[0].lines
    assert first.get_markerfacecolor() == "none" and first.get_markersize() > second.get_markersize()


def test_a_token_s_features_are_drawn_in_order():
    sae, x = SparseAutoencoder(4, 8), torch.eye(4)
    axes = plots.fig_one_token(sae, x, 0.1).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert (
        heights == pytest.approx(sorted(sae.encode(x)[0].tolist(), reverse=True))
        and "of 8 features" in axes.get_title()
    )


@pytest.mark.parametrize("draw", [f for f in vars(ideas).values() if getattr(f, "__module__", "") == ideas.__name__
                                  and not f.__name__.startswith("_")], ids=lambda f: f.__name__)  # fmt: skip
def test_a_picture_of_an_idea_is_closed_and_has_no_number_of_a_run(draw):
    figure = draw()
    figure.canvas.draw()
    assert not plots.plt.fignum_exists(figure.number) and draw.__doc__.startswith("Notebook ")


# ------------------------------------------------------------------------------------------- choosing


def named(colour):
    figure, axes = plots.plt.subplots()
    axes.set_title(colour)
    return figure


def test_without_a_browser_the_first_choice_is_a_still(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    figure = plots.pick(named, "a colour", colour=["red", "blue"])
    assert figure.axes[0].get_title() == "red" and not plots.plt.fignum_exists(figure.number)
    assert figure._repr_mimebundle_()[1] == {"image/png": {"alt": "a colour"}}


def test_in_a_browser_there_is_a_menu_for_each_choice(monkeypatch):
    made = {}
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    monkeypatch.setattr("ipywidgets.interact", lambda draw, **menus: made.update(menus, drawn=draw))
    assert plots.pick(named, "a colour", colour=["red", "blue"]) is None
    assert made["colour"].options == ("red", "blue") and made["drawn"](colour="blue").axes[0].get_title() == "blue"
