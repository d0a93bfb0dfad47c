"""A run without one of its models: which cells, claims, exercises and items are left out, and what is said of them."""

import subprocess
import sys

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from IPython.core.interactiveshell import InteractiveShell

from lib.reproduce import say_what_is_left_out
from lib.workbook import claims, comparisons, judged_features, left_out, model_store, plan, report, results, scorecard
from lib.workbook.left_out import LeavingOut
from lib.workbook.notebooks import (
    FOLDER,
    cells_with_places,
    code_cells,
    executed_copy,
    left_out_places,
)
from lib.workbook.profiles import HOME, LeftOut, ProfileError, get_profile
from tests import running

ROLES = ("pythia_seed", "mamba", "rwkv")  # those that can be none
each_role = pytest.mark.parametrize("role", ROLES)


def without(*roles, name="smoke"):
    return get_profile(name, dict.fromkeys(roles, "none"))


# ------------------------------------------------------------------------------------------- profiles


def test_the_transformer_cannot_be_left_out():
    with pytest.raises(ProfileError) as error:
        get_profile("mini", "pythia=none")
    assert str(error.value) == (
        "bad value for pythia in profile 'mini': every comparison starts from the Transformer; "
        "only pythia_seed, mamba, rwkv can be none."
    )


def test_what_is_wanting():
    profile = without("rwkv", "mamba")
    assert profile.without == ("mamba", "rwkv") and profile.model_names == ("smoke-pythia", "smoke-pythia-seed1")
    assert profile.lacking("mamba, pythia_seed") == ("mamba",) and profile.lacking("") == ()
    assert profile.lacking("mamba or pythia_seed") == () and profile.lacking("mamba or rwkv") == ("mamba", "rwkv")
    with pytest.raises(ValueError, match="'mambo' is no model that can be left out"):
        profile.lacking("mambo")
    assert profile.given("pythia_seed", lambda: 3) == 3
    assert profile.given("mamba", lambda: 1 / 0) == "left out (mamba=none)"


def test_figures_lie_apart_and_committed_notebooks_do_not_stand_in():
    profile = without("rwkv", name="mini")
    assert profile.figures_dir == HOME / "figures" / "mini-without-rwkv"
    assert executed_copy("04_baselines_and_skylines", profile) is None
    assert executed_copy("04_baselines_and_skylines", get_profile("mini")) is not None


@each_role
def test_nothing_is_planned_compared_or_fetched_for_it(role):
    profile, whole = (get_profile("laptop", overrides) for overrides in ({role: "none"}, None))
    name = getattr(whole, role)
    assert name not in model_store.hub_names(profile) and set(model_store.hub_names(profile)) == set(
        model_store.hub_names(whole)
    ) - {name}
    known = comparisons.comparisons(profile)
    assert known == {short: c for short, c in comparisons.comparisons(whole).items() if name != c.b}
    assert set(judged_features.variants(profile)) == set(known) & set(judged_features.VARIANTS)
    planned = plan.stages(without(role))
    assert planned and not [
        stage for stage in planned if stage.name.startswith(f"{getattr(get_profile('smoke'), role)}:")
    ]
    with pytest.raises(LeftOut, match=f"{role}=none"):
        model_store.folder_of(getattr(profile, role), profile)


# ------------------------------------------------------------------------------------------- cells


def left(profile, *cells):
    leaving = LeavingOut(profile)
    return [bool(leaving.roles(cell)) for cell in cells]


def test_a_cell_is_left_out_with_what_reads_from_it():
    rwkv = "# NBVAL_CHECK_OUTPUT\n# needs: rwkv\nimport lib as lib_of_rwkv\nx, y = 1, 2"
    assert left(without("mamba"), rwkv, "x + y") == [False, False]
    profile = without("rwkv")
    assert left(profile, rwkv, "x + 1", "z = [k for k in (x, 1)]", "z", "lib_of_rwkv.y") == [True] * 5
    assert left(profile, rwkv, "[x for x in range(3)]", "other.x", "k = 'x'") == [True, False, False, False]
    assert left(profile, rwkv, "x = 3\nx", "x", "y") == [True, False, False, True]  # made anew
    assert left(profile, "# needs: mamba or rwkv\na = 1", "# needs: mamba, rwkv\nb = 1", "a", "b") == [
        False,
        True,
        False,
        True,
    ]


