"""Families of language models under one vocabulary: what the workbook has to know of one, and which it knows.

A family is a subclass of `Family` or, if path patching is offered for it, of `Patchable`; it is registered, in a file
beside this one whose name stands in `MODULES`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PretrainedConfig

from lib.models import hub_kernels
from lib.models.activations import resid_post, values_at

hub_kernels.switch_off()  # before anything is built: RWKV would load its own on a GPU

MODULES = ("gpt2", "gpt_neox", "llama", "mamba", "mamba2", "rwkv")
"""The files that register families."""

Cache = Mapping[str, Tensor]
"""What hooks saw in one run, by their names."""
Rows = Float[Tensor, "rows samples d_model"]


@dataclass(frozen=True)
class Neurons:
    """Where the neurons of one layer are read: hooks, and how their values give Float[batch, time, n_neurons]."""

    hooks: tuple[str, ...]
    read: Callable[[Cache], Float[Tensor, "batch time n_neurons"]]


class Family(ABC):
    """One model as a member of its family; class attributes and class methods hold for every member."""

    model_type: ClassVar[str]
    """transformers' name of the family."""

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model

    @classmethod
    def n_neurons(cls, config: PretrainedConfig) -> int:
        """How many neurons a layer has."""
        return config.intermediate_size

    @abstractmethod
    def neurons(self, layer: int) -> Neurons:
        """The neurons of a layer (W §4.3.1): its last values that are not linear in what follows."""


class Patchable(Family):
    """A family that says what path patching needs (`lib.circuits.path_patching`).

    A layer's *mixer* (SSM, WKV, attention) is the part of it that brings something from earlier positions to the last.
    """

    blocks: nn.ModuleList
    norm: nn.Module
    """The last norm, before the unembedding."""
    conv_tokens: int = 0
    """How many neighbouring positions a layer mixes before its mixer: Mamba's convolution, RWKV's token shift."""

    @abstractmethod
    def hooks(self, layer: int) -> list[str]:
        """What a run has to keep of a layer, apart from the residual stream before it."""

    @abstractmethod
    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens ..."]:
        """What the mixer takes from each position."""

    @abstractmethod
    def mixer_output(
        self, cache: Cache, layer: int, inputs: Float[Tensor, "samples tokens ..."]
    ) -> Float[Tensor, "samples ..."]:
        """What the mixer hands the last position, from its inputs at all positions."""

    @abstractmethod
    def step(self, cache: Cache, layer: int, rows: Rows, mixer_output: Float[Tensor, "samples ..."]) -> Rows:
        """The residual stream after the block at the last position.

        `rows` is the one before the block; all rows get the same `mixer_output`.
        """

    def conv_input(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens width"]:
        """What is mixed over neighbouring positions before the mixer. Raises `ValueError` where nothing is."""
        raise ValueError(f"a {self.model_type} mixes no neighbouring positions.")

    def conv(self, layer: int, window: Float[Tensor, "samples window width"]) -> Float[Tensor, "samples ..."]:
        """The mixer's input at the last position of a window of `conv_input`; positions before the prompt are left out.

        Raises `ValueError` where no neighbouring positions are mixed.
        """
        raise ValueError(f"a {self.model_type} mixes no neighbouring positions.")

    def run(self, tokens: Int[Tensor, "samples tokens"]) -> Cache:
        """One forward pass, which ends before the unembedding; with the residual stream there."""
        layers = range(len(self.blocks))
        hooks = [name for layer in layers for name in (f"blocks.{layer}.hook_in", *self.hooks(layer))]
        return values_at(self.model, tokens, [*hooks, resid_post(layers[-1])], layers[-1])

    def logits_of(self, rows: Rows, target: Int[Tensor, " samples"]) -> Float[Tensor, "rows samples"]:
        """Logit of one token per sample; no other is computed."""
        head = self.model.original_model.get_output_embeddings()
        bias = 0 if getattr(head, "bias", None) is None else head.bias[target]
        return (self.norm(rows) * head.weight[target]).sum(-1) + bias


# ------------------------------------------------------------------------------------------- which are known

_REGISTERED: dict[str, type[Family]] = {}


def register(family: type[Family]) -> type[Family]:
    """Make a family known by its `model_type`; a decorator."""
    _REGISTERED[family.model_type] = family
    return family


def families() -> Mapping[str, type[Family]]:
    """All families that are known, by transformers' names of them."""
    for module in MODULES:
        importlib.import_module(f"lib.models.{module}")
    return _REGISTERED


def family_class(model_type: str, name: str) -> type[Family]:
    """The family of this `model_type`. Raises `ValueError`, in one sentence about `name`, for one that is not known."""
    if model_type not in families():
        raise ValueError(f"{name} is a {model_type}; the workbook knows {', '.join(sorted(families()))}.")
    return families()[model_type]


def family_of(model: TransformerBridge) -> Family:
    """The model as a member of its family. Raises `ValueError` for a family that is not known."""
    return family_class(model.original_model.config.model_type, model.cfg.model_name)(model)


def patchable(model: TransformerBridge) -> Patchable:
    """The same for path patching. Raises `ValueError`, in one sentence, for a family that it is not offered for."""
    family = family_of(model)
    if not isinstance(family, Patchable):
        known = ", ".join(sorted(name for name, kind in families().items() if issubclass(kind, Patchable)))
        raise ValueError(f"path patching is not offered for a {family.model_type}, only for {known}.")
    return family


def neurons(model: TransformerBridge, layer: int) -> Neurons:
    """The neurons of a layer (W §4.3.1). Raises `ValueError` for a model of a family that is not known.

    Transformers: what the MLP's last matrix reads, so after the activation and, where there is one, the gate. Mamba:
    SSM input after conv and SiLU, then SiLU(gate). RWKV: channel-mix after the squared ReLU.
    """
    return family_of(model).neurons(layer)


def n_layers(model: TransformerBridge) -> int:
    """Number of blocks."""
    return model.cfg.n_layers
