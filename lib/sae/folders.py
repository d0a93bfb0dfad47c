"""SAEs from SAELens' folders: those that `SAE.save` writes, and those that SAELens writes from its version 3 on.

A folder holds cfg.json and sae_weights.safetensors. What SAELens (decoderesearch/SAELens, MIT) does at inference with
the options in cfg.json is done here, or the SAE is refused and the option named: an SAE that is read in another way
than it was trained in still gives numbers. Pickles are not opened.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from lib.models.safe_weights import check_file, check_values, read_header
from lib.sae.autoencoder import CFG, SAE, WEIGHTS, SaeInfo, sae_type

LARGEST = 1 << 20  # features of an SAE from a file: the largest published ones for small models have less
SCALER = "activation_scaler.json"  # where a checkpoint of SAELens has the factor of `expected_average_only_in`
ON_HUB = re.compile(r"([\w.-]+/[\w.-]+):(.*)")  # repository:path/in/repository
HOOK = re.compile(r"blocks\.(\d+)\.(hook_resid_post|hook_out|hook_resid_pre)")
BATCHTOPK = "batchtopk"  # as SAELens does at inference, a JumpReLU SAE whose thresholds are all the same
OLD_NAMES = dict(
    activation_fn_str="activation_fn", hook_point="hook_name", hook_point_head_index="hook_head_index"
)  # fmt: skip


class _Cfg(BaseModel):
    """What cfg.json says, with SAELens' defaults: of version 6 without the nesting, of older ones in the new words."""

    model_config = ConfigDict(extra="allow")  # settings of an SAE type; what only training knows

    architecture: str = "standard"
    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1, le=LARGEST)
    apply_b_dec_to_input: bool = True
    normalize_activations: Literal["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"] = "none"
    norm_scaling_factor: float | None = Field(None, gt=0)
    rescale_acts_by_decoder_norm: bool = False
    relu: bool = True  # after TopK
    reshape_activations: Literal["none"] = "none"
    activation_fn: Literal["relu", "topk"] = "relu"
    activation_fn_kwargs: dict[str, Any] = {}
    model_from_pretrained_kwargs: dict[str, Any] | None = None
    hook_head_index: None = None
    hook_name_out: None = None
    model_name: str = ""
    hook_name: str = ""


def load(
    source: Path | str, device: str | torch.device = "cpu", *,
    revision: str | None = None, norm_scaling_factor: float | None = None,
) -> SAE:  # fmt: skip
    """Read an SAE from a SAELens folder or, as `org/repo:path/in/repo`, from the hub; it acts on raw activations.

    Computation is in float32, whatever the file's type. `norm_scaling_factor` is what activations were multiplied with
    in a training with `expected_average_only_in`, for an SAE that comes without it: sqrt(d_model) over their mean
    norm. `revision` is the hub's; by default it is that of hub.csv, or the main branch's.

    Raises `FileNotFoundError` or `ValueError`, in one sentence, for a folder that is not such an SAE and for options
    that are not heeded here, `lib.models.ModelNotFound` where the hub does not give it.
    """
    folder = _folder(source, revision)
    try:
        cfg = _read_cfg(folder)
        sae = _empty(cfg)
        factor = _factor(folder, cfg, norm_scaling_factor)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {_reason(error)}.") from None
    weights = _read_weights(folder / WEIGHTS, sae, cfg)
    weights["W_enc"] = weights["W_enc"].T.contiguous().T  # as the constructor has it
    sae.load_state_dict(weights, assign=True)
    for name, buffer in sae.named_buffers():  # of no meaning but in training, so that no file holds them
        setattr(sae, name, torch.zeros_like(buffer, device="cpu"))
    sae.apply_b_dec_to_input = cfg.apply_b_dec_to_input
    if factor is None:
        sae.normalize_activations = cfg.normalize_activations
    else:
        sae.fold_scale(factor)
    if cfg.rescale_acts_by_decoder_norm:  # after the scale, which changes the norms and so, as in SAELens, the features
        if cfg.architecture == BATCHTOPK and factor:
            sae.threshold.data /= factor
        sae.fold_decoder_norms()
    return sae.to(device)


def check_fits(sae: SAE, model_name: str, d_model: int, n_layers: int) -> None:
    """Raise `ValueError`, in one sentence, unless a model has the width and the layer that an SAE was trained on."""
    trained_on = f" of {sae.info.model_name}" if sae.info.model_name else ""
    what = f"the SAE for {sae.info.hook_name or f'layer {sae.info.layer}'}{trained_on} does not fit {model_name}"
    if sae.d_model != d_model:
        raise ValueError(f"{what}: it reads activations of width {sae.d_model}, and the model's d_model is {d_model}.")
    if not 0 <= sae.info.layer < n_layers:
        raise ValueError(f"{what}: it reads layer {sae.info.layer}, and the model's layers are 0 to {n_layers - 1}.")


