"""Controls of §4 that the paper lacks, each kept: equal pools, halves and parts of the text, two nulls, SAE seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.models.recipes import recipe_of
from lib.mppc import controls
from lib.mppc.correlation import max_pairwise_correlation
from lib.mppc.directions import Direction
from lib.mppc.uncertainty import document_groups, resampled
from lib.workbook import artifacts, comparisons, model_store, texts
from lib.workbook.comparisons import Comparison
from lib.workbook.profiles import Profile
from lib.workbook.sizes import config_of

N_DRAWS = 3  # random pools of each comparison
ALIKE = 1.05  # a pool that is larger by less than this factor counts as one of the same size
TOKEN_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
N_RESAMPLES = 100  # of the documents, for each share: enough for a deviation


def equal_pools(pairs: Mapping[str, tuple[Direction, Direction]], profile: Profile) -> pd.DataFrame:
    """Mean MPPC where every feature chooses among equally many candidates, beside the paper's choice among all.

    `pairs` are comparisons by their short names, both directions, as `comparisons.compare` gives them. The size is that
    of the smallest pool of features; where neurons are among the comparisons, the forward directions are measured with
    as many candidates as the neurons have, too. Columns comparison, direction, candidates (those of the other model
    that vary), mean (over all of these), size, mean_equal (over random pools of this size), spread (standard deviation
    between the pools, 0 where the whole pool has the size).
    """
    known, rows = comparisons.comparisons(profile), []
    of_features = [name for name in pairs if not known[name].neurons]
    smallest = min(len(d.mppc) for name in of_features for d in pairs[name])
    of_neurons = [len(pair[1].mppc) for name, pair in pairs.items() if known[name].neurons]
    for name in of_features:
        for way, (own, other) in zip(("forward", "reverse"), (pairs[name], pairs[name][::-1]), strict=True):
            for size in [smallest, *(of_neurons if way == "forward" else [])]:
                candidates = len(other.mppc)
                there = {"comparison": known[name].label, "direction": way, "candidates": candidates}
                means = [own.mppc.mean()]
                if candidates > ALIKE * size:
                    means = _drawn(known[name], way, size, profile)
                found = {"mean": own.mppc.mean(), "size": size, "mean_equal": np.mean(means), "spread": np.std(means)}
                rows.append(there | found)
    return pd.DataFrame(rows)


def _drawn(comparison: Comparison, way: str, size: int, profile: Profile) -> np.ndarray:
    """Mean MPPC of one direction with each of the random pools."""

    def measure() -> np.ndarray:
        sides = _sides(comparison, profile)[:: 1 if way == "forward" else -1]
        device = model_store.device_of(profile)
        return np.nanmean(controls.fair_pools(*sides, size, N_DRAWS, profile.seed, device=device), axis=1)

    fields = _fields(comparison, profile) | {"way": way, "size": size, "draws": N_DRAWS}
    return artifacts.kept("equal_pools", fields, measure, "means.npy", profile)


def halves(names: list[str], profile: Profile) -> pd.DataFrame:
    """Matches chosen on one half of the documents and scored on the other (`lib.mppc.controls.cross_scored`).

    Columns comparison, n (features that vary on both halves), chosen, scored, optimism: means over the features.
    """
    known, rows = comparisons.comparisons(profile), []
    for name in names:
        frame = _cross_scored(known[name], profile).dropna()
        chosen, scored = frame["chosen"].mean(), frame["scored"].mean()
        found = {"n": len(frame), "chosen": chosen, "scored": scored, "optimism": chosen - scored}
        rows.append({"comparison": known[name].label} | found)
    return pd.DataFrame(rows)


def _cross_scored(comparison: Comparison, profile: Profile) -> pd.DataFrame:
    def measure() -> pd.DataFrame:
        group = document_groups(texts.load_blocks(profile, "held_out", profile.mppc_tokens), profile.seed)
        return controls.cross_scored(*_sides(comparison, profile), group, device=model_store.device_of(profile))

    return artifacts.kept("halves", _fields(comparison, profile), measure, "halves.parquet", profile)


def similarity_by_tokens(profile: Profile) -> pd.DataFrame:
    """Mean MPPC with Mamba, if there is one, and with another SAE seed, over shorter parts of the held-out text.

    Columns comparison, value (tokens), mppc, low, high: the mean ± 1.96 standard deviations over the documents.
    """
    known = comparisons.comparisons(profile)
    of = [known[name] for name in ("mamba", "sae_seed") if name in known]

    def measure() -> pd.DataFrame:
        rows, group = [], document_groups(texts.load_blocks(profile, "held_out", profile.mppc_tokens), profile.seed)
        for comparison in of:
            a, b = _sides(comparison, profile)
            for share in tqdm(TOKEN_SHARES, f"MPPC by tokens, {comparison.label}", mininterval=5):
                n = int(share * a[0].n_tokens)
                parts = [[layer.head(n) for layer in layers] for layers in (a, b)]
                if share < 1:
                    found = max_pairwise_correlation(*parts, device=model_store.device_of(profile)).to_frame()
                else:
                    found = artifacts.mppc(comparison.a, comparison.b, profile, comparison.seed_b)[0]
                _, present = np.unique(group[:n], return_inverse=True)
                drawn = resampled(*parts, found, present.astype(np.int32), profile.seed, N_RESAMPLES)
                mean, half = found["mppc"].mean(), 1.96 * np.nanmean(drawn, axis=1).std()
                row = {"comparison": comparison.label, "value": n, "mppc": mean}
                rows.append(row | {"low": mean - half, "high": mean + half})
        return pd.DataFrame(rows)

    fields = {comparison.label: _fields(comparison, profile) for comparison in of} | {"shares": TOKEN_SHARES}
    fields |= {"resamples": N_RESAMPLES}
    return artifacts.kept("by_tokens", fields, measure, "by_tokens.csv", profile)


def similarity_by_dead(summary: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Forward means of these comparisons with dead features left out, and counted as 0.

    Columns comparison, value, mppc, low, high. `summary` is `comparisons.summary_table`'s. Zeros scale a mean, and its
    interval with it.
    """
    rows = summary[(summary["direction"] == "forward") & summary["comparison"].isin(labels)]
    share = rows["mean_with_dead_as_0"] / rows["mean"]
    means = rows[["mean", "low", "high"]].rename(columns={"mean": "mppc"})
    parts = {"left out": means, "counted as 0": means.mul(share, axis=0)}
    return pd.concat([part.assign(comparison=rows["comparison"], value=value) for value, part in parts.items()])


