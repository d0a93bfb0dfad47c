"""Sampling, scores against MPPC, and the figures of §5."""

import numpy as np
import pandas as pd
import pytest

from lib.interpret import complexity
from lib.interpret.judges import Example, RuleJudge
from lib.plots import complexity as complexity_plots
from lib.workbook import judged_features
from lib.workbook.profiles import get_profile

LABELS = list(judged_features.variants(get_profile("mini")).values())
ACROSS = LABELS[-1]
WEAKER = "SAE seed", ACROSS


def made_scores(n=400, slope=1.0, seed=0):
    """MPPC falls with complexity; for the SAE seed much less."""
    rng = np.random.default_rng(seed)
    score = rng.integers(1, 6, n)
    noise = lambda: rng.normal(0, 0.08, n)  # noqa: E731
    return pd.DataFrame({
        "layer": 0, "index": np.arange(n), "judge": "made up",
        "complexity": score.astype(float), "monosemanticity": 6.0 - score,
        "SAE seed": 0.8 - 0.02 * slope * score + noise(), "model seed": 0.9 - 0.1 * slope * score + noise(),
        "Pythia → Mamba": 0.85 - 0.14 * slope * score + noise(),
    })  # fmt: skip


def test_samples_are_spread_evenly_and_seeded():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"layer": np.repeat([0, 1], 1_000), "index": np.tile(np.arange(1_000), 2)})
    frame["mppc"] = np.where(rng.random(2_000) < 0.01, np.nan, rng.beta(5, 2, 2_000))
    chosen = complexity.stratified_features(frame, 100, seed=1)
    strata = chosen.groupby(["layer", (chosen["mppc"] * 5).astype(int)]).size()
    assert strata.max() == 10 and chosen["mppc"].notna().all() and not chosen.duplicated(["layer", "index"]).any()
    rare = ((frame["mppc"] * 5) < 1) & (frame["layer"] == 0)
    assert strata.get((0, 0), 0) == min(10, rare.sum())
    pd.testing.assert_frame_equal(chosen, complexity.stratified_features(frame, 100, seed=1))
    assert not chosen.equals(complexity.stratified_features(frame, 100, seed=2))


def test_correlations_find_what_is_there_and_nothing_else():
    found = complexity.correlations(made_scores(), "complexity", LABELS, 0, 200, WEAKER).set_index("variant")
    assert (found["high"][LABELS] < 0).all()
    assert found["low"].iloc[-1] > 0  # weaker for the SAE seed
    flat = complexity.correlations(made_scores(slope=0), "complexity", LABELS, 0, 200, WEAKER).set_index("variant")
    assert (
        (flat["spearman"].iloc[:3].abs() < 0.15).all()
        and (flat["low"].iloc[:3] < 0.05).all()
        and (flat["high"].iloc[:3] > -0.05).all()
    )
    scores = made_scores(50)
    expected = scores["complexity"].corr(scores["SAE seed"], method="spearman")
    found = complexity.correlations(scores, "complexity", ["SAE seed"], 0, 10).set_index("variant")
    assert list(found.index) == ["SAE seed"] and found["spearman"]["SAE seed"] == pytest.approx(expected)
    wide = complexity.correlations(scores, "complexity", ["SAE seed"], 0, 10, deviations={"SAE seed": 0.1}).iloc[0]
    half = found["high"]["SAE seed"] - expected
    assert wide["high"] - expected == pytest.approx(np.hypot(half, 0.196))
    assert wide["spearman"] == pytest.approx(expected)


def test_boundary_lies_between_clear_and_unclear():
    scores = made_scores()
    scores["Pythia → Mamba"] = np.where(scores["monosemanticity"] < 3, 0.1, 0.5)
    assert complexity.boundary(scores, ACROSS) == {"boundary": 0.5, "youden": 1}


def made_pairs():
    """Below 0.2: 30 pairs, of which 20 are unreadable on the left, 15 on the right, 10 on both; above: one pair."""
    own = [1.0] * 20 + [4.0] * 10 + [5.0]
    match = [2.0] * 10 + [3.0] * 10 + [1.0] * 5 + [5.0] * 6
    mppc = [0.1] * 30 + [0.9]
    return pd.DataFrame({"monosemanticity": own, "match_monosemanticity": match, ACROSS: mppc})


