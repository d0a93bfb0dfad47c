"""How SAEs are trained, in one value."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

TRAINED = ("standard", "topk", "jumprelu")  # SAE types of this package by SAELens' names, each a module of its name
READ = ("gated", "batchtopk")  # types that are opened (`lib.sae.folders`) and cannot be trained here
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of Adam (paper, App. A.2)
trainable = list(TRAINED)  # and those that `lib.sae.register` adds


def _can_be_trained(architecture: str) -> str:
    if architecture not in trainable:
        why = "SAEs are read, not trained, by this workbook" if architecture in READ else "is no SAE type"
        raise ValueError(f"{architecture!r} {why}; the types that can be trained are {', '.join(trainable)}")
    return architecture


TrainableType = Annotated[str, AfterValidator(_can_be_trained)]


class SAEConfig(BaseModel):
    """Type, size and training of sparse autoencoders. Immutable; a wrong value raises `ValueError`.

    The defaults of the optimiser are the paper's (App. A.2). λ is the coefficient of what the SAE type adds to the
    squared error for sparsity; activations are scaled to a mean norm of sqrt(d_model) before it applies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: TrainableType = Field("standard", description=f"SAE type: {', '.join(TRAINED)}")
    expansion: int = Field(ge=1, description="d_sae / d_model")
    l1_coefficient: float = Field(2.0, gt=0, description="λ, or where it starts if there is a target_l0")
    target_l0: float | None = Field(None, gt=0, description="λ follows L0 until it is this; for topk it is k")
    tokens: int = Field(ge=1, description="tokens each SAE is trained on")
    batch_size: int = Field(4096, ge=1, description="tokens per step")
    learning_rate: float = Field(8e-4, gt=0, description="Adam's")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which λ and the rate rise")
    decay: float = Field(0.2, ge=0, lt=1, description="share of the steps over which the rate falls to zero")
    buffer_tokens: int = Field(65_536, ge=1, description="tokens in the shuffle buffer")
    batch_blocks: int = Field(32, ge=1, description="blocks of text per forward pass of the language model")
    seed: int = Field(0, ge=0, description="seed of the order in which the text is read")

    @model_validator(mode="after")
    def _buffer_holds_batches(self) -> SAEConfig:
        if self.buffer_tokens < 4 * self.batch_size:
            raise ValueError(
                f"buffer_tokens={self.buffer_tokens} must hold at least four batches of {self.batch_size} tokens"
            )
        return self
