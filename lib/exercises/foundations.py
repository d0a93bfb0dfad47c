"""Exercises of notebooks 00 to 02: profiles, the three architectures, sparse autoencoders."""

from __future__ import annotations

import re

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from lib.exercises.exercise import Exercise
from lib.workbook import artifacts, model_store, sweep, texts
from lib.workbook.profiles import Profile, ProfileError, get_profile

CHANGED, OTHER_TOKEN = 10, 77  # where exercise 01.2 puts another token


# ------------------------------------------------------------------------------------------- 00


def _differing(one: str, other: str, same: bool = False, trivial: tuple[str, ...] = ("name", "cache_dir")) -> set[str]:
    a, b = (get_profile(name).model_dump() for name in (one, other))
    return {field for field in a if (a[field] == b[field]) == same and field not in trivial}


def _message(setting: str) -> str:
    try:
        get_profile("mini", {setting: 1})
    except ProfileError as error:
        return str(error)
    return ""


def _proposed(setting: str) -> str:
    return re.search(r"did you mean '(\w+)'", _message(setting))[1]


# ------------------------------------------------------------------------------------------- 01


def _loss(name: str, profile: Profile) -> float:
    return artifacts.model_quality(name, profile)["held_out_loss"]


def _changed_positions(profile: Profile, hook: str) -> Int[ndarray, " positions"]:
    """Where a value of Mamba's block 0 changes with the token at `CHANGED`, in the first held-out block."""
    model = model_store.load(profile.mamba, profile)
    tokens = torch.from_numpy(texts.load_blocks(profile, "held_out", 4_000).tokens[:1]).long().repeat(2, 1)
    tokens[1, CHANGED] = OTHER_TOKEN
    with torch.no_grad():
        value = model.run_with_cache(tokens, names_filter=[f"blocks.0.{hook}"])[1][f"blocks.0.{hook}"]
    return (value[0] - value[1]).abs().amax(-1).gt(1e-6).nonzero().flatten().cpu().numpy()


def _decay(profile: Profile) -> Float[ndarray, " d_model"]:
    """w of block 1 of RWKV, a number per channel."""
    block = model_store.load(profile.rwkv, profile).original_model.rwkv.blocks[1]
    return block.attention.time_decay.exp().detach().cpu().numpy()


# ------------------------------------------------------------------------------------------- 02


def _worst_layers(profile: Profile, highest: bool = False, role: str = "pythia", start: int = 0) -> list[int]:
    """Positions of the layers of least explained variance and of least agreement between two SAE seeds."""
    quality = artifacts.sae_quality(artifacts.trained_saes(getattr(profile, role), profile)[0]).groupby("layer").explained_variance.mean()
    seeds = artifacts.mppc(profile.pythia, profile.pythia, profile, seed_b=profile.sae_seeds[-1])[0]
    pick = np.argmax if highest else np.argmin
    return [int(pick(values)) + start for values in (quality, seeds.groupby("layer").mppc.mean())]


