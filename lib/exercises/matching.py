"""Exercises of notebooks 03, 04, 05 and 09: MPPC, what it is compared with, depth, and a third architecture."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from lib import interpret
from lib.exercises.exercise import Exercise
from lib.mppc.correlation import max_pairwise_correlation
from lib.workbook import artifacts, comparisons
from lib.workbook.profiles import LeftOut, Profile

PLACE = ["match_layer", "match_index"]
OFTEN, HIGH = 100, 0.7


def _frame(profile: Profile, name: str = "mamba", direction: int = 0) -> pd.DataFrame:
    """MPPC of a comparison, by its short name."""
    c = comparisons.comparisons(profile).get(name)
    if c is None:
        raise LeftOut(profile.left_out())
    return artifacts.mppc(c.a, c.b, profile, c.seed_b)[direction]


def _alive(profile: Profile, name: str = "mamba", direction: int = 0) -> pd.DataFrame:
    return _frame(profile, name, direction).dropna(subset="mppc")


# ------------------------------------------------------------------------------------------- 03


def _mutual(profile: Profile, direction: int = 0, by_layer_only: bool = False) -> float:
    there, back = _alive(profile, direction=direction), _frame(profile, direction=1 - direction)
    both = there.merge(back, left_on=PLACE, right_on=["layer", "index"], suffixes=("", "_back"))
    same_index = by_layer_only | (both["match_index_back"] == both["index"])
    return float(((both["match_layer_back"] == both["layer"]) & same_index).mean())


def _shared(frame: pd.DataFrame, columns: list[str] = PLACE, keep: str | bool = False) -> float:
    return float(frame.duplicated(columns, keep=keep).mean())


def _best_pair(profile: Profile, which: str) -> float:
    """Correlation of the best pair over tokens on which one or both of its features fire."""
    row = _alive(profile).sort_values("mppc", ascending=False, kind="stable").iloc[0]
    own, other = artifacts.features(profile.pythia, profile), artifacts.features(profile.mamba, profile)
    u = interpret.token_activations(own[int(row["layer"])], int(row["index"])).astype(float)
    v = interpret.token_activations(other[int(row["match_layer"])], int(row["match_index"])).astype(float)
    kept = {"either": (u > 0) | (v > 0), "both": (u > 0) & (v > 0), "first": u > 0, "all": u >= 0}[which]
    return float(np.corrcoef(u[kept], v[kept])[0, 1])


# ------------------------------------------------------------------------------------------- 04


def _differences(profile: Profile, other: str = "model_seed") -> pd.Series:
    return (_frame(profile)["mppc"] - _frame(profile, other)["mppc"]).dropna()


def _shifted(profile: Profile, offset: int) -> Float[ndarray, " features"]:
    """MPPC of Pythia's features with Mamba's, whose tokens are shifted."""
    own, other = artifacts.features(profile.pythia, profile), artifacts.features(profile.mamba, profile)
    return max_pairwise_correlation(own, other, shift=offset).value


def _gain_of_frequent(profile: Profile, name: str = "mamba", rarely: bool = False, difference: bool = True) -> float:
    frame = _frame(profile, name)
    often = (frame["firing_rate"] * profile.mppc_tokens >= OFTEN) != rarely
    return float(frame["mppc"][often].mean() - difference * frame["mppc"].mean())


# ------------------------------------------------------------------------------------------- 05


def _same_layer(profile: Profile, name: str = "model_seed", within: int = 0) -> float:
    frame = _alive(profile, name)
    return float(((frame["layer"] - frame["match_layer"]).abs() <= within).groupby(frame["layer"]).mean().mean())


def _ridge(profile: Profile, layer: int) -> int:
    return int(_alive(profile).query("layer == @layer")["match_layer"].value_counts().sort_index().idxmax())


def _without_layer(profile: Profile, layer: int = 1, shift: int = 0, only: bool = False) -> float:
    """Mean MPPC of a layer of Pythia where the layer of Mamba with most of its matches is left out."""
    own, other = artifacts.features(profile.pythia, profile), artifacts.features(profile.mamba, profile)
    ridge = (_ridge(profile, layer) + shift) % len(other)
    kept = [other[k] for k in range(len(other)) if (k == ridge) == only]
    return float(np.nanmean(max_pairwise_correlation([own[layer]], kept).value))


def _depths(profile: Profile, first: int = 1, of: str = "mamba", dead: bool = False) -> Float[ndarray, " layers"]:
    """Mean relative depth of the matches of each layer's features."""
    frame = (_frame if dead else _alive)(profile)
    n = _frame(profile, of, direction=1)["layer"].max() + 1
    return ((frame["match_layer"] + first) / n).groupby(frame["layer"]).mean().to_numpy()


