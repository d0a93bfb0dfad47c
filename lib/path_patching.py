"""Path patching over the last position, in any of the three architectures (W §6.1, App. G).

A layer's mixer (SSM, WKV, attention) takes an *input* from every position and hands the last one what it *reads* from
them. The sender is what one layer reads; what every other layer reads stays what it was in the clean run, and so does
everything at earlier positions. So a patch can reach the logits through the last position alone, and the patches of all
layers go through one batched pass over it. `lib.plain_patching` does the same by hooks, one run per patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from lib.prompts import Tokens

CHUNK = 32  # samples at a time, which bounds the memory
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
    def step(self, cache: Cache, layer: int, rows: Rows, read: Float[Tensor, "rows samples ..."]) -> Rows:
        """The residual stream after the block at the last position, from the one before it and what is read."""

    def local(self, cache: Cache, layer: int) -> Float[Tensor, "samples tokens width"]:
        """What is mixed over neighbouring positions before the mixer."""
        raise ValueError(f"a {self.model.original_model.config.model_type} mixes no neighbouring positions.")

    def short_mix(self, layer: int, local: Float[Tensor, "samples window width"]) -> Float[Tensor, "samples ..."]:
        """The mixer's input at the last position of a window; positions before the prompt are left out."""
        raise ValueError(f"a {self.model.original_model.config.model_type} mixes no neighbouring positions.")

    def run(self, tokens: Tokens) -> Cache:
        """One forward pass."""
        layers = range(len(self.blocks))
        names = [name for k in layers for name in (f"blocks.{k}.hook_in", *self.hooks(k))]
        return self.model.run_with_cache(tokens, names_filter=names, return_type=None)[1]

    def logits_of(self, rows: Rows, target: Int[Tensor, "samples"]) -> Float[Tensor, "rows samples"]:
        """Logit of one token per sample; no other is computed."""
        head = self.model.original_model.get_output_embeddings()
        bias = 0 if getattr(head, "bias", None) is None else head.bias[target]
        return (self.norm(rows) * head.weight[target]).sum(-1) + bias


Senders = Callable[[Cache, Cache], Iterator[tuple[int, Tensor]]]


@torch.no_grad()
def patch_effects(
    architecture: Architecture, clean: Tokens, corrupt: Tokens, target: Int[Tensor, "samples"], senders: Senders
) -> Effects:
    """logit(target | patched) − logit(target | clean) at the last position, for every sender and sample.

    `senders` gives, from the clean and the corrupted run, pairs of a layer and what it reads when patched.
    Raises `ValueError` where shapes do not fit together.
    """
    if clean.shape != corrupt.shape or len(target) != len(clean):
        raise ValueError(
            f"clean {tuple(clean.shape)}, corrupt {tuple(corrupt.shape)} and {len(target)} targets do not fit together."
        )
    device, found = next(architecture.model.parameters()).device, []
    for tokens, others, wanted in zip(*(part.to(device).split(CHUNK) for part in (clean, corrupt, target))):
        clean_run, corrupt_run = architecture.run(tokens), architecture.run(others)
        found.append(_last_position(architecture, clean_run, wanted, list(senders(clean_run, corrupt_run))))
    return torch.cat(found, dim=1).cpu()


def _last_position(
    architecture: Architecture, clean: Cache, target: Int[Tensor, "samples"], senders: list[tuple[int, Tensor]]
) -> Effects:
    """One pass for all senders.

    A sender's rows join at its layer: before it, they are the clean ones. The first row is nobody's: the clean run.
    """
    order = sorted(range(len(senders)), key=lambda k: senders[k][0])
    ranked = [senders[k] for k in order]
    resid = [clean[f"blocks.{layer}.hook_in"][:, -1] for layer in range(len(architecture.blocks))]
    rows = resid[0][None]
    for layer in range(len(resid)):
        own = [read for sender, read in ranked if sender == layer]
        usual = architecture.read(clean, layer, architecture.inputs(clean, layer))
        reads = torch.cat([usual.expand(len(rows), *usual.shape), *(read[None] for read in own)])
        rows = torch.cat([rows, resid[layer].expand(len(own), -1, -1)])
        rows = architecture.step(clean, layer, rows, reads)
    logits = architecture.logits_of(rows, target)
    effects = torch.empty(len(senders), len(target), device=rows.device)
    effects[order] = logits[1:] - logits[0]
    return effects


@torch.no_grad()
def clean_logits(model: TransformerBridge, tokens: Tokens, target: Int[Tensor, "samples"]) -> Float[Tensor, "samples"]:
    """Logit of `target` at the last position."""
    device = next(model.parameters()).device
    chunks = zip(tokens.to(device).split(CHUNK), target.to(device).split(CHUNK))
    return torch.cat([model(t)[:, -1].gather(1, w[:, None])[:, 0] for t, w in chunks]).cpu()
