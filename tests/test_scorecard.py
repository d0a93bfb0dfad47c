"""The scorecard: all of both papers on it, values from files alone, and a rule that gives each verdict."""

import re
import shutil

import pandas as pd
import pytest

from lib.circuits import effect_tables
from lib.workbook import reference, results, scorecard
from lib.workbook.notebooks import cells_with_places
from lib.workbook.outputs import register
from lib.workbook.profiles import HOME, get_profile
from lib.workbook.scorecard import (
    BY_RULES,
    DIFFERS,
    FINDING,
    INCONCLUSIVE,
    NOT_RUN,
    OTHER_SETTING,
    RANDOM,
    REPRODUCED,
    SCALE,
    UNSTATED,
)

MINI = HOME / "figures" / "mini"
REFERENCE = HOME / "data" / "reference"
ITEMS = {item.id: item for item in scorecard.items()}
JUDGED_FIGURES = ("fig_04_case_studies", "fig_05_complexity", "fig_12_uninterpretable")


@pytest.fixture
def run(tmp_path):
    """The mini profile with copies of its committed tables, to be altered."""
    shutil.copytree(
        MINI, tmp_path / "mini", ignore=lambda _, names: [name for name in names if not name.endswith(".csv")]
    )
    return get_profile("mini", figures=tmp_path)


def alter(profile, table, where, **values):
    path = profile.figures_dir / f"{table}.csv"
    frame = pd.read_csv(path)
    column, _, wanted = where.partition("=")
    chosen = frame.index[frame["id"] == wanted] if column == "id" else results.rows(table, where, profile).index
    for column, value in values.items():
        frame.loc[chosen, column] = value
    frame.to_csv(path, index=False)


def row(profile, name):
    return scorecard.card(profile, [ITEMS[name]]).iloc[0]


def test_every_figure_table_appendix_and_equation_is_on_the_card():
    parts = " ".join(item.part for item in ITEMS.values())
    wanted = [
        f"Fig. {n}" for n in (1, 2, "3a", "3b", "3c", 4, "5a", "5b", 6, "7a", "7b", 8, "9a", "9b", 10, 11, 12, 13)
    ]
    wanted += [f"Table {n}" for n in (1, 2, 3, 4)] + [f"App. {x}" for x in "ABCDEFGH"] + ["eqs. 1–7", "eq. 8", "L, "]
    wanted += [
        f"§{n}" for n in ("3.2", "4.2.1", "4.2.2", "4.3.1", "4.3.2", "4.4", "4.5", "5.1", "5.2", "6.1", "6.2", "6.3")
    ]
    assert [name for name in wanted if name not in parts] == []
    assert len(ITEMS) == len(scorecard.items())  # no id twice


def test_every_claim_of_every_notebook_is_on_the_card():
    recorded = [(name, path.stem) for path in MINI.glob("table_claims_*.csv") for name in pd.read_csv(path)["id"]]
    asked = {(item.id, item.table) for item in ITEMS.values() if item.table.startswith("table_claims_")}
    assert len(recorded) > 30 and len(set(recorded)) == len(recorded) and set(recorded) == asked


def test_notebooks_record_what_is_committed():
    """The ids in the notebooks' cells are those of the committed tables."""
    for path in MINI.glob("table_claims_*.csv"):
        [notebook] = [
            text
            for file in (HOME / "notebooks").glob("*.ipynb")
            if f'\\"{path.stem}\\"' in (text := file.read_text("utf-8"))
        ]
        assert [name for name in pd.read_csv(path)["id"] if f'\\"{name}\\"' not in notebook] == []


def test_every_headline_number_is_used():
    used = {item.paper_where for item in ITEMS.values() if item.paper_table == "paper_headline_numbers"}
    heads = {f"{layer}.{head}" for layer, head in re.findall(r"L(\d+)H(\d+)", ITEMS["w-7b-heads"].says)}
    for number in pd.read_csv(REFERENCE / "paper_headline_numbers.csv", dtype=str).itertuples():
        if number.quantity in ("induction_head", "previous_token_head"):  # read from the released file itself
            assert number.value in heads
        else:
            assert f"quantity={number.quantity} & comparison={number.comparison}" in used


