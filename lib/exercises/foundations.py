"""Exercises of notebooks 00 to 02: profiles, the three architectures, sparse autoencoders."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from lib.exercises.exercise import Exercise
from lib.workbook import artifacts, model_store, sweep, texts
from lib.workbook.profiles import Profile, ProfileError, get_profile

MISSPELT = "sae_token"  # in exercise 00.1
CHANGED, OTHER_TOKEN = 10, 77  # where exercise 01.2 puts another token


def _message(profile: Profile) -> str:
    """What is said of a misspelt setting."""
    try:
        return str(get_profile("mini", {MISSPELT: 1}))
    except ProfileError as error:
        return str(error)


def _proposed(profile: Profile) -> str:
    return re.search(r"did you mean '(\w+)'", _message(profile))[1]


def _differing(
    profile: Profile, one: str = "laptop", equal: bool = False, trivial: tuple[str, ...] = ("name", "cache_dir")
) -> set[str]:
    """Settings that differ between a profile and `paper`."""
    a, b = (get_profile(name).model_dump() for name in (one, "paper"))
    return {field for field in a if (a[field] == b[field]) == equal and field not in trivial}


def _steps(profile: Profile, tokens: str = "sae_tokens", batch: str = "sae_batch_size") -> int:
    return getattr(profile, tokens) // getattr(profile, batch)


def _loss(profile: Profile, role: str = "mamba") -> float:
    return artifacts.model_quality(getattr(profile, role), profile)["held_out_loss"]


def _perplexity(profile: Profile, role: str = "mamba", base: float = np.e) -> float:
    return base ** _loss(profile, role)


def _changed_positions(profile: Profile, hook: str = "mixer.x_proj.hook_in") -> Int[ndarray, " positions"]:
    """Where a value of Mamba's block 0 changes with the token at `CHANGED`, in the first held-out block."""
    model = model_store.load(profile.mamba, profile)
    tokens = torch.from_numpy(texts.load_blocks(profile, "held_out", 4_000).tokens[:1]).long().repeat(2, 1)
    tokens[1, CHANGED] = OTHER_TOKEN
    with torch.no_grad():
        value = model.run_with_cache(tokens, names_filter=[f"blocks.0.{hook}"])[1][f"blocks.0.{hook}"]
    return (value[0] - value[1]).abs().amax(-1).gt(1e-6).nonzero().flatten().cpu().numpy()


def _fading_time(profile: Profile, to: float = 1 / 2, of: Callable[[ndarray], float] = np.min) -> float:
    """Tokens after which RWKV's block 1 holds a share `to`, by the decay w of one of its channels."""
    block = model_store.load(profile.rwkv, profile).original_model.rwkv.blocks[1]
    return -np.log(to) / of(block.attention.time_decay.exp().detach().cpu().numpy())


def _worst_layers(profile: Profile, pick: Callable = np.argmin, role: str = "pythia", start: int = 0) -> list[int]:
    """Positions of the layers of least explained variance and of least agreement between two SAE seeds."""
    saes, _ = artifacts.trained_saes(getattr(profile, role), profile)
    quality = artifacts.sae_quality(saes).groupby("layer").explained_variance.mean()
    seeds = artifacts.mppc(profile.pythia, profile.pythia, profile, seed_b=profile.sae_seeds[-1])[0]
    return [int(pick(values)) + start for values in (quality, seeds.groupby("layer").mppc.mean())]