def test_unreadable_pairs_are_counted_on_either_side_and_on_both():
    found = complexity.unreadable(made_pairs(), ACROSS).set_index(["MPPC", "side"])
    low = found.loc["< 0.2"]
    assert (low["share"] * 30).round(6).to_dict() == {"own": 20, "match": 15, "both": 10} and (low["n"] == 30).all()
    assert (low["low"] < low["share"]).all() and (low["share"] < low["high"]).all()
    middle, half = (20 + 1.96**2 / 2) / (30 + 1.96**2), 1.96 / (30 + 1.96**2) * (20 * 10 / 30 + 1.96**2 / 4) ** 0.5
    np.testing.assert_allclose(low.loc["own", ["low", "high"]].astype(float), [middle - half, middle + half], atol=1e-4)
    assert found.loc["> 0.8"]["share"].tolist() == [0, 0, 0]


def test_a_pair_with_a_missing_score_is_not_counted():
    pairs = made_pairs()
    pairs.loc[:4, "match_monosemanticity"] = np.nan
    assert complexity.unreadable(pairs, ACROSS)["n"].tolist() == [25, 25, 25, 1, 1, 1]


def test_the_share_of_unreadable_pairs_is_drawn_as_it_is():
    shares = complexity.unreadable(made_pairs(), ACROSS)
    axes = complexity_plots.fig_unreadable(shares, "judge: made up").axes[0]
    heights = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert heights == [shares.loc[shares["side"] == side, "share"].tolist() for side in ("own", "match", "both")]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["< 0.2\nn = 30", "> 0.8\nn = 1"]


def test_cases_are_near_their_targets():
    scores = made_scores()
    cases = complexity.case_studies(scores, ACROSS, (0.7, 0.3))
    assert len(cases) == 2 and abs(cases["Pythia → Mamba"].to_numpy() - [0.7, 0.3]).max() < 0.05


def test_what_is_drawn_below_a_fifth_does_not_depend_on_scores():
    scores = made_scores()
    drawn = complexity.drawn_below(scores, ACROSS, seed=0, n=8)
    assert len(drawn) == 8 and (drawn[ACROSS] < 0.2).all() and drawn[ACROSS].is_monotonic_increasing
    turned = scores.assign(monosemanticity=6 - scores["monosemanticity"], complexity=1.0)
    assert drawn.index.equals(complexity.drawn_below(turned, ACROSS, seed=0, n=8).index)
    assert not drawn.index.equals(complexity.drawn_below(scores, ACROSS, seed=1, n=8).index)


def test_malformed_answers_are_nan():
    class Mute:
        name = "mute"

        def score(self, features):
            return [RuleJudge().score([[]])[0] for _ in features]

    sample = complexity.Sample(pd.DataFrame({"layer": [0], "index": [1]}), [[]])
    assert complexity.scored(sample, Mute())[["complexity", "monosemanticity"]].isna().all(axis=None)


def test_pairs_show_the_boxed_token_and_leave_mathematics_alone():
    example = Example(("cost", " $5", " and", " $6", "\n"), (0, 3.0, 0, 0, 0), 1)
    pair = complexity_plots.Pair("MPPC 0.97", [example], [example])
    figure = complexity_plots.fig_feature_pairs([pair], "Pythia", "Mamba", note="stand-in")
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert " $5" in texts and " and $6↵" in texts and figure.axes[0].texts[1].get_bbox_patch() is not None


def test_what_the_font_lacks_is_a_box_and_a_line_s_end_an_arrow():
    assert complexity_plots.shown("a\ufffd\n語é") == "a▯↵▯é"


def test_figure_5_names_the_judge_and_draws_rare_scores_as_points():
    scores = made_scores()
    scores.loc[scores["complexity"] == 5, "complexity"] = 4.0
    scores.loc[0, "complexity"] = 5.0
    figure = complexity_plots.fig_complexity(scores, LABELS)
    assert figure.get_suptitle() == "scored by: made up"
    counts = scores["complexity"].value_counts()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{s}\nn = {counts[s]}" for s in (1, 2, 3, 4, 5)]
    points = np.concatenate([dots.get_offsets() for dots in axes.collections])
    np.testing.assert_allclose(sorted(points[:, 1]), sorted(scores.loc[0, LABELS].astype(float)))
