"""What all sparse autoencoders share: their weights, how training starts, their files; and the register of their types.

Saved SAEs are folders in the SAELens format: `sae_lens.SAE.load_from_disk(folder)` opens them, and so does
`lib.sae.load`.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save
from torch import Tensor, nn

from lib.files import atomic_write
from lib.sae import config as sae_config
from lib.sae.config import SAEConfig

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # SAELens' file names
FORMAT_VERSION = 1
SAELENS_VERSION = "6.0.0"  # the release whose format this is; without it, SAELens reads the file as an older one
BUILT_IN = (*sae_config.TRAINED, "gated")  # SAE types of this package, each a module of its name
LAYER_NORM_EPS = 1e-5  # SAELens'

Registered = TypeVar("Registered", bound="type[SAE]")
_types: dict[str, type[SAE]] = {}


def register(architecture: str) -> Callable[[Registered], Registered]:
    """Class decorator that makes an SAE type known by its name in cfg.json to `load` and, with a loss, to training."""

    def known(cls: Registered) -> Registered:
        cls.architecture = architecture
        _types[architecture] = cls
        if cls.loss is not SAE.loss and architecture not in sae_config.trainable:
            sae_config.trainable.append(architecture)
        return cls

    return known


def sae_type(architecture: str) -> type[SAE]:
    """The class of an SAE type; raises `ValueError` for a name that is not registered."""
    if architecture in BUILT_IN:
        importlib.import_module(f"lib.sae.{architecture}")
    if architecture not in _types:
        known = dict.fromkeys((*sae_config.TRAINED, *sae_config.READ, *_types))
        raise ValueError(f"{architecture!r} is no SAE type of this workbook; these are {', '.join(known)}.")
    return _types[architecture]


class SaeInfo(BaseModel):
    """What an SAE belongs to and how it was made."""

    model_config = ConfigDict(extra="forbid")

    model_name: str = ""
    hook_name: str = ""
    layer: int = 0
    seed: int = 0
    training: dict[str, Any] = {}
    metrics: dict[str, float] = {}


class StepStats(NamedTuple):
    """One batch's means per token: Σ(x − x̂)², what λ multiplies, number of active features; before the step."""

    mse: float | Tensor
    sparsity: float | Tensor
    l0: float | Tensor


class SAE(nn.Module):
    """Base of all SAE types, which act on raw activations. Float32: W_enc [d_model, d_sae], W_dec [d_sae, d_model].

    A type defines `encode`, which begins with `pre_activations`, and `loss`, if it can be trained, and is made known by
    `register`. It may add parameters, and settings: arguments of its constructor that are its attributes, too, and lie
    in `cfg.json` under the same name.

    SAEs that others trained may normalise each token's activations (`normalize_activations`: none,
    constant_norm_rescale or layer_norm) and then subtract b_dec (`apply_b_dec_to_input`) before they encode.
    """

    architecture: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    constants: ClassVar[dict[str, float]] = {}
    """What, beside a configuration, decides what comes out of a training of this type."""
    adapts_l1: ClassVar[bool] = True
    """Whether training changes λ until L0 is the configuration's `target_l0`; else the type itself sees to it."""
    sparse_step: ClassVar[Callable | None] = None
    """Makes a step for the CPU that is faster where few features are active (see `lib.sae.sparse_step.SparseStep`)."""
    step_by_hand: ClassVar[Callable | None] = None
    """A step without autograd that is faster than `lib.sae.dense_step.dense_step`, of the same signature."""

    def __init__(self, d_model: int, d_sae: int, info: SaeInfo | None = None) -> None:
        """Decoder rows uniform, then scaled to norm sqrt(2·d_model / d_sae); W_enc = W_decᵀ; biases zero (App. A.2).

        The random numbers follow from `info.seed` and `info.layer`, whatever the device.
        """
        super().__init__()
        self.info = info or SaeInfo()
        self.normalize_activations, self.apply_b_dec_to_input = "none", False
        random = torch.Generator("cpu").manual_seed(self.info.seed * 1_000 + self.info.layer)
        W_dec = torch.rand(d_sae, d_model, generator=random) * 2 - 1
        W_dec *= math.sqrt(2 * d_model / d_sae) / W_dec.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.clone().T)  # transposed in memory: a feature's weights lie side by side
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_model))

    @classmethod
    def from_config(cls, d_model: int, config: SAEConfig, info: SaeInfo) -> Self:
        """An SAE as it is before training."""
        return cls(d_model, config.expansion * d_model, info)

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of resid_post activations."""
        raise NotImplementedError

    def encoder_input(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What W_enc multiplies: `x`, normalised and without b_dec where the SAE was trained so."""
        if self.normalize_activations == "constant_norm_rescale":
            x = x * (math.sqrt(self.d_model) / x.norm(dim=-1, keepdim=True))
        elif self.normalize_activations == "layer_norm":
            x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + LAYER_NORM_EPS)
        return x - self.b_dec if self.apply_b_dec_to_input else x

    def pre_activations(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """x W_enc + b_enc, of `x` as `encoder_input` has it."""
        return self.encoder_input(x) @ self.W_enc + self.b_enc

    def decode(
        self, f: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_model"] | None = None
    ) -> Float[Tensor, "... d_model"]:
        """Reconstruction from feature activations; raises `ValueError` where it takes the `x` that was encoded, too.

        An SAE that normalises its input needs `x` to undo that.
        """
        x_hat = f @ self.W_dec + self.b_dec
        if self.normalize_activations == "none":
            return x_hat
        if x is None:
            raise ValueError("this SAE normalises its input: give decode the activations, too, as in decode(f, x).")
        if self.normalize_activations == "constant_norm_rescale":
            return x_hat * (x.norm(dim=-1, keepdim=True) / math.sqrt(self.d_model))
        return x_hat * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Reconstruction of resid_post activations."""
        return self.decode(self.encode(x), x)

    def loss(self, x: Float[Tensor, "batch d_model"], l1: float) -> tuple[Float[Tensor, ""], StepStats]:
        """What training makes small, a mean over tokens, with λ = `l1`; and its parts, without gradients."""
        raise NotImplementedError

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Let an SAE that was trained on `scale`·x act on x. Feature activations stay what they were in training."""
        self.W_enc *= scale
        self.W_dec /= scale
        self.b_dec /= scale

    @torch.no_grad()
    def fold_decoder_norms(self) -> None:
        """Let an SAE whose pre-activations count times ‖W_dec,i‖ do without: decoder rows get norm 1 (if not 0)."""
        norms = self.W_dec.norm(dim=1)
        self.W_enc *= norms
        self.b_enc *= norms
        self.W_dec /= norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]

    def save(self, folder: Path | str) -> None:
        """Write the SAE as a SAELens folder: cfg.json and sae_weights.safetensors."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        atomic_write(Path(folder) / WEIGHTS, save(weights))
        atomic_write(Path(folder) / CFG, json.dumps(self._cfg(), indent=1))

    def _cfg(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "d_in": self.d_model,
            "d_sae": self.d_sae,
            **{name: getattr(self, name) for name in self.settings},
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": self.normalize_activations,
            "reshape_activations": "none",
            "metadata": {
                "sae_lens_version": SAELENS_VERSION,
                "format_version": FORMAT_VERSION,
                "prepend_bos": True,
                **self.info.model_dump(),
            },
        }
