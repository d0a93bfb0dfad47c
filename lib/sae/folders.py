"""SAEs from SAELens' folders: those that `SAE.save` writes, and those that SAELens writes from its version 3 on.

A folder holds cfg.json and sae_weights.safetensors. What SAELens (decoderesearch/SAELens, MIT) does at inference with
the options in cfg.json is done here, or the SAE is refused and the option named: an SAE that is read in another way
than it was trained in still gives numbers. Pickles are not opened.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from lib.models import hub
from lib.models.safe_weights import check_file, check_values, read_header
from lib.sae.autoencoder import CFG, SAE, WEIGHTS, SaeInfo, sae_type

LARGEST = 1 << 20  # features of an SAE from a file: the largest published ones for small models have less
SCALER = "activation_scaler.json"  # where a checkpoint of SAELens has the factor of `expected_average_only_in`
ON_HUB = re.compile(r"([\w.-]+/[\w.-]+):(.*)")  # repository:path/in/repository
HOOK = re.compile(r"blocks\.(\d+)\.(hook_resid_post|hook_out|hook_resid_pre)")
BATCHTOPK = "batchtopk"  # as SAELens does at inference, a JumpReLU SAE whose thresholds are all the same
OLD_NAMES = {
    "activation_fn_str": "activation_fn",
    "hook_point": "hook_name",
    "hook_point_layer": "layer",
    "hook_layer": "layer",
    "hook_point_head_index": "hook_head_index",
}


class _Cfg(BaseModel):
    """What cfg.json says, with SAELens' defaults: of version 6 without the nesting, of older ones in the new words."""

    model_config = ConfigDict(extra="allow")  # settings of an SAE type; what only training knows

    architecture: str = "standard"
    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    apply_b_dec_to_input: bool = True
    normalize_activations: Literal["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"] = "none"
    norm_scaling_factor: float | None = Field(None, gt=0)
    rescale_acts_by_decoder_norm: bool = False
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
    cfg = _read_cfg(folder)
    info = _info(folder, cfg)
    factor = _factor(folder, cfg, norm_scaling_factor)
    sae = _empty(folder, cfg, info)
    weights = _read_weights(folder, sae, cfg)
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
    if sae.info.layer >= n_layers:
        raise ValueError(f"{what}: it reads layer {sae.info.layer}, and the model's layers are 0 to {n_layers - 1}.")


def _folder(source: Path | str, revision: str | None) -> Path:
    """Where cfg.json and the weights lie; those of the hub are fetched, and nothing else of their repository."""
    folder = Path(source)
    if not folder.is_dir() and (found := ON_HUB.fullmatch(str(source))):
        repository, place = found[1], found[2].strip("/")
        if ".." in Path(place).parts:
            raise ValueError(f"{source} leads out of the repository: give the SAE's path in it.")
        within = f"{place}/" if place else ""
        return hub.fetch_files(repository, [f"{within}{CFG}", f"{within}{WEIGHTS}"], revision) / place
    for name in (CFG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no SAE folder: {name} is missing (one of the hub is written org/repo:path/in/repo)."
            )
    return folder


