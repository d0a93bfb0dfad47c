"""Exercises of notebooks 03, 04, 05, 09 and 11: MPPC, what it is compared with, depth, other models and tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from lib import interpret, pairing
from lib.exercises import Exercise
from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.features import SparseFeatures
from lib.mppc.uncertainty import correlation, matched_sums
from lib.workbook import artifacts, comparisons, texts
from lib.workbook.profiles import LeftOut, Profile

READ_A = ["for", " the", " loop", "s", " end", "s"]  # exercise 11.1
READ_B = ["f", "or", " the", " loops", " en", "ds"]
SOME = slice(None, None, 400)  # documents of exercise 11.2


def _frame(profile: Profile, name: str = "mamba", direction: int = 0) -> pd.DataFrame:
    """MPPC of a comparison, by its short name."""
    c = comparisons.comparisons(profile).get(name)
    if c is None:
        raise LeftOut(profile.left_out())
    return artifacts.mppc(c.a, c.b, profile, c.seed_b)[direction]


def _alive(profile: Profile, name: str = "mamba", direction: int = 0) -> pd.DataFrame:
    return _frame(profile, name, direction).dropna(subset="mppc")


def _features(profile: Profile, role: str = "mamba") -> tuple[list[SparseFeatures], list[SparseFeatures]]:
    """Pythia's, and those of the model in another role."""
    return artifacts.features(profile.pythia, profile), artifacts.features(getattr(profile, role), profile)


def _mean(profile: Profile, name: str = "mamba") -> float:
    return _alive(profile, name)["mppc"].mean()


def _mutual(profile: Profile, direction: int = 0, by_layer_only: bool = False) -> float:
    there, back = _alive(profile, direction=direction), _frame(profile, direction=1 - direction)
    match, own = ["match_layer", "match_index"], ["layer", "index"]
    both = there.merge(back, left_on=match, right_on=own, suffixes=("", "_back"))
    same_layer = both["match_layer_back"] == both["layer"]
    same_index = both["match_index_back"] == both["index"]
    return float((same_layer if by_layer_only else same_layer & same_index).mean())


def _best_pair(profile: Profile, which: str = "either") -> float:
    """Correlation of the best pair over tokens on which one or both of its features fire.

    Of features that fire a hundred times or more, as in the notebook: on fewer tokens it may not be defined.
    """
    own, other = _features(profile)
    alive = _alive(profile)
    often = alive[alive["firing_rate"] * own[0].n_tokens >= 100 if profile.meaningful else alive["firing_rate"] > 0]
    row = often.sort_values("mppc", ascending=False, kind="stable").iloc[0]
    u = interpret.token_activations(own[int(row["layer"])], int(row["index"])).astype(float)
    v = interpret.token_activations(other[int(row["match_layer"])], int(row["match_index"])).astype(float)
    kept = {"either": (u > 0) | (v > 0), "both": (u > 0) & (v > 0), "first": u > 0, "all": u >= 0}[which]
    return float(np.corrcoef(u[kept], v[kept])[0, 1])


def _correlations(profile: Profile, centred: bool = True, n: int = 2_000) -> Float[ndarray, "pythia mamba"]:
    """All correlations (or cosines) of the first layers' features that vary over the first `n` tokens."""
    sides = (layers[0].head(min(n, layers[0].n_tokens)).to_scipy().toarray() for layers in _features(profile))
    X, Y = (Z[:, Z.std(0) > 0].astype(float) for Z in sides)
    X, Y = (Z - Z.mean(0) if centred else Z for Z in (X, Y))
    return (X / np.linalg.norm(X, axis=0)).T @ (Y / np.linalg.norm(Y, axis=0))


def _dense(profile: Profile, axis: int = 1, sign: bool = True, **choice) -> float:
    rho = _correlations(profile, **choice)
    return float((rho if sign else np.abs(rho)).max(axis).mean())


def _one_to_one(profile: Profile, maximize: bool = True) -> float:
    rho = _correlations(profile)
    return float(rho[linear_sum_assignment(rho, maximize=maximize)].mean())


def _backwards(profile: Profile, which: str = "mamba") -> float:
    """Mean MPPC of Pythia's features where one model's tokens come in reverse order."""
    own, other = _features(profile)
    turned = lambda side: [SparseFeatures.from_scipy(layer.to_scipy()[::-1]) for layer in side]  # noqa: E731
    sides = {"mamba": (own, turned(other)), "pythia": (own, turned(own)), "both": (turned(own), turned(other))}[which]
    return float(np.nanmean(max_pairwise_correlation(*sides).value))


