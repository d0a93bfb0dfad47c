"""The capstones: each has all its parts, and its code runs after the notebooks' set-up, with the smoke profile."""

import re
from functools import partial

import nbformat
import numpy as np
import pytest
import torch

from lib.circuits import effect_tables
from lib.workbook import artifacts, induction
from lib.workbook.notebooks import find_notebooks
from lib.workbook.profiles import HOME

PAGE = HOME / "notebooks" / "capstones.md"
SECTIONS = re.split(r"^## (?=\d)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
PARTS = [
    "Question.",
    "Why it matters.",
    "What is known.",
    "What is not known.",
    "First code.",
    "What to measure.",
    "What to hold against it.",
    "What would refute the claim.",
    "Traps.",
    "To hand in.",
]
each_capstone = pytest.mark.parametrize("number", [1, 2, 3])


def blocks(number):
    """The blocks of code of a capstone, in their order."""
    return re.findall(r"^```python\n(.*?)^```$", SECTIONS[number - 1], re.MULTILINE | re.DOTALL)


@each_capstone
def test_a_capstone_has_all_its_parts_in_one_order(number):
    section = SECTIONS[number - 1]
    assert section.startswith(f"{number}. ")
    assert re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE) == PARTS
    assert re.search(r"W §\d", section.split("**What is known.**")[0])


def test_there_are_three():
    assert len(SECTIONS) == 3


@each_capstone
def test_the_code_to_begin_with_is_short(number):
    first, *_ = blocks(number)
    assert len(first.splitlines()) <= 12
    assert [line for block in blocks(number) for line in block.splitlines() if len(line) > 120] == []


@pytest.fixture
def run(smoke, monkeypatch):
    """Runs a capstone's blocks as in a notebook beside the others, after the set-up cell; gives what they define."""
    monkeypatch.chdir(HOME / "notebooks")
    first = nbformat.read(find_notebooks(HOME / "notebooks")[0], as_version=4)
    set_up = [cell.source for cell in first.cells if cell.cell_type == "code"][1]

    def of(number):
        overrides = {"cache_dir": str(smoke.cache_dir), "figures": str(smoke.figures), "device": "cpu"}
        names = {"profile": "smoke", "overrides": overrides}
        for block in [set_up, *blocks(number)]:
            exec(compile(block, f"capstone {number}", "exec"), names)
        return names

    return of


@pytest.mark.slow
def test_features_one_token_apart(run, smoke):
    """The first column is the notebooks' MPPC; a copy of a feature that is late is found by the column "late"."""
    names = run(1)
    to_mamba, _ = artifacts.mppc(smoke.pythia, smoke.mamba, smoke)
    assert list(names["mppc"]) == list(names["lags"]) and len(names["mppc"]) == len(to_mamba)
    np.testing.assert_allclose(names["mppc"]["same token"], to_mamba.mppc, atol=1e-6)
    late = [names["rolled"](layer, 1) for layer in names["pythia"]]
    brought_back = [names["rolled"](layer, names["lags"]["Mamba one token late"]) for layer in late]
    found = names["max_pairwise_correlation"](names["pythia"], brought_back).value
    np.testing.assert_allclose(found[~np.isnan(found)], 1, atol=1e-5)


def test_the_effect_of_a_feature(run):
    """Where a feature is silent nothing changes, where it fires something does; log-probabilities stay those."""
    names = run(2)
    pair = names["pairs"].sort_values("firing_rate").iloc[-1]
    for name, layer, index in (
        (names["settings"].pythia, pair.layer, pair["index"]),
        (names["settings"].mamba, pair.match_layer, pair.match_index),
    ):
        place = int(layer), int(index)
        fires = names["interpret"].token_activations(names["features"][name][place[0]], place[1])
        effect = partial(names["effect"], name, *place)
        strongest = effect(names["strongest"](name, *place))
        silent = effect(np.flatnonzero(fires == 0)[:16])
        assert strongest.shape == (16, names["models"][name].original_model.config.vocab_size)
        assert strongest.abs().amax(1).min() > 1e-4 and torch.isfinite(strongest).all()
        assert silent.abs().max() < 1e-4


def test_taps_in_another_order(run, smoke):
    """As trained, the table is the notebooks'; another order gives another one, and the weights come back."""
    names = run(3)
    table = effect_tables.wide(effect_tables.paper_table(2, induction.path_effects(smoke.mamba, smoke)))
    trained, swapped = names["enters"]([0, 1, 2, 3]), names["enters"]([3, 0, 1, 2])
    np.testing.assert_allclose(trained, table, atol=1e-6)
    assert list(trained) == list(table) and list(trained.index) == list(smoke.circuit_distances)
    assert not np.allclose(swapped, trained, atol=1e-6)
    assert torch.equal(names["taps"], names["trained"])
