"""What SAEs depend on: the same layer trained with other sizes, other amounts of text and other sparsity."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib import models
from lib.corpus import Blocks
from lib.models.activations import iterate_activations
from lib.mppc.correlation import max_pairwise_correlation
from lib.sae import SAE, load, train_saes
from lib.workbook import artifacts, model_store, texts
from lib.workbook.profiles import Profile
from lib.workbook.store import Store

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
        scaled = (kind(max(1, getattr(base, choice) * factor)) for factor in factors)
        values = dict.fromkeys(scaled)  # small ones may coincide
        found += [(choice, value, base.model_copy(update={choice: value})) for value in values]
    return found


def sae_trade_off(profile: Profile) -> pd.DataFrame:
    """One row per variant of the Transformer's middle layer: choice, value, and what two SAE seeds give.

    Columns: reproducibility (mean MPPC of the first seed's features with the second's), explained_variance, l0, dead,
    seconds (training both seeds).
    """
    return pd.read_csv(_swept(profile) / "sweep.csv")


def _swept(profile: Profile) -> Path:
    """Folder of the sweep's table, and of the SAEs for each target of L0, by target and SAE seed."""
    fields = artifacts.sae_fields(profile.pythia, profile) | {"sweep_tokens": profile.sweep_tokens}
    return Store(profile.cache_dir).get("sweep", fields | {"factors": FACTORS}, partial(_sweep, profile), version=2)


def _sweep(profile: Profile, folder: Path) -> None:
    model = model_store.load(profile.pythia, profile)
    layer = models.n_layers(model) // 2
    text = texts.load_blocks(profile, "train", max(v.sae_tokens for _, _, v in variants(profile)))
    x = _read(model, layer, texts.load_blocks(profile, "held_out", profile.eval_tokens), profile)
    # The profile's own settings stand in every choice: train them once.
    done: dict[Profile, tuple[dict[str, float], list[SAE]]] = {}
    for choice, value, variant in tqdm(variants(profile), "trade-off: SAEs of each setting", mininterval=5):
        if variant not in done:
            done[variant] = _measure(model, layer, text, x, variant)
        if choice == "target_l0":
            for sae in done[variant][1]:
                sae.save(folder / f"l0_{value:g}" / f"seed{sae.info.seed:02d}")
    rows = [{"choice": choice, "value": value} | done[variant][0] for choice, value, variant in variants(profile)]
    pd.DataFrame(rows).to_csv(folder / "sweep.csv", index=False)


def _read(model, layer: int, blocks: Blocks, profile: Profile) -> Float[Tensor, "tokens d_model"]:
    """resid_post of one layer over the counted tokens of some blocks."""
    return torch.cat([batch[layer] for batch in iterate_activations(model, blocks, [layer], profile.batch_blocks)])


def _measure(
    model, layer: int, text: Blocks, x: Float[Tensor, "tokens d_model"], profile: Profile
) -> tuple[dict[str, float], list[SAE]]:
    """What two SAE seeds give, and the two."""
    started = time.monotonic()
    saes, _ = train_saes(
        model, text.take(profile.sae_tokens), profile.sae_config, profile.sae_seeds[:2], [layer], progress=False
    )
    seconds = time.monotonic() - started
    features = [_sparse(sae, x) for sae in saes]
    unexplained = [_squares(x - sae(x)) / _squares(x - x.mean(0)) for sae in saes]
    row = {
        "reproducibility": float(np.nanmean(max_pairwise_correlation(features[:1], features[1:]).value)),
        "explained_variance": 1 - float(np.mean(unexplained)),
        "l0": float(np.mean([f.nnz / f.shape[0] for f in features])),
        "dead": float(np.mean([np.mean(np.diff(f.tocsc().indptr) == 0) for f in features])),
        "seconds": round(seconds, 1),
    }
    return row, saes


def _squares(x: Tensor) -> float:
    return float(x.double().square().sum())