def _read_cfg(folder: Path) -> _Cfg:
    """cfg.json in any of its layouts; raises `ValueError` for one that cannot be read or heeded."""
    try:
        found = json.loads((folder / CFG).read_text())
        flat = dict(found.pop("metadata", None) or {}) | found  # so was it before version 6
        cfg = {OLD_NAMES.get(name, name): value for name, value in flat.items()}
        if cfg.get("normalize_activations") in (True, False, None):  # before version 3
            cfg["normalize_activations"] = "expected_average_only_in" if cfg.get("normalize_activations") else "none"
        cfg = {name: value for name, value in cfg.items() if value is not None}
        cfg = _Cfg.model_validate(cfg)
    except ValidationError as error:
        first = error.errors()[0]
        where, value = ".".join(map(str, first["loc"])), "" if first["type"] == "missing" else f" {first['input']!r}"
        raise ValueError(f"the SAE in {folder} cannot be read: {CFG}: {where}{value}: {first['msg']}.") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {CFG}: {type(error).__name__}: {error}.") from None
    if cfg.d_sae > LARGEST:
        raise ValueError(f"the SAE in {folder} claims {cfg.d_sae:,} features; this workbook opens at most {LARGEST:,}.")
    if cfg.activation_fn == "topk":
        _take_topk(folder, cfg)
    if cfg.rescale_acts_by_decoder_norm and cfg.architecture not in ("topk", BATCHTOPK):
        raise ValueError(f"the SAE in {folder} has rescale_acts_by_decoder_norm, which {cfg.architecture} does not.")
    if (cfg.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        raise ValueError(
            f"the SAE in {folder} was trained on a model with center_writing_weights, whose residual stream is "
            "another than the raw model's, which this workbook reads."
        )
    return cfg


def _take_topk(folder: Path, cfg: _Cfg) -> None:
    """Before version 6, TopK was an activation function of standard SAEs, with one of its own after it."""
    after = str(cfg.activation_fn_kwargs.get("postact_fn", "relu")).removesuffix("()").lower()
    if after not in ("relu", "identity"):
        raise ValueError(f"the SAE in {folder} has the postact_fn {after}; relu and identity are those that are read.")
    cfg.architecture, cfg.relu = "topk", after == "relu"
    if "k" in cfg.activation_fn_kwargs:
        cfg.k = cfg.activation_fn_kwargs["k"]


def _info(folder: Path, cfg: _Cfg) -> SaeInfo:
    """What an SAE belongs to; raises `ValueError` where that is not the residual stream after a block.

    What goes into a block is what comes out of the one before.
    """
    more = cfg.model_extra
    known = {name: more[name] for name in ("layer", "seed", "training", "metrics") if name in more}
    if found := HOOK.fullmatch(cfg.hook_name):
        known["layer"] = int(found[1]) - (found[2] == "hook_resid_pre")
    if (cfg.hook_name and not found) or known.get("layer") == -1 or "layer" not in known:
        raise ValueError(
            f"the SAE in {folder} reads {cfg.hook_name or 'a hook that is not named'}, which is not the residual "
            "stream after a block: blocks.K.hook_resid_post, or hook_resid_pre of the block after it."
        )
    try:
        return SaeInfo(model_name=cfg.model_name, hook_name=cfg.hook_name, **known)
    except ValidationError as error:
        raise ValueError(f"{folder}/{CFG} has bad metadata: {error.errors()[0]['msg']}.") from None


def _factor(folder: Path, cfg: _Cfg, given: float | None) -> float | None:
    """What activations were multiplied with in training; None where they were not, or each by a factor of its own."""
    if cfg.normalize_activations != "expected_average_only_in":
        return None
    factor = given or cfg.norm_scaling_factor
    if factor is None and (folder / SCALER).is_file():
        try:
            factor = float(json.loads((folder / SCALER).read_text())["scaling_factor"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"the SAE in {folder} cannot be read: {SCALER} gives no scaling_factor.") from None
    if not factor or not 0 < factor < float("inf"):
        raise ValueError(
            f"the SAE in {folder} was trained on activations that were scaled (expected_average_only_in), and does not "
            "say by how much: give norm_scaling_factor, which is sqrt(d_model) over their mean norm."
        )
    return factor


def _empty(folder: Path, cfg: _Cfg, info: SaeInfo) -> SAE:
    """The SAE that cfg.json describes, without memory for its weights."""
    if cfg.architecture == "topk" and "relu" not in cfg.model_extra:
        cfg.relu = True
    try:
        cls = sae_type("jumprelu" if cfg.architecture == BATCHTOPK else cfg.architecture)
        settings = {name: cfg.model_extra[name] for name in cls.settings}
        with torch.device("meta"):
            return cls(cfg.d_in, cfg.d_sae, info, **settings)
    except KeyError as error:
        raise ValueError(f"the SAE in {folder} cannot be read: {CFG} says nothing of {error}.") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the SAE in {folder} is of another kind than can be read: {error}") from None


def _read_weights(folder: Path, sae: SAE, cfg: _Cfg) -> dict[str, Tensor]:
    """The file's tensors as float32, by the names that the SAE has for them, after they were checked."""
    path = folder / WEIGHTS
    expected = {name: tuple(value.shape) for name, value in sae.state_dict().items()}
    if cfg.architecture == BATCHTOPK:
        expected["topk_threshold"] = ()
        del expected["threshold"]
    scaled = "scaling_factor" in read_header(path)
    check_file(path, expected | ({"scaling_factor": (cfg.d_sae,)} if scaled else {}))
    weights = {name: value.float() for name, value in load_file(path).items()}
    check_values(path, weights)
    if scaled and not torch.allclose(weights.pop("scaling_factor"), torch.ones(cfg.d_sae)):
        raise ValueError(f"the SAE in {folder} has a finetuning_scaling_factor, which is not heeded here.")
    if cfg.architecture == BATCHTOPK:
        weights["threshold"] = weights.pop("topk_threshold").repeat(cfg.d_sae)
    return weights
