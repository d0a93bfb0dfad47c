"""Exercises of notebooks 00 to 02: profiles, the three architectures, sparse autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from lib.exercises import Exercise
from lib.models.activations import iterate_activations
from lib.workbook import artifacts, model_store, texts
from lib.workbook.profiles import Profile

PRICE, RATE = 0.5, 0.01  # λ of exercises 02.1 and 02.2, and how far a step goes
CHANGED, OTHER_TOKEN = 10, 77  # where exercise 01.2 puts another token


def two_series() -> Float[ndarray, "2 tokens"]:
    """Made-up activations of two features on the same tokens, never negative and often zero, for exercise 00.1."""
    rng = np.random.default_rng(4)
    cause = np.maximum(rng.normal(size=300) - 0.8, 0)
    return np.stack([cause, np.maximum(0.6 * cause + rng.normal(0.1, 0.3, 300), 0)])


def _correlation(profile: Profile, centred: bool = True, scaled: bool = True, both_fire: bool = False) -> float:
    a, b = two_series()
    a, b = (v[(a > 0) & (b > 0)] if both_fire else v for v in (a, b))
    a, b = (v - v.mean() * centred for v in (a, b))
    return float((a * b).mean() / (np.sqrt((a * a).mean() * (b * b).mean()) if scaled else 1))


def toy_models() -> tuple[Float[ndarray, "tokens 5"], Float[ndarray, "tokens 7"]]:
    """Made-up features of two models on the same tokens, for exercise 00.2; one is the opposite of another."""
    rng = np.random.default_rng(6)
    a = rng.random((400, 5))
    b = 0.5 * a[:, [3, 0, 0, 2, 4, 1, 2]] + 0.5 * rng.random((400, 7)) * np.linspace(0.4, 2, 7)
    b[:, 5] = 1 - a[:, 1]
    return a, b


def _twins(profile: Profile, of_b: bool = False, best: Callable = np.max, absolute: bool = False) -> ndarray:
    a, b = toy_models()
    table = np.corrcoef(a.T, b.T)[:5, 5:]
    return best(np.abs(table) if absolute else table, axis=0 if of_b else 1)


def _loss(profile: Profile, role: str = "mamba") -> float:
    return artifacts.model_abilities(getattr(profile, role), profile)["held_out_loss"]


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


def small_sae() -> tuple[Float[ndarray, "tokens d"], ...]:
    """Made-up activations and an SAE: x, W_enc, b_enc, W_dec, b_dec, for exercises 02.1 and 02.2."""
    rng = np.random.default_rng(7)
    x, W_dec = rng.normal(size=(20, 4)), rng.normal(size=(10, 4)) * np.linspace(0.2, 0.8, 10)[:, None]
    return x, W_dec.T + rng.normal(0, 0.1, (4, 10)), rng.normal(0, 0.2, 10), W_dec, rng.normal(0, 0.2, 4)


def _small_loss(
    weights: Sequence[torch.Tensor], price: float = PRICE, relu: bool = True, norms: bool = True, mean: bool = True
) -> torch.Tensor:
    x, (W_enc, b_enc, W_dec, b_dec) = torch.from_numpy(small_sae()[0]), weights
    f = x @ W_enc + b_enc
    f = torch.relu(f) if relu else f
    error = (x - f @ W_dec - b_dec).square().sum(1)
    each = error + price * (f * (W_dec.norm(dim=1) if norms else 1)).sum(1)
    return each.mean() if mean else each.sum()


def _weights() -> list[torch.Tensor]:
    return [torch.from_numpy(value).requires_grad_() for value in small_sae()[1:]]


def _sae_loss(profile: Profile, **other: float | bool) -> float:
    return _small_loss(_weights(), **other).item()


def _after_a_step(profile: Profile, rate: float = RATE, price: float = PRICE, moved: Sequence[int] = range(4)) -> float:
    """The loss after one step of gradient descent on some of the four weights, along the gradient at some λ."""
    weights = _weights()
    gradients = torch.autograd.grad(_small_loss(weights, price), weights)
    stepped = [w - rate * g * (k in moved) for k, (w, g) in enumerate(zip(weights, gradients, strict=True))]
    return _small_loss(stepped).item()


def _best_scale(profile: Profile, centred: bool = True, of: str = "features") -> float:
    """By what the features of the first SAE have to be multiplied, so that its squared error is least."""
    sae = artifacts.trained_saes(profile.pythia, profile)[0][0]
    model, blocks = model_store.load(profile.pythia, profile), texts.load_blocks(profile, "held_out", 1_000)
    batches = iterate_activations(model, blocks, [sae.info.layer], 8)
    x = torch.cat([batch[sae.info.layer] for batch in batches]).double()
    with torch.no_grad():
        bias = sae.b_dec.double() * centred
        y, drawn = x - bias, sae(x.float()).double() - bias
    product, size, whole = (y * drawn).sum(), drawn.square().sum(), y.square().sum()
    return float({"features": product / size, "norms": (whole / size).sqrt(), "activations": product / whole}[of])


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


EXERCISES = {
    "00.1": Exercise("one number, a correlation", _correlation, {
        "the means are not taken away: that is the cosine of the two series": dict(centred=False),
        "that is the covariance: divide it by both standard deviations": dict(scaled=False),
        "only the tokens on which both fire were counted; where one is silent counts as well": dict(both_fire=True),
    }),
    "00.2": Exercise("five correlations, one for each feature of A,", _twins, {
        "these are the best matches of B's features, not of A's": dict(of_b=True),
        "a strong negative correlation was taken for a match: the highest is asked for, not the largest in size":
            dict(absolute=True),
        "these are the numbers of the matching features; their correlations are asked for": dict(best=np.argmax),
        "these are means over all features of B; the best one is asked for": dict(best=np.mean),
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
    "02.1": Exercise("one number, a loss", _sae_loss, {
        "negative activations were counted: the ReLU is missing": dict(relu=False),
        "the penalty does not count the length of the decoder's rows": dict(norms=False),
        "that is the error alone: the penalty is missing": dict(price=0),
        "that is the sum over tokens; their mean is asked for": dict(mean=False),
        "λ is missing before the penalty": dict(price=1),
    }),
    "02.2": Exercise("one number, the loss after the step", _after_a_step, {
        "that is the loss before the step": _sae_loss,
        "the step went uphill: subtract the gradient": dict(rate=-RATE),
        "only the decoder moved; the encoder and both biases take the step as well": dict(moved=(2,)),
        "the biases did not move": dict(moved=(0, 2)),
        "the gradient is that of the error alone: the penalty pulls, too": dict(price=0),
    }),
    "02.3": Exercise("one number, an explained variance", _explained, {
        "the denominator is not centred: it counts the mean as variance to explain": dict(centred=False),
        "that is a mean over tokens of each token's own ratio; sum over all tokens before you divide": dict(axis=1),
        "that is a mean over dimensions of each dimension's own ratio; sum over all before you divide": dict(axis=0),
        "that is the share that is *not* explained": lambda profile: 1 - _explained(profile),
    }),
    "02.4": Exercise("one number, a factor", _best_scale, {
        "`b_dec` was multiplied as well: it is no feature, so take it away from both first": dict(centred=False),
        "that makes the reconstruction as long as the activation, which is not where the error is least":
            dict(of="norms"),
        "that is what the *activation* has to be multiplied by to fit the reconstruction": dict(of="activations"),
    }),
}  # fmt: skip
