"""Circuits of different architectures on one map, effect by relative depth × position, and how alike two maps are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import factorial, prod

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from lib.circuits.effect_tables import key_layer, select
from lib.circuits.prompts import ROLES

CORRUPTIONS = ("B′", "A′")
MOST_LABELLINGS = 10_000  # of which all are tried; of more, as many are drawn
AS_IS, EARLIER = "as it is", "Mamba one position earlier"
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


def pair_similarities(maps: Mapping[str, Map], architectures: Mapping[str, str]) -> pd.DataFrame:
    """Every pair of models once, and twice where one is a Mamba: as it is, and with Mamba's roles one earlier.

    Columns: a, b (models), kind (their architectures; of equal ones "two models"), same, reading, and two similarities:
    `roles`, of the maps with all depths added up, and `roles_and_depth`, of the whole maps.
    """
    rows, order = [], list(architectures.values())
    in_order = sorted(maps, key=lambda name: order.index(architectures[name]))  # so that a kind has one name
    for a, b in combinations(in_order, 2):
        kinds = architectures[a], architectures[b]
        same = kinds[0] == kinds[1]
        place = {
            "a": a,
            "b": b,
            "kind": f"{kinds[0]}, two models" if same else f"{kinds[0]} and {kinds[1]}",
            "same": same,
        }
        for reading in (AS_IS,) if same or "Mamba" not in kinds else (AS_IS, EARLIER):
            pair = [
                one_role_earlier(maps[name]) if reading == EARLIER and kind == "Mamba" else maps[name]
                for name, kind in zip((a, b), kinds, strict=True)
            ]
            flat = similarity(*(circuit.sum(1) for circuit in pair))
            rows.append(place | {"reading": reading, "roles": flat, "roles_and_depth": similarity(*pair)})
    return pd.DataFrame(rows)


def label_test(
    pairs: pd.DataFrame, architectures: Mapping[str, str], value: str = "roles", seed: int = 0
) -> dict[str, float]:
    """Are models of one architecture more alike than models of two? Labels of the models permuted.

    `pairs` has one row per pair of models (`pair_similarities`, one reading). `difference`: mean similarity of pairs
    of one architecture minus that of the others; `p`: the share of all distinct labellings (`n_labellings`) with at
    least this difference, the true one included. With few models p cannot be small: it is at least `least_p`.
    """
    names = list(architectures)
    where = {name: k for k, name in enumerate(names)}
    ends, values = pairs[["a", "b"]].map(where.get).to_numpy(), pairs[value].to_numpy()

    def difference(labels: Sequence[str]) -> float:
        labels = np.asarray(labels)
        same = labels[ends[:, 0]] == labels[ends[:, 1]]
        return float(values[same].mean() - values[~same].mean())

    true = list(architectures.values())
    found = difference(true)
    null = np.array([difference(labels) for labels in _labellings(true, seed)])
    as_great = null >= found - 1e-9  # what differs by rounding counts as equal
    equal = prod(map(factorial, Counter(Counter(true).values()).values()))  # groups of one size may change labels
    return {"difference": found, "p": float(as_great.mean()), "least_p": equal / len(null), "n_labellings": len(null)}


def _labellings(labels: Sequence[str], seed: int) -> Iterator[Sequence[str]]:
    """All distinct orders of the labels, or so many drawn at random and the true one."""
    count = factorial(len(labels)) // prod(map(factorial, Counter(labels).values()))
    if count > MOST_LABELLINGS:
        rng = np.random.default_rng(seed)
        yield labels
        yield from (rng.permutation(labels) for _ in range(MOST_LABELLINGS - 1))
    else:
        yield from _distinct(sorted(labels))


def _distinct(labels: Sequence[str]) -> Iterator[list[str]]:
    if not labels:
        yield []
    for first in dict.fromkeys(labels):
        rest = list(labels)
        rest.remove(first)
        yield from ([first, *others] for others in _distinct(rest))
