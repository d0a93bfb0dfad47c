"""The comparisons of §4: which models, how alike, how sure, and how much of it is chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from lib.mppc.uncertainty import interval, null_level
from lib.workbook import artifacts, retraining
from lib.workbook.artifacts import Resampled
from lib.workbook.neurons import neuron_mppc
from lib.workbook.profiles import Profile

HIGH = 0.95  # "with an MPPC greater than 0.95" (W §4.4)
NORMAL = 1.96  # deviations to either end of a 95 % interval


@dataclass(frozen=True)
class Comparison:
    """One model's features (or neurons) against another's."""

    label: str
    a: str
    b: str
    seed_b: int | None = None
    neurons: bool = False


@dataclass(frozen=True, eq=False)
class Direction:
    """A comparison read in one direction."""

    source: str
    target: str
    frame: pd.DataFrame
    """A row per feature: layer, index, firing_rate (not for neurons), mppc, match_layer, match_index, null_mppc (its
    MPPC with the other model's tokens shifted), null_level (99th percentile of null_mppc among features that fire
    about as often), excess (mppc − null_level)."""
    resampled: Resampled
    """MPPC of the same features in resamples of the documents."""
    spread: float = np.nan
    """Standard deviation of one layer's mean over SAE seeds (`retraining.spread_of`): 0 for neurons, NaN if unknown."""

    @property
    def sae_deviation(self) -> float:
        """Standard deviation of the mean over SAE seeds: the layers' errors are independent of each other."""
        return self.spread / np.sqrt(self.frame["layer"].nunique())

    @property
    def mppc(self) -> pd.Series:
        """MPPC of the features that have one."""
        return self.frame["mppc"].dropna()


def comparisons(profile: Profile) -> dict[str, Comparison]:
    """All that there are models for, by a short name."""
    model_of = {name: role.model for name, role in profile.roles.items()}
    other_seed = profile.sae_seeds[-1]
    return {
        name: Comparison(
            pair.label,
            model_of[pair.a],
            model_of[pair.b],
            seed_b=other_seed if pair.other_sae_seed else None,
            neurons=pair.of == "neurons",
        )
        for name, pair in profile.comparisons.items()
        if model_of[pair.a] and model_of[pair.b]
    }


def compare(comparison: Comparison, profile: Profile) -> tuple[Direction, Direction]:
    """Both directions of a comparison, with null and resamples; loads what is there and makes what is not."""
    c = comparison
    if c.neurons:
        parts = list(neuron_mppc(c.a, c.b, profile).values())
    else:
        frames = artifacts.mppc(c.a, c.b, profile, c.seed_b)
        nulls = artifacts.mppc(c.a, c.b, profile, c.seed_b, null=True)
        parts = list(zip(frames, nulls, artifacts.resampled_mppc(c.a, c.b, profile, c.seed_b), strict=True))
    names = [c.a, c.b if c.seed_b is None else f"{c.b}, SAE seed {c.seed_b}"]
    ways = (("forward", *names), ("reverse", *names[::-1]))
    spreads = [0.0 if c.neurons else retraining.spread_of(c.label, profile, way) for way, *_ in ways]
    return tuple(
        Direction(source, target, _with_null(frame, null), resampled, spread)
        for (_, source, target), (frame, null, resampled), spread in zip(ways, parts, spreads, strict=True)
    )


def _with_null(frame: pd.DataFrame, null: pd.DataFrame) -> pd.DataFrame:
    level = null_level(frame, null)
    return frame.assign(null_mppc=null["mppc"], null_level=level, excess=frame["mppc"] - level)


def mean_interval(direction: Direction, documents_alone: bool = False) -> tuple[float, float]:
    """95 % interval of the mean MPPC: documents resampled and, if it is known, SAE training, in quadrature."""
    mean = direction.mppc.mean()
    documents = interval(np.nanmean(direction.resampled, axis=1), mean)
    return documents if documents_alone else widened(documents, mean, direction.sae_deviation)


