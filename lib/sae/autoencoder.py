"""What all sparse autoencoders share: their weights, how training starts, their files; and the register of their types.

Saved SAEs are folders in the SAELens format: `sae_lens.SAE.load_from_disk(folder)` opens them.
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
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.files import atomic_write
from lib.models.safe_weights import check_file, check_values
from lib.sae.config import SAEConfig

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # SAELens' file names
FORMAT_VERSION = 1
LARGEST = 1 << 20  # features of an SAE from a file: the largest published ones for small models have less
SAELENS_VERSION = "6.0.0"  # the release whose format this is; without it, SAELens reads the file as an older one
BUILT_IN = ("standard", "topk", "jumprelu")  # SAE types of this package, each a module of its name

Registered = TypeVar("Registered", bound="type[SAE]")
_types: dict[str, type[SAE]] = {}


def register(architecture: str) -> Callable[[Registered], Registered]:
    """Class decorator that makes an SAE type known to training and to `load` by its name in `cfg.json`."""

    def known(cls: Registered) -> Registered:
        cls.architecture = architecture
        _types[architecture] = cls
        return cls

    return known


def sae_type(architecture: str) -> type[SAE]:
    """The class of an SAE type; raises `ValueError` for a name that is not registered."""
    if architecture in BUILT_IN:
        importlib.import_module(f"lib.sae.{architecture}")
    if architecture not in _types:
        known = dict.fromkeys((*BUILT_IN, *_types))
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

    A type defines `encode` and `loss` and is made known by `register`. It may add parameters, and settings: arguments
    of its constructor that are its attributes, too, and lie in `cfg.json` under the same name.
    """

    architecture: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    constants: ClassVar[dict[str, float]] = {}
    """What, beside a configuration, decides what comes out of a training of this type."""
    adapts_l1: ClassVar[bool] = True
    """Whether training changes λ until L0 is the configuration's `target_l0`; else the type itself sees to it."""
    sparse_step: ClassVar[Callable | None] = None
    """Makes a step for the CPU that is faster where few features are active (see `lib.sae.sparse_step.SparseStep`)."""
    gpu_step: ClassVar[Callable | None] = None
    """A step for the GPU that is faster than `lib.sae.dense_step.dense_step`, of the same signature."""

    def __init__(self, d_model: int, d_sae: int, info: SaeInfo | None = None) -> None:
        """Decoder rows uniform, then scaled to norm sqrt(2·d_model / d_sae); W_enc = W_decᵀ; biases zero (App. A.2).

        The random numbers follow from `info.seed` and `info.layer`, whatever the device.
        """
        super().__init__()
        self.info = info or SaeInfo()
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

    def decode(self, f: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_model"]:
        """Reconstruction from feature activations."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Reconstruction of resid_post activations."""
        return self.decode(self.encode(x))

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
    def fold_options(self, cfg: dict[str, Any]) -> None:
        """Work SAELens' options into the weights of an SAE that was read with them, so that none is needed.

        `apply_b_dec_to_input`: (x − b_dec) W_enc + b_enc = x W_enc + (b_enc − b_dec W_enc).
        """
        if cfg["apply_b_dec_to_input"]:
            self.b_enc -= self.b_dec @ self.W_enc

    def save(self, folder: Path | str) -> None:
        """Write the SAE as a SAELens folder: cfg.json and sae_weights.safetensors."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        atomic_write(Path(folder) / WEIGHTS, save(weights))
        atomic_write(Path(folder) / CFG, json.dumps(self._cfg(), indent=1))

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> Self:
        """`load`, where the SAE is of this type; raises `ValueError` where it is not."""
        sae = load(folder, device)
        if not isinstance(sae, cls):
            raise ValueError(f"the SAE in {folder} is of another kind than {cls.architecture}: {sae.architecture}.")
        return sae

    def _cfg(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "d_in": self.d_model,
            "d_sae": self.d_sae,
            **{name: getattr(self, name) for name in self.settings},
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "sae_lens_version": SAELENS_VERSION,
                "format_version": FORMAT_VERSION,
                "prepend_bos": True,
                **self.info.model_dump(),
            },
        }


def load(folder: Path | str, device: str | torch.device = "cpu") -> SAE:
    """Read a folder written by `SAE.save`, or by SAELens for an SAE of a registered type without input normalisation.

    Raises `FileNotFoundError` or `ValueError`, in one sentence, for a folder that is not such an SAE.
    """
    folder = Path(folder)
    sae, cfg = _empty(folder)
    check_file(folder / WEIGHTS, {name: tuple(value.shape) for name, value in sae.state_dict().items()})
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {error}.") from None
    check_values(folder / WEIGHTS, weights)
    weights = {name: value.float() for name, value in weights.items()}
    weights["W_enc"] = weights["W_enc"].T.contiguous().T  # as the constructor has it
    sae.load_state_dict(weights, assign=True)
    for name, buffer in sae.named_buffers():  # of no meaning but in training, so that no file holds them
        setattr(sae, name, torch.zeros_like(buffer, device="cpu"))
    sae.fold_options(cfg)
    return sae.to(device)


def _empty(folder: Path) -> tuple[SAE, dict[str, Any]]:
    """The SAE that a folder's cfg.json describes, without memory for its weights; and what stands in cfg.json."""
    for name in (CFG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no SAE folder: {name} is missing.")
    try:
        cfg = json.loads((folder / CFG).read_text())
        architecture, d_in, d_sae = str(cfg["architecture"]), int(cfg["d_in"]), int(cfg["d_sae"])
        done = cfg["normalize_activations"], cfg.get("reshape_activations", "none")
        cfg["apply_b_dec_to_input"] = bool(cfg["apply_b_dec_to_input"])
        metadata = dict(cfg.get("metadata", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {type(error).__name__}: {error}.") from None
    if done != ("none", "none"):
        raise ValueError(f"the SAE in {folder} normalises or reshapes its input ({', '.join(map(str, done))}), which "
                         "this workbook does not: fold it into the weights with SAELens first.")  # fmt: skip
    if d_sae > LARGEST:
        raise ValueError(f"the SAE in {folder} claims {d_sae:,} features; this workbook opens at most {LARGEST:,}.")
    try:
        info = SaeInfo(**{field: metadata[field] for field in SaeInfo.model_fields if field in metadata})
    except ValidationError as error:
        raise ValueError(f"{folder}/{CFG} has bad metadata: {error.errors()[0]['msg']}.") from None
    try:
        cls = sae_type(architecture)
        with torch.device("meta"):
            return cls(d_in, d_sae, info, **{name: cfg[name] for name in cls.settings}), cfg
    except KeyError as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {CFG} says nothing of {error}.") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the SAE in {folder} is of another kind than can be read: {error}") from None