def _folder(source: Path | str, revision: str | None) -> Path:
    """Where cfg.json and the weights lie; those of the hub are fetched, and nothing else of their repository."""
    folder = Path(source)
    if not folder.is_dir() and (found := ON_HUB.fullmatch(str(source))):
        repository, place = found[1], found[2].strip("/")
        if ".." in Path(place).parts:
            raise ValueError(f"{source} leads out of the repository: give the SAE's path in it.")
        from lib.models import hub  # where one comes from there

        within = f"{place}/" if place else ""
        return hub.fetch_files(repository, [f"{within}{CFG}", f"{within}{WEIGHTS}"], revision) / place
    for name in (CFG, WEIGHTS):
        if not (folder / name).is_file():
            hint = "" if folder.is_dir() else " (one of the hub is written org/repo:path/in/repo)"
            raise FileNotFoundError(f"{folder} is no SAE folder: {name} is missing{hint}.")
    return folder


def _reason(error: Exception) -> str:
    """What is wrong with cfg.json, in a part of a sentence."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        value = "" if first["type"] == "missing" else f" {first['input']!r}"
        return f"{CFG}: {'.'.join(map(str, first['loc']))}{value}: {first['msg']}"
    return f"{CFG} says nothing of {error}" if isinstance(error, KeyError) else str(error).rstrip(".")


def _read_cfg(folder: Path) -> _Cfg:
    """cfg.json in any of its layouts, if all that it asks for is heeded."""
    found = json.loads((folder / CFG).read_text())
    flat = dict(found.pop("metadata", None) or {}) | found  # so was it before version 6
    flat = {OLD_NAMES.get(name, name): value for name, value in flat.items() if value is not None}
    if isinstance(scaled := flat.get("normalize_activations"), bool):  # before version 3
        flat["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    cfg = _Cfg.model_validate(flat)
    if cfg.activation_fn == "topk":  # before version 6 a function of standard SAEs, with another after it
        after = str(cfg.activation_fn_kwargs.get("postact_fn", "relu")).removesuffix("()").lower()
        if after not in ("relu", "identity"):
            raise ValueError(f"it has the postact_fn {after}, and relu and identity are those that are heeded here")
        cfg.architecture, cfg.relu, cfg.k = "topk", after == "relu", cfg.activation_fn_kwargs["k"]
    if cfg.rescale_acts_by_decoder_norm and cfg.architecture not in ("topk", BATCHTOPK):
        raise ValueError(f"it has rescale_acts_by_decoder_norm, which is not heeded for {cfg.architecture}")
    if (cfg.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        raise ValueError(
            "it was trained on a model with center_writing_weights, whose residual stream is another than the raw "
            "model's, which this workbook reads"
        )
    return cfg


def _empty(cfg: _Cfg) -> SAE:
    """The SAE that cfg.json describes, without memory for its weights.

    Only the residual stream after a block is known here. What goes into a block is what comes out of the one before.
    """
    said = cfg.model_dump()
    of_info = {name: said[name] for name in SaeInfo.model_fields if name in said}
    if found := HOOK.fullmatch(cfg.hook_name):
        of_info["layer"] = int(found[1]) - (found[2] == "hook_resid_pre")
    if (cfg.hook_name and not found) or of_info.get("layer", -1) == -1:
        raise ValueError(
            f"it reads {cfg.hook_name or 'a hook that is not named'}, which is not the residual stream after a block: "
            "blocks.K.hook_resid_post, or hook_resid_pre of the block after it"
        )
    cls = sae_type("jumprelu" if cfg.architecture == BATCHTOPK else cfg.architecture)
    settings = {name: said[name] for name in cls.settings}
    with torch.device("meta"):
        return cls(cfg.d_in, cfg.d_sae, SaeInfo(**of_info), **settings)


def _factor(folder: Path, cfg: _Cfg, given: float | None) -> float | None:
    """What activations were multiplied with in training; None where they were not, or each by a factor of its own."""
    if cfg.normalize_activations != "expected_average_only_in":
        return None
    factor = given or cfg.norm_scaling_factor
    if factor is None and (folder / SCALER).is_file():
        factor = json.loads((folder / SCALER).read_text()).get("scaling_factor")
    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise ValueError(
            "it was trained on activations that were scaled (expected_average_only_in), and does not say by how much: "
            "give norm_scaling_factor, which is sqrt(d_model) over their mean norm"
        )
    return factor


def _read_weights(path: Path, sae: SAE, cfg: _Cfg) -> dict[str, Tensor]:
    """The file's tensors as float32, by the names that the SAE has for them, after they were checked."""
    expected = {name: tuple(value.shape) for name, value in sae.state_dict().items()}
    if cfg.architecture == BATCHTOPK:
        expected["topk_threshold"] = ()
        del expected["threshold"]
    scaled = "scaling_factor" in read_header(path)
    check_file(path, expected | ({"scaling_factor": (cfg.d_sae,)} if scaled else {}))
    weights = {name: value.float() for name, value in load_file(path).items()}
    check_values(path, weights)
    if scaled and not torch.allclose(weights.pop("scaling_factor"), torch.ones(cfg.d_sae)):
        raise ValueError(f"{path} has a scaling_factor (finetuning_scaling_factor), which is not heeded here.")
    if cfg.architecture == BATCHTOPK:
        weights["threshold"] = weights.pop("topk_threshold").repeat(cfg.d_sae)
    return weights