@torch.no_grad()
def _sparse(sae: SAE, x: Float[Tensor, "tokens d_model"]) -> scipy.sparse.csr_array:
    """Feature activations, in memory; a few tokens are dense at a time."""
    return scipy.sparse.vstack(
        [scipy.sparse.csr_array(sae.encode(part).cpu().numpy()) for part in x.split(4096)], "csr"
    )


TOKEN_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def _similarity_fields(profile: Profile) -> dict[str, Any]:
    mamba = profile.mamba and artifacts.model_fields(profile.mamba, profile)
    return artifacts.sae_fields(profile.pythia, profile) | {"mamba": mamba}


def similarity_by_tokens(profile: Profile) -> pd.DataFrame:
    """Mean MPPC with Mamba, if there is one, and with another SAE seed, over shorter parts of the held-out text.

    Columns comparison, value (tokens), mppc.
    """
    fields = _similarity_fields(profile)
    fields |= {"mppc_tokens": profile.mppc_tokens, "shares": TOKEN_SHARES}
    folder = Store(profile.cache_dir).get("by_tokens", fields, partial(_by_tokens, profile))
    return pd.read_csv(folder / "by_tokens.csv")


def _by_tokens(profile: Profile, folder: Path) -> None:
    a = artifacts.features(profile.pythia, profile)
    others = {"Pythia → Mamba": artifacts.features(profile.mamba, profile)} if profile.mamba else {}
    others["SAE seed"] = artifacts.features(profile.pythia, profile, profile.sae_seeds[-1])
    rows = []
    for label, b in others.items():
        for share in tqdm(TOKEN_SHARES, f"MPPC by tokens, {label}", mininterval=5):
            n = int(share * a[0].n_tokens)
            parts = ([layer.head(n) for layer in layers] for layers in (a, b))
            result = max_pairwise_correlation(*parts, device=model_store.device_of(profile))
            rows.append({"comparison": label, "value": n, "mppc": np.nanmean(result.value)})
    pd.DataFrame(rows).to_csv(folder / "by_tokens.csv", index=False)


def similarity_by_l0(profile: Profile) -> pd.DataFrame:
    """Mean MPPC of the middle layers, with Mamba's and another SAE seed's, for sparser and denser SAEs.

    Columns comparison, value (target_l0), l0 (what the SAEs of the Transformer reached), mppc.
    """
    fields = _similarity_fields(profile)
    fields |= {"sweep_tokens": profile.sweep_tokens, "factors": FACTORS["target_l0"]}
    folder = Store(profile.cache_dir).get("by_l0", fields, partial(_by_l0, profile), version=2)
    return pd.read_csv(folder / "by_l0.csv")


def _by_l0(profile: Profile, folder: Path) -> None:
    swept, rows = _swept(profile), []
    loaded = [model_store.load(name, profile) for name in (profile.pythia, profile.mamba) if name]
    held_out = texts.load_blocks(profile, "held_out", profile.eval_tokens)  # all of them read it
    of_pythia, *of_mamba = (_read(model, models.n_layers(model) // 2, held_out, profile) for model in loaded)
    text = texts.load_blocks(profile, "train", profile.sweep_tokens)
    for choice, target, variant in variants(profile):
        if choice != "target_l0":
            continue
        saes = [load(path, of_pythia.device) for path in sorted((swept / f"l0_{target:g}").iterdir())]
        own, other_seed = (_sparse(sae, of_pythia) for sae in saes)
        others = {"SAE seed": other_seed}
        for mamba, x in zip(loaded[1:], of_mamba):
            middle, first = [models.n_layers(mamba) // 2], profile.sae_seeds[:1]
            (sae,), _ = train_saes(mamba, text, variant.sae_config, first, middle, progress=False)
            others = {"Pythia → Mamba": _sparse(sae, x)} | others
        for label, other in others.items():
            mppc = np.nanmean(max_pairwise_correlation([own], [other]).value)
            rows.append({"comparison": label, "value": target, "l0": own.nnz / own.shape[0], "mppc": mppc})
    pd.DataFrame(rows).to_csv(folder / "by_l0.csv", index=False)
