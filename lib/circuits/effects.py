"""The measurements of §6 and App. G: how much a logit falls when one path brings what the corrupted run had.

`model` is what `lib.models.load` returns or any `TransformerBridge` of a known family; token ids are
Int[n_samples, n_tokens]; effects are mean differences of logits, negative where the path matters. With `per_sample` a
function returns Float[..., n_samples] instead of the mean. Functions without a word on it take all
families that path patching is offered for and raise `ValueError` for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.circuits.path_patching import Cache, patch_effects
from lib.circuits.prompts import InductionPrompts, Tokens
from lib.models.families import Patchable, family_of, patchable
from lib.models.mamba import Mamba
from lib.models.transformer import Transformer

Target = Int[Tensor, "samples"]


def final_state_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Target, per_sample: bool = False
) -> Float[Tensor, "n_layers *each_sample"]:
    """Table 1: what a layer brings from all earlier positions, patched; each layer in turn.

    Mamba: the final state h, before the last token from the corrupted run, then the clean run's last update. RWKV: the
    WKV sums. Transformer: keys and values of all earlier tokens.
    """
    architecture = patchable(model)

    def senders(clean: Cache, corrupt: Cache, layer: int) -> Iterator[Tensor]:
        own, other = (architecture.inputs(cache, layer) for cache in (clean, corrupt))
        yield architecture.mixer_output(clean, layer, torch.cat([other[:, :-1], own[:, -1:]], dim=1))

    return _mean(patch_effects(architecture, clean, corrupt, target, senders), per_sample)


def mixer_input_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Target,
    layer: int | Sequence[int], positions: Sequence[int | slice], per_sample: bool = False,
) -> Float[Tensor, "n_positions *each_sample"]:  # fmt: skip
    """What the mixer of `layer` takes in at one position, patched, through what the last position reads there.

    Mamba: the SSM input c. RWKV: key and value. Transformer: keys and values of all heads. A slice of positions is
    patched as a whole: `slice(t + 1)` puts the corrupted run's state after position t into the clean run. Of several
    layers, in ascending order, the positions of one follow those of the other.
    """
    architecture, layers = patchable(model), [layer] if isinstance(layer, int) else layer

    def senders(clean: Cache, corrupt: Cache, at: int) -> Iterator[Tensor]:
        if at in layers:
            yield from patched_inputs(architecture, clean, corrupt, at, positions)

    return _mean(patch_effects(architecture, clean, corrupt, target, senders), per_sample)


def patched_inputs(
    architecture: Patchable, clean: Cache, corrupt: Cache, layer: int, positions: Iterable[int | slice]
) -> Iterator[Tensor]:
    """A layer's mixer output with what its mixer takes in at one position from the corrupted run; for each position."""
    for position in positions:
        inputs = architecture.inputs(clean, layer).clone()
        inputs[:, position] = architecture.inputs(corrupt, layer)[:, position]
        yield architecture.mixer_output(clean, layer, inputs)


def ssm_input_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Target,
    layer: int, positions: Sequence[int], per_sample: bool = False,
) -> Float[Tensor, "n_positions *each_sample"]:  # fmt: skip
    """Table 2 (Mamba): the SSM input c of `layer` patched at one position, through the final state.

    Δ and B at that position follow from the patched c; the state then decays as in the clean run.
    Raises `ValueError` for a model without an SSM.
    """
    if not isinstance(family_of(model), Mamba):
        raise ValueError(f"an SSM input is Mamba's; the model is a {family_of(model).model_type}.")
    return mixer_input_effects(model, clean, corrupt, target, layer, positions, per_sample)


def conv_input_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Target,
    layer: int, positions: Sequence[int], through: int, per_sample: bool = False,
) -> Float[Tensor, "n_positions *each_sample"]:  # fmt: skip
    """Tables 3 and 4: the convolution's input x patched at one position, through its output at `through` alone.

    RWKV: the token shift's input, through key and value at `through`. Raises `ValueError` for a Transformer.
    """
    architecture = patchable(model)

    def senders(clean: Cache, corrupt: Cache, at: int) -> Iterator[Tensor]:
        if at != layer:
            return
        for position in positions:
            x = architecture.conv_input(clean, layer).clone()
            x[:, position] = architecture.conv_input(corrupt, layer)[:, position]
            inputs = architecture.inputs(clean, layer).clone()
            window = x[:, max(0, through + 1 - architecture.conv_tokens) : through + 1]
            inputs[:, through] = architecture.conv(layer, window)
            yield architecture.mixer_output(clean, layer, inputs)

    return _mean(patch_effects(architecture, clean, corrupt, target, senders), per_sample)


