"""In which layers of the other model the features' matches lie (W, Fig. 3c)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray

from lib.mppc.uncertainty import interval, widened


def depth_map(frame: pd.DataFrame, n_layers: int, n_match_layers: int) -> Float[ndarray, "layers match_layers"]:
    """Share of each layer's features whose match lies in each layer of the other model (W, Fig. 3c); rows sum to 1."""
    counts = _matches(frame, n_layers, n_match_layers)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _matches(frame: pd.DataFrame, n_layers: int, n_match_layers: int) -> Int[ndarray, "layers match_layers"]:
    """How many of each layer's features have their match in each layer of the other model."""
    found, counts = frame[frame["match_layer"] >= 0], np.zeros((n_layers, n_match_layers), np.int64)
    np.add.at(counts, (found["layer"], found["match_layer"]), 1)
    return counts


def depth_ridge(
    frame: pd.DataFrame, n_layers: int, n_match_layers: int, seed: int, n_resamples: int = 1_000
) -> pd.DataFrame:
    """Where the ridge of a depth map lies, and where layers of the same relative depth do.

    Columns layer, ridge (the layer with most matches), same depth, share within one layer of it (of the matches), and
    ridge within one layer of it: in which share of `n_resamples` it lies there, each with the features drawn again.
    """
    counts, rng = _matches(frame, n_layers, n_match_layers), np.random.default_rng(seed)
    alive = counts.sum(1)
    shares = counts / np.maximum(alive, 1)[:, None]
    same = (np.arange(n_layers) + 1) * n_match_layers / n_layers - 1
    near = np.abs(np.arange(n_match_layers) - same[:, None]) <= 1
    ridges = [rng.multinomial(count, share, n_resamples).argmax(1) for count, share in zip(alive, shares, strict=True)]
    return pd.DataFrame(
        {
            "layer": range(n_layers), "ridge": shares.argmax(1), "same depth": same,
            "share within one layer of it": (shares * near).sum(1),
            "ridge within one layer of it": [near[k, found].mean() for k, found in enumerate(ridges)],
        }
    )  # fmt: skip


def relative_depths(frame: pd.DataFrame, n_layers: int, n_match_layers: int) -> pd.DataFrame:
    """Own and match's relative depth, (layer + 1) / number of layers, of the features that have a match."""
    found = frame[frame["match_layer"] >= 0]
    return pd.DataFrame({"own": (found["layer"] + 1) / n_layers, "match": (found["match_layer"] + 1) / n_match_layers})


def depth_slope(
    depths: pd.DataFrame, seed: int, n_resamples: int = 1_000, slope_deviation: float = np.nan,
    r_deviation: float = np.nan,
) -> dict[str, float]:  # fmt: skip
    """`slope_and_r` of the match's depth on the own, with 95 % intervals: features resampled, and SAE training.

    The deviations are those of both numbers over trainings of the SAEs; NaN adds nothing. Which features there are is
    a matter of training, too, and is counted twice, so the intervals are rather too wide.
    """
    own, match = (depths[column].to_numpy() for column in ("own", "match"))
    rng = np.random.default_rng(seed)
    draws = [slope_and_r(own[i], match[i]) for i in rng.integers(0, len(own), (n_resamples, len(own)))]
    slope, r = slope_and_r(own, match)
    (slope_low, slope_high), (r_low, r_high) = (
        widened(interval(np.array(values), estimate), estimate, deviation)
        for values, estimate, deviation in zip(zip(*draws), (slope, r), (slope_deviation, r_deviation), strict=True)
    )
    return {"slope": slope, "slope_low": slope_low, "slope_high": slope_high, "r": r, "r_low": r_low, "r_high": r_high}


def slope_and_r(own: ndarray | pd.Series, match: ndarray | pd.Series) -> tuple[float, float]:
    """Least-squares slope of the match's depth on the own, and their correlation; NaN where one does not vary."""
    covariance = np.cov(own, match)
    if covariance[0, 0] == 0 or covariance[1, 1] == 0:
        return np.nan, np.nan
    return covariance[0, 1] / covariance[0, 0], covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