def reconstructions() -> tuple[Float[ndarray, "tokens d"], Float[ndarray, "tokens d"]]:
    """Made-up activations whose mean is far from zero, and a reconstruction of them, for exercise 02.3."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 8)) * np.arange(1, 9) + 5
    return x, x + rng.normal(size=x.shape) * np.linspace(0.2, 2.5, 8)


def _squares(x: ndarray, axis: int | None = None) -> ndarray:
    return (x**2).sum(axis)


def _explained(centred: bool = True, axis: int | None = None) -> float:
    x, x_hat = reconstructions()
    around = x - x.mean(0) if centred else x
    return float(np.mean(1 - _squares(x - x_hat, axis) / _squares(around, axis)))


def _gain(profile: Profile, measure: str = "reproducibility", choice: str = "expansion", base=np.log2) -> float:
    rows = sweep.sae_trade_off(profile).query("choice == @choice")
    return float(np.polyfit(base(rows["value"]), rows[measure], 1)[0])


EXERCISES = {
    "00.1": Exercise(
        "the name of the setting that the error proposes",
        lambda profile: _proposed("sae_token"),
        {"that is the whole message; only the name that it proposes is asked for":
             lambda profile: _message("sae_token"),
         "that is the name that was misspelt, not the one proposed": lambda profile: "sae_token"},
    ),
    "00.2": Exercise(
        "a set of names of settings",
        lambda profile: _differing("laptop", "paper"),
        {"`name` and `cache_dir` are among them, which differ between any two profiles":
             lambda profile: _differing("laptop", "paper", trivial=()),
         "these are the settings that agree": lambda profile: _differing("laptop", "paper", same=True),
         "these are the settings that differ between `mini` and `paper`": lambda profile: _differing("mini", "paper"),
         "these are all settings there are": lambda profile: set(get_profile("paper").model_dump())},
    ),
    "00.3": Exercise(
        "a number of steps",
        lambda profile: profile.sae_tokens // profile.sae_batch_size,
        {"these are steps of the shorter trainings of notebook 02 (`sweep_tokens`)":
             lambda profile: profile.sweep_tokens // profile.sae_batch_size,
         "that is the number of buffers, not of batches": lambda profile: profile.sae_tokens // profile.buffer_tokens,
         "that is the number of blocks of text, not of batches":
             lambda profile: profile.sae_tokens // profile.context_length},
    ),
    "01.1": Exercise(
        "one number, a perplexity",
        lambda profile: np.exp(_loss(profile.mamba, profile)),
        {"that is the loss itself": lambda profile: _loss(profile.mamba, profile),
         "that is 2 to the loss, but the loss is in nats, not in bits":
             lambda profile: 2 ** _loss(profile.mamba, profile),
         "that is the Transformer's": lambda profile: np.exp(_loss(profile.pythia, profile)),
         "that is the loss in bits": lambda profile: _loss(profile.mamba, profile) / np.log(2)},
        "mamba",
    ),
    "01.2": Exercise(
        "a list of positions",
        lambda profile: _changed_positions(profile, "mixer.x_proj.hook_in"),
        {"only the changed token itself: you compared what goes into the convolution, not what comes out":
             lambda profile: _changed_positions(profile, "mixer.in_proj.hook_out"),
         "everything from the change on: you compared what comes after the state, which forgets slowly":
             lambda profile: _changed_positions(profile, "hook_out"),
         "these are differences of position, counted from the changed token":
             lambda profile: _changed_positions(profile, "mixer.x_proj.hook_in") - CHANGED},
        "mamba",
    ),
    "01.3": Exercise(
        "one number of tokens",
        lambda profile: np.log(2) / _decay(profile).min(),
        {"that is the channel that forgets fastest": lambda profile: np.log(2) / _decay(profile).max(),
         "that is the time to fall to 1/e, not to one half": lambda profile: 1 / _decay(profile).min(),
         "`time_decay` is the logarithm of w: take its exponential first":
             lambda profile: np.log(2) / np.log(_decay(profile)).min(),
         "that is the half-life of the mean decay; the slowest channel is asked for":
             lambda profile: np.log(2) / _decay(profile).mean()},
        "rwkv",
    ),
    "02.1": Exercise(
        "two layers, (least explained variance, least agreement),",
        _worst_layers,
        {"these are the best layers, not the worst": lambda profile: _worst_layers(profile, highest=True),
         "layers are counted from 0 here": lambda profile: _worst_layers(profile, start=1),
         "the two are in the wrong order": lambda profile: _worst_layers(profile)[::-1],
         "the first of them is Mamba's": lambda profile: _worst_layers(profile, role="mamba")},
    ),
    "02.2": Exercise(
        "one number, a norm",
        lambda profile: np.sqrt(2 / profile.expansion),
        {"that is the square of the norm": lambda profile: 2 / profile.expansion,
         "the 2 is missing": lambda profile: np.sqrt(1 / profile.expansion),
         "D and F are exchanged": lambda profile: np.sqrt(2 * profile.expansion)},
    ),
    "02.3": Exercise(
        "one number, an explained variance",
        lambda profile: _explained(),
        {"the denominator is not centred: it counts the mean as variance to explain":
             lambda profile: _explained(centred=False),
         "that is a mean over tokens of each token's own ratio; sum over all tokens before you divide":
             lambda profile: _explained(axis=1),
         "that is a mean over dimensions of each dimension's own ratio; sum over all before you divide":
             lambda profile: _explained(axis=0),
         "that is the share that is *not* explained": lambda profile: 1 - _explained()},
    ),
    "02.4": Exercise(
        "one number, MPPC per doubling,",
        _gain,
        {"that is the gain per factor of e; a doubling is asked for": lambda profile: _gain(profile, base=np.log),
         "that is the gain per unit of `expansion`, not per doubling": lambda profile: _gain(profile, base=np.asarray),
         "that is what happens to the explained variance": lambda profile: _gain(profile, "explained_variance"),
         "that is the gain by more text": lambda profile: _gain(profile, choice="sae_tokens")},
    ),
}  # fmt: skip