def elsewhere_mppc(name: str, profile: Profile) -> pd.Series:
    """MPPC of a comparison's features where the other model reads the same place of another block of text."""
    comparison = comparisons.comparisons(profile)[name]

    def measure() -> pd.DataFrame:
        mask = texts.load_blocks(profile, "held_out", profile.mppc_tokens).mask
        tokens = controls.elsewhere(mask, profile.seed)
        own, other = _sides(comparison, profile)
        other = [controls.reordered(layer, tokens) for layer in other]
        return max_pairwise_correlation(own, other, device=model_store.device_of(profile)).to_frame()

    return artifacts.kept("elsewhere", _fields(comparison, profile), measure, "elsewhere.parquet", profile)["mppc"]


def untrained_mppc(profile: Profile) -> dict[str, pd.Series]:
    """MPPC of the middle layers of the Transformer and Mamba, as they are, and with the random weights of their start.

    Both pairs get SAEs of their own, one for each model, trained on `untrained_tokens` and correlated over
    `eval_tokens`, so that nothing differs but the language models. Empty where the shape of a model that was not
    trained here is not known (Heap et al. 2025, arXiv 2501.17727, ask how far SAEs of untrained models go).
    """
    if not (recipe_of(profile.pythia) and recipe_of(profile.mamba)):
        return {}
    middle = config_of(profile.pythia, profile).num_hidden_layers // 2
    small = dict(layers=(middle,), sae_seeds=profile.sae_seeds[:1], mppc_tokens=profile.eval_tokens)
    trained = profile.changed(sae_tokens=profile.untrained_tokens, **small)
    both = {"trained": trained, "untrained": trained.changed(models="random")}
    return {label: artifacts.mppc(p.pythia, p.mamba, p)[0]["mppc"] for label, p in both.items()}


def null_panels(direction: Direction, profile: Profile) -> dict[str, dict[str, pd.Series]]:
    """Pythia → Mamba beside each of its nulls: by the null's name, MPPC of the comparison first, then of the null."""
    label = comparisons.comparisons(profile)["mamba"].label
    real = {label: direction.frame["mppc"]}
    panels = {
        "Tokens shifted": real | {"tokens shifted": direction.frame["null_mppc"]},
        "Same place of another block": real | {"another block": elsewhere_mppc("mamba", profile)},
    }
    untrained = untrained_mppc(profile)
    return panels | ({"Untrained models, middle layers": untrained} if untrained else {})


def sae_partners(profile: Profile) -> pd.DataFrame:
    """The Transformer's features and their one-to-one partners by decoder cosine in the other SAE seed (PW-MCC).

    Columns layer, index, firing_rate, mppc (with the other SAE seed), cosine (NaN without a partner). The assignment's
    time grows with the cube of the dictionary: a second for 2,048 features.
    """
    first, other = profile.sae_seeds[0], profile.sae_seeds[-1]
    frame, _ = artifacts.mppc(profile.pythia, profile.pythia, profile, other)

    def measure() -> np.ndarray:
        saes = [artifacts.trained_saes(profile.pythia, profile, seed)[0] for seed in (first, other)]
        return np.concatenate([controls.pairwise_mcc(a.W_dec, b.W_dec)[0] for a, b in zip(*saes, strict=True)])

    fields = artifacts.sae_fields(profile.pythia, profile)
    cosines = artifacts.kept("sae_partners", fields, measure, "cosines.npy", profile)
    return frame[["layer", "index", "firing_rate", "mppc"]].assign(cosine=cosines)


def _sides(comparison: Comparison, profile: Profile) -> tuple[list, list]:
    c = comparison
    return artifacts.features(c.a, profile), artifacts.features(c.b, profile, c.seed_b)


def _fields(comparison: Comparison, profile: Profile) -> dict[str, Any]:
    return artifacts.pair_fields(comparison.a, comparison.b, profile, comparison.seed_b)
