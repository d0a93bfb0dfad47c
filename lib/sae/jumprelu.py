"""JumpReLU SAEs, whose features fire above learned thresholds (Rajamanoharan et al., 2024, arXiv:2407.14435)."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lib.sae.autoencoder import SAE, SaeInfo, StepStats, register
from lib.sae.config import SAEConfig

FIRST_THRESHOLD = 0.01
BANDWIDTH = 0.05  # ε: how near its threshold a pre-activation moves it


@register("jumprelu")
class JumpReLUSAE(SAE):
    """f = z·H(z − θ) with z = x W_enc + b_enc and thresholds θ [d_sae]; the loss is ‖x − x̂‖² + λ·L0.

    With a target t of L0 it is ‖x − x̂‖² + λ·(L0 − t)² / t: thresholds move slowly, and a λ that waits for them would
    grow too large.
    """

    adapts_l1 = False
    constants = {"first_threshold": FIRST_THRESHOLD, "bandwidth": BANDWIDTH}

    def __init__(self, d_model: int, d_sae: int, info: SaeInfo | None = None) -> None:
        """As `SAE`, with all thresholds the same."""
        super().__init__(d_model, d_sae, info)
        self.threshold = nn.Parameter(torch.full((d_sae,), FIRST_THRESHOLD))
        self.target_l0: float | None = None

    @classmethod
    def from_config(cls, d_model: int, config: SAEConfig, info: SaeInfo) -> Self:
        """An SAE as it is before training."""
        sae = super().from_config(d_model, config, info)
        sae.target_l0 = config.target_l0
        return sae

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of resid_post activations."""
        z = self.pre_activations(x)
        return z.relu() * (z > self.threshold)

    def loss(self, x: Float[Tensor, "batch d_model"], l1: float) -> tuple[Float[Tensor, ""], StepStats]:
        """The loss above, of means over tokens; and its parts. No threshold stays below zero."""
        with torch.no_grad():
            self.threshold.clamp_(min=0)
        z = self.pre_activations(x)
        mse = (self.decode(_JumpReLU.apply(z, self.threshold), x) - x).square().sum(1).mean()
        l0 = _Fires.apply(z, self.threshold).sum(1).mean()
        sparsity = (l0 - self.target_l0).square() / self.target_l0 if self.target_l0 else l0
        return mse + l1 * sparsity, StepStats(mse.detach(), sparsity.detach(), l0.detach())


def _near(z: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"]) -> Float[Tensor, "batch d_sae"]:
    """1/ε where |z − θ| < ε/2, else 0: an estimate of the density of z at θ."""
    return ((z - threshold).abs() < BANDWIDTH / 2).to(z.dtype) / BANDWIDTH


class _JumpReLU(torch.autograd.Function):
    """z·H(z − θ); its derivative by θ is estimated from the z near θ (§3)."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(z, threshold)
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        z, threshold = ctx.saved_tensors
        return gradient * (z > threshold), -threshold * (gradient * _near(z, threshold)).sum(0)


class _Fires(torch.autograd.Function):
    """H(z − θ); its derivative by θ is estimated from the z near θ, that by z is none (§3)."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(z, threshold)
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, Tensor]:
        z, threshold = ctx.saved_tensors
        return None, -(gradient * _near(z, threshold)).sum(0)
