"""TopK SAEs, in which exactly k features may fire (Gao et al., Scaling and Evaluating Sparse Autoencoders, 2024)."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.sae.autoencoder import SAE, SaeInfo, StepStats, register
from lib.sae.config import SAEConfig

AUXILIARY_SHARE = 1 / 32  # of the loss of dead features (Gao et al., App. A.2)
DEAD_AFTER = 500_000  # tokens without firing; Gao et al. wait 10 million, in far longer trainings


@register("topk")
class TopKSAE(SAE):
    """f = ReLU(TopK(x W_enc + b_enc)): of each token's pre-activations the k largest stay, λ is of no use.

    With `relu=False` those of the k that are negative stay, too, as in some SAEs of others. Features that have not
    fired for `DEAD_AFTER` tokens learn to reconstruct what the others leave (AuxK).
    """

    settings = ("k", "relu")
    adapts_l1 = False
    constants = {"auxiliary_share": AUXILIARY_SHARE, "dead_after": DEAD_AFTER}

    def __init__(self, d_model: int, d_sae: int, info: SaeInfo | None = None, *, k: int, relu: bool = True) -> None:
        """As `SAE`, with k active features; raises `ValueError` unless 1 ≤ k ≤ d_sae."""
        super().__init__(d_model, d_sae, info)
        if not 1 <= k <= d_sae:
            raise ValueError(f"k={k} features of a TopK SAE are to fire, but k must lie between 1 and d_sae={d_sae}.")
        self.k, self.relu = int(k), bool(relu)
        self.register_buffer("silent", torch.zeros(d_sae), persistent=False)  # tokens since each feature fired

    @classmethod
    def from_config(cls, d_model: int, config: SAEConfig, info: SaeInfo) -> Self:
        """An SAE as it is before training; k is `target_l0`."""
        if config.target_l0 is None:
            raise ValueError("a TopK SAE needs target_l0: it is k, the number of features that fire on a token.")
        return cls(d_model, config.expansion * d_model, info, k=round(config.target_l0))

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of resid_post activations."""
        return _largest(self.pre_activations(x), self.k, self.relu)

    def loss(self, x: Float[Tensor, "batch d_model"], l1: float) -> tuple[Float[Tensor, ""], StepStats]:
        """Mean ‖x − x̂‖², and 1/32 of what dead features leave of x − x̂; and the parts. It counts silence."""
        pre = self.pre_activations(x)
        f = _largest(pre, self.k, self.relu)
        residual = x - self.decode(f, x)
        mse = residual.square().sum(1).mean()
        fired = (f > 0).any(0)
        self.silent = torch.where(fired, 0, self.silent + len(x))
        auxiliary = self._left_by_dead(pre, residual.detach(), self.silent > DEAD_AFTER)
        l0 = torch.count_nonzero(f) / len(x)
        return mse + AUXILIARY_SHARE * auxiliary, StepStats(mse.detach(), torch.zeros_like(l0), l0)

    def _left_by_dead(
        self, pre: Float[Tensor, "batch d_sae"], residual: Float[Tensor, "batch d_model"], dead: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        """Σ(e − ê)², a mean over tokens, of the reconstruction ê of e by the d_model / 2 largest dead features."""
        k = min(self.d_model // 2, int(dead.sum()))
        if k == 0:
            return residual.new_zeros(())
        f = _largest(pre.where(dead, -torch.inf), k)
        return (f @ self.W_dec - residual).square().sum(1).mean()


def _largest(pre: Float[Tensor, "... d_sae"], k: int, relu: bool = True) -> Float[Tensor, "... d_sae"]:
    """The k largest numbers of each row, with `relu` only if they are positive, and zeros."""
    values, index = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, index, values.relu() if relu else values)
