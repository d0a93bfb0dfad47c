"""Residual-stream activations: one forward pass feeds every layer, a shuffle buffer mixes the text (W App. A.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from lib.corpus import Blocks
from lib.models.devices import fast_products

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

log = logging.getLogger("workbook.activations")
FAR = 10  # times the median norm: further out lies no ordinary token
TYPICAL_POSITIONS = 4_096  # of a text, over which the median norm is taken
Activations = dict[int, Float[Tensor, "positions d_model"]]  # by layer; a row is the same token in all


def resid_post(layer: int) -> str:
    """Hook of the residual stream after block `layer`, in every family: Float[batch, time, d_model]."""
    return f"blocks.{layer}.hook_out"


def model_device(model: TransformerBridge) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def batches_of(blocks: Blocks, batch_blocks: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and mask, `batch_blocks` at a time, cut after the last position that counts.

    Models that read from left to right are not changed by what is cut off; padding just costs time.
    """
    for first in range(0, len(blocks), batch_blocks):
        mask = blocks.mask[first : first + batch_blocks]
        width = int(np.flatnonzero(mask.any(0)).max(initial=0)) + 1
        tokens = torch.from_numpy(blocks.tokens[first : first + batch_blocks, :width].astype(np.int64))
        yield tokens.to(device), torch.from_numpy(mask[:, :width]).to(device)


def stop(value: Tensor, hook: object) -> NoReturn:
    """A hook that ends the forward pass, which then returns what passes here."""
    from transformer_lens.model_bridge.exceptions import StopAtLayerException

    raise StopAtLayerException(value)


