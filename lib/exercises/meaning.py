"""Exercises of notebooks 06 and 10: what features react to, and how they are arranged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binomtest, norm, rankdata
from sklearn.metrics import cohen_kappa_score

from lib.exercises import Exercise
from lib.interpret import complexity, judges
from lib.interpret.snippets import TopPlaces, vocabulary
from lib.spaces import concepts, semantic, similarity
from lib.spaces.semantic import FeatureSpace
from lib.workbook import judged_features, reference, spaces, texts
from lib.workbook.profiles import Profile

ACROSS = "Pythia → Mamba"
UNREADABLE, SHOWN = 3, 40  # exercise 06.1


def _scores(profile: Profile) -> pd.DataFrame:
    sample = judged_features.sample(profile, _places(profile))
    return complexity.scored(sample, judged_features.judge_of(profile))


def _places(profile: Profile) -> list[TopPlaces]:
    return judged_features.places_of(profile.pythia, profile)


def _interval(profile: Profile, method: str = "wilson", level: float = 0.95) -> list[float]:
    return list(binomtest(UNREADABLE, SHOWN).proportion_ci(level, method))


def _wald(profile: Profile) -> list[float]:
    """What is often taught first: share ± 1.96 standard errors."""
    share = UNREADABLE / SHOWN
    half = norm.ppf(0.975) * np.sqrt(share * (1 - share) / SHOWN)
    return [share - half, share + half]


def _consistency(profile: Profile) -> list[int]:
    """The stand-in's consistency of the judged features."""
    examples = judged_features.sample(profile, _places(profile)).examples
    return [score.monosemanticity for score in judges.RuleJudge().score(examples)]


def _kappa(profile: Profile, aspect: str = "complexity", weights: str | None = "quadratic") -> float:
    """Cohen's kappa of the stand-in with the reference labels."""
    ours, labels = _stand_in_and_labels(aspect)
    return float(cohen_kappa_score(ours, labels, labels=list(judges.SCORES), weights=weights))


def _share_equal(profile: Profile) -> float:
    ours, labels = _stand_in_and_labels("complexity")
    return float((np.array(ours) == labels).mean())


def _stand_in_and_labels(aspect: str) -> tuple[list[int], pd.Series]:
    labels = reference.labels()
    return [getattr(score, aspect) for score in judges.RuleJudge().score(list(labels["examples"]))], labels[aspect]


def _among(profile: Profile, which: str = "frequent", method: str = "spearman") -> float:
    """Correlation of complexity with MPPC among the features that fire more often than the sample's median."""
    scores = _scores(profile)
    often = scores["firing_rate"] > scores["firing_rate"].median()
    kept = scores[{"frequent": often, "rare": ~often, "all": often | ~often}[which]]
    return float(kept["complexity"].corr(kept[ACROSS], method=method))


def two_spaces() -> tuple[Float[ndarray, "30 6"], Float[ndarray, "30 9"]]:
    """Made-up directions of 30 matched features in two models of different width, for exercises 10.1 and 10.2."""
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(30, 4)) ** 3
    return tuple(shared @ rng.normal(size=(4, d)) + rng.normal(0, 2.4, (30, d)) for d in (6, 9))


def some_orders() -> Int[ndarray, "99 30"]:
    """99 random orders of the 30 features."""
    return np.random.default_rng(9).permuted(np.tile(np.arange(30), (99, 1)), axis=1)


def _made_up_rsa(
    profile: Profile, order: ndarray | slice = slice(None), metric: str = "correlation",
    ranks: bool = True, square: bool = False, sign: int = 1,
) -> float:  # fmt: skip
    x, y = two_spaces()
    a, b = (pdist(rows, metric) for rows in (x, y[order]))
    a, b = (squareform(d).ravel() if square else d for d in (a, b))
    a, b = (rankdata(d) if ranks else d for d in (a, b))
    return sign * float(np.corrcoef(a, b)[0, 1])


def _p(profile: Profile, above: int = 1, below: int = 1, lower: bool = False, either: bool = False) -> float:
    """p of exercise 10.2, with or without the true order above and below the line."""
    found, null = _made_up_rsa(profile), np.array([_made_up_rsa(profile, order) for order in some_orders()])
    null = np.abs(null) if either else null
    return float((above + (null < found if lower else null >= found).sum()) / (below + len(null)))


