"""Path patching over the last position, in a model of any family that it is offered for (W §6.1, App. G).

A layer's mixer (SSM, WKV, attention) takes an *input* from every position and hands the last one its *output*. The
sender is one layer's mixer output; those of all other layers stay what they were in the clean run, and so does
everything at earlier positions. So a patch can reach the logits through the last position alone, and the patches of all
layers go through one batched pass over it. `lib.circuits.plain_patching` does the same by hooks, one run per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.circuits.prompts import Tokens
from lib.models.activations import model_device, resid_post
from lib.models.families import Cache, Patchable

HELD = 2**21  # numbers of the residual stream of a layer that are held at a time, which bounds the memory
Effects = Float[Tensor, "senders samples"]


Senders = Callable[[Cache, Cache, int], Iterable[Tensor]]
"""From the clean run, the corrupted run and a layer: that layer's patched mixer outputs, one for each sender."""


@torch.no_grad()
def patch_effects(
    architecture: Patchable, clean: Tokens, corrupt: Tokens, target: Int[Tensor, "samples"], senders: Senders
) -> Effects:
    """logit(target | patched) − logit(target | clean) at the last position, for every sender (by layer) and sample.

    Memory: two runs' hooks for a chunk of samples (`in_chunks`), and one layer's patched mixer outputs. Raises
    `ValueError` where shapes do not fit together.
    """
    if clean.shape != corrupt.shape or len(target) != len(clean):
        raise ValueError(
            f"clean {tuple(clean.shape)}, corrupt {tuple(corrupt.shape)} and {len(target)} targets do not fit together."
        )
    found = []
    for tokens, others, wanted in in_chunks(architecture.model, clean, corrupt, target):
        clean_run, corrupt_run = run(architecture, tokens), run(architecture, others)
        found.append(_last_position(architecture, clean_run, corrupt_run, wanted, senders))
    return torch.cat(found, dim=1).cpu()


_kept: ContextVar[dict[bytes, Cache] | None] = ContextVar("kept runs", default=None)


@contextmanager
def runs_kept() -> Iterator[None]:
    """Inside, one model is patched, and runs on the same tokens once, however much is measured there.

    Memory: the hooks of all its runs, so the prompts have to be one chunk (`in_chunks`).
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


@torch.no_grad()
def run(architecture: Patchable, tokens: Tokens) -> Cache:
    """What `Patchable.run` gives, from the first such run if `runs_kept`."""
    if (kept := _kept.get()) is None:
        return architecture.run(tokens)
    key = tokens.cpu().numpy().tobytes()
    if key not in kept:
        kept[key] = architecture.run(tokens)
    return kept[key]


def in_chunks(model: TransformerBridge, tokens: Tokens, *more: Tensor) -> list[tuple[Tensor, ...]]:
    """Tokens, and what else belongs to each sample, for as many samples at a time as memory allows, on the device."""
    device, at_a_time = model_device(model), max(1, HELD // (tokens.shape[1] * model.cfg.d_model))
    return list(zip(*(part.to(device).split(at_a_time) for part in (tokens, *more)), strict=True))


def _last_position(
    architecture: Patchable, clean: Cache, corrupt: Cache, target: Int[Tensor, "samples"], senders: Senders
) -> Effects:
    """One pass for all senders, some samples.

    A sender's row joins at its layer: before it, it is the clean one. The first row is nobody's: the clean run.
    """
    rows = clean["blocks.0.hook_in"][:, -1][None]
    for layer in range(len(architecture.blocks)):
        resid = clean[f"blocks.{layer}.hook_in"][:, -1][None]
        usual = architecture.mixer_output(clean, layer, architecture.inputs(clean, layer))
        rows = architecture.step(clean, layer, rows, usual)
        own = [architecture.step(clean, layer, resid, patched) for patched in senders(clean, corrupt, layer)]
        rows = torch.cat([rows, *own])
    logits = architecture.logits_of(rows, target)
    return logits[1:] - logits[0]


@torch.no_grad()
def last_logits(architecture: Patchable, tokens: Tokens, target: Int[Tensor, "samples"]) -> Float[Tensor, "samples"]:
    """Logit of one target per sample at the last position, of as many samples as go through at a time."""
    resid = run(architecture, tokens)[resid_post(len(architecture.blocks) - 1)]
    return architecture.logits_of(resid[:, -1][None], target)[0].cpu()


@torch.no_grad()
def clean_logits(
    model: TransformerBridge, tokens: Tokens, target: Int[Tensor, "samples *k"]
) -> Float[Tensor, "samples *k"]:
    """Logits of the targets, one or several for a sample, at the last position."""
    chunks = in_chunks(model, tokens, target)
    return torch.cat([model(t)[:, -1].gather(1, w.view(len(w), -1)).view(w.shape) for t, w in chunks]).cpu()
