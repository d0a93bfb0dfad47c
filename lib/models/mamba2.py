"""Mamba-2: a selective state-space model in heads. Path patching is not offered for it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig

from lib.models.families import Cache, Family, Neurons, register


@register
class Mamba2(Family):
    """Neurons as Mamba's: the SSM input after convolution and SiLU, then SiLU(gate)."""

    model_type = "mamba2"

    @classmethod
    def n_neurons(cls, config: PretrainedConfig) -> int:
        return 2 * config.expand * config.hidden_size

    def neurons(self, layer: int) -> Neurons:
        hook, mixer = f"blocks.{layer}.mixer.in_proj.hook_out", self.model.blocks[layer].mixer

        def read(cache: Cache) -> Float[Tensor, "batch time n_neurons"]:
            width = mixer.intermediate_size
            gate, x, _ = cache[hook].split([width, mixer.conv_dim, mixer.num_heads], dim=-1)
            # The convolution is repeated: transformers reads only its weights, so no hook sees what it gives.
            c = mixer.act(mixer.conv1d(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)[..., :width]
            return torch.cat([c, F.silu(gate)], dim=-1)

        return Neurons((hook,), read)
