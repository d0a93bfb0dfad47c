"""Exercises of notebooks 06 and 10: what features react to, and how they are arranged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import false_discovery_control
from sklearn.metrics import cohen_kappa_score

from lib.exercises.exercise import Exercise
from lib.interpret import complexity, judges
from lib.interpret.snippets import vocabulary
from lib.spaces import concepts, semantic, similarity
from lib.workbook import judged_features, reference, spaces, texts
from lib.workbook.profiles import Profile

ACROSS = "Pythia → Mamba"
SHUFFLES, AS_HIGH = 100, 2  # exercise 10.1


def _scores(profile: Profile) -> pd.DataFrame:
    sample = judged_features.sample(profile, judged_features.places_of(profile.pythia, profile))
    return complexity.scored(sample, judged_features.judge_of(profile))


def _by_layer(profile: Profile, aspect: str = "complexity", statistic: str = "mean") -> Float[ndarray, " layers"]:
    return _scores(profile).groupby("layer")[aspect].agg(statistic).to_numpy()


def _kappa(profile: Profile, aspect: str = "complexity", weights: str | None = "quadratic") -> float:
    """Cohen's kappa of the stand-in with the hand labels."""
    ours, labels = _stand_in_and_hand(aspect)
    return float(cohen_kappa_score(ours, labels, labels=list(judges.SCORES), weights=weights))


def _share_equal(profile: Profile) -> float:
    ours, labels = _stand_in_and_hand("complexity")
    return float((np.array(ours) == labels).mean())


def _stand_in_and_hand(aspect: str) -> tuple[list[int], pd.Series]:
    labels = reference.hand_labels()
    return [getattr(score, aspect) for score in judges.RuleJudge().score(list(labels["examples"]))], labels[aspect]


def _among(profile: Profile, which: str = "frequent", method: str = "spearman") -> float:
    """Correlation of complexity with MPPC among the features that fire more often than the sample's median."""
    scores = _scores(profile)
    often = scores["firing_rate"] > scores["firing_rate"].median()
    kept = scores[{"frequent": often, "rare": ~often, "all": often | ~often}[which]]
    return float(kept["complexity"].corr(kept[ACROSS], method=method))


def _p_of_shuffles(profile: Profile) -> float:
    return similarity.p_value(1.0, np.arange(SHUFFLES) < AS_HIGH)


def _p_values(profile: Profile, measure: str = "RSA") -> pd.Series:
    others = (profile.pythia_seed, profile.mamba, profile.rwkv)
    tables = [spaces.subspace_scores(profile.pythia, name, profile) for name in others if name]
    return pd.concat(tables).query("measure == @measure").p


def _smallest(profile: Profile, measure: str = "RSA", untested: bool = False) -> float:
    """The smallest p-value after Bonferroni's correction for those that were tested, or for all."""
    p = _p_values(profile, measure)
    return float(min(1, p.min() * (len(p) if untested else p.notna().sum())))


def _middle_rows(profile: Profile) -> tuple[ndarray, ndarray]:
    """Decoder rows of the matched features of the Transformer's middle layer and Mamba's of the same depth."""
    a, b = (spaces.feature_space(name, profile) for name in (profile.pythia, profile.mamba))
    depths = semantic.same_depth(len(a.activations), len(b.activations))
    layers = depths[len(depths) // 2]
    words = concepts.is_word(vocabulary(texts.load_tokenizer(profile)))
    return semantic.decoder_rows(a, b, layers, semantic.matched_pairs(a, b, layers, words)[0])


def _similarity(profile: Profile, measure: Callable = similarity.linear_cka, **settings: bool) -> float:
    return measure(*_middle_rows(profile), **settings)


EXERCISES = {
    "06.1": Exercise("a mean complexity for each layer", _by_layer, {
        "that is consistency (monosemanticity), not complexity": dict(aspect="monosemanticity"),
        "these are medians; means are asked for": dict(statistic="median"),
        "these are numbers of features, not their mean score": dict(statistic="count"),
    }),
    "06.2": Exercise("one number, a kappa", _kappa, {
        "that is unweighted: missing by one costs as much as missing by four": dict(weights=None),
        "the weights are linear; quadratic ones are asked for": dict(weights="linear"),
        "that is the share of equal scores, which chance alone makes positive": _share_equal,
        "that is consistency (monosemanticity), not complexity": dict(aspect="monosemanticity"),
    }),
    "06.3": Exercise("one number, Spearman's r,", _among, {
        "these are the features that fire *less* often than the median": dict(which="rare"),
        "these are all features, frequent and rare": dict(which="all"),
        "that is Pearson's r; ranks are asked for": dict(method="pearson"),
    }, needs="mamba"),
    "10.1": Exercise("one number, a p-value", _p_of_shuffles, {
        "without the true pairing among the shuffles, p could become 0: count it above and below":
            lambda profile: AS_HIGH / SHUFFLES,
        "the true pairing is counted below the line and not above": lambda profile: AS_HIGH / (SHUFFLES + 1),
        "the true pairing is counted above the line and not below": lambda profile: (1 + AS_HIGH) / SHUFFLES,
        "that is the share of shuffles that score *lower*": lambda profile: (SHUFFLES - AS_HIGH) / SHUFFLES,
    }),
    "10.2": Exercise("one number, a p-value", _smallest, {
        "it is not corrected": lambda profile: _p_values(profile).min(),
        "subspaces with too few pairs are counted, but they were not tested": dict(untested=True),
        "that is Benjamini and Hochberg's, which bounds another error":
            lambda profile: pd.Series(false_discovery_control(_p_values(profile).dropna())).min(),
        "that is SVCCA's": dict(measure="SVCCA"),
    }, needs="pythia_seed or mamba or rwkv"),
    "10.3": Exercise("one number, a CKA", lambda profile: _similarity(profile, unbiased=True), {
        "that is the biased estimator, which is high for few rows in many dimensions": _similarity,
        "that is with Gaussian kernels": lambda profile: _similarity(profile, similarity.rbf_cka, unbiased=True),
        "that is RSA": lambda profile: _similarity(profile, similarity.rsa),
        "that is SVCCA": lambda profile: _similarity(profile, similarity.svcca),
    }, needs="mamba"),
}  # fmt: skip
