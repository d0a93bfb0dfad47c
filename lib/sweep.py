"""What SAEs depend on: the same layer trained with other sizes, other amounts of text and other sparsity."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from lib import corpus, models, pipeline
from lib.activations import iterate_activations
from lib.corpus import Blocks
from lib.mppc import max_pairwise_correlation
from lib.profiles import Profile
from lib.sae import SparseAutoencoder, evaluate_saes
from lib.sae_training import train_saes
from lib.store import Store

FACTORS = {
    "expansion": (0.25, 0.5, 1, 2),
    "sae_tokens": (0.25, 0.5, 1, 2),
    "sae_batch_size": (1, 2, 4, 8),
    "target_l0": (0.5, 1, 2),
}


def variants(profile: Profile) -> list[tuple[str, float, Profile]]:
    """(choice, value, profile) of each training: one setting at a time is moved away from the profile's own."""
    base = profile.model_copy(update={"sae_tokens": profile.sweep_tokens})
    found = []
    for choice, factors in FACTORS.items():
        kind = type(getattr(base, choice))
        values = [kind(getattr(base, choice) * factor) for factor in factors]
        found += [(choice, value, base.model_copy(update={choice: value})) for value in values]
    return found


def sae_trade_off(profile: Profile) -> pd.DataFrame:
    """One row per variant of the Transformer's middle layer: choice, value, and what two SAE seeds give.

    Columns: reproducibility (mean MPPC of the first seed's features with the second's), explained_variance, l0, dead,
    seconds (training both seeds).
    """
    fields = pipeline.sae_fields(profile.pythia, profile) | {"sweep_tokens": profile.sweep_tokens}
    folder = Store(profile.cache_dir).get("sweep", fields | {"factors": FACTORS}, partial(_sweep, profile))
    return pd.read_csv(folder / "sweep.csv")


def _sweep(profile: Profile, folder: Path) -> None:
    model = models.load(profile.pythia, profile)
    layer = models.n_layers(model) // 2
    text = corpus.load_blocks(profile, "train", max(v.sae_tokens for _, _, v in variants(profile)))
    held_out = corpus.load_blocks(profile, "held_out", profile.eval_tokens)
    done: dict[Profile, dict[str, float]] = {}  # the profile's own settings stand in every choice: train them once
    for _, _, variant in variants(profile):
        if variant not in done:
            done[variant] = _measure(model, layer, text, held_out, variant)
    rows = [{"choice": choice, "value": value} | done[variant] for choice, value, variant in variants(profile)]
    pd.DataFrame(rows).to_csv(folder / "sweep.csv", index=False)


def _measure(model, layer: int, text: Blocks, held_out: Blocks, profile: Profile) -> dict[str, float]:
    started = time.monotonic()
    saes, _ = train_saes(model, text.take(profile.sae_tokens), profile, profile.sae_seeds[:2], [layer], progress=False)
    seconds = time.monotonic() - started
    quality = evaluate_saes(model, saes, held_out, profile)
    a, b = (_sparse(model, sae, held_out, profile) for sae in saes)
    reproducibility = np.nanmean(max_pairwise_correlation([a], [b]).value)
    measures = quality[["explained_variance", "l0", "dead"]].mean().to_dict()
    return {"reproducibility": float(reproducibility), **measures, "seconds": round(seconds, 1)}


@torch.no_grad()
def _sparse(model, sae: SparseAutoencoder, blocks: Blocks, profile: Profile) -> scipy.sparse.csr_array:
    """Feature activations of one SAE, in memory."""
    layer = sae.info.layer
    batches = iterate_activations(model, blocks, [layer], profile.batch_blocks)
    return scipy.sparse.vstack([scipy.sparse.csr_array(sae.encode(batch[layer]).numpy()) for batch in batches], "csr")