@torch.no_grad()
def values_at(
    model: TransformerBridge, tokens: Int[Tensor, "blocks context"], hooks: Sequence[str], last: int
) -> dict[str, Tensor]:
    """What passes these hooks; the forward pass ends with block `last`, before the unembedding."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor, object], None]:
        def hook(value: Tensor, hook: object) -> None:
            found[name] = value.detach()

        return hook

    watched = [(name, keep(name)) for name in hooks]
    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[*watched, (resid_post(last), stop)])
    return found


def run_to(
    model: TransformerBridge, tokens: Int[Tensor, "blocks context"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "blocks context d_model"]]:
    """resid_post of the given layers."""
    found = values_at(model, tokens, [resid_post(layer) for layer in layers], max(layers))
    return {layer: found[resid_post(layer)].float() for layer in layers}


def iterate_activations(
    model: TransformerBridge, blocks: Blocks, layers: Sequence[int], batch_blocks: int,
    typical: Mapping[int, float] | None = None, exact: bool = False,
) -> Iterator[Activations]:  # fmt: skip
    """Yield the layers' resid_post at the positions that count, in text order, `batch_blocks` blocks at a time.

    Values are float32 on the model's device. Every layer's rows belong to the same tokens. With `typical`
    (`typical_norms`), those that are far longer are shortened to it. Unless `exact`, products run in bfloat16 where
    that is faster (`fast_products`); what this changes is less than a thousandth of the variance.
    """
    device = model_device(model)
    for tokens, mask in batches_of(blocks, batch_blocks, device):
        with nullcontext() if exact else fast_products(device):
            found = {layer: value[mask] for layer, value in run_to(model, tokens, layers).items()}
        yield {k: shortened(x, typical[k]) for k, x in found.items()} if typical else found


def shortened(x: Float[Tensor, "positions d_model"], typical: float) -> Float[Tensor, "positions d_model"]:
    """The same rows, those that are more than ten times longer than `typical` brought to that length.

    Real models write vectors of a hundred times the usual length at a few tokens (massive activations, Sun et al.
    2402.17762). One in a thousand of them is most of the squared error and decides every correlation.
    """
    norms = x.norm(dim=1, keepdim=True)
    return torch.where(norms > FAR * typical, x * (typical / norms), x)


def typical_norms(
    model: TransformerBridge, blocks: Blocks, layers: Sequence[int], batch_blocks: int
) -> dict[int, float]:
    """Each layer's median norm of resid_post, over the first 4,096 positions of a text that count.

    Says by a warning how many of them are more than ten times as long.
    """
    parts = list(iterate_activations(model, blocks.take(TYPICAL_POSITIONS), layers, batch_blocks))
    norms = {layer: torch.cat([part[layer].norm(dim=1) for part in parts]) for layer in layers}
    typical = {layer: float(found.median()) for layer, found in norms.items()}
    far = max(float((found > FAR * typical[layer]).float().mean()) for layer, found in norms.items())
    if far:
        log.warning(
            "At up to %.2g %% of its positions the residual stream of %s is over %d times as long as at the median: "
            "there it is shortened to the median's length.", 100 * far, model.cfg.model_name, FAR,
        )  # fmt: skip
    return typical


class ShuffleBuffer:
    """Endless random batches of activations of all layers, mixed anew at every refill (paper, App. A.1).

    Blocks are read in a random order, a new one in each epoch. A refill reads about two thirds of `buffer_tokens`
    positions. Half of them, and the half that the previous refill left behind, are served in random order; the other
    half is left behind. So a batch mixes two refills of text, an epoch serves every activation once (but for a rest
    of less than one batch in each refill), and nothing lies in the buffer for longer than one refill. Going on after
    a kill is therefore exact: the state is the number of refills done, and one refill of text is read again.

    Memory: about buffer_tokens · n_layers · d_model · 4 bytes (mini Transformer 134 MB, the paper's Mamba 37 GB),
    and for a moment one layer's share of it again.
    """

    def __init__(
        self, model: TransformerBridge, blocks: Blocks, layers: Sequence[int], *,
        buffer_tokens: int, batch_size: int, batch_blocks: int, seed: int = 0, refills_done: int = 0,
        typical: Mapping[int, float] | None = None,
    ) -> None:  # fmt: skip
        if buffer_tokens < 4 * batch_size:
            raise ValueError(f"buffer_tokens={buffer_tokens} must hold at least four batches of {batch_size} tokens.")
        if not blocks.n_positions:
            raise ValueError("the text holds no position that counts, so there is nothing to train on.")
        self.model, self.blocks, self.layers = model, blocks, tuple(layers)
        self.batch_size, self.batch_blocks, self.seed = batch_size, batch_blocks, seed
        self.typical = typical
        self.lengths = blocks.mask.sum(1)
        self.blocks_per_refill = max(1, int(buffer_tokens * 2 / 3 / self.lengths.mean()))
        self.refills_done = refills_done
        last = self._read(refills_done - 1) if refills_done else ()
        self._left = {layer: x.index_select(0, later) for layer, (x, _, later) in last}

    def next_refill(self) -> dict[int, Float[Tensor, "batches batch d_model"]]:
        """Read one refill of text; return its batches by layer, as memory of the caller's own."""
        served: dict[int, Tensor] = {}
        for layer, (x, now, later) in self._read(self.refills_done):
            left = self._left.pop(layer, x[:0])
            rows = torch.cat([now, len(x) + torch.arange(len(left), device=now.device)])
            n_batches = len(rows) // self.batch_size
            rows = rows[self._permutation(len(rows), 2, self.refills_done)][: n_batches * self.batch_size]
            served[layer] = torch.cat([x, left]).index_select(0, rows).unflatten(0, (n_batches, self.batch_size))
            self._left[layer] = x.index_select(0, later)
        self.refills_done += 1
        return served

    def _read(self, refill: int) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
        """Activations of one refill of text, layer by layer, and the rows of its two random halves (now, later)."""
        numbers = self._block_numbers(refill)
        text = self.blocks[numbers]
        parts = list(iterate_activations(self.model, text, self.layers, self.batch_blocks, self.typical))
        for layer in self.layers:
            x = torch.cat([part.pop(layer) for part in parts])
            order = self._permutation(len(x), 1, refill)
            half = len(x) // 2
            yield layer, (x, order[:half], order[half:])

    def _block_numbers(self, refill: int) -> Int[ndarray, " blocks"]:
        """Which blocks a refill reads, longest first, so that blocks of like length share a forward pass."""
        n = len(self.blocks)
        places = np.arange(refill * self.blocks_per_refill, (refill + 1) * self.blocks_per_refill)
        orders = {epoch: self._random(0, epoch).permutation(n) for epoch in np.unique(places // n)}
        numbers = np.array([orders[place // n][place % n] for place in places])
        return numbers[np.argsort(-self.lengths[numbers], kind="stable")]

    def _permutation(self, n: int, *key: int) -> Int[Tensor, " n"]:
        """The same for all layers."""
        return torch.from_numpy(self._random(*key).permutation(n)).to(model_device(self.model))

    def _random(self, *key: int | np.integer) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])
