"""The sparse autoencoder of the paper (App. A): f = ReLU(x W_enc + b_enc), x̂ = f W_dec + b_dec; how good one is.

Saved SAEs are folders in the SAELens format: `sae_lens.SAE.load_from_disk(folder)` opens them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

from lib.corpus import Blocks
from lib.models.activations import batches_of, iterate_activations, model_device, resid_post
from lib.models.safe_weights import check_file, check_values
from lib.workbook.profiles import Profile
from lib.workbook.store import atomic_write

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # SAELens' file names
FORMAT_VERSION = 1
LARGEST = 1 << 20  # features of an SAE from a file: the largest published ones for small models have less
SAELENS_VERSION = "6.0.0"  # the release whose format this is; without it, SAELens reads the file as an older one


class SaeInfo(BaseModel):
    """What an SAE belongs to and how it was made."""

    model_config = ConfigDict(extra="forbid")

    model_name: str = ""
    hook_name: str = ""
    layer: int = 0
    seed: int = 0
    training: dict[str, Any] = {}
    metrics: dict[str, float] = {}


class SparseAutoencoder(nn.Module):
    """An SAE that acts on raw activations. Weights are float32: W_enc [d_model, d_sae], W_dec [d_sae, d_model]."""

    def __init__(self, d_model: int, d_sae: int, info: SaeInfo | None = None) -> None:
        """Decoder rows uniform, then scaled to norm sqrt(2·d_model / d_sae); W_enc = W_decᵀ; biases zero (App. A.2).

        The random numbers follow from `info.seed` and `info.layer`, whatever the device.
        """
        super().__init__()
        self.info = info or SaeInfo()
        random = torch.Generator().manual_seed(self.info.seed * 1_000 + self.info.layer)
        W_dec = torch.rand(d_sae, d_model, generator=random) * 2 - 1
        W_dec *= math.sqrt(2 * d_model / d_sae) / W_dec.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.clone().T)  # transposed in memory: a feature's weights lie side by side
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_model))

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations of resid_post activations."""
        return torch.relu(x @ self.W_enc + self.b_enc)

    def decode(self, f: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_model"]:
        """Reconstruction from feature activations."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Reconstruction of resid_post activations."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Let an SAE that was trained on `scale`·x act on x. Feature activations stay what they were in training."""
        self.W_enc *= scale
        self.W_dec /= scale
        self.b_dec /= scale

    def save(self, folder: Path | str) -> None:
        """Write the SAE as a SAELens folder: cfg.json and sae_weights.safetensors."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        atomic_write(Path(folder) / WEIGHTS, save(weights))
        atomic_write(Path(folder) / CFG, json.dumps(self._cfg(), indent=1))

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> SparseAutoencoder:
        """Read a folder written by `save`, or by SAELens for a standard SAE without input normalisation.

        Raises `FileNotFoundError` or `ValueError`, in one sentence, for a folder that is not such an SAE.
        """
        cfg, weights = _read_folder(Path(folder))
        metadata = cfg.get("metadata", {})
        try:
            info = SaeInfo(**{field: metadata[field] for field in SaeInfo.model_fields if field in metadata})
        except ValidationError as error:
            raise ValueError(f"{folder}/{CFG} has bad metadata: {error.errors()[0]['msg']}.") from None
        sae = cls.__new__(cls)
        nn.Module.__init__(sae)
        sae.info = info
        weights["W_enc"] = weights["W_enc"].T.contiguous().T
        for name, value in weights.items():
            setattr(sae, name, nn.Parameter(value.float()))
        return sae.to(device)

    def _cfg(self) -> dict[str, Any]:
        return {
            "architecture": "standard",
            "d_in": self.d_model,
            "d_sae": self.d_sae,
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


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """cfg.json and the weights, checked."""
    for name in (CFG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no SAE folder: {name} is missing.")
    try:
        cfg = json.loads((folder / CFG).read_text())
        d_in, d_sae = int(cfg["d_in"]), int(cfg["d_sae"])
        settings = [cfg[key] for key in ("architecture", "apply_b_dec_to_input", "normalize_activations")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {type(error).__name__}: {error}.") from None
    if settings != ["standard", False, "none"]:
        raise ValueError(f"the SAE in {folder} is of another kind than this workbook's: {settings}.")
    if d_sae > LARGEST:
        raise ValueError(f"the SAE in {folder} claims {d_sae:,} features; this workbook opens at most {LARGEST:,}.")
    expected = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    check_file(folder / WEIGHTS, expected)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {error}.") from None
    check_values(folder / WEIGHTS, weights)
    return cfg, weights


# -------------------------------------------------------------------------------------------- quality


@torch.no_grad()
def evaluate_saes(
    model: TransformerBridge, saes: Sequence[SparseAutoencoder], blocks: Blocks, profile: Profile
) -> pd.DataFrame:
    """Quality of each SAE of `model` on a text; one row per SAE, also kept in `sae.info.metrics`.

    l0: active features per token. explained_variance: 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖². dead: share of the features that
    fire on no token of the text. ce_recovered: (ce_mean − ce_sae) / (ce_mean − ce), where ce is the model's
    cross-entropy in nats per token, ce_sae that with x̂ in the place of x at the SAE's layer, ce_mean that with x̄.
    """
    saes = [sae.to(model_device(model)) for sae in saes]
    rows, means = _reconstruction(model, saes, blocks, profile)
    for sae, row, losses in zip(saes, rows, _spliced_losses(model, saes, means, blocks, profile)):
        ce, ce_sae, ce_mean = losses
        row |= {"ce_recovered": (ce_mean - ce_sae) / (ce_mean - ce), "ce": ce, "ce_sae": ce_sae, "ce_mean": ce_mean}
        sae.info.metrics = row
    places = [{"layer": sae.info.layer, "seed": sae.info.seed} for sae in saes]
    return pd.DataFrame([place | row for place, row in zip(places, rows)])


def _reconstruction(
    model: TransformerBridge, saes: Sequence[SparseAutoencoder], blocks: Blocks, profile: Profile
) -> tuple[list[dict[str, float]], dict[int, Float[Tensor, " d_model"]]]:
    """L0, explained variance and dead share of each SAE, and the layers' mean activations."""
    layers = sorted({sae.info.layer for sae in saes})
    n, total, square = 0, dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    error, active = [0.0] * len(saes), [0] * len(saes)
    fired = [torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.b_enc.device) for sae in saes]
    batches = iterate_activations(model, blocks, layers, profile.batch_blocks)
    for batch in tqdm(batches, "SAEs: reconstruction", -(-len(blocks) // profile.batch_blocks), mininterval=5):
        n += len(batch[layers[0]])
        for layer, x in batch.items():
            total[layer] += x.double().sum(0)
            square[layer] += x.double().square().sum()
        for k, sae in enumerate(saes):
            x = batch[sae.info.layer]
            f = sae.encode(x)
            error[k] += (sae.decode(f) - x).double().square().sum()
            active[k] += torch.count_nonzero(f)
            fired[k] |= (f > 0).any(0)
    means = {layer: total[layer] / n for layer in layers}
    variance = {layer: square[layer] - n * means[layer].square().sum() for layer in layers}
    rows = [
        {
            "l0": float(active[k] / n),
            "explained_variance": float(1 - error[k] / variance[sae.info.layer]),
            "dead": float((~fired[k]).double().mean()),
        }
        for k, sae in enumerate(saes)
    ]
    return rows, {layer: mean.float() for layer, mean in means.items()}


def _spliced_losses(
    model: TransformerBridge, saes: Sequence[SparseAutoencoder], means: dict[int, Tensor], blocks: Blocks, profile: Profile
) -> list[tuple[float, float, float]]:
    """Cross-entropy of the model, with x̂ and with x̄ spliced in, for each SAE."""
    spliced: list[tuple[int, Callable]] = [(sae.info.layer, sae) for sae in saes]
    spliced += [(layer, lambda x, mean=mean: mean.expand_as(x)) for layer, mean in means.items()]
    n, clean, losses = 0, 0.0, [0.0] * len(spliced)
    batches = batches_of(blocks, profile.batch_blocks, model_device(model))
    for tokens, mask in tqdm(batches, "SAEs: cross-entropy", -(-len(blocks) // profile.batch_blocks), mininterval=5):
        n += int((mask[:, :-1] & mask[:, 1:]).sum())
        clean += _loss(model, tokens, mask)
        for k, (layer, replace) in enumerate(spliced):
            losses[k] += _loss(model, tokens, mask, resid_post(layer), replace)
    of_mean = dict(zip(means, losses[len(saes) :]))
    return [(clean / n, loss / n, of_mean[sae.info.layer] / n) for sae, loss in zip(saes, losses)]


def _loss(
    model: TransformerBridge, tokens: Int[Tensor, "blocks context"], mask: Bool[Tensor, "blocks context"],
    hook_name: str = "", replace: Callable | None = None,
) -> float:  # fmt: skip
    """Summed cross-entropy of the next token where both it and the position count; `replace` changes those positions."""

    def splice(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[mask] = replace(value[mask].float()).to(value.dtype)
        return value

    logits = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, splice)] if replace else [])
    counted = mask[:, :-1] & mask[:, 1:]
    return float(cross_entropy(logits[:, :-1][counted].float(), tokens[:, 1:][counted], reduction="sum"))
