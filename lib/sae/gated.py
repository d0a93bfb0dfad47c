"""Gated SAEs, in which one bias decides whether a feature fires and another how much (Rajamanoharan et al., 2024).

They are opened (`lib.sae.load`), not trained. Source: arXiv:2404.16014, §3.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.sae.autoencoder import SAE, SaeInfo, register


@register("gated")
class GatedSAE(SAE):
    """f = H(x W_enc + b_gate) · ReLU(x W_enc · exp(r_mag) + b_mag); all three are vectors [d_sae]."""

    def __init__(self, d_model: int, d_sae: int, info: SaeInfo | None = None) -> None:
        """As `SAE`, with zeros in all three."""
        super().__init__(d_model, d_sae, info)
        del self.b_enc
        self.b_gate, self.r_mag, self.b_mag = (nn.Parameter(torch.zeros(d_sae)) for _ in range(3))

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of resid_post activations."""
        z = self.encoder_input(x) @ self.W_enc
        return torch.relu(z * self.r_mag.exp() + self.b_mag) * (z + self.b_gate > 0)
