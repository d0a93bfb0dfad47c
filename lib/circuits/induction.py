"""The induction experiments of §6 and App. G on one model: every effect, as a frame with a row per measurement.

Prompts are those of `lib.circuits.prompts`, by distance. Frames have the columns mean_logit_diff, standard_error and n
(over prompts), and those that say what was measured; `lib.circuits.effect_tables` reads them as the paper's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib import models
from lib.circuits import effects
from lib.circuits.effect_tables import VALUE, induction_head, key_layer, key_position
from lib.circuits.path_patching import in_chunks, last_logits, runs_kept
from lib.circuits.prompts import InductionPrompts, induction_prompts
from lib.models.families import family_of, patchable
from lib.models.mamba import Mamba
from lib.models.rwkv import Rwkv
from lib.models.transformer import Transformer

Prompts = Mapping[int, InductionPrompts]
"""By distance."""
Measured = tuple[dict[str, Any], Float[Tensor, "samples"]]
"""What was measured, and its effect on each prompt."""


def prompts_by_distance(
    model: TransformerBridge, distances: Sequence[int], seed: int, n_samples: int = 128
) -> dict[int, InductionPrompts]:
    """Prompts of the model's tokens, `n_samples` for each distance between the two A."""
    return {distance: induction_prompts(distance, vocabulary_of(model), seed, n_samples) for distance in distances}


def vocabulary_of(model: TransformerBridge) -> int:
    """How many tokens its tokenizer has; without one, how many rows its embedding has."""
    return model.original_model.config.vocab_size if model.tokenizer is None else len(model.tokenizer)


def architecture_of(model: TransformerBridge) -> str:
    """Transformer, Mamba or RWKV. Raises `ValueError` for a family that path patching is not offered for."""
    kinds = {Transformer: "Transformer", Mamba: "Mamba", Rwkv: "RWKV"}
    return next(name for kind, name in kinds.items() if isinstance(patchable(model), kind))


def path_frame(model: TransformerBridge, prompts: Prompts, map_distance: int) -> pd.DataFrame:
    """Every effect of the induction experiments on a model of any architecture.

    Columns: measure, corrupt (B′ or A′), distance, layer, position, mean_logit_diff, standard_error, n. Measures:
    `logit` (of B in a whole corrupted run, minus clean), `state` (Table 1, each layer), `input` (Table 2: the key layer
    at all distances, all layers at `map_distance`), `local` (Tables 3, 4: in the key layer, through B1+1;
    RWKV: through its key position).
    """
    rows = _rows(model, prompts, [_costs, _states], "final states")
    layer, every = key_layer(pd.DataFrame(rows)), range(models.n_layers(model))

    def inputs(model: TransformerBridge, p: InductionPrompts) -> Iterator[Measured]:
        return _inputs(model, p, every if p.distance == map_distance else [layer])

    architecture = patchable(model)
    local = [partial(_local, layer=layer, position="B1+1")] if isinstance(architecture, Mamba) else []
    rows += _rows(model, prompts, [inputs, *local], "inputs")
    if isinstance(architecture, Rwkv):  # only now it is known where B enters
        rows += _rows(
            model, prompts, [partial(_local, layer=layer, position=key_position(pd.DataFrame(rows)))], "token shift"
        )
    return pd.DataFrame(rows)


def head_frame(model: TransformerBridge, prompts: Prompts) -> pd.DataFrame:
    """A Transformer's heads, to the logits (`logits`) and into the found induction head (`induction head`).

    Columns: measure, corrupt, distance, layer, head, receiver_layer, receiver_head, mean_logit_diff, standard_error, n.
    """
    rows = _rows(model, prompts, [_heads], "heads")
    receiver = induction_head(pd.DataFrame(rows))
    into = partial(_heads_before, receiver=receiver)
    return pd.DataFrame(rows + _rows(model, prompts, [into], "heads before the induction head"))


def taken_in_frame(model: TransformerBridge, p: InductionPrompts, layer: int) -> pd.DataFrame:
    """What `layer` holds of A and of B after each token: its state from the corrupted run, and clean tokens from there.

    Columns: corrupt (B′ or A′), position (0 is BOS), mean_logit_diff, standard_error, n. The last position is not
    among them, because it only reads.
    """
    return pd.DataFrame(_rows(model, {p.distance: p}, [partial(_taken_in, layer=layer)], "states"))


SHIFTS = {"as trained": None, "token before left out": 0.0, "token before alone": 1.0}
"""What keys and values of an RWKV's layer take from the token before them: a share for all channels."""


def shift_frame(model: TransformerBridge, prompts: Prompts, layer: int) -> pd.DataFrame:
    """Where B enters an RWKV's `layer` if its token shift were another (`SHIFTS`), and what B and A cost then.

    Columns: shift, measure (`logit` of B in a whole corrupted run, minus clean; `input` at each position), corrupt,
    distance, layer, position, mean_logit_diff, standard_error, n.
    """
    rows = []
    for shift, previous in SHIFTS.items():
        with nullcontext() if previous is None else token_shift(model, layer, previous):
            measured = _rows(model, prompts, [_costs, partial(_inputs, layers=[layer])], shift)
            rows += [{"shift": shift} | row for row in measured]
    return pd.DataFrame(rows)