def test_what_is_said_of_the_released_runs_stands_in_their_files():
    states = reference.released("mamba130m").query("experiment == 'final_state_by_layer'").astype({"index": int})
    assert (effect_tables.strongest(states, "index") + 1) / len(states) == float(ITEMS["w-t1-released"].value)
    heads = reference.released("pythia160m")
    to_logits, to_head = (heads[(heads["experiment"] == "head_to_logit") == which] for which in (True, False))
    receiver, sender = (table.loc[table["mean_logit_diff"].idxmin()] for table in (to_logits, to_head))
    effect = sender["mean_logit_diff"]
    said = f"L{sender['layer']}H{sender['head']} → L{receiver['layer']}H{receiver['head']}: {effect:.2f}"
    assert said == ITEMS["w-7b-heads"].says and float(ITEMS["w-7b-heads"].value) == pytest.approx(effect / 2, abs=0.01)


def test_every_item_has_a_kind_a_place_in_the_workbook_and_a_known_test_limit_and_reading():
    limits = set(pd.read_csv(REFERENCE / "scale_limits.csv")["id"])
    places = {place for cells in cells_with_places().values() for _, place in cells}
    for item in ITEMS.values():
        assert scorecard.place_of(item) in places, item.id
        assert item.test in scorecard.TESTS and item.reduce in ("", *results.READINGS), item.id
        kind, _, repeated = item.kind.partition(" ")
        assert kind == FINDING or kind in scorecard.KINDS, item.id
        assert (kind == scorecard.ADDITION) == (item.test == ""), item.id
        assert not repeated or ITEMS[repeated].kind == FINDING, item.id
        assert item.judge in ("", "complexity", "monosemanticity"), item.id
    assert limits == {item.limit for item in ITEMS.values()} - {""}


def test_what_rests_on_the_judge_says_so():
    judged = {item.id for item in ITEMS.values() if item.place.startswith("06_") or item.figure in JUDGED_FIGURES}
    assert judged - {"w-e-complexity", "w-e-monosemanticity"} == {item.id for item in ITEMS.values() if item.judge}


def test_every_output_of_a_notebook_is_registered_where_it_is_made():
    named = {"explorer": "explorer.write(", "lan_umap": "lan_umap.html", "state_animation": "state_animation.html",
             "table_checks": "claims.check("}  # fmt: skip
    cells = [cell for cells in cells_with_places().values() for cell in cells]
    for name, entry in register().items():
        text = named.get(name, f'"{name}"')
        assert any(text in source and place == entry.place for source, place in cells) and len(entry.caption) > 20, name
    saved = {name for source, _ in cells for name in re.findall(r'"((?:lan_)?fig_\w+|table_\w+)"', source)}
    assert len(saved) > 60 and saved <= set(register())


def test_values_come_from_the_files(run):
    before, table = row(run, "w-3a-mamba"), pd.read_csv(run.figures_dir / "table_mppc_summary.csv")
    (found,) = table[(table["comparison"] == "Pythia → Mamba") & (table["direction"] == "forward")].itertuples()
    assert before.ours == f"{found.mean:.3f}" and before.paper == "0.740"
    assert before.interval == f"{found.low:.3f} to {found.high:.3f}"
    alter(run, "table_mppc_summary", "comparison=Pythia → Mamba & direction=forward", mean=0.72, low=0.71, high=0.73)
    after = row(run, "w-3a-mamba")
    assert (after.ours, after.interval, after.verdict) == ("0.720", "0.710 to 0.730", REPRODUCED)


def test_a_limit_accounts_for_a_difference_only_while_its_experiment_does_not_refute_it(run):
    alter(run, "table_mppc_summary", "comparison=SAE seed & direction=forward", mean=0.68)
    assert row(run, "w-3a-mamba")[["verdict", "why"]].tolist() == [
        SCALE,
        "Mean MPPC of two SAEs of the same activations, which two models can hardly exceed: 0.680. "
        "It would have had to be 0.690 or more to refute this limit.",
    ]
    alter(run, "table_mppc_summary", "comparison=SAE seed & direction=forward", mean=0.69)
    refuted = row(run, "w-3a-mamba")
    assert refuted.verdict == DIFFERS and refuted.why.endswith("It is 0.690 or more, which refutes this limit.")
    alter(run, "table_mppc_summary", "comparison=SAE seed & direction=forward", mean=0.82)
    assert row(run, "w-3a-sae").verdict == REPRODUCED