def test_what_a_cell_only_changes_is_still_there():
    assert left(without("rwkv"), "rows = []", "# needs: rwkv\nrows += [1]", "rows") == [False, True, False]


def test_what_a_function_reads_is_read_when_it_is_called():
    cells = "# needs: rwkv\nx = 1", "f = lambda: x", "def g():\n    return x", "settings.given('rwkv', lambda: x)"
    assert left(without("rwkv"), *cells) == [True, False, False, False]


def test_what_is_no_plain_python_runs():
    assert left(without("rwkv"), "# needs: rwkv\nx = 1", "%timeit x", "x = (", "x") == [True, False, False, True]


def test_in_a_kernel(monkeypatch, capsys):
    shell = InteractiveShell()
    monkeypatch.setattr(left_out, "get_ipython", lambda: shell)
    left_out.watch(without("rwkv"))
    left_out.watch(without("rwkv"))  # the first cells are often run twice
    for cell in ("# needs: rwkv\nx = 1 / 0", "x + 1", "y = 2", "print(y)"):
        assert shell.run_cell(cell).success
    sentence = "Left out: this run was made without an RWKV (rwkv=none).\n"
    assert capsys.readouterr().out == 2 * sentence + "2\n" and "x" not in shell.user_ns
    left_out.watch(get_profile("smoke"))
    assert not shell.run_cell("# needs: rwkv\nx = 1 / 0").success


# ------------------------------------------------------------------------------------------- the notebooks


def test_with_all_models_nothing_is_left_out_and_every_mark_is_understood():
    assert left_out_places(get_profile("smoke")) == []
    marks = [
        needs
        for cells in cells_with_places().values()
        for source, _ in cells
        for needs in left_out.MARK.findall(source)
    ]
    assert len(marks) > 20 and all(without(*ROLES).lacking(needs) for needs in marks)


def test_every_notebook_watches_before_its_first_mark():
    for name, cells in cells_with_places().items():
        marked = [k for k, (source, _) in enumerate(cells) if left_out.MARK.search(source)]
        watches = [k for k, (source, _) in enumerate(cells) if "left_out.watch(settings)" in source]
        assert not marked or (len(watches) == 1 and watches[0] < marked[0]), name


def test_sections_that_are_left_out(capsys):
    headings = {role: [(p.notebook[:2], p.heading) for p in left_out_places(without(role))] for role in ROLES}
    assert headings["pythia_seed"] == [("04", "Figure 3b: feature by feature"), ("10", "RSA")]
    assert {number for number, _ in headings["rwkv"]} == {"01", "08", "09"}
    assert ("01", "RWKV-4: an average with forgetting") in headings["rwkv"]
    assert {("03", "All pairs, exactly"), ("07", "Table 1: which layer's state carries B?")} < set(headings["mamba"])
    assert ("07", "The Transformer") not in headings["mamba"] and ("04", "The claims") not in headings["mamba"]
    say_what_is_left_out([FOLDER / "08_off_by_one.ipynb"], without("rwkv"))
    say_what_is_left_out([FOLDER / "08_off_by_one.ipynb"], get_profile("smoke"))
    said = "Left out: this run was made without an RWKV (rwkv=none):\n    08_off_by_one: RWKV: the token shift\n"
    assert capsys.readouterr().out == said


# ------------------------------------------------------------------------------------------- claims, scorecard


