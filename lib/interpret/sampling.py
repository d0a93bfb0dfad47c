"""Which features are judged: a sample spread evenly over layers and MPPC (W §5)."""

from __future__ import annotations

import numpy as np
import pandas as pd


def stratified_features(frame: pd.DataFrame, n: int, seed: int, n_bins: int = 5) -> pd.DataFrame:
    """About `n` rows with an MPPC, as many from each layer and from each fifth of the MPPC's range of 0 to 1.

    A stratum with fewer rows than its share gives all it has. `frame` has columns layer, index, mppc; sorted by them.
    """
    alive = frame.dropna(subset="mppc")
    bins = np.clip((alive["mppc"] * n_bins).astype(int), 0, n_bins - 1)
    strata = alive.groupby([alive["layer"], bins.rename("bin")])
    share = max(1, round(n / (alive["layer"].nunique() * n_bins)))
    rng = np.random.default_rng(seed)
    chosen = [rows.iloc[rng.permutation(len(rows))[:share]] for _, rows in strata]
    return pd.concat(chosen).sort_values(["layer", "index"])
