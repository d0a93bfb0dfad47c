"""Exercises of notebooks 07, 08 and 09 about circuits and what they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray

from lib import circuits, models
from lib.circuits import effect_tables, plain_patching
from lib.circuits.prompts import InductionPrompts
from lib.exercises import Exercise
from lib.workbook import induction, model_store
from lib.workbook.profiles import Profile

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FEW, TAP_DISTANCE, REPEATED = 4, 16, 32


def _strongest(
    profile: Profile, role: str = "pythia_seed", measure: str = "logits", corrupt: str = "B′"
) -> tuple[int, int]:
    frame = induction.head_effects(getattr(profile, role), profile)
    return effect_tables.strongest_head(frame, measure, corrupt)


def _weakest(profile: Profile) -> tuple[int, int]:
    frame = induction.head_effects(profile.pythia_seed, profile)
    table = effect_tables.mean_heads(frame, "logits", "B′")
    return tuple(map(int, table.loc[table["mean_logit_diff"].idxmax(), ["layer", "head"]]))


def _table_2(profile: Profile, role: str = "mamba") -> pd.DataFrame:
    return effect_tables.paper_table(2, induction.path_effects(getattr(profile, role), profile))


def _key_layer(profile: Profile) -> int:
    return effect_tables.key_layer(induction.path_effects(profile.mamba, profile))


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


def _shares(profile: Profile, role: str = "mamba", position: str = "B1+1") -> Float[ndarray, " distances"]:
    return effect_tables.share_at(_table_2(profile, role), position).to_numpy()


def _shares_signed(profile: Profile) -> Float[ndarray, " distances"]:
    table = effect_tables.wide(_table_2(profile))
    return (table["B1+1"] / table.sum(axis=1)).to_numpy()


def _gap_without_tap(profile: Profile, tap: int | None = 2, everywhere: bool = False) -> float:
    """Induction gap with one tap of the key layer's convolution, or of all layers', set to zero."""
    model = model_store.load(profile.mamba, profile)
    layers = model.original_model.backbone.layers
    for layer in layers if everywhere else [layers[_key_layer(profile)]]:
        if tap is not None:
            layer.mixer.conv1d.weight.data[:, 0, tap] = 0
    return _gap(model, profile)


def _gap(model: TransformerBridge, profile: Profile) -> float:
    device = model_store.device_of(profile)
    return circuits.induction_gap(lambda tokens: model(tokens.to(device)), TAP_DISTANCE, len(model.tokenizer))


def _states_in_the_middle(
    profile: Profile, first: int = 2, corrupt: str = "corrupt_b", alone: bool = False
) -> Float[ndarray, " states"]:
    """Mean effect of the key layer's state after `first` tokens, one more, and two more; or of one input alone."""
    model = model_store.load(profile.mamba, profile)
    p, until = _few(model, profile).first(FEW), range(first, first + 3)
    patched = [t - 1 if alone else slice(t) for t in until]
    found = circuits.mixer_input_effects(model, p.clean, getattr(p, corrupt), p.target, _key_layer(profile), patched)
    return found.numpy()


def _induction_scores(profile: Profile, back: int = REPEATED - 1, first: int = REPEATED + 1) -> Float[ndarray, "l h"]:
    """Each head's mean attention to the token so many places back, from position `first` on, on repeated tokens."""
    model = model_store.load(profile.pythia, profile)
    tokens = models.repeated_tokens(16, REPEATED, len(model.tokenizer), seed=0)
    queries = torch.arange(first, tokens.shape[1])
    scores = [
        circuits.patterns(model, tokens, k)[:, queries, queries - back].mean(1) for k in range(models.n_layers(model))
    ]
    return torch.stack(scores).numpy()


def _gap_without_shift(profile: Profile, own: float | None = 1, layers: str = "all", gates: bool = False) -> float:
    """Induction gap of an RWKV whose keys and values take this share of their own token, in all layers or the first."""
    model = model_store.load(profile.rwkv, profile)
    blocks = model.original_model.rwkv.blocks
    for block in blocks if layers == "all" else blocks[:1]:
        parts = ("time_mix_key", "time_mix_value", *["time_mix_receptance"] * gates)
        for name in parts if own is not None else ():
            getattr(block.attention, name).data.fill_(own)
    return _gap(model, profile)


