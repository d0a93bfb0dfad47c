"""The papers' own numbers and our labels of features, as they lie in data/reference."""

from __future__ import annotations

import pandas as pd

from lib import interpret
from lib.workbook.profiles import DATA

REFERENCE = DATA / "reference"


def published_table(number: int) -> pd.DataFrame:
    """A table of App. G for mamba-130m (W): distance, layer or position, mean_logit_diff, note."""
    [path] = REFERENCE.glob(f"paper_table{number}_*.csv")
    return pd.read_csv(path)


def released(model: str) -> pd.DataFrame:
    """The authors' released results of path patching: `model` is mamba130m or pythia160m; adds mean_logit_diff."""
    table = pd.read_csv(REFERENCE / f"released_{model}_path_patching.csv")
    return table.assign(mean_logit_diff=table["patched_logit_B"] - table["clean_logit_B"])


def labels() -> pd.DataFrame:
    """120 features labelled from their snippets, before any judge had scored them; a row each.

    Columns drawn (spread: sixty over all MPPC; low: sixty at random, twenty each below an MPPC of 0.2, from 0.2 to 0.4
    and above), complexity, monosemanticity, the same with `_again` (a second pass by the same labeller, of those that
    are `low`), mppc (of these), examples.
    """
    return interpret.read_labels(REFERENCE / "complexity_labels.csv")


def smollm2(table: str) -> pd.DataFrame:
    """What was measured once on SmolLM2-135M.

    Its `facts` (quantity, value), its `heads`, a row per head and effect, and where it reads `names` in IOI:
    `python -m tests.real.measure` says what the columns are, and makes them again. Of its features, the quality of its
    `saes`, their `similarity` to those of mini models (a row per comparison), the `counts` of features by MPPC (a
    column per comparison), and the best and the worst `pairs`: `python -m tests.real.features`.
    """
    return pd.read_csv(REFERENCE / f"smollm2_{table}.csv")