def widened(span: tuple[float, float], estimate: float, deviation: float) -> tuple[float, float]:
    """A 95 % interval with another, independent error of a standard deviation added in quadrature; NaN adds nothing."""
    more = NORMAL * np.nan_to_num(deviation)
    return float(estimate - np.hypot(estimate - span[0], more)), float(estimate + np.hypot(span[1] - estimate, more))


def summarise(direction: Direction) -> dict[str, float]:
    """What the table of comparisons says about one direction.

    `low` and `high` are the mean's 95 % interval, about documents and SAE training; `documents_low` and
    `documents_high` are about documents alone, and `sae_deviation` is the standard deviation that SAE training adds
    (NaN where it is not known). `bias` is by how much the mean of the resamples differs from the mean itself. The
    interval has the resamples' spread and lies about the mean, so the bias is not in it.
    """
    frame, mppc = direction.frame, direction.mppc
    documents = mean_interval(direction, documents_alone=True)
    low, high = widened(documents, mppc.mean(), direction.sae_deviation)
    zeros = frame["mppc"].fillna(0)
    return {
        "n_features": len(frame),
        "n_dead": int(frame["mppc"].isna().sum()),
        "mean": mppc.mean(),
        "low": low,
        "high": high,
        "documents_low": documents[0],
        "documents_high": documents[1],
        "sae_deviation": direction.sae_deviation,
        "bias": float(np.nanmean(direction.resampled, axis=1, dtype=float).mean()) - mppc.mean(),
        "median": mppc.median(),
        "share_above_0.95": (mppc > HIGH).mean(),
        "mean_with_dead_as_0": zeros.mean(),
        "median_with_dead_as_0": zeros.median(),
        "share_above_0.95_with_dead": (zeros > HIGH).mean(),
        "null_mean": frame["null_mppc"].mean(),
        "null_99": frame["null_mppc"].quantile(0.99),
        "share_above_null": (frame["excess"].dropna() > 0).mean(),
    }


def summary_table(directions: dict[str, tuple[Direction, Direction]], profile: Profile) -> pd.DataFrame:
    """A row per comparison and direction; `directions` as `compare` gives them, by short name."""
    known = comparisons(profile)
    return pd.DataFrame(
        {"comparison": known[name].label, "direction": way, "source": d.source, "target": d.target} | summarise(d)
        for name, pair in directions.items()
        for way, d in zip(("forward", "reverse"), pair)
    )


def save_matches(name: str, pair: Sequence[Direction], profile: Profile) -> None:
    """Write a row per feature of both directions: mppc_<a>_to_<b>.parquet beside the figures."""
    sides = ("pythia", name) if name != "sae_seed" else ("sae_seed0", "sae_seed1")
    profile.figures_dir.mkdir(parents=True, exist_ok=True)
    for (source, target), direction in zip((sides, sides[::-1]), pair, strict=True):
        direction.frame.to_parquet(profile.figures_dir / f"mppc_{source}_to_{target}.parquet", index=False)


def difference(a: Direction, b: Direction) -> tuple[pd.Series, tuple[float, float]]:
    """MPPC of the same features in two comparisons, a − b, and the 95 % interval of its mean.

    Resamples of the documents are paired. SAE training is counted as if the two had no SAE in common: what the own
    side's SAEs do to both cancels, so the interval is rather too wide.
    """
    with np.errstate(invalid="ignore"):
        means = np.nanmean(a.resampled - b.resampled, axis=1)
    differences = (a.frame["mppc"] - b.frame["mppc"]).dropna()
    mean = differences.mean()
    return differences, widened(interval(means, mean), mean, np.hypot(a.sae_deviation, b.sae_deviation))


def near_zero(differences: pd.Series, widths: Sequence[float] = (0.02, 0.05, 0.1, 0.15, 0.2)) -> pd.DataFrame:
    """Share of differences within ±width: the paper does not say which width its "near zero" means."""
    return pd.DataFrame({"width": widths, "share": [(differences.abs() <= width).mean() for width in widths]})


