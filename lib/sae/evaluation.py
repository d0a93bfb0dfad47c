"""How good sparse autoencoders are: sparsity, reconstruction, and what the model loses by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from lib.corpus import Blocks
from lib.models import resid_post
from lib.models.activations import batches_of, iterate_activations, model_device, stop
from lib.models.devices import fast_products
from lib.sae.autoencoder import SAE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PIECE = 1_024  # positions whose logits are there at a time
_PASS = 2_048  # positions of a pass for cross-entropy: what its layers write stays in the caches
SPLICED_POSITIONS = 16_384  # of the text, over which cross-entropies are taken: a pass through the model for each SAE


@torch.no_grad()
def evaluate_saes(
    model: TransformerBridge, saes: Sequence[SAE], blocks: Blocks, batch_blocks: int = 32
) -> pd.DataFrame:
    """Quality of each SAE of `model` on a text; one row per SAE, also kept in `sae.info.metrics`.

    l0: active features per token. explained_variance: 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖². dead: share of
    features that fire on no token of the text. ce_recovered: (ce_mean − ce_sae) / (ce_mean − ce), where ce is the
    model's cross-entropy in nats per token, ce_sae that with x̂ in the place of x at the SAE's layer, ce_mean that
    with x̄, over the text's first 16,384 positions, from products in bfloat16 where that is faster. The model reads
    `batch_blocks` blocks at a time.
    """
    saes = [sae.to(model_device(model)) for sae in saes]
    rows, means = _reconstruction(model, saes, blocks, batch_blocks)
    spliced = blocks.take(SPLICED_POSITIONS)
    for sae, row, losses in zip(saes, rows, _spliced_losses(model, saes, means, spliced, batch_blocks)):
        ce, ce_sae, ce_mean = losses
        row |= {"ce_recovered": (ce_mean - ce_sae) / (ce_mean - ce), "ce": ce, "ce_sae": ce_sae, "ce_mean": ce_mean}
        sae.info.metrics = row
    places = [{"layer": sae.info.layer, "seed": sae.info.seed} for sae in saes]
    return pd.DataFrame([place | row for place, row in zip(places, rows)])


def _reconstruction(
    model: TransformerBridge, saes: Sequence[SAE], blocks: Blocks, batch_blocks: int
) -> tuple[list[dict[str, float]], dict[int, Float[Tensor, " d_model"]]]:
    """L0, explained variance and dead share of each SAE, and the layers' mean activations."""
    layers = sorted({sae.info.layer for sae in saes})
    n, total, square = 0, dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    error, active = [0.0] * len(saes), [0] * len(saes)
    fired = [torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.b_dec.device) for sae in saes]
    batches = iterate_activations(model, blocks, layers, batch_blocks, exact=True)
    for batch in tqdm(batches, "SAEs: reconstruction", -(-len(blocks) // batch_blocks), mininterval=5):
        n += len(batch[layers[0]])
        for layer, x in batch.items():
            total[layer] += x.double().sum(0)
            square[layer] += x.double().square().sum()
        for k, sae in enumerate(saes):
            x = batch[sae.info.layer]
            f = sae.encode(x)
            error[k] += (sae.decode(f, x) - x).double().square().sum()
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
    model: TransformerBridge, saes: Sequence[SAE], means: dict[int, Tensor], blocks: Blocks, batch_blocks: int
) -> list[tuple[float, float, float]]:
    """Cross-entropy of the model, with x̂ and with x̄ spliced in, for each SAE."""
    blocks_of_model = [block.original_component for block in model.blocks]
    batch_blocks = max(1, min(batch_blocks, _PASS // blocks.mask.shape[1]))
    n, clean, losses = 0, 0.0, [0.0] * len(saes)
    batches = batches_of(blocks, batch_blocks, model_device(model))
    for tokens, mask in tqdm(batches, "SAEs: cross-entropy", -(-len(blocks) // batch_blocks), mininterval=5):
        n += int((mask[:, :-1] & mask[:, 1:]).sum())
        kept: list[Any] = []  # what each block gives, in its family's own form
        with _acting(blocks_of_model, [partial(_keep, block.forward, kept) for block in blocks_of_model]):
            clean += _loss(model, _last_stream(model, tokens), tokens, mask)
        for k, sae in enumerate(saes):
            layer = sae.info.layer
            # The blocks up to the layer give what they gave, so a pass costs only what comes after them.
            with _acting(blocks_of_model, [partial(_give, output) for output in kept[: layer + 1]]):
                losses[k] += _loss(model, _last_stream(model, tokens, mask, layer, sae), tokens, mask)
    of_mean = _mean_losses(model, means, blocks, batch_blocks)
    return [(clean / n, loss / n, of_mean[sae.info.layer] / n) for sae, loss in zip(saes, losses)]


def _beginnings(blocks: Blocks) -> tuple[Blocks, Int[np.ndarray, " blocks"]]:
    """The blocks' different beginnings, up to the last position that does not count, and the number of each block's.

    Where x̄ stands at all positions that count, what follows depends on the text only up to there, which is mostly BOS
    alone. So one row stands for all blocks that begin alike.
    """
    place = np.arange(blocks.mask.shape[1])
    end = len(place) - blocks.mask[:, ::-1].argmax(1)  # what comes later is padding, and changes nothing
    last = np.where(~blocks.mask & (place < end[:, None]), place, -1).max(1)
    begins = np.where(place <= last[:, None], 2 * blocks.tokens + blocks.mask, -1)
    kinds, kind_of_block = np.unique(begins, axis=0, return_inverse=True)
    return Blocks(np.maximum(kinds, 0) // 2, kinds % 2 == 1, np.arange(len(kinds))), kind_of_block


def _mean_losses(
    model: TransformerBridge, means: dict[int, Tensor], blocks: Blocks, batch_blocks: int
) -> dict[int, float]:
    """Summed cross-entropy with x̄ spliced in, by layer; each beginning (`_beginnings`) is read once."""
    device = model_device(model)
    beginnings, kind_of_block = _beginnings(blocks)
    counted, losses = blocks.mask[:, :-1] & blocks.mask[:, 1:], dict.fromkeys(means, 0.0)
    for layer, mean in means.items():
        batches = batches_of(beginnings, batch_blocks, device)
        streams = (
            stream for tokens, mask in batches for stream in _last_stream(model, tokens, mask, layer, mean.expand_as)
        )
        for kind, stream in enumerate(streams):
            like = kind_of_block == kind
            block, position = np.nonzero(counted[like])
            target = torch.from_numpy(blocks.tokens[like][block, position + 1].astype(np.int64)).to(device)
            likelihood = model.unembed(stream).float().log_softmax(-1)
            losses[layer] -= float(likelihood[torch.from_numpy(position).to(device), target].sum())
    return losses


def _last_stream(
    model: TransformerBridge, tokens: Int[Tensor, "blocks context"], mask: Bool[Tensor, "blocks context"] | None = None,
    layer: int = 0, replace: Callable | None = None,
) -> Float[Tensor, "blocks context d_model"]:  # fmt: skip
    """What the unembedding reads; `replace` changes resid_post of a layer at the positions of the mask.

    Products run in bfloat16 where that is faster (`fast_products`), in all passes alike. The unembedding is not among
    them: logits that were rounded would move the cross-entropy by a thousandth.
    """
    def splice(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[mask] = replace(value[mask].float()).to(value.dtype)
        return value

    spliced = [(resid_post(layer), splice)] if replace else []
    with fast_products(model_device(model)):
        return model.run_with_hooks(tokens, fwd_hooks=[*spliced, ("unembed.hook_in", stop)])


def _loss(
    model: TransformerBridge, stream: Float[Tensor, "blocks context d_model"], tokens: Int[Tensor, "blocks context"],
    mask: Bool[Tensor, "blocks context"],
) -> float:  # fmt: skip
    """Summed cross-entropy of the next token where it and the position count."""
    counted = mask[:, :-1] & mask[:, 1:]
    # The unembedding is a product for each counted position, a piece at a time: all logits of a batch would be
    # gigabytes where the vocabulary is large.
    pieces = zip(stream[:, :-1][counted].split(_PIECE), tokens[:, 1:][counted].split(_PIECE))
    return sum(float(cross_entropy(model.unembed(x).float(), y, reduction="sum")) for x, y in pieces)


def _keep(forward: Callable, kept: list[Any], *args: Any, **kwargs: Any) -> Any:
    kept.append(forward(*args, **kwargs))
    return kept[-1]


def _give(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output


@contextmanager
def _acting(modules: Sequence[Module], forwards: Sequence[Callable]) -> Iterator[None]:
    """The first modules do something else in their forward passes, while this lasts."""
    for module, forward in zip(modules, forwards):
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in zip(modules, forwards):
            del module.forward  # the class's own is there again
