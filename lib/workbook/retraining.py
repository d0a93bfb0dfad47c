"""SAEs trained again (not in the papers): what MPPC owes to their training's settings, their seeds, and their models.

It takes longer than the main job has, so `python -m lib.workbook.retraining` does it once, on two layers of each model,
and writes three tables to data/reference, from which everything else here is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from jaxtyping import Float
from numpy import ndarray
from tqdm import tqdm

from lib.files import atomic_write
from lib.models.hub import ModelNotFound
from lib.models.recipes import recipe_of
from lib.mppc.capture import capture_features
from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures, feature_statistics
from lib.workbook import artifacts, model_store, texts
from lib.workbook.profiles import Pair, Profile, ProfileError, get_profile
from lib.workbook.reference import REFERENCE
from lib.workbook.sizes import config_of, matched_layers
from lib.workbook.store import sha256_of

FACTORS = {
    "sae_tokens": (1 / 8, 1 / 4, 1 / 2, 1, 2, 4),
    "expansion": (1 / 4, 1 / 2, 1, 2),
    "target_l0": (1 / 2, 1, 2),
    "sae_batch_size": (1 / 2, 1, 4),
    "sae_learning_rate": (1 / 2, 1, 2),
}
SHARE = 1 / 8  # of `sae_tokens`, where another setting is moved: on all of them it would take hours more
SEEDS = (0, 1, 2)
TABLES = ("setting", "sae_seed", "model")
PLACES = ["comparison", "direction", "layer", "seed_a", "seed_b", "mppc"]
QUALITY = ["l0", "explained_variance", "dead"]
Captured = list[tuple[dict[str, float], SparseFeatures]]  # of each layer: its number and quality, and its features


# ------------------------------------------------------------------------------------------- what the tables say


def table(by: str) -> pd.DataFrame:
    """`retraining_by_setting` ("setting"), `…_by_sae_seed` ("sae_seed") or `…_by_model` ("model"), a row per layer.

    Columns comparison, direction, layer (of the model whose features are matched), seed_a, seed_b (SAE seeds of both
    sides), mppc (the mean over the layer's features, with both retrained layers of the other model); by setting also
    setting, value, and the layer's l0 (features per token), explained_variance, dead (share); by model the names model
    and other in the place of comparison and direction. Raises `FileNotFoundError` where it was never made.
    """
    return pd.read_csv(_file(by), comment="#")


def by_setting(comparison: str | None = None) -> pd.DataFrame:
    """Means over layers and SAE seeds: setting, value, comparison, mppc, l0, explained_variance, dead.

    `comparison` is a label such as "SAE seed", or None for all.
    """
    rows = table("setting")
    rows = rows[rows["comparison"] == comparison] if comparison else rows
    return rows.groupby(["setting", "value", "comparison"], sort=False)[["mppc", *QUALITY]].mean().reset_index()


def trade_off(by_setting: pd.DataFrame) -> pd.DataFrame:
    """What each setting explains in MPPC, a row per setting and comparison of `by_setting`.

    Columns from, to (values), moved (highest mean minus lowest), per_doubling (slope of a straight line through the
    means against log2 of the value), off (root mean square of what such a line misses a mean by that is left out of the
    fit; NaN for two values).
    """

    def explained(part: pd.DataFrame) -> dict[str, float]:
        x, y = np.log2(part["value"].to_numpy(float)), part["mppc"].to_numpy()
        rest = ~np.eye(len(x), dtype=bool) if len(x) > 2 else []
        missed = [y[k] - np.polyval(np.polyfit(x[others], y[others], 1), x[k]) for k, others in enumerate(rest)]
        off = np.sqrt(np.mean(np.square(missed))) if missed else np.nan
        found = {"from": part["value"].min(), "to": part["value"].max(), "moved": np.ptp(y)}
        return found | {"per_doubling": np.polyfit(x, y, 1)[0], "off": off}

    parts = by_setting.groupby(["setting", "comparison"], sort=False)
    return pd.DataFrame({"setting": s, "comparison": c} | explained(part) for (s, c), part in parts)


def spread_of(comparison: str, profile: Profile, direction: str = "forward") -> float:
    """Standard deviation over SAE seeds of one layer's mean MPPC; NaN where it was not measured at this profile.

    `comparison` is a label. The variance is half the mean squared difference of two pairs of SAEs without a common one,
    as a mean over the retrained layers. SAEs of different layers start from weights drawn apart, so their errors count
    as independent: the mean over n layers has this deviation divided by sqrt(n).
    Any two of the pairs that three SAE seeds of *one* model make have a seed in common, whose effect cancels in their
    difference. It is half of the variance if the effects of two SAEs add up, so the variance is doubled there.
    """
    return _spread(comparison, direction)[0] if made_on().get("profile") == profile.name else np.nan


def deviations(comparisons: Sequence[str]) -> dict[str, float]:
    """Standard deviation over SAE seeds of each comparison's mean over the retrained layers (`spread_of`), by label."""
    found = {label: _spread(label, "forward") for label in comparisons}
    return {label: spread / np.sqrt(n_layers) for label, (spread, n_layers) in found.items()}


def _spread(comparison: str, direction: str) -> tuple[float, int]:
    """`spread_of` at the profile at which it was measured, and over how many layers."""
    rows = table("sae_seed").query("comparison == @comparison and direction == @direction")
    cells = [part.pivot(index="seed_a", columns="seed_b", values="mppc") for _, part in rows.groupby("layer")]
    return float(np.sqrt(np.mean([_variance(part.to_numpy()) for part in cells]))) if cells else np.nan, len(cells)


def _variance(cells: Float[ndarray, "seeds_a seeds_b"]) -> float:
    """Variance of a cell over both of its seeds; where the diagonal is empty, both are seeds of one model."""
    if np.isnan(cells.diagonal()).all():
        return 2 * np.var((cells + cells.T)[np.triu_indices_from(cells, 1)] / 2, ddof=1)
    places, values = np.argwhere(np.isfinite(cells)), cells[np.isfinite(cells)]
    apart = (places[:, None] != places).all(-1)
    return np.square(np.subtract.outer(values, values))[apart].mean() / 2


def between_models(statistic: str = "mean") -> pd.DataFrame:
    """Mean MPPC of each retrained model's features (rows) with each other's (columns), over layers and SAE seeds.

    On the diagonal two SAE seeds of the same model are compared. Both models have two layers and as many features.
    Models of one architecture stand beside each other. `statistic` "std" gives the standard deviation of such a mean
    over the pairs of SAE seeds.
    """
    rows = table("model").groupby(["model", "other", "seed_a", "seed_b"], sort=False).mppc.mean().reset_index()
    kinds = {name: getattr(recipe_of(name), "architecture", name) for name in rows["model"].unique()}
    names = sorted(kinds, key=lambda name: list(kinds.values()).index(kinds[name]))
    return rows.groupby(["model", "other"]).mppc.agg(statistic).unstack().loc[names, names]


def by_architecture(means: pd.DataFrame) -> pd.DataFrame:
    """`between_models` by architecture, as means over pairs of different models; models named …-half are left out.

    Rows are the architectures whose features look for a match; the first column is the diagonal of `means`.
    """
    seeds = means.loc[~means.index.str.endswith("half"), ~means.columns.str.endswith("half")]
    kinds = seeds.index.str.split("-").str[1].to_numpy()
    others = seeds.mask(np.eye(len(seeds), dtype=bool)).T.groupby(kinds, sort=False).mean().T
    alone = pd.Series(seeds.to_numpy().diagonal(), seeds.index, name="the same model")
    found = pd.concat([alone, others], axis=1).groupby(kinds, sort=False).mean()
    return found.rename_axis("features of").rename_axis("matches in", axis="columns")


def made_on(by: str = "sae_seed") -> dict[str, str]:
    """The first line of a table: its profile, and each model's digest; empty where there is no table."""
    return dict(re.findall(r"(\S+)=(\S+)", _file(by).open().readline())) if _file(by).exists() else {}


def models_digest(profile: Profile, by: str = "sae_seed") -> dict[str, str]:
    """The first 12 digits of the sha256 of the weights of each model that a table is about."""
    names = profile.circuit_models if by == "model" else profile.model_names
    folders = {name: Path(model_store.folder_of(name, profile)) for name in names}
    return {name: sha256_of(folder / "model.safetensors")[:12] for name, folder in folders.items()}


def about(profile: Profile, by: str = "sae_seed") -> str:
    """One sentence: whether a table was made at this profile, and on the models that are here."""
    made = made_on(by)
    if made.get("profile") != profile.name:
        where = f"at the profile {made['profile']}, not" if made else "nowhere yet, so not"
        return f"SAEs were retrained {where} at {profile.name}: their training is not in the intervals."
    others = [name for name, digest in models_digest(profile, by).items() if made.get(name) != digest]
    if others:
        return f"OTHER MODELS than those that are here were retrained on ({', '.join(others)}): make the tables again."
    return "The SAEs were retrained on the models that are here."


def write(by: str, rows: pd.DataFrame, profile: Profile) -> None:
    """Write a table, and in its first line what it is about."""
    made = {"profile": profile.name} | models_digest(profile, by)
    said = " ".join(f"{name}={digest}" for name, digest in made.items())
    atomic_write(_file(by), f"# models_digest: {said}\n{rows.to_csv(index=False, float_format='%.6g')}")


def _file(by: str) -> Path:
    return REFERENCE / f"retraining_by_{by}.csv"


# ------------------------------------------------------------------------------------------- how they are made


def variants(profile: Profile) -> list[tuple[str, float, Profile]]:
    """(setting, value, profile) of each training: one setting at a time is moved away from the profile's own.

    All but the text itself are moved on a `SHARE` of the text. The last, model_tokens, is the language model's own
    training, where the zoo has a Transformer that was trained half as long. RWKV is left out.
    """
    whole = profile.changed(rwkv=None)
    less = whole.changed(sae_tokens=int(SHARE * profile.sae_tokens))
    found = []
    for setting, factors in FACTORS.items():
        own, base = getattr(profile, setting), whole if setting == "sae_tokens" else less
        values = dict.fromkeys(type(own)(factor * own) or 1 for factor in factors)
        found += [(setting, value, base.changed(**{setting: value})) for value in values]
    recipes = {name: recipe_of(name) for name in (f"{profile.pythia}-half", profile.pythia)}
    known = recipes.items() if all(recipes.values()) else ()
    return [*found, *(("model_tokens", recipe.tokens, less.changed(pythia=name)) for name, recipe in known)]


def retrain(profile: Profile, tables: Sequence[str] = TABLES) -> dict[str, pd.DataFrame]:
    """These tables. What was trained is kept, so that a run that was killed goes on where it was.

    Raises `ModelNotFound`, before anything is trained, for a model that is not there.
    """
    found, tried = {}, variants(profile) if "setting" in tables else []
    for each in (profile, *(variant for _, _, variant in tried)):
        models_digest(each, "model")
    if "sae_seed" in tables:
        found["sae_seed"] = _measured(profile, SEEDS, SEEDS)[PLACES]
    if "setting" in tables:
        found["setting"] = _by_setting(tried, profile)
    if "model" in tables:
        found["model"] = _between_models(profile)
    return found


def _by_setting(tried: list[tuple[str, float, Profile]], profile: Profile) -> pd.DataFrame:
    """A row per setting, value, comparison, layer and pair of SAEs."""
    of_seeds, parts = _measured(profile, SEEDS, SEEDS), []
    for setting, value, variant in tqdm(tried, "settings", mininterval=5):
        rows = of_seeds if variant == profile.changed(rwkv=None) else _measured(variant, SEEDS[:2], SEEDS[:1])
        parts.append(rows.assign(setting=setting, value=value))
    rows = pd.concat(parts).query("direction == 'forward' and comparison != 'Pythia → RWKV' and seed_a < 2")
    rows = rows[(rows["seed_b"] == 0) | ((rows["comparison"] == "SAE seed") & (rows["seed_b"] == 1))]
    return rows[["setting", "value", *PLACES, *QUALITY]]


def _measured(profile: Profile, seeds: tuple[int, ...], seeds_of_others: tuple[int, ...]) -> pd.DataFrame:
    """A row per comparison, direction, layer and pair of SAEs; `seeds` are the Transformer's."""
    pairs = [p for p in profile.comparisons.values() if p.of == "features" and not {p.a, p.b} & set(profile.without)]
    roles = dict.fromkeys(role for pair in pairs for role in (pair.a, pair.b))
    names = {role: profile.roles[role] for role in roles}
    alone = {role: _alone(names[role], profile, seeds if role == pairs[0].a else seeds_of_others) for role in roles}
    return _kept("retrained", partial(_correlated, pairs, alone), alone, profile)


def _between_models(profile: Profile) -> pd.DataFrame:
    """A row per two models, layer and pair of SAEs; every model that the profile knows, with all SAE seeds."""
    alone = {name: _alone(name, profile, SEEDS) for name in profile.circuit_models}
    return _kept("retrained_models", partial(_all_correlated, alone), alone, profile)


def _kept(kind: str, make: Callable[[], pd.DataFrame], alone: dict[str, Profile], profile: Profile) -> pd.DataFrame:
    fields = {name: artifacts.sae_fields(p.pythia, p) | artifacts.capture_fields(p) for name, p in alone.items()}
    return artifacts.kept(kind, fields, make, "rows.csv", profile)


def _alone(name: str, profile: Profile, seeds: tuple[int, ...]) -> Profile:
    """A profile with this model as its first, which has all SAE seeds, and with two of its layers.

    These are the Transformer's second and last but one, and in other models those of the same relative depth.
    """
    n, of_first = (config_of(each, profile).num_hidden_layers for each in (name, profile.pythia))
    chosen = profile.changed(layers=tuple(sorted({1 % of_first, max(0, of_first - 2)})))
    few = dict(mppc_tokens=profile.eval_tokens, eval_tokens=max(1, profile.eval_tokens // 5))  # enough for a mean
    return profile.changed(pythia=name, layers=tuple(matched_layers(n, chosen)), sae_seeds=seeds, **few)


def _correlated(pairs: list[Pair], alone: dict[str, Profile]) -> pd.DataFrame:
    sides, rows = {role: _captured(profile) for role, profile in alone.items()}, []
    for pair in pairs:
        for seeds in product(sides[pair.a], sides[pair.b]):
            if pair.a == pair.b and seeds[0] == seeds[1]:
                continue
            found = _means(sides[pair.a][seeds[0]], sides[pair.b][seeds[1]], alone[pair.a])
            for direction, layers in zip(("forward", "reverse"), found, strict=True):
                place = {"comparison": pair.label, "direction": direction, "seed_a": seeds[0], "seed_b": seeds[1]}
                rows += [place | layer for layer in layers]
    return pd.DataFrame(rows)


def _all_correlated(alone: dict[str, Profile]) -> pd.DataFrame:
    sides, rows = {name: _captured(profile) for name, profile in alone.items()}, []
    for one, two in tqdm(list(combinations(product(sides, SEEDS), 2)), "pairs of models", mininterval=5):
        found = _means(*(sides[name][seed] for name, seed in (one, two)), alone[one[0]])
        for layers, (own, other) in zip(found, ((one, two), (two, one)), strict=True):
            rows += [[*own, *other, layer["layer"], layer["mppc"]] for layer in layers]
    return pd.DataFrame(rows, columns=["model", "seed_a", "other", "seed_b", "layer", "mppc"])


def _means(a: Captured, b: Captured, profile: Profile) -> list[list[dict[str, float]]]:
    """Of both directions, each layer's number, quality and mean MPPC."""
    features = ([layer for _, layer in side] for side in (a, b))
    found = max_pairwise_correlations(*features, device=model_store.device_of(profile))
    return [
        [quality | {"mppc": float(np.nanmean(result.of_layer(k).value))} for k, (quality, _) in enumerate(side)]
        for result, side in zip(found, (a, b), strict=True)
    ]


def _captured(profile: Profile) -> dict[int, Captured]:
    """Of the first model's SAEs, by SAE seed, over `mppc_tokens` of held-out text."""
    saes, _ = artifacts.trained_saes(profile.pythia, profile)
    model, text = model_store.load(profile.pythia, profile), texts.load_blocks(profile, "held_out", profile.mppc_tokens)
    found: dict[int, Captured] = {}
    for sae, layer in zip(saes, capture_features(model, saes, text, batch_blocks=profile.batch_blocks), strict=True):
        quality = {"layer": sae.info.layer, "l0": layer.nnz / layer.n_tokens}
        quality["explained_variance"] = sae.info.metrics["explained_variance"]
        quality["dead"] = float(np.mean(feature_statistics(layer).count == 0))
        found.setdefault(sae.info.seed, []).append((quality, layer))
    return found


def main(
    profile: Annotated[
        str, typer.Option(help="The size; intervals take the spread at their own profile only.")
    ] = "mini",
    settings: Annotated[list[str], typer.Option("--set", help="A profile's field=value; repeatable.")] = [],
    only: Annotated[list[str], typer.Option(help=f"Of {', '.join(TABLES)}; repeatable. By default all.")] = [],
) -> None:
    """Train the SAEs of two layers of each model again, at other settings and from other seeds; write the tables.

    At mini all of them take about two hours of a core. A run that is stopped goes on where it was.
    """
    if unknown := set(only) - set(TABLES):
        raise SystemExit(f"there is no table {unknown.pop()!r}; the tables are {', '.join(TABLES)}.")
    try:
        size = get_profile(profile, ",".join(settings))
        tables = retrain(size, only or TABLES)
    except (ProfileError, ModelNotFound) as error:
        raise SystemExit(str(error))
    for by, rows in tables.items():
        write(by, rows, size)


if __name__ == "__main__":
    typer.run(main)