# ---------------------------------------------------------------------------------------------- depth


def depth_map(frame: pd.DataFrame, n_layers: int, n_match_layers: int) -> Float[ndarray, "layers match_layers"]:
    """Share of each layer's features whose match lies in each layer of the other model (W, Fig. 3c); rows sum to 1."""
    found = frame[frame["match_layer"] >= 0]
    counts = np.zeros((n_layers, n_match_layers))
    np.add.at(counts, (found["layer"], found["match_layer"]), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def depth_ridge(shares: Float[ndarray, "layers match_layers"]) -> pd.DataFrame:
    """Where the ridge of a depth map lies, and where layers of the same relative depth do.

    Columns layer, ridge (the layer with most matches), same depth, share within one layer of it.
    """
    n, m = shares.shape
    same = (np.arange(n) + 1) * m / n - 1
    near = np.abs(np.arange(m) - same[:, None]) <= 1
    table = {"layer": range(n), "ridge": shares.argmax(1), "same depth": same}
    return pd.DataFrame(table | {"share within one layer of it": (shares * near).sum(1)})


def relative_depths(frame: pd.DataFrame, n_layers: int, n_match_layers: int) -> pd.DataFrame:
    """Own and match's relative depth, (layer + 1) / number of layers, of the features that have a match."""
    found = frame[frame["match_layer"] >= 0]
    return pd.DataFrame({"own": (found["layer"] + 1) / n_layers, "match": (found["match_layer"] + 1) / n_match_layers})


def depth_slope(depths: pd.DataFrame, seed: int, n_resamples: int = 1_000) -> dict[str, float]:
    """Least-squares slope and correlation of the match's depth on the own, with 95 % intervals (features resampled)."""
    own, match = (depths[column].to_numpy() for column in ("own", "match"))
    rng = np.random.default_rng(seed)
    draws = [_slope(own[i], match[i]) for i in rng.integers(0, len(own), (n_resamples, len(own)))]
    slope, r = _slope(own, match)
    (slope_low, slope_high), (r_low, r_high) = (
        interval(np.array(values), estimate) for values, estimate in zip(zip(*draws), (slope, r))
    )
    return {"slope": slope, "slope_low": slope_low, "slope_high": slope_high, "r": r, "r_low": r_low, "r_high": r_high}


def _slope(x: ndarray, y: ndarray) -> tuple[float, float]:
    covariance = np.cov(x, y)
    if covariance[0, 0] == 0 or covariance[1, 1] == 0:
        return np.nan, np.nan
    return covariance[0, 1] / covariance[0, 0], covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def mppc_by_layer(direction: Direction) -> pd.DataFrame:
    """Mean MPPC of each layer with its 95 % interval, about documents and SAE training: layer, mean, low, high, n."""
    return _by_layer(direction.frame["layer"], direction.frame["mppc"], direction.resampled, direction.spread)


def gap_by_layer(skyline: Direction, other: Direction) -> pd.DataFrame:
    """How much lower the MPPC of the same features is than in the skyline, by layer; columns as of `mppc_by_layer`.

    Features that lack one of the two numbers are left out. The interval is the gap's own, as in `difference`.
    """
    gap = skyline.frame["mppc"] - other.frame["mppc"]
    spread = np.hypot(skyline.spread, other.spread)
    return _by_layer(skyline.frame["layer"], gap, skyline.resampled - other.resampled, spread)


def _by_layer(layer: pd.Series, values: pd.Series, resampled: ndarray, spread: float) -> pd.DataFrame:
    rows = []
    for number, of_layer in values.groupby(layer):
        mean = of_layer.mean()
        low, high = widened(interval(np.nanmean(resampled[:, of_layer.index], axis=1), mean), mean, spread)
        rows.append({"layer": number, "mean": mean, "low": low, "high": high, "n": of_layer.count()})
    return pd.DataFrame(rows)