def paper_tables(
    model: TransformerBridge, prompts: InductionPrompts, layer: int
) -> dict[int, Float[Tensor, "places samples"]]:
    """Tables 1 to 4 of App. G (Mamba), each prompt apart: every layer; every role; conv inputs up to B1+1."""
    b, a = ((model, prompts.clean, other, prompts.target) for other in (prompts.corrupt_b, prompts.corrupt_a))
    roles, through = list(prompts.positions.values()), prompts.positions["B1+1"]
    return {
        1: final_state_effects(*b, per_sample=True),
        2: ssm_input_effects(*b, layer, roles, per_sample=True),
        3: conv_input_effects(*b, layer, roles[:3], through, per_sample=True),
        4: conv_input_effects(*a, layer, roles[:3], through, per_sample=True),
    }


def head_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Target, per_sample: bool = False
) -> Float[Tensor, "n_layers n_heads *each_sample"]:
    """Fig. 7b, first step (Transformer): z of one head at the last position patched, all other heads frozen."""
    architecture = _transformer(model)

    def senders(clean: Cache, corrupt: Cache, layer: int) -> Iterator[Tensor]:
        own, other = (cache[f"blocks.{layer}.attn.hook_z"][:, -1] for cache in (clean, corrupt))
        for head in range(own.shape[1]):
            z = own.clone()
            z[:, head] = other[:, head]
            yield z

    return _by_head(architecture, patch_effects(architecture, clean, corrupt, target, senders), per_sample)


def head_to_head_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Target,
    receiver: tuple[int, int], per_sample: bool = False,
) -> Float[Tensor, "layers_before n_heads *each_sample"]:  # fmt: skip
    """Fig. 7b, second step (Transformer): z of one head at all positions patched, into the receiver's q, k and v alone.

    All other heads are frozen, the receiver's z at the last position goes on to the logits. `receiver` is (layer,
    head); senders are the heads of the layers before it.
    """
    architecture = _transformer(model)
    layer, head = receiver

    def senders(clean: Cache, corrupt: Cache, at: int) -> Iterator[Tensor]:
        if at != layer:
            return
        usual = clean[f"blocks.{layer}.attn.hook_z"][:, -1]
        for resid in _resid_with_patched_heads(architecture, clean, corrupt, layer):
            z = usual.clone()
            z[:, head] = _attention_on(architecture, clean, layer, resid)[:, head]
            yield z

    effects = patch_effects(architecture, clean, corrupt, target, senders)
    return _by_head(architecture, effects, per_sample)


def _resid_with_patched_heads(
    architecture: Transformer, clean: Cache, corrupt: Cache, receiver: int
) -> Iterator[Tensor]:
    """The residual stream before layer `receiver`, at all positions, for each head of the layers before it in turn."""
    for sender in range(receiver):
        own, other = (cache[f"blocks.{sender}.attn.hook_z"] for cache in (clean, corrupt))
        for head in range(own.shape[2]):
            z = own.clone()
            z[:, :, head] = other[:, :, head]
            resid = clean[f"blocks.{sender}.hook_in"]
            for layer in range(sender, receiver):
                heads = z if layer == sender else clean[f"blocks.{layer}.attn.hook_z"]
                resid = architecture.after(layer, resid, architecture.attention_output(layer, heads))
            yield resid


def _attention_on(
    architecture: Transformer, clean: Cache, layer: int, resid: Tensor
) -> Float[Tensor, "samples n_heads d_head"]:
    """z at the last position if the layer's heads saw this residual stream."""
    q, k, v = architecture.qkv(layer, resid)
    return architecture.attend(clean, layer, q, torch.stack([k, v], dim=2))


def _transformer(model: TransformerBridge) -> Transformer:
    architecture = family_of(model)
    if not isinstance(architecture, Transformer):
        raise ValueError(f"attention heads are a Transformer's; the model is a {family_of(model).model_type}.")
    return architecture


def _mean(effects: Float[Tensor, "*senders samples"], per_sample: bool) -> Tensor:
    return effects if per_sample else effects.mean(-1)


def _by_head(architecture: Transformer, effects: Float[Tensor, "senders samples"], per_sample: bool) -> Tensor:
    n_heads = architecture.model.original_model.config.num_attention_heads
    return _mean(effects.unflatten(0, (-1, n_heads)), per_sample)