def _middle(profile: Profile) -> tuple[FeatureSpace, FeatureSpace, tuple[int, int], pd.DataFrame]:
    """Both spaces, the Transformer's middle layer and Mamba's of the same depth, and their matched features."""
    a, b = (spaces.feature_space(name, profile) for name in (profile.pythia, profile.mamba))
    depths = semantic.same_depth(len(a.activations), len(b.activations))
    layers = depths[len(depths) // 2]
    words = concepts.is_word(vocabulary(texts.load_tokenizer(profile)))
    return a, b, layers, semantic.matched_pairs(a, b, layers, words)[0]


def _similarity(profile: Profile, measure: Callable = similarity.linear_cka, **settings: bool) -> float:
    return measure(*semantic.decoder_rows(*_middle(profile)), **settings)


def _cka_by_products(profile: Profile, centred: bool = True, squared: bool = True) -> float:
    """Linear CKA as ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), or with a step left out."""
    x, y = (rows.astype(float) - rows.mean(0) * centred for rows in semantic.decoder_rows(*_middle(profile)))
    power = 2 if squared else 1
    sizes = np.sqrt(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)) ** power
    return float(np.linalg.norm(x.T @ y) ** power / sizes)


def _rsa_of_tokens(profile: Profile, keep: str = "first", measure: Callable = similarity.rsa) -> float:
    """RSA of the middle layers where each top token of the Transformer's features has one pair, or other pairs."""
    a, b, layers, pairs = _middle(profile)
    again = pd.Series(a.top_tokens[layers[0]][pairs["a"], 0]).duplicated(keep="last" if keep == "last" else "first")
    kept = {"first": ~again, "last": ~again, "all": again | ~again}[keep]
    return measure(*semantic.decoder_rows(a, b, layers, pairs[kept]))


EXERCISES = {
    "06.1": Exercise("two numbers, the ends of an interval,", _interval, {
        "that is the share ± 1.96 standard errors, which is wrong near 0 and 1": _wald,
        "that is the interval of 90 %": dict(level=0.9),
        "these are numbers of features; shares are asked for": lambda profile: SHOWN * np.array(_interval(profile)),
    }),
    "06.2": Exercise("one number, a kappa", _kappa, {
        "that is unweighted: missing by one costs as much as missing by four": dict(weights=None),
        "the weights are linear; quadratic ones are asked for": dict(weights="linear"),
        "that is the share of equal scores, which chance alone makes positive": _share_equal,
        "that is consistency (monosemanticity), not complexity": dict(aspect="monosemanticity"),
    }),
    "06.3": Exercise("one number, Spearman's ρ,", _among, {
        "these are the features that fire *less* often than the median": dict(which="rare"),
        "these are all features, frequent and rare": dict(which="all"),
        "that is Pearson's r; ranks are asked for": dict(method="pearson"),
    }, needs="mamba"),
    "06.4": Exercise("a score for each judged feature", _consistency, {
        "that is complexity, not consistency": lambda profile: _scores(profile)["complexity"],
        "a clear pattern scores 5 and none scores 1; yours runs the other way":
            lambda profile: [6 - score for score in _consistency(profile)],
    }),
    "10.1": Exercise("one number, an RSA", _made_up_rsa, {
        "distances were correlated as they are; RSA takes their ranks": dict(ranks=False),
        "every pair counts twice, and every feature's distance of 0 to itself is there as well": dict(square=True),
        "these are Euclidean distances; 1 minus the correlation is asked for": dict(metric="euclidean"),
        "in one space you took correlations, and in the other distances": dict(sign=-1),
    }),
    "10.2": Exercise("one number, a p-value", _p, {
        "without the true order among all, p could become 0: count it above and below the line":
            dict(above=0, below=0),
        "the true order is counted below the line and not above": dict(above=0),
        "the true order is counted above the line and not below": dict(below=0),
        "that counts the orders that score *lower*": dict(lower=True),
        "only x and y in the same new order were compared, which changes nothing": lambda profile: 1.0,
        "scores far below zero were counted, too; the test is one-sided": dict(either=True),
    }),
    "10.3": Exercise("one number, a CKA", _cka_by_products, {
        "the directions were not centred first": dict(centred=False),
        "the squares are missing": dict(squared=False),
        "that is the unbiased estimate": lambda profile: _similarity(profile, unbiased=True),
        "that is RSA": lambda profile: _similarity(profile, similarity.rsa),
        "that is SVCCA": lambda profile: _similarity(profile, similarity.svcca),
    }, needs="mamba"),
    "10.4": Exercise("one number, an RSA", _rsa_of_tokens, {
        "these are all matched pairs: features of one token are still among them": dict(keep="all"),
        "of the pairs of one token you kept the last, which is the worst; the best is asked for": dict(keep="last"),
        "that is SVCCA": dict(measure=similarity.svcca),
    }, needs="mamba"),
}  # fmt: skip