# ------------------------------------------------------------------------------------------- 09


def _correlated(profile: Profile, name: str = "mamba", method: str = "spearman") -> float:
    return float(_frame(profile, "rwkv")["mppc"].corr(_frame(profile, name)["mppc"], method=method))


def _every_other(profile: Profile, start: int = 1, role: str = "mamba") -> float:
    own, other = artifacts.features(profile.pythia, profile), artifacts.features(getattr(profile, role), profile)
    return float(np.nanmean(max_pairwise_correlation(own, other[start::2]).value))


def _in_both(profile: Profile, divide: str = "either") -> float:
    mamba, rwkv = (_frame(profile, name)["mppc"] > HIGH for name in ("mamba", "rwkv"))
    of = {"either": (mamba | rwkv).sum(), "all": len(mamba), "mamba": mamba.sum(), "rwkv": rwkv.sum()}[divide]
    return float((mamba & rwkv).sum() / max(of, 1))


EXERCISES = {
    "03.1": Exercise(
        "one number, a share",
        _mutual,
        {"only the layers are compared: the index must come back as well":
             lambda profile: _mutual(profile, by_layer_only=True),
         "that is the share of Mamba's features; Pythia's are asked for": lambda profile: _mutual(profile, direction=1),
         "the divisor counts dead features, which have no match":
             lambda profile: _mutual(profile) * len(_alive(profile)) / len(_frame(profile))},
        "mamba",
    ),
    "03.2": Exercise(
        "one number, a share",
        lambda profile: _shared(_alive(profile)),
        {"the first of each group is left out: `duplicated` needs keep=False":
             lambda profile: _shared(_alive(profile), keep="first"),
         "the index alone does not name a feature, the layer belongs to it":
             lambda profile: _shared(_alive(profile), ["match_index"]),
         "dead features are counted: all of them have the match (-1, -1)": lambda profile: _shared(_frame(profile)),
         "that is the other direction, from Mamba to Pythia": lambda profile: _shared(_alive(profile, direction=1))},
        "mamba",
    ),
    "03.3": Exercise(
        "one number, a correlation",
        lambda profile: _best_pair(profile, "either"),
        {"that is the MPPC itself: tokens on which neither fires are still in":
             lambda profile: _best_pair(profile, "all"),
         "these are the tokens on which *both* fire; where only one fires they disagree, and that counts":
             lambda profile: _best_pair(profile, "both"),
         "these are the tokens on which Pythia's feature fires; those where only Mamba's fires are left out":
             lambda profile: _best_pair(profile, "first")},
        "mamba",
    ),
    "04.1": Exercise(
        "one number, a share",
        lambda profile: (_differences(profile) > 0).mean(),
        {"that is the reverse: the share that matches better in the other Pythia":
             lambda profile: (_differences(profile) < 0).mean(),
         "the divisor counts dead features, which have no difference":
             lambda profile: (_differences(profile) > 0).sum() / len(_frame(profile)),
         "that is against the other SAE seed, not the other model seed":
             lambda profile: (_differences(profile, "sae_seed") > 0).mean()},
        "mamba, pythia_seed",
    ),
    "04.2": Exercise(
        "one number, a mean MPPC",
        lambda profile: np.nanmean(_shifted(profile, 1)),
        {"that is the mean without any shift": lambda profile: _alive(profile).mppc.mean(),
         "that is the null of this notebook, shifted by far more than one token":
             lambda profile: artifacts.mppc(profile.pythia, profile.mamba, profile, null=True)[0].mppc.mean(),
         "dead features are counted as 0": lambda profile: np.nan_to_num(_shifted(profile, 1)).mean(),
         "it is shifted the other way": lambda profile: np.nanmean(_shifted(profile, -1))},
        "mamba",
    ),
    "04.3": Exercise(
        "one number, a gain of the mean MPPC",
        _gain_of_frequent,
        {"these are the features that fire *fewer* than 100 times":
             lambda profile: _gain_of_frequent(profile, rarely=True),
         "that is the mean of the frequent ones; their gain over all is asked for":
             lambda profile: _gain_of_frequent(profile, difference=False),
         "that is the gain between two SAE seeds": lambda profile: _gain_of_frequent(profile, "sae_seed"),
         "that is the gain against the other model seed": lambda profile: _gain_of_frequent(profile, "model_seed")},
        "mamba",
    ),
    "05.1": Exercise(
        "one number, a share",
        _same_layer,
        {"neighbouring layers are counted as the same": lambda profile: _same_layer(profile, within=1),
         "that is between two SAE seeds of one model": lambda profile: _same_layer(profile, "sae_seed"),
         "that is Mamba's depth map, whose layers are not Pythia's": lambda profile: _same_layer(profile, "mamba")},
        "pythia_seed",
    ),
    "05.2": Exercise(
        "one number, a mean MPPC",
        _without_layer,
        {"no layer is left out": lambda profile: _alive(profile).query("layer == 1").mppc.mean(),
         "only the layer to be left out is kept": lambda profile: _without_layer(profile, only=True),
         "off by one: the layer before it is left out": lambda profile: _without_layer(profile, shift=-1),
         "off by one: the layer after it is left out": lambda profile: _without_layer(profile, shift=1),
         "that is layer 0 of Pythia; layers are counted from 0, and layer 1 is asked for":
             lambda profile: _without_layer(profile, layer=0)},
        "mamba",
    ),
    "05.3": Exercise(
        "a mean relative depth for each layer of Pythia",
        _depths,
        {"off by one: relative depth is (layer + 1) / number of layers": lambda profile: _depths(profile, first=0),
         "divided by the number of Pythia's layers; the matches lie in Mamba":
             lambda profile: _depths(profile, of="model_seed"),
         "dead features are counted: their match_layer is -1": lambda profile: _depths(profile, dead=True)},
        "mamba",
    ),
    "09.1": Exercise(
        "one number, Spearman's r,",
        _correlated,
        {"that is Pearson's r; ranks are asked for": lambda profile: _correlated(profile, method="pearson"),
         "that is with the other model seed, not with Mamba": lambda profile: _correlated(profile, "model_seed"),
         "that is with the other SAE seed, not with Mamba": lambda profile: _correlated(profile, "sae_seed")},
        "rwkv, mamba",
    ),
    "09.2": Exercise(
        "one number, a mean MPPC",
        _every_other,
        {"these are the layers 0, 2, …: begin with the second": lambda profile: _every_other(profile, start=0),
         "that is with all layers of Mamba": lambda profile: _alive(profile).mppc.mean(),
         "that is every other layer of RWKV": lambda profile: _every_other(profile, role="rwkv"),
         "that is with all layers of RWKV, the number to compare with":
             lambda profile: _alive(profile, "rwkv").mppc.mean()},
        "mamba",
    ),
    "09.3": Exercise(
        "one number, a share",
        _in_both,
        {"the divisor is all features; those above 0.7 in at least one are asked for":
             lambda profile: _in_both(profile, "all"),
         "the divisor is those above 0.7 in Mamba only": lambda profile: _in_both(profile, "mamba"),
         "the divisor is those above 0.7 in RWKV only": lambda profile: _in_both(profile, "rwkv")},
        "rwkv, mamba",
    ),
}  # fmt: skip
