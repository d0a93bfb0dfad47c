"""Circuits of different architectures on one map, effect by relative depth × position, and how alike two maps are."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from lib.circuits.effect_tables import key_layer, select
from lib.circuits.prompts import ROLES

CORRUPTIONS = ("B′", "A′")
Map = Float[ndarray, "corruptions depths roles"]


def circuit_map(effects: pd.DataFrame, n_depths: int) -> Map:
    """What the last position reads from each role in each depth, under both corruptions (`induction.path_frame`).

    Layers are added up in `n_depths` equal parts of the model; nothing in it is particular to an architecture.
    """
    inputs = pd.concat([select(effects, "input", corrupt) for corrupt in CORRUPTIONS])
    whole = inputs[inputs["distance"] == inputs.loc[inputs["layer"] != key_layer(effects), "distance"].iloc[0]]
    n_layers = int(whole["layer"].max()) + 1
    found = np.zeros((len(CORRUPTIONS), n_depths, len(ROLES)))
    for row in whole.itertuples():
        place = CORRUPTIONS.index(row.corrupt), int(row.layer) * n_depths // n_layers, ROLES.index(row.position)
        found[place] += row.mean_logit_diff
    return found


def one_role_earlier(circuit: Map) -> Map:
    """The map read with each role as the one before it: what is off by one becomes what is not."""
    return np.concatenate([circuit[..., 1:], np.zeros_like(circuit[..., :1])], axis=-1)


def similarity(a: Map, b: Map) -> float:
    """Pearson correlation of two maps' cells."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def permutation_null(a: Map, b: Map, seed: int, n: int = 2_000) -> Float[ndarray, " n"]:
    """Similarities with b's depths and roles in random orders, the same for both corruptions.

    A map without depths has too few orders to draw from: all orders of its roles are taken.
    """
    if b.shape[1] == 1:
        return np.array([similarity(a, b[..., list(order)]) for order in permutations(range(b.shape[2]))])
    rng = np.random.default_rng(seed)
    draws = ((rng.permutation(b.shape[1]), rng.permutation(b.shape[2])) for _ in range(n))
    return np.array([similarity(a, b[:, depths][:, :, roles]) for depths, roles in draws])


def compare_maps(a: Map, b: Map, seed: int) -> dict[str, float]:
    """Similarity, the null's 95th percentile, and p: the share of permutations at least as similar (with this one)."""
    null, found = permutation_null(a, b, seed), similarity(a, b)
    as_similar = null >= found - 1e-9  # what differs by rounding counts as equal
    p = (1 + as_similar.sum()) / (1 + len(null))
    return {"similarity": found, "null_95": float(np.quantile(null, 0.95)), "p": float(p)}