def _optimism(profile: Profile, layer: int = 0, score: str = "second", difference: bool = True) -> float:
    """What the matches of a layer of Pythia lose where they are chosen on the first half and scored on the second."""
    own, other = _features(profile)
    n = own[layer].n_tokens
    first, second = slice(0, n // 2), slice(n // 2, n)
    if score == "choosing on the second":
        first, second = second, first
    whole = slice(0, n) if score == "all" else second
    chosen = max_pairwise_correlation(
        *([k.rows(first.start, first.stop) for k in side] for side in ([own[layer]], other))
    )
    sides = [[k.rows(whole.start, whole.stop) for k in side] for side in ([own[layer]], other)]
    frame, length = chosen.to_frame(), whole.stop - whole.start
    sums = matched_sums(*sides, frame, np.zeros(length, np.int32))
    scored = correlation(sums[:, 0], np.array(float(length)))
    return float(np.nanmean(frame["mppc"] - scored) if difference else np.nanmean(scored))


def _differences(profile: Profile, other: str = "model_seed") -> pd.Series:
    return (_frame(profile)["mppc"] - _frame(profile, other)["mppc"]).dropna()


def _share_better(profile: Profile, other: str = "model_seed") -> float:
    """Of Pythia's features that match better in Mamba than in another comparison."""
    return (_differences(profile, other) > 0).mean()


def _shifted(profile: Profile, offset: int = 1, mean: Callable[[ndarray], float] = np.nanmean) -> float:
    """Mean MPPC of Pythia's features with Mamba's, whose tokens are shifted."""
    return mean(max_pairwise_correlation(*_features(profile), shift=offset).value)


def _same_layer(profile: Profile, name: str = "model_seed", within: int = 0) -> float:
    frame = _alive(profile, name)
    near = (frame["layer"] - frame["match_layer"]).abs() <= within
    return float(near.groupby(frame["layer"]).mean().mean())


def _depths(profile: Profile, first: int = 1, of: str = "mamba", dead: bool = False) -> Float[ndarray, " layers"]:
    """Mean relative depth of the matches of each layer's features."""
    frame = (_frame if dead else _alive)(profile)
    n = _frame(profile, of, direction=1)["layer"].max() + 1
    return ((frame["match_layer"] + first) / n).groupby(frame["layer"]).mean().to_numpy()


def _loss_at_depth(profile: Profile, shift: int = 0, same_index: bool = False, loss: bool = True) -> float:
    """By how much the mean MPPC falls where a match must lie at the same relative depth."""
    frame, values = _frame(profile), artifacts.mppc_by_match_layer(profile.pythia, profile.mamba, profile)
    own, n = frame["layer"].to_numpy(), values.shape[1]
    depth = own if same_index else np.rint((own + 1) * n / (own.max() + 1)).astype(int) - 1
    found = np.nanmean(values[np.arange(len(values)), (depth + shift) % n])
    return float(np.nanmean(frame["mppc"]) - found if loss else found)


def _correlated(profile: Profile, name: str = "mamba", method: str = "spearman") -> float:
    return float(_frame(profile, "rwkv")["mppc"].corr(_frame(profile, name)["mppc"], method=method))


def _every_other(profile: Profile, start: int = 1, role: str = "mamba") -> float:
    own, other = _features(profile, role)
    return float(np.nanmean(max_pairwise_correlation(own, other[start::2]).value))


def _ends(tokens: Sequence[str]) -> ndarray:
    return np.cumsum([len(token) for token in tokens])


def _shared_ends(profile: Profile, of: Callable[[ndarray, ndarray], ndarray] = np.intersect1d) -> ndarray:
    return of(_ends(READ_A), _ends(READ_B))


def _of_characters(profile: Profile, pooled: bool = True) -> float:
    """Share of a text's characters at which a token of the run's tokenizer ends."""
    documents = texts.documents()[SOME]
    readings = pairing.read(texts.load_tokenizer(profile), documents)
    tokens = np.array([(reading.ends >= 0).sum() for reading in readings])
    characters = np.array([len(text) for text in documents])
    return float(tokens.sum() / characters.sum() if pooled else (tokens / characters).mean())


EXERCISES = {
    "03.1": Exercise("one number, a share", _mutual, {
        "only the layers are compared: the index must come back as well": dict(by_layer_only=True),
        "that is the share of Mamba's features; Pythia's are asked for": dict(direction=1),
        "the divisor counts dead features, which have no match":
            lambda profile: _mutual(profile) * len(_alive(profile)) / len(_frame(profile)),
    }, needs="mamba"),
    "03.2": Exercise("one number, a correlation", _best_pair, {
        "that is the MPPC itself: tokens on which neither fires are still in": dict(which="all"),
        "these are the tokens on which *both* fire; where only one fires they disagree, and that counts":
            dict(which="both"),
        "these are the tokens on which Pythia's feature fires; those where only Mamba's fires are left out":
            dict(which="first"),
    }, needs="mamba"),
    "03.3": Exercise("one number, a mean MPPC", _dense, {
        "that is the reverse direction: the maximum goes over Pythia's features": dict(axis=0),
        "the series are not centred: that is a cosine, not a correlation": dict(centred=False),
        "these are absolute values; MPPC is signed": dict(sign=False),
        "these are the first 1,000 tokens": dict(n=1_000),
    }, needs="mamba"),
    "03.4": Exercise("one number, a mean correlation", _one_to_one, {
        "that is the mean MPPC, where a match may serve many features": _dense,
        "that is the *smallest* sum: pass maximize=True": dict(maximize=False),
    }, needs="mamba"),
    "04.1": Exercise("one number, a share", _share_better, {
        "that is the reverse: the share that matches better in the other Pythia":
            lambda profile: (_differences(profile) < 0).mean(),
        "the divisor counts dead features, which have no difference":
            lambda profile: (_differences(profile) > 0).sum() / len(_frame(profile)),
        "that is against the other SAE seed, not the other model seed": dict(other="sae_seed"),
    }, needs="mamba, pythia_seed"),
    "04.2": Exercise("one number, a mean MPPC", _shifted, {
        "that is the mean without any shift": _mean,
        "that is the null of this notebook, shifted by far more than one token":
            lambda profile: artifacts.mppc(profile.pythia, profile.mamba, profile, null=True)[0].mppc.mean(),
        "dead features are counted as 0": dict(mean=lambda values: np.nan_to_num(values).mean()),
        "it is shifted the other way": dict(offset=-1),
    }, needs="mamba"),
    "04.3": Exercise("one number, a mean MPPC", _backwards, {
        "both models read backwards, so the pairing is the true one": dict(which="both"),
        "that is the null of this notebook, shifted and not turned round":
            lambda profile: artifacts.mppc(profile.pythia, profile.mamba, profile, null=True)[0].mppc.mean(),
        "Pythia's features are compared with Pythia's own, read backwards": dict(which="pythia"),
    }, needs="mamba"),
    "04.4": Exercise("one number, a mean loss of correlation", _optimism, {
        "the matches are scored on all tokens, with those that chose them": dict(score="all"),
        "the halves are exchanged: choose on the first, score on the second": dict(score="choosing on the second"),
        "that is the mean score itself; what is lost against the choosing half is asked for": dict(difference=False),
        "that is the second layer of Pythia; layers are counted from 0": dict(layer=1),
    }, needs="mamba"),
    "05.1": Exercise("one number, a share", _same_layer, {
        "neighbouring layers are counted as the same": dict(within=1),
        "that is between two SAE seeds of one model": dict(name="sae_seed"),
        "that is Mamba's depth map, whose layers are not Pythia's": dict(name="mamba"),
    }, needs="pythia_seed"),
    "05.2": Exercise("a mean relative depth for each layer of Pythia", _depths, {
        "off by one: relative depth is (layer + 1) / number of layers": dict(first=0),
        "divided by the number of Pythia's layers; the matches lie in Mamba": dict(of="model_seed"),
        "dead features are counted: their match_layer is -1": dict(dead=True),
    }, needs="mamba"),
    "05.3": Exercise("one number, a loss of MPPC", _loss_at_depth, {
        "that is the mean at the same depth; what it lies below the true mean is asked for": dict(loss=False),
        "that is the layer of the same *number*; Mamba has more layers than Pythia": dict(same_index=True),
        "off by one: that is the layer before the one of the same depth": dict(shift=-1),
    }, needs="mamba"),
    "09.1": Exercise("one number, Spearman's ρ,", _correlated, {
        "that is Pearson's r; ranks are asked for": dict(method="pearson"),
        "that is with the other model seed, not with Mamba": dict(name="model_seed"),
        "that is with the other SAE seed, not with Mamba": dict(name="sae_seed"),
    }, needs="rwkv, mamba"),
    "09.2": Exercise("one number, a mean MPPC", _every_other, {
        "these are the layers 0, 2, …: begin with the second": dict(start=0),
        "that is with all layers of Mamba": _mean,
        "that is every other layer of RWKV": dict(role="rwkv"),
        "that is with all layers of RWKV, the number to compare with": lambda profile: _mean(profile, "rwkv"),
    }, needs="mamba"),
    "11.1": Exercise("a list of numbers of characters", _shared_ends, {
        "only tokens that are the same in both are paired; it is enough that they end at the same place":
            lambda profile: [end for end, token in zip(_ends(READ_A), READ_A) if token in READ_B],
        "tokens are paired by their numbers; two tokenizers have not read the same after as many tokens":
            dict(of=lambda a, b: a[a == b]),
        "these are all places where a token of either ends": dict(of=np.union1d),
        "the places where tokens begin are listed, too: nothing has been read at 0":
            lambda profile: [0, *_shared_ends(profile)],
    }),
    "11.2": Exercise("one number, a share", _of_characters, {
        "that is the share of the first model's tokens: each of them ends at a character": lambda profile: 1.0,
        "it is upside down: that is how many characters a token has": lambda profile: 1 / _of_characters(profile),
        "that is the mean over documents, in which short ones weigh as much as long ones": dict(pooled=False),
    }),
}  # fmt: skip