def reconstructions() -> tuple[Float[ndarray, "tokens d"], Float[ndarray, "tokens d"]]:
    """Made-up activations whose mean is far from zero, and a reconstruction of them, for exercise 02.3."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 8)) * np.arange(1, 9) + 5
    return x, x + rng.normal(size=x.shape) * np.linspace(0.2, 2.5, 8)


def _explained(profile: Profile, centred: bool = True, axis: int | None = None) -> float:
    x, x_hat = reconstructions()
    around = x - x.mean(0) if centred else x
    left, whole = ((y**2).sum(axis) for y in (x - x_hat, around))
    return float(np.mean(1 - left / whole))


def _gain(
    profile: Profile, measure: str = "reproducibility", choice: str = "expansion", scale: Callable = np.log2
) -> float:
    rows = sweep.sae_trade_off(profile).query("choice == @choice")
    return float(np.polyfit(scale(rows["value"]), rows[measure], 1)[0])


EXERCISES = {
    "00.1": Exercise("the name of the setting that the error proposes", _proposed, {
        "that is the whole message; only the name that it proposes is asked for": _message,
        "that is the name that was misspelt, not the one proposed": lambda profile: MISSPELT,
    }),
    "00.2": Exercise("a set of names of settings", _differing, {
        "`name` and `cache_dir` are among them, which differ between any two profiles": dict(trivial=()),
        "these are the settings that agree": dict(equal=True),
        "these are the settings that differ between `mini` and `paper`": dict(one="mini"),
        "these are all settings there are": lambda profile: set(Profile.model_fields),
    }),
    "00.3": Exercise("a number of steps", _steps, {
        "these are steps of the shorter trainings of notebook 02 (`sweep_tokens`)": dict(tokens="sweep_tokens"),
        "that is the number of buffers, not of batches": dict(batch="buffer_tokens"),
        "that is the number of blocks of text, not of batches": dict(batch="context_length"),
    }),
    "01.1": Exercise("one number, a perplexity", _perplexity, {
        "that is the loss itself": _loss,
        "that is 2 to the loss, but the loss is in nats, not in bits": dict(base=2),
        "that is the Transformer's": dict(role="pythia"),
        "that is the loss in bits": lambda profile: _loss(profile) / np.log(2),
    }, needs="mamba"),
    "01.2": Exercise("a list of positions", _changed_positions, {
        "only the changed token itself: you compared what goes into the convolution, not what comes out":
            dict(hook="mixer.in_proj.hook_out"),
        "everything from the change on: you compared what comes after the state, which forgets slowly":
            dict(hook="hook_out"),
        "these are differences of position, counted from the changed token":
            lambda profile: _changed_positions(profile) - CHANGED,
    }, needs="mamba"),
    "01.3": Exercise("one number of tokens", _fading_time, {
        "that is the channel that forgets fastest": dict(of=np.max),
        "that is the time to fall to 1/e, not to one half": dict(to=1 / np.e),
        "`time_decay` is the logarithm of w: take its exponential first": dict(of=lambda w: np.log(w).min()),
        "that is the half-life of the mean decay; the slowest channel is asked for": dict(of=np.mean),
    }, needs="rwkv"),
    "02.1": Exercise("two layers, (least explained variance, least agreement),", _worst_layers, {
        "these are the best layers, not the worst": dict(pick=np.argmax),
        "layers are counted from 0 here": dict(start=1),
        "the two are in the wrong order": lambda profile: _worst_layers(profile)[::-1],
        "the first of them is Mamba's": dict(role="mamba"),
    }),
    "02.2": Exercise("one number, a norm", lambda profile: np.sqrt(2 / profile.expansion), {
        "that is the square of the norm": lambda profile: 2 / profile.expansion,
        "the 2 is missing": lambda profile: np.sqrt(1 / profile.expansion),
        "D and F are exchanged": lambda profile: np.sqrt(2 * profile.expansion),
    }),
    "02.3": Exercise("one number, an explained variance", _explained, {
        "the denominator is not centred: it counts the mean as variance to explain": dict(centred=False),
        "that is a mean over tokens of each token's own ratio; sum over all tokens before you divide": dict(axis=1),
        "that is a mean over dimensions of each dimension's own ratio; sum over all before you divide": dict(axis=0),
        "that is the share that is *not* explained": lambda profile: 1 - _explained(profile),
    }),
    "02.4": Exercise("one number, MPPC per doubling,", _gain, {
        "that is the gain per factor of e; a doubling is asked for": dict(scale=np.log),
        "that is the gain per unit of `expansion`, not per doubling": dict(scale=np.asarray),
        "that is what happens to the explained variance": dict(measure="explained_variance"),
        "that is the gain by more text": dict(choice="sae_tokens"),
    }),
}  # fmt: skip
