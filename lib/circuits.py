"""Path patching in Mamba, fast: only the last position is computed again (W §6.1, App. G).

The sender is one layer's final SSM state h; every other layer's final state stays what it was in the clean run, and so
does everything at earlier positions. So a patch can reach the logits through the last position alone, and all layers'
patches go through one batched pass over it. The patched states come from the recurrence in closed form:

    h_T = Σ_s exp(A · Σ_{u>s} Δ_u) Δ_s B_s c_s

`lib.plain_patching` does the same by hooks, one run per patch, and gives the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge

from lib.prompts import Tokens

CHUNK = 32  # samples at a time, which bounds the memory
State = Float[Tensor, "samples d_inner d_state"]
Effects = Float[Tensor, "senders samples"]


def final_state_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Int[Tensor, "samples"], per_sample: bool = False
) -> Float[Tensor, "n_layers"]:
    """Table 1: logit of `target` with a layer's final state patched, minus the clean one; mean over samples.

    The patched state is the corrupted run's before the last token, then the clean run's last update. With `per_sample`
    the result is [n_layers, samples].
    """

    def senders(clean: _Run, corrupt: _Run) -> Iterator[tuple[int, State]]:
        for layer, mixer in enumerate(clean.mixers):
            c = torch.cat([corrupt.c[layer][:, :-1], clean.c[layer][:, -1:]], dim=1)
            yield layer, final_state(mixer, c)

    return _effects(model, clean, corrupt, target, senders, per_sample)


def ssm_input_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Int[Tensor, "samples"],
    layer: int, positions: Sequence[int], per_sample: bool = False,
) -> Float[Tensor, "n_positions"]:  # fmt: skip
    """Table 2: the same with the SSM input c of `layer` patched at one position, through the final state.

    Δ and B at that position follow from the patched c; the state then decays as in the clean run.
    """

    def senders(clean: _Run, corrupt: _Run) -> Iterator[tuple[int, State]]:
        for position in positions:
            c = clean.c[layer].clone()
            c[:, position] = corrupt.c[layer][:, position]
            yield layer, final_state(clean.mixers[layer], c)

    return _effects(model, clean, corrupt, target, senders, per_sample)


def conv_input_effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Int[Tensor, "samples"],
    layer: int, positions: Sequence[int], through: int, per_sample: bool = False,
) -> Float[Tensor, "n_positions"]:  # fmt: skip
    """Tables 3 and 4: with the convolution's input x patched at one position, through its output at `through`."""

    def senders(clean: _Run, corrupt: _Run) -> Iterator[tuple[int, State]]:
        mixer = clean.mixers[layer]
        for position in positions:
            x = clean.x[layer].clone()
            x[:, position] = corrupt.x[layer][:, position]
            c = clean.c[layer].clone()
            c[:, through] = convolved(mixer, x[:, max(0, through - 3) : through + 1])
            yield layer, final_state(mixer, c)

    return _effects(model, clean, corrupt, target, senders, per_sample)


# --------------------------------------------------------------------------------- the parts of a Mamba block


def mixers_of(model: TransformerBridge) -> list:
    """The Hugging Face mixers of a Mamba model."""
    return [layer.mixer for layer in model.original_model.backbone.layers]


def time_step(mixer, c: Float[Tensor, "... d_inner"]) -> tuple[Tensor, Tensor, Tensor]:
    """Δ [..., d_inner], B and C [..., d_state] of SSM inputs."""
    low, B, C = mixer.x_proj(c).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], dim=-1)
    return F.softplus(mixer.dt_proj(low)), B, C


def convolved(mixer, x: Float[Tensor, "samples taps d_inner"]) -> Float[Tensor, "samples d_inner"]:
    """SSM input c at the last of up to four positions from the convolution's inputs; what is missing is zero."""
    weight = mixer.conv1d.weight[:, 0, -x.shape[1] :]
    return F.silu(torch.einsum("std,dt->sd", x, weight) + mixer.conv1d.bias)


def final_state(mixer, c: Float[Tensor, "samples tokens d_inner"]) -> State:
    """State after the last token, from the SSM inputs, by the closed form of the recurrence."""
    dt, B, _ = time_step(mixer, c)
    later = dt.sum(1, keepdim=True) - dt.cumsum(1)  # Σ of Δ over the tokens after each token
    write, A = dt * c, -mixer.A_log.exp()
    parts = [torch.einsum("btd,btd,bt->bd", torch.exp(later * A[:, n]), write, B[..., n]) for n in range(A.shape[1])]
    return torch.stack(parts, dim=-1)


