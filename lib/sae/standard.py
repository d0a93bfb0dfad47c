"""The SAE of the paper (App. A): f = ReLU(x W_enc + b_enc), x̂ = f W_dec + b_dec, with an L1 penalty on f."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.sae.autoencoder import SAE, StepStats, register
from lib.sae.dense_step import step_by_hand


@register("standard")
class SparseAutoencoder(SAE):
    """The standard SAE: ‖x − x̂‖² + λ Σ_i f_i·‖W_dec,i‖ (App. A.1)."""

    step_by_hand = staticmethod(step_by_hand)

    @staticmethod
    def sparse_step(*size: int, **more: bool) -> Callable[..., StepStats]:
        """`lib.sae.sparse_step.SparseStep`, which is compiled, and so imported only where an SAE is trained."""
        from lib.sae.sparse_step import SparseStep

        return SparseStep(*size, **more)

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of resid_post activations."""
        return torch.relu(self.pre_activations(x))

    def loss(self, x: Float[Tensor, "batch d_model"], l1: float) -> tuple[Float[Tensor, ""], StepStats]:
        """‖x − x̂‖² + l1 · Σ_i f_i·‖W_dec,i‖, a mean over tokens; and its parts."""
        f = self.encode(x)
        mse = (self.decode(f, x) - x).square().sum(1).mean()
        sparsity = (f * self.W_dec.norm(dim=1)).sum(1).mean()
        l0 = torch.count_nonzero(f) / len(x)
        return mse + l1 * sparsity, StepStats(mse.detach(), sparsity.detach(), l0)
