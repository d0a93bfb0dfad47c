"""Path patching over the last position, in any of the three architectures (W §6.1, App. G).

A layer's mixer (SSM, WKV, attention) takes an *input* from every position and hands the last one what it *reads* from
them. The sender is what one layer reads; what every other layer reads stays what it was in the clean run, and so does
everything at earlier positions. So a patch can reach the logits through the last position alone, and the patches of all
layers go through one batched pass over it. `lib.circuits.plain_patching` does the same by hooks, one run per patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException

from lib import models
from lib.circuits.prompts import Tokens
from lib.models.activations import model_device

CHUNK = 16  # samples at a time, which bounds the memory
Cache = Mapping[str, Tensor]
Rows = Float[Tensor, "rows samples d_model"]
Effects = Float[Tensor, "senders samples"]


class Architecture(ABC):
    """What path patching has to know of an architecture. `cache` holds one run's hooks, by name."""

    blocks: nn.ModuleList
    norm: nn.Module
    short_mix_tokens: int = 0
    """How many positions are mixed before the mixer takes its input: 4 in Mamba, 2 in RWKV."""

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model

    @abstractmethod
    def hooks(self, layer: int) -> list[str]:
        """What a run has to keep of a layer, apart from the residual stream before it."""

    @abstractmethod
    def inputs(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens ..."]:
        """What the mixer takes from each position."""

    @abstractmethod
    def read(self, cache: Cache, layer: int, inputs: Float[Tensor, "samples tokens ..."]) -> Float[Tensor, "samples ..."]:
        """What the mixer hands the last position, from its inputs at all positions."""

    @abstractmethod
    def step(self, cache: Cache, layer: int, rows: Rows, read: Float[Tensor, "samples ..."]) -> Rows:
        """The residual stream after the block at the last position, from the one before it and what all rows read."""

    def local(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens width"]:
        """What is mixed over neighbouring positions before the mixer."""
        raise ValueError(f"a {models.architecture(self.model)} mixes no neighbouring positions.")

    def short_mix(self, layer: int, local: Float[Tensor, "samples window width"]) -> Float[Tensor, "samples ..."]:
        """The mixer's input at the last position of a window; positions before the prompt are left out."""
        raise ValueError(f"a {models.architecture(self.model)} mixes no neighbouring positions.")

    def run(self, tokens: Tokens) -> Cache:
        """One forward pass, which ends before the unembedding."""
        cache: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor, object], None]:
            def hook(value: Tensor, hook: object) -> None:
                cache[name] = value.detach()

            return hook

        def stop(value: Tensor, hook) -> None:
            raise StopAtLayerException(value)

        layers = range(len(self.blocks))
        hooks = [(name, keep(name)) for k in layers for name in (f"blocks.{k}.hook_in", *self.hooks(k))]
        self.model.run_with_hooks(tokens, return_type=None, fwd_hooks=[*hooks, (f"blocks.{layers[-1]}.hook_out", stop)])
        return cache

    def logits_of(self, rows: Rows, target: Int[Tensor, "samples"]) -> Float[Tensor, "rows samples"]:
        """Logit of one token per sample; no other is computed."""
        head = self.model.original_model.get_output_embeddings()
        bias = 0 if getattr(head, "bias", None) is None else head.bias[target]
        return (self.norm(rows) * head.weight[target]).sum(-1) + bias


Senders = Callable[[Cache, Cache, int], Iterable[Tensor]]
"""From the clean run, the corrupted run and a layer: what that layer reads when patched, once for each sender."""


@torch.no_grad()
def patch_effects(
    architecture: Architecture, clean: Tokens, corrupt: Tokens, target: Int[Tensor, "samples"], senders: Senders
) -> Effects:
    """logit(target | patched) − logit(target | clean) at the last position, for every sender (by layer) and sample.

    Memory: two runs' hooks for `CHUNK` samples, and one layer's patched reads. Raises `ValueError` where shapes do not
    fit together.
    """
    if clean.shape != corrupt.shape or len(target) != len(clean):
        raise ValueError(
            f"clean {tuple(clean.shape)}, corrupt {tuple(corrupt.shape)} and {len(target)} targets do not fit together."
        )
    device, found = model_device(architecture.model), []
    for tokens, others, wanted in zip(*(part.to(device).split(CHUNK) for part in (clean, corrupt, target))):
        clean_run, corrupt_run = architecture.run(tokens), architecture.run(others)
        found.append(_last_position(architecture, clean_run, corrupt_run, wanted, senders))
    return torch.cat(found, dim=1).cpu()


def _last_position(
    architecture: Architecture, clean: Cache, corrupt: Cache, target: Int[Tensor, "samples"], senders: Senders
) -> Effects:
    """One pass for all senders, some samples.

    A sender's row joins at its layer: before it, it is the clean one. The first row is nobody's: the clean run.
    """
    rows = clean["blocks.0.hook_in"][:, -1][None]
    for layer in range(len(architecture.blocks)):
        resid = clean[f"blocks.{layer}.hook_in"][:, -1][None]
        usual = architecture.read(clean, layer, architecture.inputs(clean, layer))
        rows = architecture.step(clean, layer, rows, usual)
        own = [architecture.step(clean, layer, resid, read) for read in senders(clean, corrupt, layer)]
        rows = torch.cat([rows, *own])
    logits = architecture.logits_of(rows, target)
    return logits[1:] - logits[0]


@torch.no_grad()
def clean_logits(model: TransformerBridge, tokens: Tokens, target: Int[Tensor, "samples *k"]) -> Float[Tensor, "samples *k"]:
    """Logits of the targets, one or several for a sample, at the last position."""
    device = model_device(model)
    chunks = zip(tokens.to(device).split(CHUNK), target.to(device).split(CHUNK))
    return torch.cat([model(t)[:, -1].gather(1, w.view(len(w), -1)).view(w.shape) for t, w in chunks]).cpu()