def test_a_limit_that_has_not_been_measured_accounts_for_nothing(run):
    alter(run, "table_depth_slope", "comparison=model seed", slope=0.49)
    assert row(run, "w-3c-diagonal").verdict == SCALE
    (run.figures_dir / "table_depth_slope.csv").unlink()
    missing = row(run, "w-3c-diagonal")
    assert missing.verdict == DIFFERS and "has not been measured: table_depth_slope.csv" in missing.why


def test_a_finding_without_a_limit_differs_plainly(run):
    assert row(run, "w-t2")[["verdict", "why"]].tolist() == [DIFFERS, ""]


@pytest.mark.parametrize("kappa, judge, weakness", [
    (0.9, None, "the judge is a set of rules, where the paper asked a language model"),
    (0.61, "a-model", None),
    (0.59, "a-model", "the judge agrees with the reference labels at a kappa of 0.59, below 0.6"),
    (0.61, "another", "the agreement of another with the reference labels has not been measured"),
])  # fmt: skip
def test_a_weak_judge_marks_both_outcomes(run, kappa, judge, weakness):
    row_of_all = {"aspect": ["complexity"], "labels": "all", "weighted_kappa": kappa, "judge": "a-model"}
    pd.DataFrame(row_of_all).to_csv(run.figures_dir / "table_judge_agreement.csv", index=False)
    if judge:
        alter(run, "table_complexity_scores", "", judge=judge)
    for says, outcome, verdict in (("holds", "holds", REPRODUCED), ("no", "does not hold", DIFFERS)):
        alter(run, "table_claims_complexity", "id=w-5a-model", verdict=says)
        expected = [BY_RULES, f"its test {outcome}, but {weakness}"] if weakness else [verdict, ""]
        assert row(run, "w-5a-model")[["verdict", "why"]].tolist() == expected


def test_a_claim_whose_control_fails_is_inconclusive(run):
    before = int((scorecard.card(run).query("kind == @FINDING").verdict == INCONCLUSIVE).sum())
    assert row(run, "w-8").verdict == REPRODUCED
    alter(run, "table_claims_depth", "id=w-8", verdict="inconclusive")
    assert row(run, "w-8").verdict == INCONCLUSIVE
    assert scorecard.headline(scorecard.card(run)).endswith(f"; {before + 1} more: inconclusive")


def test_the_headline_counts_findings_only(run):
    card = scorecard.card(run)
    counts = scorecard.tally(card)
    assert counts["both"].sum() == sum(item.kind == FINDING for item in ITEMS.values()) == (counts.W + counts.L).sum()
    said = [scorecard.headline(card, paper) for paper in ("both", "W", "L")]
    for name in ("w-rate", "w-mppc", "w-t1-released", "w-null"):
        card.loc[card["id"] == name, "verdict"] = DIFFERS
    assert said == [scorecard.headline(card, paper) for paper in ("both", "W", "L")]
    before = counts.loc[REPRODUCED, "both"]
    judged = counts["both"].reindex([REPRODUCED, SCALE, DIFFERS], fill_value=0).sum()
    assert said[0].startswith(f"{before} of {judged} findings are")
    card.loc[card["id"] == "w-8", "verdict"] = DIFFERS
    assert scorecard.headline(card).startswith(f"{before - 1} of ")


def test_a_setting_is_the_paper_s_or_another(run):
    assert row(run, "w-samples").verdict == REPRODUCED and row(run, "w-tokens").verdict == OTHER_SETTING
    alter(run, "table_13_names", "", task="IOI")
    assert row(run, "w-13-task").verdict == REPRODUCED


def test_claims_are_taken_over(run):
    assert row(run, "w-8").verdict == REPRODUCED and row(run, "w-7a-all").verdict == DIFFERS
    alter(run, "table_claims_depth", "id=w-8", verdict="does not hold")
    assert row(run, "w-8").verdict == DIFFERS and row(run, "w-8").ours.startswith("does not hold: first layer")
    assert row(run, "w-off-rwkv").verdict == UNSTATED  # the paper makes no such claim


