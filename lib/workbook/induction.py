"""The induction experiments (notebooks 07 and 08) on a profile's models, kept as artifacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lib import circuits
from lib.circuits import abilities as abilities_of_models
from lib.circuits.effect_tables import key_layer
from lib.circuits.prompts import ROLES, InductionPrompts
from lib.workbook import model_store
from lib.workbook.artifacts import kept, model_fields
from lib.workbook.profiles import Profile

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def prompts_for(model: TransformerBridge, profile: Profile) -> dict[int, InductionPrompts]:
    """The profile's prompts, by distance."""
    return circuits.prompts_by_distance(model, profile.circuit_distances, profile.seed, profile.circuit_samples)


def map_distance(profile: Profile) -> int:
    """The distance at which all layers × positions are measured: 16, or the profile's nearest."""
    return min(profile.circuit_distances, key=lambda distance: abs(distance - 16))


def abilities(profile: Profile, names: Sequence[str] | None = None) -> pd.DataFrame:
    """`lib.circuits.abilities.induction_abilities` by model, of `profile.circuit_models` unless others are named.

    Column `architecture` says whether it is a Transformer, a Mamba or an RWKV. Kept.
    """
    device = model_store.device_of(profile)

    def measure(model: TransformerBridge) -> pd.DataFrame:
        vocabulary = circuits.vocabulary_of(model)
        found = abilities_of_models.induction_abilities(lambda tokens: model(tokens.to(device)), vocabulary)
        return pd.DataFrame([{"architecture": circuits.architecture_of(model)} | found])

    names = list(names or profile.circuit_models)
    constants = dict(gaps=abilities_of_models.GAPS, bounds=abilities_of_models.BOUNDS)
    frames = {name: _kept("abilities", name, profile, measure, **constants) for name in names}
    return pd.concat(frames, names=["model"]).droplevel(1)


def no_induction(able: pd.DataFrame, *names: str) -> str:
    """Which of these models do not do induction, in words, and "" where all do; `able` is from `abilities`."""
    found = [name for name in names if not able["does_induction"][name]]
    return f"{' and '.join(found)} {'does' if len(found) == 1 else 'do'} not do induction" if found else ""


def path_effects(name: str, profile: Profile) -> pd.DataFrame:
    """`lib.circuits.induction.path_frame` of one model, kept."""

    def measure(model: TransformerBridge) -> pd.DataFrame:
        return circuits.path_frame(model, prompts_for(model, profile), map_distance(profile))

    return _kept("paths", name, profile, measure)


def head_effects(name: str, profile: Profile) -> pd.DataFrame:
    """`lib.circuits.induction.head_frame` of one Transformer, kept."""
    return _kept("heads", name, profile, lambda model: circuits.head_frame(model, prompts_for(model, profile)))


def taken_in(name: str, profile: Profile) -> pd.DataFrame:
    """`lib.circuits.induction.taken_in_frame` of one model's key layer at the distance of the maps, kept."""
    layer = key_layer(path_effects(name, profile))

    def measure(model: TransformerBridge) -> pd.DataFrame:
        return circuits.taken_in_frame(model, prompts_for(model, profile)[map_distance(profile)], layer)

    return _kept("taken_in", name, profile, measure)


def shifts(name: str, profile: Profile) -> pd.DataFrame:
    """`lib.circuits.induction.shift_frame` of an RWKV's key layer, kept."""
    layer = key_layer(path_effects(name, profile))
    return _kept(
        "shifts", name, profile, lambda model: circuits.shift_frame(model, prompts_for(model, profile), layer)
    )


def _kept(
    kind: str, name: str, profile: Profile, measure: Callable[[TransformerBridge], pd.DataFrame], **constants: Any
) -> pd.DataFrame:
    fields = model_fields(name, profile) | {
        "samples": profile.circuit_samples, "distances": profile.circuit_distances, "map": map_distance(profile),
        "roles": ROLES, **constants,
    }  # fmt: skip
    return kept(kind, fields, lambda: measure(model_store.load(name, profile)), "effects.parquet", profile)
