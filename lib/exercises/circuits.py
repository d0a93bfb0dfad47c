"""Exercises of notebooks 07 and 08: induction circuits, and off by one."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from transformer_lens.model_bridge import TransformerBridge

from lib import models
from lib.circuits import heads, plain_patching
from lib.circuits.prompts import InductionPrompts
from lib.exercises.exercise import Exercise
from lib.workbook import induction, model_store
from lib.workbook.profiles import Profile

FEW, WANTED_ERROR, TAP_DISTANCE = 4, 0.05, 16


# ------------------------------------------------------------------------------------------- 07


def _strongest(name: str, profile: Profile, corrupt: str = "B′", measure: str = "logits") -> tuple[int, int]:
    return induction.strongest_head(induction.head_effects(name, profile), measure, corrupt)


def _weakest(profile: Profile) -> tuple[int, int]:
    heads = induction.mean_heads(induction.head_effects(profile.pythia_seed, profile), "logits", "B′")
    return tuple(map(int, heads.loc[heads["mean_logit_diff"].idxmax(), ["layer", "head"]]))


def _at_next(profile: Profile) -> pd.Series:
    """The row of Table 2 for B1+1 at the shortest distance."""
    table = induction.paper_table(2, induction.path_effects(profile.mamba, profile))
    return table[table["position"] == "B1+1"].sort_values("distance").iloc[0]


def _prompts_needed(profile: Profile, power: int = 2, sizes: bool = True) -> float:
    row = _at_next(profile)
    return float((row["n"] if sizes else 1) * (row["standard_error"] / WANTED_ERROR) ** power)


def _key_layer(profile: Profile) -> int:
    return induction.key_layer(induction.path_effects(profile.mamba, profile))


def _few(model: TransformerBridge, profile: Profile) -> InductionPrompts:
    return induction.prompts_for(model, profile)[induction.map_distance(profile)]


@torch.no_grad()
def _state_effect(profile: Profile, frozen: bool = False, offset: int = 0) -> float:
    """Mean effect of the key layer's patched final state on B; other layers' states frozen, or free to follow."""
    model = model_store.load(profile.mamba, profile)
    prompts, layer = _few(model, profile), (_key_layer(profile) + offset) % models.n_layers(model)
    clean, corrupt, target = (t[:FEW] for t in (prompts.clean, prompts.corrupt_b, prompts.target))
    state = plain_patching.patched_state(model, clean, corrupt, layer)

    def put(value, hook):
        value[:, :, -1] = state
        return value

    if frozen:
        patched = plain_patching.logits_with_state(model, clean, layer, state)
    else:
        with plain_patching.readable_states(model):
            patched = model.run_with_hooks(clean, fwd_hooks=[(plain_patching.state_hook(layer), put)])[:, -1]
    return float(plain_patching.effect(patched, model(clean)[:, -1], target).mean())


@torch.no_grad()
def _whole_effect(profile: Profile) -> float:
    """Mean effect on B of the whole corrupted run."""
    model = model_store.load(profile.mamba, profile)
    p = _few(model, profile)
    corrupt, clean = (model(tokens[:FEW])[:, -1] for tokens in (p.corrupt_b, p.clean))
    return float(plain_patching.effect(corrupt, clean, p.target[:FEW]).mean())


# ------------------------------------------------------------------------------------------- 08


def _shares(profile: Profile, role: str = "mamba", position: str = "B1+1") -> Float[ndarray, " distances"]:
    table = induction.paper_table(2, induction.path_effects(getattr(profile, role), profile))
    return induction.share_at(table, position).to_numpy()


def _shares_signed(profile: Profile) -> Float[ndarray, " distances"]:
    table = induction.wide(induction.paper_table(2, induction.path_effects(profile.mamba, profile)))
    return (table["B1+1"] / table.sum(axis=1)).to_numpy()


def _hidden_ratio(profile: Profile, upper: str = "B1+1", lower: str | None = "B1", corrupt: bool = False) -> float:
    """Hidden attention on one role over that on another, or over an even share."""
    model = model_store.load(profile.mamba, profile)
    prompts = _few(model, profile)
    row = heads.hidden_attention(model, prompts.corrupt_a if corrupt else prompts.clean, _key_layer(profile))
    return float(row[prompts.positions[upper]] / (row[prompts.positions[lower]] if lower else 1 / len(row)))


def _gap_without_tap(profile: Profile, tap: int | None = 2, everywhere: bool = False) -> float:
    """Induction gap with one tap of the key layer's convolution, or of all layers', set to zero."""
    model = model_store.load(profile.mamba, profile)
    layers = model.original_model.backbone.layers
    for layer in layers if everywhere else [layers[_key_layer(profile)]]:
        if tap is not None:
            layer.mixer.conv1d.weight.data[:, 0, tap] = 0
    device = model_store.device_of(profile)
    return models.induction_gap(lambda tokens: model(tokens.to(device)), TAP_DISTANCE, len(model.tokenizer))


EXERCISES = {
    "07.1": Exercise(
        "a pair (layer, head)",
        lambda profile: _strongest(profile.pythia_seed, profile),
        {"that is the head of the first seed": lambda profile: _strongest(profile.pythia, profile),
         "the two are in the wrong order: (layer, head) is asked for":
             lambda profile: _strongest(profile.pythia_seed, profile)[::-1],
         "that is the head with the *highest* change of the logit; a head that matters makes it fall": _weakest,
         "that is the head that feeds the induction head":
             lambda profile: _strongest(profile.pythia_seed, profile, "A′", "induction head")},
        "pythia_seed",
    ),
    "07.2": Exercise(
        "a number of prompts",
        _prompts_needed,
        {"a standard error falls with the *root* of the number of prompts":
             lambda profile: _prompts_needed(profile, power=1),
         "that is by how many times more prompts": lambda profile: _prompts_needed(profile, sizes=False),
         "upside down: more prompts are needed for a smaller error":
             lambda profile: _at_next(profile)["n"] ** 2 / _prompts_needed(profile)},
        "mamba",
    ),
    "07.3": Exercise(
        "one number, a mean change of the logit",
        _state_effect,
        {"the other layers' states are still frozen": lambda profile: _state_effect(profile, frozen=True),
         "that is the whole corrupted run: all layers' states come from it": _whole_effect,
         "off by one: that is the layer after the key layer": lambda profile: _state_effect(profile, offset=1),
         "off by one: that is the layer before the key layer": lambda profile: _state_effect(profile, offset=-1)},
        "mamba",
    ),
    "08.1": Exercise(
        "a share for each distance",
        _shares,
        {"off by one: that is B1, not B1+1": lambda profile: _shares(profile, position="B1"),
         "off by one: that is B1+2, not B1+1": lambda profile: _shares(profile, position="B1+2"),
         "positive and negative effects are added up and cancel: take their sizes": _shares_signed,
         "that is RWKV's": lambda profile: _shares(profile, role="rwkv")},
        "mamba",
    ),
    "08.2": Exercise(
        "one number, a ratio",
        _hidden_ratio,
        {"upside down: B1+1 over B1 is asked for": lambda profile: 1 / _hidden_ratio(profile),
         "that is the prompt in which A was replaced": lambda profile: _hidden_ratio(profile, corrupt=True),
         "that is over an even share, not over B1": lambda profile: _hidden_ratio(profile, lower=None),
         "off by one: that is B1+2 over B1+1": lambda profile: _hidden_ratio(profile, "B1+2", "B1+1")},
        "mamba",
    ),
    "08.3": Exercise(
        "one number, an induction gap",
        _gap_without_tap,
        {"nothing has been changed: that is the model's own gap": lambda profile: _gap_without_tap(profile, None),
         "off by one: that is the tap of the token itself (place 3)": lambda profile: _gap_without_tap(profile, 3),
         "off by one: that is the tap two tokens back (place 1)": lambda profile: _gap_without_tap(profile, 1),
         "the taps of all layers are zero; only the key layer's are asked for":
             lambda profile: _gap_without_tap(profile, everywhere=True)},
        "mamba",
    ),
}  # fmt: skip
