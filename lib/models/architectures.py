"""Mamba, RWKV and GPT-NeoX as path patching sees them: what a mixer takes, what it reads, one step of a block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from lib import models
from lib.circuits.path_patching import Architecture, Cache, Rows
from lib.models.scans import final_state


def architecture_of(model: TransformerBridge) -> Architecture:
    """The model's architecture. Raises `ValueError` for one that is not known."""
    return ARCHITECTURES[models.architecture(model)](model)


# --------------------------------------------------------------------------------------------- Mamba


class Mamba(Architecture):
    """Input: c, after convolution and SiLU; Δ and B follow from it. Read: the final state h (W eq. 5–7)."""

    short_mix_tokens = 4

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        backbone = model.original_model.backbone
        self.blocks, self.norm = backbone.layers, backbone.norm_f

    def hooks(self, layer: int) -> list[str]:
        return [f"blocks.{layer}.mixer.in_proj.hook_out", f"blocks.{layer}.mixer.x_proj.hook_in"]

    def local(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens d_inner"]:
        return cache[f"blocks.{layer}.mixer.in_proj.hook_out"].chunk(2, dim=-1)[0]

    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens d_inner"]:
        return cache[f"blocks.{layer}.mixer.x_proj.hook_in"]

    def short_mix(self, layer: int, local: Float[Tensor, "samples window d_inner"]) -> Float[Tensor, "samples d_inner"]:
        conv = self.blocks[layer].mixer.conv1d
        window = local[:, -conv.weight.shape[-1] :]
        return F.silu(torch.einsum("std,dt->sd", window, conv.weight[:, 0, -window.shape[1] :]) + conv.bias)

    def read(
        self, cache: Cache, layer: int, inputs: Float[Tensor, "samples tokens d_inner"]
    ) -> Float[Tensor, "samples d_inner d_state"]:
        mixer = self.blocks[layer].mixer
        dt, B, _ = time_step(mixer, inputs)
        return final_state(inputs, dt, -mixer.A_log.exp(), B)

    def step(self, cache: Cache, layer: int, rows: Rows, read: Float[Tensor, "samples d_inner d_state"]) -> Rows:
        block, mixer = self.blocks[layer], self.blocks[layer].mixer
        x, gate = mixer.in_proj(block.norm(rows)).chunk(2, dim=-1)
        earlier = self.local(cache, layer)[:, -self.short_mix_tokens : -1]
        window = torch.cat([earlier.expand(len(x), -1, -1, -1), x[:, :, None]], dim=2)
        c = self.short_mix(layer, window.flatten(0, 1)).unflatten(0, x.shape[:2])
        _, _, C = time_step(mixer, c)
        y = torch.einsum("sdn,rsn->rsd", read, C) + mixer.D * c
        return rows + mixer.out_proj(y * F.silu(gate))


def time_step(mixer, c: Float[Tensor, "... d_inner"]) -> tuple[Tensor, Tensor, Tensor]:
    """Δ [..., d_inner], B and C [..., d_state] of SSM inputs."""
    low, B, C = mixer.x_proj(c).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], dim=-1)
    return F.softplus(mixer.dt_proj(low)), B, C


# --------------------------------------------------------------------------------------------- RWKV