# ------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class _Run:
    """What one forward pass leaves behind, by layer."""

    mixers: list
    x: list[Float[Tensor, "samples tokens d_inner"]]
    c: list[Float[Tensor, "samples tokens d_inner"]]
    resid: list[Float[Tensor, "samples d_model"]]
    """The residual stream before each layer, at the last position."""


def _run(model: TransformerBridge, tokens: Tokens) -> _Run:
    mixers = mixers_of(model)
    names = [(f"blocks.{k}.hook_in", f"blocks.{k}.mixer.in_proj.hook_out", f"blocks.{k}.mixer.x_proj.hook_in")
             for k in range(len(mixers))]  # fmt: skip
    _, cache = model.run_with_cache(tokens, names_filter=[name for group in names for name in group], return_type=None)
    resid, projected, c = ([cache[group[i]] for group in names] for i in range(3))
    return _Run(mixers, [p.chunk(2, dim=-1)[0] for p in projected], c, [r[:, -1] for r in resid])


@torch.no_grad()
def _effects(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, target: Int[Tensor, "samples"],
    senders: Callable[[_Run, _Run], Iterator[tuple[int, State]]], per_sample: bool,
) -> Tensor:  # fmt: skip
    """Effects of all senders, some samples at a time."""
    if clean.shape != corrupt.shape or len(target) != len(clean):
        raise ValueError(
            f"clean {tuple(clean.shape)}, corrupt {tuple(corrupt.shape)} and {len(target)} targets do not fit together."
        )
    if model.original_model.config.model_type != "mamba":
        raise ValueError(f"this is path patching for Mamba; the model is a {model.original_model.config.model_type}.")
    device, found = next(model.parameters()).device, []
    for tokens, others, wanted in zip(*(part.to(device).split(CHUNK) for part in (clean, corrupt, target))):
        clean_run, corrupt_run = _run(model, tokens), _run(model, others)
        found.append(_last_position(model, clean_run, wanted, list(senders(clean_run, corrupt_run))))
    effects = torch.cat(found, dim=1).cpu()
    return effects if per_sample else effects.mean(1)


def _last_position(
    model: TransformerBridge, clean: _Run, target: Int[Tensor, "samples"], senders: list[tuple[int, State]]
) -> Effects:
    """logit(target | patched) − logit(target | clean) for every sender (layer, patched final state).

    A sender's rows join at its layer: before it, they are the clean ones. The first row is nobody's: the clean run.
    """
    order = sorted(range(len(senders)), key=lambda k: senders[k][0])
    ranked = [senders[k] for k in order]
    rows = clean.resid[0][None]
    for layer, block in enumerate(model.original_model.backbone.layers):
        own = [state for sender, state in ranked if sender == layer]
        states = final_state(block.mixer, clean.c[layer])[None].expand(len(rows), -1, -1, -1)
        rows = torch.cat([rows, clean.resid[layer].expand(len(own), -1, -1)])
        rows = rows + _step(block, rows, torch.cat([states, *(s[None] for s in own)]), clean.x[layer][:, -4:-1])
    logits = _logit(model, rows, target)
    effects = torch.empty(len(senders), len(target), device=rows.device)
    effects[order] = logits[1:] - logits[0]
    return effects


def _step(
    block, resid: Float[Tensor, "rows samples d_model"], state: Float[Tensor, "rows samples d_inner d_state"],
    earlier: Float[Tensor, "samples 3 d_inner"],
) -> Float[Tensor, "rows samples d_model"]:  # fmt: skip
    """What a block adds to the residual stream at the last position, given its final state and earlier conv inputs."""
    mixer = block.mixer
    x, gate = mixer.in_proj(block.norm(resid)).chunk(2, dim=-1)
    window = torch.cat([earlier.expand(len(x), -1, -1, -1), x[:, :, None]], dim=2)
    c = convolved(mixer, window.flatten(0, 1)).unflatten(0, x.shape[:2])
    _, _, C = time_step(mixer, c)
    y = torch.einsum("rsdn,rsn->rsd", state, C) + mixer.D * c
    return mixer.out_proj(y * F.silu(gate))


def _logit(model: TransformerBridge, resid: Float[Tensor, "rows samples d_model"], target: Tensor) -> Effects:
    """Logit of one token per sample; no other is computed."""
    final = model.original_model.backbone.norm_f(resid)
    return (final * model.original_model.lm_head.weight[target]).sum(-1)


@torch.no_grad()
def clean_logits(model: TransformerBridge, clean: Tokens, target: Int[Tensor, "samples"]) -> Float[Tensor, "samples"]:
    """Logit of `target` at the last position."""
    device = next(model.parameters()).device
    chunks = zip(clean.to(device).split(CHUNK), target.to(device).split(CHUNK))
    return torch.cat([model(t)[:, -1].gather(1, w[:, None])[:, 0] for t, w in chunks]).cpu()
