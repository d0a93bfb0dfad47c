"""Mamba: a convolution, then a selective state-space model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge
from transformers import PretrainedConfig

from lib.models.families import Cache, Neurons, Patchable, Rows, register
from lib.models.scans import final_state


@register
class Mamba(Patchable):
    """Input: c, after convolution and SiLU; Δ and B follow from it. Mixer's output: final state h (W eq. 5–7)."""

    model_type = "mamba"

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        backbone = model.original_model.backbone
        self.blocks, self.norm = backbone.layers, backbone.norm_f
        self.conv_tokens = model.original_model.config.conv_kernel

    @classmethod
    def n_neurons(cls, config: PretrainedConfig) -> int:
        return 2 * config.intermediate_size

    def neurons(self, layer: int) -> Neurons:
        ssm_input, in_proj = self._ssm_input(layer), self._in_proj(layer)

        def read(cache: Cache) -> Float[Tensor, "batch time n_neurons"]:
            gate = cache[in_proj].chunk(2, dim=-1)[1]
            return torch.cat([cache[ssm_input], F.silu(gate)], dim=-1)

        return Neurons((ssm_input, in_proj), read)

    def hooks(self, layer: int) -> list[str]:
        return [self._in_proj(layer), self._ssm_input(layer)]

    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens d_inner"]:
        return cache[self._ssm_input(layer)]

    def conv_input(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens d_inner"]:
        return cache[self._in_proj(layer)].chunk(2, dim=-1)[0]

    def conv(self, layer: int, window: Float[Tensor, "samples window d_inner"]) -> Float[Tensor, "samples d_inner"]:
        conv = self.blocks[layer].mixer.conv1d
        window = window[:, -conv.weight.shape[-1] :]
        return F.silu(torch.einsum("std,dt->sd", window, conv.weight[:, 0, -window.shape[1] :]) + conv.bias)

    def mixer_output(
        self, cache: Cache, layer: int, inputs: Float[Tensor, "samples tokens d_inner"]
    ) -> Float[Tensor, "samples d_inner d_state"]:
        mixer = self.blocks[layer].mixer
        dt, B, _ = time_step(mixer, inputs)
        return final_state(inputs, dt, -mixer.A_log.exp(), B)

    def step(
        self, cache: Cache, layer: int, rows: Rows, mixer_output: Float[Tensor, "samples d_inner d_state"]
    ) -> Rows:
        block, mixer = self.blocks[layer], self.blocks[layer].mixer
        x, gate = mixer.in_proj(block.norm(rows)).chunk(2, dim=-1)
        earlier = self.conv_input(cache, layer)[:, -self.conv_tokens : -1]
        window = torch.cat([earlier.expand(len(x), -1, -1, -1), x[:, :, None]], dim=2)
        c = self.conv(layer, window.flatten(0, 1)).unflatten(0, x.shape[:2])
        _, _, C = time_step(mixer, c)
        y = torch.einsum("sdn,rsn->rsd", mixer_output, C) + mixer.D * c
        return rows + mixer.out_proj(y * F.silu(gate))

    @staticmethod
    def _in_proj(layer: int) -> str:
        """Hook of x, the convolution's input, and the gate."""
        return f"blocks.{layer}.mixer.in_proj.hook_out"

    @staticmethod
    def _ssm_input(layer: int) -> str:
        """Hook of c."""
        return f"blocks.{layer}.mixer.x_proj.hook_in"


@register
class FalconMamba(Mamba):
    """Δ, B and C are normed before use."""

    model_type = "falcon_mamba"


def time_step(mixer: torch.nn.Module, c: Float[Tensor, "... d_inner"]) -> tuple[Tensor, Tensor, Tensor]:
    """Δ [..., d_inner], B and C [..., d_state] of SSM inputs."""
    low, B, C = mixer.x_proj(c).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], dim=-1)
    if hasattr(mixer, "b_layernorm"):  # Falcon Mamba's
        low, B, C = mixer.dt_layernorm(low), mixer.b_layernorm(B), mixer.c_layernorm(C)
    return F.softplus(mixer.dt_proj(low)), B, C
