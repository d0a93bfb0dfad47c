"""One model's features matched with another's: how alike they are, how sure that is, and how much of it is chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy import ndarray

from lib.corpus import Blocks
from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures, firing_rates
from lib.mppc.uncertainty import (
    NORMAL,
    Resampled,
    document_groups,
    interval,
    null_level,
    null_offset,
    resampled,
    widened,
)

HIGH = 0.95  # "with an MPPC greater than 0.95" (W §4.4)


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
    """Standard deviation of one layer's mean over SAE seeds: 0 for neurons, NaN if unknown."""

    @property
    def sae_deviation(self) -> float:
        """Standard deviation of the mean over SAE seeds: the layers' errors are independent of each other."""
        return self.spread / np.sqrt(self.frame["layer"].nunique())

    @property
    def mppc(self) -> pd.Series:
        """MPPC of the features that have one."""
        return self.frame["mppc"].dropna()


def matched(
    a: Sequence[SparseFeatures], b: Sequence[SparseFeatures], blocks: Blocks, seed: int, device: str = "cpu"
) -> Iterator[tuple[pd.DataFrame, Resampled]]:
    """For `a` to `b` and `b` to `a`: a row per feature, and its MPPC in resamples of the documents of `blocks`.

    Columns layer, index (positions among the layers given), firing_rate, mppc, match_layer, match_index, null_mppc,
    null_level (see `Direction`).
    """
    group = document_groups(blocks, seed)
    found = max_pairwise_correlations(a, b, device=device, progress=True)
    shift = null_offset(a[0].n_tokens, seed)
    nulls = max_pairwise_correlations(a, b, shift=shift, device=device, progress=True)
    for result, null, own, other in zip(found, nulls, (a, b), (b, a), strict=True):
        frame, null_frame = result.to_frame(), null.to_frame()
        frame.insert(2, "firing_rate", firing_rates(own))
        frame["null_mppc"], frame["null_level"] = null_frame["mppc"], null_level(frame, null_frame)
        yield frame, resampled(own, other, frame, group, seed)


def with_null(frame: pd.DataFrame, null: pd.DataFrame) -> pd.DataFrame:
    """MPPC beside its null, both of one model: adds null_mppc, null_level and excess (see `Direction`)."""
    level = null_level(frame, null)
    return frame.assign(null_mppc=null["mppc"], null_level=level, excess=frame["mppc"] - level)


def mean_interval(direction: Direction, documents_alone: bool = False) -> tuple[float, float]:
    """95 % interval of the mean MPPC: documents resampled and, if it is known, SAE training, in quadrature."""
    mean = direction.mppc.mean()
    documents = interval(np.nanmean(direction.resampled, axis=1), mean)
    return documents if documents_alone else widened(documents, mean, direction.sae_deviation)


def summarise(direction: Direction) -> dict[str, float]:
    """What the table of comparisons says about one direction.

    `low` and `high` are the mean's 95 % interval, about documents and SAE training; `documents_low` and
    `documents_high` are about documents alone, `sae_deviation` is the standard deviation that SAE training adds, and
    `sae_share` its share of the variance of both (NaN where it is not known). `bias` is by how much the mean of the
    resamples differs from the mean itself. The interval has the resamples' spread and lies about the mean, so the bias
    is not in it.
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
        "sae_share": _share(direction.sae_deviation, (documents[1] - documents[0]) / (2 * NORMAL)),
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


def _share(deviation: float, other: float) -> float:
    """Of the variance that two independent errors have together, the first one's share."""
    whole = deviation**2 + other**2
    return deviation**2 / whole if whole else np.nan


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


def layer_shares(direction: Direction) -> pd.DataFrame:
    """For each layer (rows), the share of its features whose best match lies in each of the other's (columns)."""
    found = direction.frame[direction.frame["match_layer"] >= 0]
    return pd.crosstab(found["layer"], found["match_layer"], normalize="index")


def mppc_by_layer(direction: Direction) -> pd.DataFrame:
    """Mean MPPC of each layer with its 95 % interval, about documents and SAE training: layer, mean, low, high, n."""
    return _by_layer(direction.frame["layer"], direction.frame["mppc"], direction.resampled, direction.spread)


def layer_groups(direction: Direction, n_groups: int = 4) -> dict[str, Direction]:
    """A direction's features by groups of neighbouring layers, from early to late, under names such as "layers 0–2"."""
    layers = np.unique(direction.frame["layer"])
    parts = {}
    for group in np.array_split(layers, min(n_groups, len(layers))):
        name = f"layer {group[0]}" if len(group) == 1 else f"layers {group[0]}–{group[-1]}"
        parts[name] = of_layers(direction, group)
    return parts


def of_layers(direction: Direction, layers: Sequence[int]) -> Direction:
    """A direction's features of some layers."""
    inside = direction.frame["layer"].isin(layers)
    frame = direction.frame[inside].reset_index(drop=True)
    return replace(direction, frame=frame, resampled=direction.resampled[:, inside.to_numpy()])


def gap_by_layer(skyline: Direction, other: Direction) -> pd.DataFrame:
    """How much lower the MPPC of the same features is than in the skyline, by layer; columns as of `mppc_by_layer`.

    Features that lack one of the two numbers are left out. The interval is the gap's own, as in `difference`.
    """
    gap = skyline.frame["mppc"] - other.frame["mppc"]
    spread = np.hypot(skyline.spread, other.spread)
    return _by_layer(skyline.frame["layer"], gap, skyline.resampled - other.resampled, spread)


def lines_by_layer(directions: Mapping[str, Direction]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`mppc_by_layer` of directions from one model by their labels, and the others' `gap_by_layer` to the first.

    Both have the label as their first column, comparison.
    """
    (_, skyline), *others = directions.items()
    lines = pd.concat({label: mppc_by_layer(d) for label, d in directions.items()}, names=["comparison"])
    gaps = pd.concat({label: gap_by_layer(skyline, d) for label, d in others}, names=["comparison"])
    return lines.reset_index("comparison"), gaps.reset_index("comparison")


def _by_layer(layer: pd.Series, values: pd.Series, resampled: ndarray, spread: float) -> pd.DataFrame:
    rows = []
    for number, of_layer in values.groupby(layer):
        mean = of_layer.mean()
        low, high = widened(interval(np.nanmean(resampled[:, of_layer.index], axis=1), mean), mean, spread)
        rows.append({"layer": number, "mean": mean, "low": low, "high": high, "n": of_layer.count()})
    return pd.DataFrame(rows)