def test_claims_that_are_left_out(tmp_path):
    profile = get_profile("smoke", mamba=None, figures=tmp_path)
    unclear = ("x-d", "d", *claims.unless("no control", True, "3"))
    rows = [("x-a", "a", True, "1"), unclear, claims.claim("x-b", "b", "mamba", lambda: 1 / 0, profile),
            claims.claim("x-c", "c", "rwkv", lambda: (False, "2"), profile)]  # fmt: skip
    table = claims.record(rows, "table_claims_x", profile)
    assert claims.unless("", True, "3") == (True, "3")
    assert list(table.columns) == ["id", "claim", "verdict", "effect"]
    assert list(table.verdict) == ["holds", "inconclusive", "left out", "does not hold"]
    assert list(table.effect) == ["1", "no control; 3", "left out: this run was made without a Mamba (mamba=none)", "2"]
    assert results.rows("table_claims_x", "id=x-c", profile).effect.astype(str).tolist() == ["2"]
    with pytest.raises(results.Missing, match="table_claims_x has nothing with id=x-e"):
        results.rows("table_claims_x", "id=x-e", profile)


@each_role
def test_items_that_are_left_out_are_named_and_not_counted(role):
    whole = scorecard.card(get_profile("mini"))
    profile = without(role, name="mini")
    card = scorecard.card(profile)
    missing = card[card.verdict == scorecard.LEFT_OUT]
    assert 0 < len(missing) < len(card) and set(missing.why) == {profile.left_out().removeprefix("left out: ")}
    counted = (missing.kind == scorecard.FINDING).sum()
    assert counted == scorecard.tally(card).loc[scorecard.LEFT_OUT, "both"] > 0
    assert "left out" not in set(whole.verdict) and 'class="left-out"' in scorecard.as_html(card)


def test_every_claim_says_on_the_card_what_it_needs():
    """What names Mamba, RWKV or the other seed in its table, or as a claim, needs it."""
    words = {"mamba": "Mamba", "rwkv": "RWKV", "pythia_seed": "model seed"}
    recorded = pd.concat(map(pd.read_csv, (HOME / "figures" / "mini").glob("table_claims_*.csv"))).set_index("id")[
        "claim"
    ]
    for item in scorecard.items():
        for role, word in words.items():
            if word in item.where + recorded.get(item.id, ""):
                assert role in item.needs, item.id


# ------------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("roles", [("pythia_seed", "rwkv"), tuple(ROLES)], ids="-".join)
def test_all_notebooks_run_and_say_what_is_left_out(roles, smoke, tmp_path):
    folders = {"cache_dir": str(smoke.cache_dir), "figures": str(tmp_path)}
    overrides = folders | {"device": "cpu"} | dict.fromkeys(roles, "none")
    profile = get_profile("smoke", overrides)
    found = running.execute_all(overrides)
    assert list(found) == left_out_places(profile)
    card = pd.read_csv(profile.figures_dir / "table_scorecard.csv").set_index("id")
    assert card[card.verdict == scorecard.NOT_RUN].why.to_dict() == {}
    wanting = {item.id for item in scorecard.items() if profile.lacking(item.needs)}
    assert set(card.index[card.verdict == scorecard.LEFT_OUT]) == wanting
    claimed = pd.concat(map(pd.read_csv, profile.figures_dir.glob("table_claims_*.csv")))
    assert set(claimed.verdict) <= {"holds", "does not hold", "inconclusive", "left out"}
    index = BeautifulSoup(report.build(profile).read_text(encoding="utf-8"), "html.parser")
    assert all(f"({role}=none)" in index.select_one(".lead").get_text() for role in roles)
    assert len(index.select("#left-out li")) == len(found) and len(index.select("tr strong.left-out")) == len(wanting)


@pytest.mark.slow
def test_the_command_line_runs_a_notebook_of_which_nothing_is_left(smoke):
    command = [sys.executable, "-m", "lib.reproduce", "--profile", "smoke", "--only", "09", "--set", "rwkv=none"]
    done = subprocess.run([*command, "--set", f"cache_dir={smoke.cache_dir}"], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0 and "    09_rwkv: Figure 11\n" in done.stdout, done.stdout + done.stderr
    cells = code_cells(without("rwkv").figures_dir / "notebooks" / "09_rwkv.ipynb")
    lines = "".join(o.text for cell in cells for o in cell.outputs if o.get("name") == "stdout").splitlines()
    assert "Left out: this run was made without an RWKV (rwkv=none)." in lines
    assert "Exercise 09.1: left out: this run was made without an RWKV (rwkv=none)." in lines
