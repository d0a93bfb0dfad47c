"""The comparisons of §4: which models and SAE seeds, both directions kept with their nulls and their resamples.

What is read off a direction is in `lib.mppc.directions` and `lib.mppc.depth`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lib.mppc.directions import Direction, summarise, with_null
from lib.workbook import artifacts, retraining
from lib.workbook.profiles import Profile


@dataclass(frozen=True)
class Comparison:
    """One model's features (or neurons) against another's."""

    label: str
    a: str
    b: str
    seed_b: int | None = None
    neurons: bool = False


def comparisons(profile: Profile) -> dict[str, Comparison]:
    """All that there are models for, by a short name."""
    found = {}
    for name, pair in profile.comparisons.items():
        a, b = (profile.roles[role] for role in (pair.a, pair.b))
        seed_b = profile.sae_seeds[-1] if pair.other_sae_seed else None
        if a and b:
            found[name] = Comparison(pair.label, a, b, seed_b, neurons=pair.of == "neurons")
    return found


def compare(comparison: Comparison, profile: Profile) -> tuple[Direction, Direction]:
    """Both directions of a comparison, with null and resamples; loads what is there and makes what is not."""
    c = comparison
    if c.neurons:
        parts = artifacts.neuron_mppc(c.a, c.b, profile)
    else:
        frames = artifacts.mppc(c.a, c.b, profile, c.seed_b)
        nulls = artifacts.mppc(c.a, c.b, profile, c.seed_b, null=True)
        parts = list(zip(frames, nulls, artifacts.resampled_mppc(c.a, c.b, profile, c.seed_b), strict=True))
    names, found = [c.a, c.b if c.seed_b is None else f"{c.b}, SAE seed {c.seed_b}"], []
    for way, ends, (frame, null, resampled) in zip(("forward", "reverse"), (names, names[::-1]), parts, strict=True):
        spread = 0.0 if c.neurons else retraining.spread_of(c.label, profile, way)
        found.append(Direction(*ends, with_null(frame, null), resampled, spread))
    return found[0], found[1]


def summary_table(directions: dict[str, tuple[Direction, Direction]], profile: Profile) -> pd.DataFrame:
    """A row per comparison and direction; `directions` as `compare` gives them, by short name."""
    known = comparisons(profile)
    return pd.DataFrame(
        {"comparison": known[name].label, "direction": way, "source": d.source, "target": d.target} | summarise(d)
        for name, pair in directions.items()
        for way, d in zip(("forward", "reverse"), pair)
    )


def save_matches(name: str, pair: Sequence[Direction], profile: Profile) -> None:
    """Write a row per feature of both directions: mppc_<a>_to_<b>.parquet beside the figures."""
    sides = ("pythia", name) if name != "sae_seed" else ("sae_seed0", "sae_seed1")
    profile.figures_dir.mkdir(parents=True, exist_ok=True)
    for (source, target), direction in zip((sides, sides[::-1]), pair, strict=True):
        direction.frame.to_parquet(profile.figures_dir / f"mppc_{source}_to_{target}.parquet", index=False)
