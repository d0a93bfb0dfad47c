"""RWKV-4: an average of values that forgets (WKV), then a channel mix; both after a shift by one token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.models.families import Cache, Neurons, Patchable, Rows, register


@register
class Rwkv(Patchable):
    """Input: key and value, after the token shift.

    Mixer's output: the two sums of WKV before the last token T, and their scale:
    Σ_s exp(k_s − (T−1−s) w) v_s and Σ_s exp(k_s − (T−1−s) w), s < T, divided by exp of their greatest exponent.
    """

    model_type = "rwkv"
    conv_tokens = 2

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        backbone = model.original_model.rwkv
        self.blocks, self.norm, self._backbone = backbone.blocks, backbone.ln_out, backbone

    def neurons(self, layer: int) -> Neurons:
        hook = f"blocks.{layer}.channel_mix.out.hook_in"
        return Neurons((hook,), lambda cache: cache[hook])

    def hooks(self, layer: int) -> list[str]:
        block = f"blocks.{layer}"
        mix = [f"{block}.time_mix.{part}" for part in ("hook_in", "key.hook_out", "value.hook_out")]
        return [*mix, f"{block}.channel_mix.hook_in"]

    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens 2 d"]:
        return torch.stack([cache[f"blocks.{layer}.time_mix.{part}.hook_out"] for part in ("key", "value")], dim=2)

    def conv_input(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens d_model"]:
        return cache[f"blocks.{layer}.time_mix.hook_in"]

    def conv(self, layer: int, window: Float[Tensor, "samples window d_model"]) -> Float[Tensor, "samples 2 d"]:
        mix = self.blocks[layer].attention
        now = window[:, -1]
        before = window[:, -2] if window.shape[1] > 1 else torch.zeros_like(now)
        key = mix.key(_shifted(now, before, mix.time_mix_key))
        value = mix.value(_shifted(now, before, mix.time_mix_value))
        return torch.stack([key, value], dim=1)

    def mixer_output(
        self, cache: Cache, layer: int, inputs: Float[Tensor, "samples tokens 2 d"]
    ) -> Float[Tensor, "samples 3 d"]:
        k, v = inputs[:, :-1].unbind(2)
        age = torch.arange(k.shape[1] - 1, -1, -1, device=k.device)
        exponent = k - age[None, :, None] * self.blocks[layer].attention.time_decay.exp()
        top = exponent.amax(1, keepdim=True)
        weight = torch.exp(exponent - top)
        return torch.stack([(weight * v).sum(1), weight.sum(1), top[:, 0]], dim=1)

    def step(self, cache: Cache, layer: int, rows: Rows, mixer_output: Float[Tensor, "samples 3 d"]) -> Rows:
        block = self.blocks[layer]
        rows = block.pre_ln(rows) if layer == 0 else rows
        x, before = block.ln1(rows), self.conv_input(cache, layer)[:, -2]
        mix = block.attention
        k = mix.key(_shifted(x, before, mix.time_mix_key))
        v = mix.value(_shifted(x, before, mix.time_mix_value))
        r = mix.receptance(_shifted(x, before, mix.time_mix_receptance))
        rows = rows + mix.output(torch.sigmoid(r) * _wkv(mixer_output, k + mix.time_first, v))
        earlier = cache[f"blocks.{layer}.channel_mix.hook_in"][:, -2]
        rows = rows + _channel_mix(block.feed_forward, block.ln2(rows), earlier)
        return rows / 2 if self._is_halved_after(layer) else rows

    def _is_halved_after(self, layer: int) -> bool:
        every = self._backbone.config.rescale_every
        return self._backbone.layers_are_rescaled and every > 0 and (layer + 1) % every == 0


def _shifted(now: Tensor, before: Tensor, ratio: Tensor) -> Tensor:
    """RWKV's token shift."""
    return now * ratio[0, 0] + before * (1 - ratio[0, 0])


def _wkv(sums: Float[Tensor, "samples 3 d"], key: Tensor, value: Tensor) -> Tensor:
    """The earlier tokens' sums with the present token's key (its bonus added) and value."""
    numerator, denominator, scale = sums.unbind(1)
    top = torch.maximum(scale, key)
    old, new = torch.exp(scale - top), torch.exp(key - top)
    return (numerator * old + value * new) / (denominator * old + new)


def _channel_mix(mix: torch.nn.Module, now: Tensor, before: Tensor) -> Tensor:
    key = torch.relu(mix.key(_shifted(now, before, mix.time_mix_key))).square()
    return torch.sigmoid(mix.receptance(_shifted(now, before, mix.time_mix_receptance))) * mix.value(key)
