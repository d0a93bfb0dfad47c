"""How alike SmolLM2-135M's features are to a mini model's: ``python -m tests.real.features`` writes four tables.

They are data/reference/smollm2_saes.csv, …_similarity.csv, …_counts.csv and …_pairs.csv, which notebook 11 shows.
SAEs of three layers of SmolLM2 are trained with two seeds, and compared with those of mini models that have another
tokenizer. What is finished is kept in data/cache/smollm2, so an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from lib.corpus import Blocks
from lib.files import atomic_write
from lib.interpret.snippets import pairs_with_snippets
from lib.models.activations import iterate_activations, typical_norms
from lib.mppc.capture import ENCODED_AT_ONCE
from lib.mppc.controls import fair_pools, varying
from lib.mppc.directions import Direction, summarise
from lib.sae import evaluate_saes
from lib.workbook.reference import REFERENCE
from lib.workbook.store import Store
from lib.workbook.two_models import BATCH_BLOCKS, Comparison, Request
from tests.real import smollm2

MINI = ("mini-pythia", "mini-mamba", "mini-rwkv")
TOKENS, SAE_TOKENS, EVALUATED = 50_000, 1_000_000, 16_384
EDGES, DRAWS = np.linspace(0, 1, 201), 3  # of the bins in which features are counted; random pools


def measured(name: str, direction: Direction, comparison: Comparison, pool: float) -> dict[str, float]:
    """A row of the table: `pool` is the mean MPPC against as many candidates as the smallest pool has."""
    row = {"comparison": name} | summarise(direction)
    shares = dict(zip(("paired_a", "paired_b"), comparison.blocks.shares, strict=True))
    return row | {"mean_equal": pool, "positions": comparison.blocks.a.n_positions} | shares


def compared(comparisons: dict[str, Comparison]) -> Iterator[tuple[dict[str, float], Direction]]:
    """SmolLM2 with another SAE seed of its own, then with each mini model, both ways."""
    first = comparisons[MINI[0]]
    own, again = first.features(first.a), first.features(first.a, 1)
    size = min(int(np.concatenate(varying(c.features(c.b))).sum()) for c in comparisons.values())
    equal = lambda b: float(np.nanmean(fair_pools(own, b, size, DRAWS, seed=0)))  # noqa: E731
    skyline, _ = first.directions(skyline=True)
    yield measured(f"SAE seed, {NAME}", skyline, first, equal(again)), skyline
    for mini, comparison in comparisons.items():
        there, back = comparison.directions()
        yield measured(f"{NAME} → {mini}", there, comparison, equal(comparison.features(comparison.b))), there
        yield measured(f"{mini} → {NAME}", back, comparison, np.nan), back


def similarities(comparisons: dict[str, Comparison]) -> dict[str, pd.DataFrame]:
    """The tables `similarity`, a row per comparison, and `counts`, of features in bins of MPPC."""
    rows, directions = zip(*compared(comparisons), strict=True)
    counts = pd.DataFrame({"mppc": (EDGES[:-1] + EDGES[1:]) / 2})
    for row, direction in zip(rows, directions, strict=True):
        counts[row["comparison"]] = np.histogram(direction.mppc, EDGES)[0]
        counts[f"null: {row['comparison']}"] = np.histogram(direction.frame["null_mppc"].dropna(), EDGES)[0]
    return {"similarity": pd.DataFrame(rows), "counts": counts}


@torch.no_grad()
def explained_shortened(comparison: Comparison, blocks: Blocks) -> list[float]:
    """Explained variance of the first model's SAEs on vectors of which the very long ones were shortened."""
    side, found = comparison.a, []
    typical = typical_norms(side.model, comparison.blocks.a, side.layers, BATCH_BLOCKS)
    parts = list(iterate_activations(side.model, blocks, side.layers, BATCH_BLOCKS, typical, exact=True))
    for sae in comparison.saes(side):
        x = torch.cat([part[sae.info.layer] for part in parts])
        missed = x - torch.cat([sae(part) for part in x.split(ENCODED_AT_ONCE)])
        found.append(float(1 - missed.square().sum() / (x - x.mean(0)).square().sum()))
    return found


def looked_at(first: Comparison) -> dict[str, pd.DataFrame]:
    """The tables `saes` and `pairs` (with snippets).

    The SAEs' quality is that on vectors that are as long as they are; `explained_shortened` is on shortened ones.
    """
    blocks = first.blocks.a.take(EVALUATED)
    quality = evaluate_saes(first.a.model, first.saes(first.a), blocks, BATCH_BLOCKS)
    quality.insert(4, "explained_shortened", explained_shortened(first, blocks))
    there, _ = first.directions()
    places, tokenizers = zip(*((first.places(side), side.model.tokenizer) for side in (first.a, first.b)), strict=True)
    return {"saes": quality, "pairs": pairs_with_snippets(there.frame, places, tokenizers, n=6)}


def main() -> None:
    folder = smollm2.cached()
    sizes = dict(tokens=TOKENS, sae_tokens=SAE_TOKENS)
    store = Store(smollm2.CACHE / "made")
    comparisons = {mini: Comparison(Request(str(folder), mini, **sizes), store) for mini in MINI}
    for name, frame in (similarities(comparisons) | looked_at(comparisons[MINI[0]])).items():
        atomic_write(REFERENCE / f"smollm2_{name}.csv", frame.to_csv(index=False, float_format="%.5g"))


if __name__ == "__main__":
    main()