def _share_of_nearest(profile: Profile, nearest: int = 8, exponential: bool = True, pooled: bool = False) -> float:
    """Share of the WKV's weights, keys being equal, on the tokens just before, of 32; layer 0, mean over channels."""
    mix = model_store.load(profile.rwkv, profile).original_model.rwkv.blocks[0].attention
    decay = mix.time_decay.detach().double().cpu()
    weights = torch.exp(-torch.arange(32)[:, None] * (decay.exp() if exponential else decay))
    if pooled:
        return float(weights[:nearest].sum() / weights.sum())
    return float((weights[:nearest].sum(0) / weights.sum(0)).mean())


EXERCISES = {
    "07.1": Exercise("a pair (layer, head)", _strongest, {
        "that is the head of the first seed": dict(role="pythia"),
        "the two are in the wrong order: (layer, head) is asked for": lambda profile: _strongest(profile)[::-1],
        "that is the head with the *highest* change of the logit; a head that matters makes it fall": _weakest,
        "that is the head that feeds the induction head": dict(measure="induction head", corrupt="A′"),
    }, needs="pythia_seed"),
    "07.2": Exercise("three numbers, a mean change of the logit for each state", _states_in_the_middle, {
        "off by one: the input of the token itself is still the clean one": dict(first=1),
        "off by one: those are the states one token later": dict(first=3),
        "that is the input at one token alone; a state holds all tokens up to it": dict(alone=True),
        "that is with A replaced": dict(corrupt="corrupt_a"),
    }, needs="mamba"),
    "07.3": Exercise("one number, a mean change of the logit", _state_effect, {
        "the other layers' states are still frozen": dict(frozen=True),
        "that is the whole corrupted run: all layers' states come from it": _whole_effect,
        "off by one: that is the layer after the key layer": dict(offset=1),
        "off by one: that is the layer before the key layer": dict(offset=-1),
    }, needs="mamba"),
    "07.4": Exercise("an array of layers × heads", _induction_scores, {
        "off by one: that is attention to the first occurrence itself, not to the token after it": dict(back=REPEATED),
        "that is attention to the token just before: previous-token heads": dict(back=1),
        "the first copy is counted in, where nothing can be looked up yet": dict(first=REPEATED - 1),
    }),
    "08.1": Exercise("a share for each distance", _shares, {
        "off by one: that is B1, not B1+1": dict(position="B1"),
        "off by one: that is B1+2, not B1+1": dict(position="B1+2"),
        "positive and negative effects are added up and cancel: take their sizes": _shares_signed,
        "that is RWKV's": dict(role="rwkv"),
    }, needs="mamba"),
    "08.2": Exercise("one number, an induction gap", _gap_without_shift, {
        "nothing has been changed: that is the model's own gap": dict(own=None),
        "the other way round: that leaves the present token out": dict(own=0),
        "that is the first layer alone; all layers are asked for": dict(layers="first"),
        "the receptance is changed too; only key and value are asked for": dict(gates=True),
    }, needs="rwkv"),
    "08.3": Exercise("one number, an induction gap", _gap_without_tap, {
        "nothing has been changed: that is the model's own gap": dict(tap=None),
        "off by one: that is the tap of the token itself (place 3)": dict(tap=3),
        "off by one: that is the tap two tokens back (place 1)": dict(tap=1),
        "the taps of all layers are zero; only the key layer's are asked for": dict(everywhere=True),
    }, needs="mamba"),
    "09.3": Exercise("one number, a share", _share_of_nearest, {
        "off by one: those are nine tokens (lags 0 to 8)": dict(nearest=9),
        "off by one: those are seven tokens (lags 0 to 6)": dict(nearest=7),
        "the rate of forgetting is the exponential of `time_decay`": dict(exponential=False),
        "channels are added up before dividing; the mean of the channels' shares is asked for": dict(pooled=True),
    }, needs="rwkv"),
}  # fmt: skip
