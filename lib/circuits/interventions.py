"""Models with one part changed on purpose, for as long as a `with` block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformer_lens.model_bridge import TransformerBridge

from lib.models.families import family_of
from lib.models.rwkv import Rwkv


@contextmanager
def token_shift(model: TransformerBridge, layer: int, previous: float) -> Iterator[None]:
    """An RWKV whose keys and values in `layer` are made of this share of the token before and of the rest of their own.

    As trained, each channel has a share of its own: 1 − `time_mix_key` and 1 − `time_mix_value`. Raises `ValueError`
    for a model without a token shift.
    """
    family = family_of(model)
    if not isinstance(family, Rwkv):
        raise ValueError(f"a token shift is RWKV's; the model is a {family.model_type}.")
    mix = family.blocks[layer].attention
    ratios = [mix.time_mix_key, mix.time_mix_value]
    trained = [ratio.detach().clone() for ratio in ratios]
    try:
        for ratio in ratios:
            ratio.data.fill_(1 - previous)
        yield
    finally:
        for ratio, before in zip(ratios, trained, strict=True):
            ratio.data.copy_(before)
