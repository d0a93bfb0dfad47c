"""Path patching in Mamba, plain: hooks on `TransformerBridge`, one run per patch.

It is there to be read, and to check the fast one.

Sender patched, other layers' final states frozen to the clean run, everything else recomputed (W App. G). A sender at
an earlier position acts through its layer's final state, and through nothing else: first the state that it makes is
read, then that state is put into a clean run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.circuits.prompts import InductionPrompts, Tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def state_hook(layer: int) -> str:
    return f"blocks.{layer}.mixer.hook_ssm_state"


def in_proj_hook(layer: int) -> str:
    return f"blocks.{layer}.mixer.in_proj.hook_out"


def conv_hook(layer: int) -> str:
    return f"blocks.{layer}.mixer.conv1d.hook_out"


@contextmanager
def readable_states(model: TransformerBridge) -> Iterator[None]:
    """Let the hooks of the SSM state fire: the scan is then done step by step."""
    mixers = [block.mixer for block in model.blocks]
    for mixer in mixers:
        mixer.eager_scan = True
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.eager_scan = False


@torch.no_grad()
def patched_state(model: TransformerBridge, clean: Tokens, corrupt: Tokens, layer: int) -> Float[Tensor, "..."]:
    """Table 1's sender: the corrupted run's state before the last token, then the clean run's last update."""
    mixer = f"blocks.{layer}.mixer"
    states, writes, steps = state_hook(layer), f"{mixer}.hook_ssm_write", f"{mixer}.dt_proj.hook_out"
    with readable_states(model):
        _, cache = model.run_with_cache(clean, names_filter=[writes, steps])
        _, other = model.run_with_cache(corrupt, names_filter=[states])
    dt = torch.nn.functional.softplus(cache[steps][:, -1])
    decay = torch.exp(-dt[:, :, None] * model.blocks[layer].mixer.A_log.exp())
    return decay * other[states][:, :, -2] + cache[writes][:, :, -1]


@torch.no_grad()
def logits_with_state(
    model: TransformerBridge, clean: Tokens, layer: int, state: Float[Tensor, "samples d_inner d_state"]
) -> Float[Tensor, "samples vocabulary"]:
    """Logits at the last position of the clean run with another final state in `layer`, all other layers' frozen."""
    with readable_states(model):
        names = [state_hook(k) for k in range(model.cfg.n_layers)]
        _, cache = model.run_with_cache(clean, names_filter=names)

        def put(value: Tensor, hook) -> Tensor:
            value[:, :, -1] = state if hook.name == state_hook(layer) else cache[hook.name][:, :, -1]
            return value

        return model.run_with_hooks(clean, fwd_hooks=[(name, put) for name in names])[:, -1]


@torch.no_grad()
def seen(model: TransformerBridge, tokens: Tokens, hook_name: str, *edits: tuple[str, Callable]) -> Tensor:
    """What a hook gives in a run in which the `edits` change the values of other hooks in place."""
    kept = {}

    def keep(value: Tensor, hook) -> None:
        kept["value"] = value.clone()

    with readable_states(model):
        model.run_with_hooks(tokens, fwd_hooks=[*edits, (hook_name, keep)])
    return kept["value"]


def final_state_logits(model: TransformerBridge, clean: Tokens, corrupt: Tokens, layer: int) -> Tensor:
    """Table 1, one layer."""
    return logits_with_state(model, clean, layer, patched_state(model, clean, corrupt, layer))


def ssm_input_logits(model: TransformerBridge, clean: Tokens, corrupt: Tokens, layer: int, position: int) -> Tensor:
    """Table 2, one position: c = SiLU(convolution's output) of the corrupted run; it acts through the final state."""
    return _through_conv(model, clean, layer, position, seen(model, corrupt, conv_hook(layer)))


@torch.no_grad()
def conv_input_logits(
    model: TransformerBridge, clean: Tokens, corrupt: Tokens, layer: int, position: int, through: int
) -> Tensor:
    """Tables 3 and 4, one position: a corrupted conv input, let through at the output `through` only."""
    _, other = model.run_with_cache(corrupt, names_filter=[in_proj_hook(layer)])
    x = other[in_proj_hook(layer)][:, position].chunk(2, dim=-1)[0]  # the other half is the gate, which stays

    def corrupt_input(value: Tensor, hook) -> None:
        value[:, position, : x.shape[-1]] = x

    conv = seen(model, clean, conv_hook(layer), (in_proj_hook(layer), corrupt_input))
    return _through_conv(model, clean, layer, through, conv)


def plain_tables(
    model: TransformerBridge, prompts: InductionPrompts, layer: int
) -> dict[int, Float[Tensor, "places samples"]]:
    """Tables 1 to 4 of App. G, a run per patch: every layer; every role; and the convolution's inputs up to B1+1."""
    p, roles = prompts, list(prompts.positions.values())
    near, through = roles[:3], prompts.positions["B1+1"]
    with torch.no_grad():
        clean = model(p.clean)[:, -1]
    runs = {
        1: [final_state_logits(model, p.clean, p.corrupt_b, k) for k in range(model.cfg.n_layers)],
        2: [ssm_input_logits(model, p.clean, p.corrupt_b, layer, at) for at in roles],
        3: [conv_input_logits(model, p.clean, p.corrupt_b, layer, at, through) for at in near],
        4: [conv_input_logits(model, p.clean, p.corrupt_a, layer, at, through) for at in near],
    }
    return {number: torch.stack([effect(x, clean, p.target) for x in found]).cpu() for number, found in runs.items()}


def _through_conv(model: TransformerBridge, clean: Tokens, layer: int, position: int, conv: Tensor) -> Tensor:
    """Logits with the convolution's output at one position taken from `conv`, through the layer's final state."""

    def put(value: Tensor, hook) -> None:
        value[:, :, position] = conv[:, :, position]

    state = seen(model, clean, state_hook(layer), (conv_hook(layer), put))[:, :, -1]
    return logits_with_state(model, clean, layer, state)


def effect(logits: Tensor, clean_logits: Tensor, target: Int[Tensor, "samples"]) -> Float[Tensor, "samples"]:
    """logit(target | patched) − logit(target | clean), from logits at the last position."""
    return (logits - clean_logits).gather(1, target[:, None])[:, 0]