@contextmanager
def token_shift(model: TransformerBridge, layer: int, previous: float) -> Iterator[None]:
    """An RWKV whose keys and values in `layer` are made of this share of the token before and of the rest of their own.

    As trained, each channel has a share of its own: 1 − `time_mix_key` and 1 − `time_mix_value`.
    Raises `ValueError` for a model without a token shift.
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


def _rows(
    model: TransformerBridge,
    prompts: Prompts,
    measures: Sequence[Callable[[TransformerBridge, InductionPrompts], Iterable[Measured]]],
    what: str,
) -> list[dict[str, Any]]:
    """A row for everything that is measured; the model reads a prompt once for all measures."""
    rows = []
    for p in tqdm(prompts.values(), f"path patching, {what}", unit="distance", mininterval=5):
        found: dict[tuple, list[Tensor]] = {}
        for part in in_chunks(model, p.clean, p.corrupt_b, p.corrupt_a, p.random, p.target):
            with runs_kept():
                for measure in measures:
                    for place, effect in measure(model, InductionPrompts(*part)):
                        found.setdefault(tuple(place.items()), []).append(effect)
        rows += [_row(torch.cat(effects), **dict(place)) for place, effects in found.items()]
    return rows


def _costs(model: TransformerBridge, p: InductionPrompts) -> Iterator[Measured]:
    architecture = patchable(model)
    clean = last_logits(architecture, p.clean, p.target)
    for corrupt in ("B′", "A′"):
        place = dict(measure="logit", corrupt=corrupt, distance=p.distance, layer=None, position=None)
        yield place, last_logits(architecture, p.corrupted(corrupt), p.target) - clean


def _states(model: TransformerBridge, p: InductionPrompts) -> Iterator[Measured]:
    for corrupt in ("B′", "A′"):
        found = effects.final_state_effects(model, p.clean, p.corrupted(corrupt), p.target, per_sample=True)
        for layer, effect in enumerate(found):
            yield dict(measure="state", corrupt=corrupt, distance=p.distance, layer=layer, position=None), effect


def _inputs(model: TransformerBridge, p: InductionPrompts, layers: Sequence[int]) -> Iterator[Measured]:
    for corrupt in ("B′", "A′"):
        found = effects.mixer_input_effects(
            model, p.clean, p.corrupted(corrupt), p.target, layers, list(p.positions.values()), per_sample=True
        )
        for (layer, role), effect in zip(product(layers, p.positions), found, strict=True):
            yield dict(measure="input", corrupt=corrupt, distance=p.distance, layer=layer, position=role), effect


def _taken_in(model: TransformerBridge, p: InductionPrompts, layer: int) -> Iterator[Measured]:
    until = [slice(end) for end in range(1, p.clean.shape[1])]
    for corrupt in ("B′", "A′"):
        found = effects.mixer_input_effects(
            model, p.clean, p.corrupted(corrupt), p.target, layer, until, per_sample=True
        )
        for position, effect in enumerate(found):
            yield dict(corrupt=corrupt, position=position), effect


def _local(model: TransformerBridge, p: InductionPrompts, layer: int, position: str) -> Iterator[Measured]:
    through = p.positions[position]
    width = patchable(model).conv_tokens
    window = {role: at for role, at in p.positions.items() if 0 <= through - at < width}
    for corrupt in ("B′", "A′"):
        found = effects.conv_input_effects(
            model, p.clean, p.corrupted(corrupt), p.target, layer, list(window.values()), through, per_sample=True
        )
        for role, effect in zip(window, found, strict=True):
            yield dict(measure="local", corrupt=corrupt, distance=p.distance, layer=layer, position=role), effect


def _heads(model: TransformerBridge, p: InductionPrompts) -> Iterator[Measured]:
    for corrupt in ("random", "B′"):
        found = effects.head_effects(model, p.clean, p.corrupted(corrupt), p.target, per_sample=True)
        place = dict(measure="logits", corrupt=corrupt, distance=p.distance, receiver_layer=None, receiver_head=None)
        yield from _by_head(found, **place)


def _heads_before(model: TransformerBridge, p: InductionPrompts, receiver: tuple[int, int]) -> Iterator[Measured]:
    place = dict(measure="induction head", distance=p.distance, receiver_layer=receiver[0], receiver_head=receiver[1])
    for corrupt in ("random", "A′"):
        found = effects.head_to_head_effects(model, p.clean, p.corrupted(corrupt), p.target, receiver, per_sample=True)
        yield from _by_head(found, corrupt=corrupt, **place)


def _by_head(found: Float[Tensor, "layers heads samples"], **place: Any) -> Iterator[Measured]:
    for layer, heads in enumerate(found):
        for head, effect in enumerate(heads):
            yield dict(layer=layer, head=head) | place, effect


def head_rows(found: Float[Tensor, "layers heads samples"], **place: Any) -> list[dict[str, Any]]:
    """A row per head of what `effects.head_effects` gives for each sample; `place` says what was measured."""
    return [_row(effect, **where) for where, effect in _by_head(found, **place)]


def _row(found: Float[Tensor, "samples"], **place: Any) -> dict[str, Any]:
    mean, error = found.mean(), found.std() / len(found) ** 0.5
    return place | dict(zip(VALUE, (float(mean), float(error), len(found)), strict=True))
