"""The induction experiments of §6 and App. G for one model: what is measured, kept as artifacts, and read as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib import circuits, models
from lib.circuits.path_patching import clean_logits
from lib.circuits.prompts import ROLES, InductionPrompts, induction_prompts
from lib.models.families import family_of
from lib.models.mamba import Mamba
from lib.workbook import model_store
from lib.workbook.artifacts import model_fields
from lib.workbook.induction_tables import (  # noqa: F401  (readers of the results find all of it under one name)
    VALUE,
    agreement,
    by_position,
    induction_head,
    key_layer,
    key_position,
    mean_heads,
    paper_table,
    published_table,
    released,
    select,
    share_at,
    strongest_head,
    wide,
)
from lib.workbook.profiles import Profile
from lib.workbook.store import Store

CORRUPTED = {"B′": "corrupt_b", "A′": "corrupt_a", "random": "random"}


def prompts_for(model: TransformerBridge, profile: Profile) -> dict[int, InductionPrompts]:
    """The profile's prompts, by distance."""
    vocabulary = len(model.tokenizer) if model.tokenizer is not None else model.original_model.config.vocab_size
    draw = partial(induction_prompts, vocabulary=vocabulary, seed=profile.seed, n_samples=profile.circuit_samples)
    return {distance: draw(distance) for distance in profile.circuit_distances}


def path_effects(name: str, profile: Profile) -> pd.DataFrame:
    """Every effect of the induction experiments on one model, of any architecture.

    Columns: measure, corrupt (B′ or A′), distance, layer, position, mean_logit_diff, standard_error, n. Measures:
    `logit` (of B in a whole corrupted run, minus clean), `state` (Table 1, each layer), `input` (Table 2: the key layer
    at all distances, all layers at the map's distance), `local` (Tables 3, 4: in the key layer, through B1+1;
    RWKV: through its key position).
    """
    return _kept("paths", name, profile, _measure_paths)


def head_effects(name: str, profile: Profile) -> pd.DataFrame:
    """A Transformer's heads, to the logits (`logits`) and into the found induction head (`induction head`).

    Columns: measure, corrupt, distance, layer, head, receiver_layer, receiver_head, mean_logit_diff, standard_error, n.
    """
    return _kept("heads", name, profile, _measure_heads)


def _kept(kind: str, name: str, profile: Profile, measure) -> pd.DataFrame:
    fields = model_fields(name, profile) | {
        "samples": profile.circuit_samples, "distances": profile.circuit_distances, "map": map_distance(profile),
        "roles": ROLES,
    }  # fmt: skip

    def make(folder: Path) -> None:
        pd.DataFrame(measure(model_store.load(name, profile), profile)).to_parquet(folder / "effects.parquet", index=False)

    return pd.read_parquet(Store(profile.cache_dir).get(kind, fields, make) / "effects.parquet")


def map_distance(profile: Profile) -> int:
    """The distance at which all layers × positions are measured: 16, or the profile's nearest."""
    return min(profile.circuit_distances, key=lambda distance: abs(distance - 16))


def _row(effects: Float[Tensor, "samples"], **place: Any) -> dict[str, Any]:
    mean, error = effects.mean(), effects.std() / len(effects) ** 0.5
    return place | dict(zip(VALUE, (float(mean), float(error), len(effects)), strict=True))


# ------------------------------------------------------------------------------------------- paths


def _watched(prompts: dict[int, InductionPrompts], what: str) -> Iterable[tuple[int, InductionPrompts]]:
    return tqdm(prompts.items(), f"path patching, {what}", unit="distance", mininterval=5)


def _measure_paths(model: TransformerBridge, profile: Profile) -> list[dict[str, Any]]:
    prompts = prompts_for(model, profile)
    rows = [row for distance, p in _watched(prompts, "final states") for row in _whole(model, distance, p)]
    layer = key_layer(pd.DataFrame(rows))
    for distance, p in _watched(prompts, "inputs"):
        layers = range(models.n_layers(model)) if distance == map_distance(profile) else [layer]
        rows += [row for k in layers for row in _inputs(model, distance, p, k)]
    if family_of(model).conv_tokens:
        position = "B1+1" if isinstance(family_of(model), Mamba) else key_position(pd.DataFrame(rows))
        rows += [row for distance, p in prompts.items() for row in _local(model, distance, p, layer, position)]
    return rows


def _whole(model: TransformerBridge, distance: int, p: InductionPrompts) -> Iterator[dict[str, Any]]:
    clean = clean_logits(model, p.clean, p.target)
    for corrupt in ("B′", "A′"):
        tokens = getattr(p, CORRUPTED[corrupt])
        place = dict(corrupt=corrupt, distance=distance, position=None)
        yield _row(clean_logits(model, tokens, p.target) - clean, measure="logit", layer=None, **place)
        for layer, effects in enumerate(circuits.final_state_effects(model, p.clean, tokens, p.target, per_sample=True)):
            yield _row(effects, measure="state", layer=layer, **place)


def _inputs(model: TransformerBridge, distance: int, p: InductionPrompts, layer: int) -> Iterator[dict[str, Any]]:
    for corrupt in ("B′", "A′"):
        found = circuits.mixer_input_effects(
            model, p.clean, getattr(p, CORRUPTED[corrupt]), p.target, layer, list(p.positions.values()), per_sample=True
        )
        for role, effects in zip(p.positions, found, strict=True):
            yield _row(effects, measure="input", corrupt=corrupt, distance=distance, layer=layer, position=role)


def _local(
    model: TransformerBridge, distance: int, p: InductionPrompts, layer: int, position: str
) -> Iterator[dict[str, Any]]:
    through = p.positions[position]
    window = {role: at for role, at in p.positions.items() if 0 <= through - at < family_of(model).conv_tokens}
    for corrupt in ("B′", "A′"):
        found = circuits.conv_input_effects(
            model, p.clean, getattr(p, CORRUPTED[corrupt]), p.target, layer, list(window.values()), through, per_sample=True
        )
        for role, effects in zip(window, found, strict=True):
            yield _row(effects, measure="local", corrupt=corrupt, distance=distance, layer=layer, position=role)


# ------------------------------------------------------------------------------------------- heads


def _measure_heads(model: TransformerBridge, profile: Profile) -> list[dict[str, Any]]:
    prompts, rows, nowhere = prompts_for(model, profile), [], dict(receiver_layer=None, receiver_head=None)
    for distance, p in _watched(prompts, "heads"):
        for corrupt in ("random", "B′"):
            found = circuits.head_effects(model, p.clean, getattr(p, CORRUPTED[corrupt]), p.target, per_sample=True)
            rows += _head_rows(found, measure="logits", corrupt=corrupt, distance=distance, **nowhere)
    receiver = induction_head(pd.DataFrame(rows))
    for distance, p in _watched(prompts, "heads before the induction head"):
        for corrupt in ("random", "A′"):
            tokens = getattr(p, CORRUPTED[corrupt])
            found = circuits.head_to_head_effects(model, p.clean, tokens, p.target, receiver, per_sample=True)
            place = dict(corrupt=corrupt, distance=distance, receiver_layer=receiver[0], receiver_head=receiver[1])
            rows += _head_rows(found, measure="induction head", **place)
    return rows


def _head_rows(found: Float[Tensor, "layers heads samples"], **place: Any) -> list[dict[str, Any]]:
    return [
        _row(found[layer, head], layer=layer, head=head, **place)
        for layer in range(found.shape[0])
        for head in range(found.shape[1])
    ]
