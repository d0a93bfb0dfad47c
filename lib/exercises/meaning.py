"""Exercises of notebooks 06 and 10: what features react to, and how they are arranged."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from sklearn.metrics import cohen_kappa_score

from lib.exercises.exercise import Exercise
from lib.interpret import complexity, judges
from lib.interpret.snippets import vocabulary
from lib.spaces import concepts, semantic, similarity
from lib.spaces.similarity import benjamini_hochberg
from lib.workbook import texts
from lib.workbook.profiles import Profile

ACROSS = "Pythia → Mamba"
SHUFFLES, AS_HIGH = 100, 2  # exercise 10.1


# ------------------------------------------------------------------------------------------- 06


def _scores(profile: Profile) -> pd.DataFrame:
    sample = complexity.sample(profile, complexity.places_of(profile.pythia, profile))
    return complexity.scored(sample, complexity.judge_of(profile))


def _by_layer(profile: Profile, aspect: str = "complexity", statistic: str = "mean") -> Float[ndarray, " layers"]:
    return _scores(profile).groupby("layer")[aspect].agg(statistic).to_numpy()


def _kappa(aspect: str = "complexity", weights: str | None = "quadratic") -> float:
    """Cohen's kappa of the stand-in with the hand labels."""
    ours, labels = _stand_in_and_hand(aspect)
    return float(cohen_kappa_score(ours, labels, labels=list(judges.SCORES), weights=weights))


def _equal() -> float:
    ours, labels = _stand_in_and_hand("complexity")
    return float((np.array(ours) == labels).mean())


def _stand_in_and_hand(aspect: str) -> tuple[list[int], pd.Series]:
    labels = judges.hand_labels()
    return [getattr(score, aspect) for score in judges.RuleJudge().score(list(labels["examples"]))], labels[aspect]


def _among(profile: Profile, which: str = "frequent", method: str = "spearman") -> float:
    """Correlation of complexity with MPPC among the features that fire more often than the sample's median."""
    scores = _scores(profile)
    often = scores["firing_rate"] > scores["firing_rate"].median()
    kept = scores[{"frequent": often, "rare": ~often, "all": often | ~often}[which]]
    return float(kept["complexity"].corr(kept[ACROSS], method=method))


# ------------------------------------------------------------------------------------------- 10


def _tests(profile: Profile, measure: str = "RSA") -> pd.DataFrame:
    others = (profile.pythia_seed, profile.mamba, profile.rwkv)
    tables = [semantic.subspace_scores(profile.pythia, name, profile) for name in others if name]
    return pd.concat(tables).query("measure == @measure")


def _smallest(p: pd.Series, untested: bool = False) -> float:
    """The smallest p-value after Bonferroni's correction for those that were tested, or for all."""
    return float(min(1, p.min() * (len(p) if untested else p.notna().sum())))


def _middle_rows(profile: Profile) -> tuple[ndarray, ndarray]:
    """Decoder rows of the matched features of the Transformer's middle layer and Mamba's of the same depth."""
    a, b = (semantic.FeatureSpace.load(name, profile) for name in (profile.pythia, profile.mamba))
    depths = semantic.same_depth(len(a.activations), len(b.activations))
    layers = depths[len(depths) // 2]
    words = concepts.is_word(vocabulary(texts.load_tokenizer(profile)))
    return semantic.decoder_rows(a, b, layers, semantic.matched_pairs(a, b, layers, words)[0])


EXERCISES = {
    "06.1": Exercise(
        "a mean complexity for each layer",
        _by_layer,
        {"that is consistency (monosemanticity), not complexity": lambda profile: _by_layer(profile, "monosemanticity"),
         "these are medians; means are asked for": lambda profile: _by_layer(profile, statistic="median"),
         "these are numbers of features, not their mean score": lambda profile: _by_layer(profile, statistic="count")},
    ),
    "06.2": Exercise(
        "one number, a kappa",
        lambda profile: _kappa(),
        {"that is unweighted: missing by one costs as much as missing by four": lambda profile: _kappa(weights=None),
         "the weights are linear; quadratic ones are asked for": lambda profile: _kappa(weights="linear"),
         "that is the share of equal scores, which chance alone makes positive": lambda profile: _equal(),
         "that is consistency (monosemanticity), not complexity": lambda profile: _kappa("monosemanticity")},
    ),
    "06.3": Exercise(
        "one number, Spearman's r,",
        _among,
        {"these are the features that fire *less* often than the median": lambda profile: _among(profile, "rare"),
         "these are all features, frequent and rare": lambda profile: _among(profile, "all"),
         "that is Pearson's r; ranks are asked for": lambda profile: _among(profile, method="pearson")},
        "mamba",
    ),
    "10.1": Exercise(
        "one number, a p-value",
        lambda profile: similarity.p_value(1.0, np.arange(SHUFFLES) < AS_HIGH),
        {"without the true pairing among the shuffles, p could become 0: count it above and below":
             lambda profile: AS_HIGH / SHUFFLES,
         "the true pairing is counted below the line and not above": lambda profile: AS_HIGH / (SHUFFLES + 1),
         "the true pairing is counted above the line and not below": lambda profile: (1 + AS_HIGH) / SHUFFLES,
         "that is the share of shuffles that score *lower*": lambda profile: (SHUFFLES - AS_HIGH) / SHUFFLES},
    ),
    "10.2": Exercise(
        "one number, a p-value",
        lambda profile: _smallest(_tests(profile).p),
        {"it is not corrected": lambda profile: _tests(profile).p.min(),
         "subspaces with too few pairs are counted, but they were not tested":
             lambda profile: _smallest(_tests(profile).p, untested=True),
         "that is Benjamini and Hochberg's, which bounds another error":
             lambda profile: np.nanmin(benjamini_hochberg(_tests(profile).p)),
         "that is SVCCA's": lambda profile: _smallest(_tests(profile, "SVCCA").p)},
        "pythia_seed or mamba or rwkv",
    ),
    "10.3": Exercise(
        "one number, a CKA",
        lambda profile: similarity.linear_cka(*_middle_rows(profile), unbiased=True),
        {"that is the biased estimator, which is high for few rows in many dimensions":
             lambda profile: similarity.linear_cka(*_middle_rows(profile)),
         "that is with Gaussian kernels": lambda profile: similarity.rbf_cka(*_middle_rows(profile), unbiased=True),
         "that is RSA": lambda profile: similarity.rsa(*_middle_rows(profile)),
         "that is SVCCA": lambda profile: similarity.svcca(*_middle_rows(profile))},
        "mamba",
    ),
}  # fmt: skip