def test_what_has_not_been_written_is_not_run(run):
    for name in ("table_mppc_summary", "table_mppc_difference"):
        (run.figures_dir / f"{name}.csv").unlink()
    alter(run, "table_claims_rwkv", "id=w-11-lower", id="something else")
    card = scorecard.card(run).set_index("id")
    assert card.verdict["w-3a-mamba"] == NOT_RUN and card.ours["w-3a-mamba"] == ""
    assert card.why["w-3a-mamba"].endswith("Run `python -m lib.reproduce --only 04`.")
    assert card.verdict["w-11-lower"] == NOT_RUN and card.verdict["w-8"] == REPRODUCED
    assert card.verdict["w-3b-low"] == NOT_RUN and "table_mppc_difference.csv" in card.why["w-3b-low"]


def test_a_row_is_found_by_its_number(run):
    alter(run, "table_mppc_difference", "quantile=0.05", difference=-0.095)
    assert row(run, "w-3b-low").ours == "-0.095" and row(run, "w-3b-high").ours != "-0.095"


def test_random_weights_reproduce_nothing():
    smoke = get_profile("smoke")
    assert scorecard.verdict(ITEMS["w-3a-mamba"], 0.74, True, smoke) == (RANDOM, "")
    assert scorecard.verdict(ITEMS["w-mppc"], "holds", True, smoke)[0] == REPRODUCED  # arithmetic needs no training
    assert scorecard.verdict(ITEMS["w-mppc"], "does not hold", False, smoke)[0] == DIFFERS


@pytest.mark.parametrize(
    "test, ours, bound, tolerance, holds",
    [("within", 0.69, 0.74, 0.05, True), ("within", 0.68, 0.74, 0.05, False), ("above", 0.3, 0.3, 0, False),
     ("below", 0.1, 0.2, 0, True), ("equals", 32, 32.0, 0, True), ("equals", "two names", "IOI", 0, False),
     ("claim", "holds", "", 0, True), ("claim", "does not hold", "", 0, False),
     ("within", float("nan"), 1, 1, False)],
)  # fmt: skip
def test_tests(test, ours, bound, tolerance, holds):
    assert scorecard.TESTS[test](ours, bound, tolerance) is holds


def test_the_four_tables_cell_by_cell(run):
    cells = scorecard.cells(run).set_index(["table", "distance", "place"])
    assert len(cells) == 120 + 25 + 15 + 15 and cells.ours[1].isna().all()  # eight layers beside 24
    ours = results.rows("table_2_ssm_input", "distance=8 & position=B1+1", run).iloc[0]
    cell = cells.loc[(2, 8, "B1+1")]
    assert cell.paper == -9.69 and cell.ours == ours.mean_logit_diff
    assert cell.high - cell.low == pytest.approx(2 * 1.96 * ours.standard_error)
    wide = effect_tables.side_by_side(cells.reset_index())
    assert wide.loc[(2, 8), ("paper", "B1+1")] == "-9.69" and wide.loc[(3, 8), ("ours", "B1+3")] == ""
    (run.figures_dir / "table_2_ssm_input.csv").unlink()
    missing = scorecard.cells(run).set_index("table")
    assert missing.ours[2].isna().all() and missing.paper[2].notna().all() and missing.ours[3].notna().all()


def test_html_escapes_and_links(run):
    card = scorecard.card(run, [ITEMS["w-block"]]).assign(item="<b>&", why="<i>")
    page = scorecard.as_html(card)
    assert "&lt;b&gt;&amp;" in page and "<small>&lt;i&gt;</small>" in page and "<b>" not in page
    assert 'href="01_three_architectures.ipynb#Mamba:-a-convolution,-then-a-state"' in page
    assert "<a " not in scorecard.as_html(card, lambda place: "")


def test_a_filter_that_leaves_several_rows_is_an_error(run):
    item = ITEMS["w-3a-mamba"]._replace(where="comparison=Pythia → Mamba")
    with pytest.raises(ValueError, match="2 rows where one"):
        scorecard.card(run, [item])
