"""The main job's numbers from SAEs of other seeds (not in the papers): how much each of them owes to SAE training.

It takes as long as the main job, so `python -m lib.workbook.trials` does it once: it trains all SAEs of the
Transformers and of Mamba from further seeds, so that there are three trainings without a common SAE, and writes what
each of them says to data/reference. Notebooks read the table, and their intervals take its spread.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
import typer
from tqdm import tqdm

from lib.interpret.complexity import correlations, scored
from lib.interpret.judges import ASPECTS
from lib.models.hub import ModelNotFound
from lib.mppc.controls import FOUND
from lib.mppc.depth import relative_depths, slope_and_r
from lib.workbook import artifacts, comparisons, controls, judged_features, retraining
from lib.workbook.comparisons import Comparison
from lib.workbook.profiles import Profile, ProfileError, get_profile

SEEDS = ((0, 1), (2, 3), (4, 5))  # SAE seeds of the Transformer in each trial; the other models take the first
AS_GOOD = 0.02  # what a match may lack to the best one and still count as good as it (notebook 05)
TABLE = "trial"  # its name among the tables of `retraining`


def table() -> pd.DataFrame:
    """What each trial found: columns quantity, comparison, sae_seed (the trial's first), value.

    Quantities: `mppc` (mean), `slope` and `r` (of depth), `complexity` and `monosemanticity` (Spearman's correlation
    with MPPC), `cosine` (PW-MCC of two SAE seeds), `found` (share of features that both find). Raises
    `FileNotFoundError` where it was never made.
    """
    return retraining.table(TABLE)


def by_trial(quantity: str) -> pd.DataFrame:
    """A quantity's values: a row per comparison, a column per trial, and their standard deviation, `deviation`."""
    values = table().query("quantity == @quantity").pivot(index="comparison", columns="sae_seed", values="value")
    return values.assign(deviation=values.std(axis=1, ddof=1))


def deviations(quantity: str, profile: Profile) -> dict[str, float]:
    """Standard deviation of a quantity over the trials, by comparison; empty where they were made at another profile.

    All that differs between two trainings is in it: which features there are, which of them a judge is shown, and how
    they match.
    """
    fits = retraining.made_on(TABLE).get("profile") == profile.name
    return by_trial(quantity)["deviation"].to_dict() if fits else {}


def measure(profile: Profile) -> pd.DataFrame:
    """`table`, made; SAEs, features and MPPC are kept, so that a run that was killed goes on where it was."""
    trials = [profile.changed(sae_seeds=seeds) for seeds in SEEDS]
    parts = [_one(trial).assign(sae_seed=trial.sae_seeds[0]) for trial in tqdm(trials, "trials", mininterval=5)]
    return pd.concat(parts)[["quantity", "comparison", "sae_seed", "value"]]


def _one(profile: Profile) -> pd.DataFrame:
    known, rows = comparisons.comparisons(profile), []
    for name in ("sae_seed", "model_seed", "mamba"):
        if name in known:
            rows += _of_pair(known[name], profile)
    if "mamba" in known:
        rows += _starts(profile)
    partners = controls.sae_partners(profile)
    cosine = partners[partners["firing_rate"] > 0]["cosine"]
    own = known["sae_seed"].label
    rows += [("cosine", own, cosine.mean()), ("found", own, (cosine >= FOUND).mean()), *_judged(profile)]
    return pd.DataFrame(rows, columns=["quantity", "comparison", "value"])


def _of_pair(comparison: Comparison, profile: Profile) -> list[tuple[str, str, float]]:
    """Means of both directions, and how the matches' depth follows the own."""
    c, rows = comparison, []
    frames, ends = artifacts.mppc(c.a, c.b, profile, c.seed_b), (c.a, c.b)
    for frame, way, label in zip(frames, (ends, ends[::-1]), (c.label, f"{c.label}, reverse"), strict=True):
        rows += [("mppc", label, frame["mppc"].mean()), *_depths(label, frame, way, profile)]
    return rows


def _starts(profile: Profile) -> list[tuple[str, str, float]]:
    """How the first layer of Mamba in which a match nearly as good as the best stands follows the own."""
    ends = profile.pythia, profile.mamba
    frame, by_layer = artifacts.mppc(*ends, profile)[0], artifacts.mppc_by_match_layer(*ends, profile)
    best = np.fmax.reduce(by_layer, axis=1)
    first = (by_layer >= best[:, None] - AS_GOOD).argmax(axis=1)
    starts = frame.assign(match_layer=np.where(np.isnan(best), -1, first))
    return _depths(f"{comparisons.comparisons(profile)['mamba'].label}, start", starts, ends, profile)


def _depths(label: str, frame: pd.DataFrame, ends: tuple[str, str], profile: Profile) -> list[tuple[str, str, float]]:
    depths = relative_depths(frame, *(len(artifacts.features(name, profile)) for name in ends))
    found = slope_and_r(depths["own"], depths["match"])
    return [(quantity, label, value) for quantity, value in zip(("slope", "r"), found, strict=True)]


def _judged(profile: Profile) -> list[tuple[str, str, float]]:
    """Rank correlations of the judge's scores with MPPC."""
    labels = list(judged_features.variants(profile).values())
    sample = judged_features.sample(profile, judged_features.places_of(profile.pythia, profile))
    scores = scored(sample, judged_features.judge_of(profile))
    weaker = (labels[0], labels[-1]) if profile.mamba else None
    found = {aspect: correlations(scores, aspect, labels, profile.seed, 1, weaker) for aspect in ASPECTS}
    return [(aspect, row.variant, row.spearman) for aspect, rows in found.items() for row in rows.itertuples()]


def main(
    profile: Annotated[str, typer.Option(help="The size; intervals take the spread at this profile only.")] = "mini",
    settings: Annotated[list[str], typer.Option("--set", help="A profile's field=value; repeatable.")] = [],
) -> None:
    """Train the SAEs of two Transformers and of Mamba from further seeds; write what the main job says of each."""
    try:
        size = get_profile(profile, ",".join(settings))
        retraining.write(TABLE, measure(size), size)
    except (ProfileError, ModelNotFound) as error:
        raise SystemExit(str(error))


if __name__ == "__main__":
    typer.run(main)