class Rwkv(Architecture):
    """Input: key and value, after the token shift. Read: the two sums of WKV before the last token, and their scale:

    Σ_s exp(k_s − (T−1−s) w) v_s and Σ_s exp(k_s − (T−1−s) w), s < T, divided by exp of their greatest exponent.
    """

    short_mix_tokens = 2

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        backbone = model.original_model.rwkv
        self.blocks, self.norm, self._backbone = backbone.blocks, backbone.ln_out, backbone

    def hooks(self, layer: int) -> list[str]:
        block = f"blocks.{layer}"
        mix = [f"{block}.time_mix.{part}" for part in ("hook_in", "key.hook_out", "value.hook_out")]
        return [*mix, f"{block}.channel_mix.hook_in"]

    def local(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens d_model"]:
        return cache[f"blocks.{layer}.time_mix.hook_in"]

    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens 2 d"]:
        return torch.stack([cache[f"blocks.{layer}.time_mix.{part}.hook_out"] for part in ("key", "value")], dim=2)

    def short_mix(self, layer: int, local: Float[Tensor, "samples window d_model"]) -> Float[Tensor, "samples 2 d"]:
        mix = self.blocks[layer].attention
        now, before = local[:, -1], local[:, -2] if local.shape[1] > 1 else torch.zeros_like(local[:, -1])
        return torch.stack([mix.key(_shifted(now, before, mix.time_mix_key)), mix.value(_shifted(now, before, mix.time_mix_value))], dim=1)

    def read(self, cache: Cache, layer: int, inputs: Float[Tensor, "samples tokens 2 d"]) -> Float[Tensor, "samples 3 d"]:
        k, v = inputs[:, :-1].unbind(2)
        age = torch.arange(k.shape[1] - 1, -1, -1, device=k.device)
        exponent = k - age[None, :, None] * self.blocks[layer].attention.time_decay.exp()
        top = exponent.amax(1, keepdim=True)
        weight = torch.exp(exponent - top)
        return torch.stack([(weight * v).sum(1), weight.sum(1), top[:, 0]], dim=1)

    def step(self, cache: Cache, layer: int, rows: Rows, read: Float[Tensor, "samples 3 d"]) -> Rows:
        block = self.blocks[layer]
        rows = block.pre_ln(rows) if layer == 0 else rows
        x, before = block.ln1(rows), self.local(cache, layer)[:, -2]
        mix = block.attention
        k, v, r = (
            part(_shifted(x, before, ratio))
            for part, ratio in (
                (mix.key, mix.time_mix_key),
                (mix.value, mix.time_mix_value),
                (mix.receptance, mix.time_mix_receptance),
            )
        )
        rows = rows + mix.output(torch.sigmoid(r) * _wkv(read, k + mix.time_first, v))
        rows = rows + _channel_mix(block.feed_forward, block.ln2(rows), cache[f"blocks.{layer}.channel_mix.hook_in"][:, -2])
        return rows / 2 if self._is_halved_after(layer) else rows

    def _is_halved_after(self, layer: int) -> bool:
        every = self._backbone.config.rescale_every
        return self._backbone.layers_are_rescaled and every > 0 and (layer + 1) % every == 0


def _shifted(now: Tensor, before: Tensor, ratio: Tensor) -> Tensor:
    """RWKV's token shift."""
    return now * ratio[0, 0] + before * (1 - ratio[0, 0])


def _wkv(read: Float[Tensor, "samples 3 d"], key: Tensor, value: Tensor) -> Tensor:
    """The earlier tokens' sums with the present token's key (its bonus added) and value."""
    numerator, denominator, scale = read.unbind(1)
    top = torch.maximum(scale, key)
    old, new = torch.exp(scale - top), torch.exp(key - top)
    return (numerator * old + value * new) / (denominator * old + new)


def _channel_mix(mix, now: Tensor, before: Tensor) -> Tensor:
    key = torch.relu(mix.key(_shifted(now, before, mix.time_mix_key))).square()
    return torch.sigmoid(mix.receptance(_shifted(now, before, mix.time_mix_receptance))) * mix.value(key)


# --------------------------------------------------------------------------------------------- Transformer


class Transformer(Architecture):
    """Input: keys (before the rotation) and values of all heads. Read: the heads' outputs z."""

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        backbone = model.original_model.gpt_neox
        self.blocks, self.norm = backbone.layers, backbone.final_layer_norm

    def hooks(self, layer: int) -> list[str]:
        return [f"blocks.{layer}.attn.hook_{part}" for part in ("q", "k", "v", "z", "cos", "sin")]

    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens 2 n_heads d_head"]:
        return torch.stack([cache[f"blocks.{layer}.attn.hook_{part}"] for part in ("k", "v")], dim=2)

    def read(
        self, cache: Cache, layer: int, inputs: Float[Tensor, "samples tokens 2 n_heads d_head"]
    ) -> Float[Tensor, "samples n_heads d_head"]:
        return self.attend(cache, layer, cache[f"blocks.{layer}.attn.hook_q"], inputs)

    def attend(self, cache: Cache, layer: int, q: Tensor, inputs: Tensor) -> Float[Tensor, "samples n_heads d_head"]:
        """z at the last position, from queries, keys and values of all positions."""
        turn = [cache[f"blocks.{layer}.attn.hook_{part}"] for part in ("cos", "sin")]
        k, v = inputs.unbind(2)
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *turn)
        scores = torch.einsum("shd,shtd->sht", q[:, :, -1], k) * self.blocks[layer].attention.scaling
        return torch.einsum("sht,sthd->shd", scores.softmax(-1), v)

    def step(self, cache: Cache, layer: int, rows: Rows, read: Float[Tensor, "samples n_heads d_head"]) -> Rows:
        return self.after(layer, rows, self.blocks[layer].attention.dense(read.flatten(-2)))

    def after(self, layer: int, resid: Float[Tensor, "... d_model"], attention: Tensor) -> Float[Tensor, "... d_model"]:
        """The residual stream after a block, from the one before it and what attention adds."""
        block = self.blocks[layer]
        before_mlp = resid if block.use_parallel_residual else resid + attention
        return resid + attention + block.mlp(block.post_attention_layernorm(before_mlp))


ARCHITECTURES = {"mamba": Mamba, "rwkv": Rwkv, "gpt_neox": Transformer}
