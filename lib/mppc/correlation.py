"""Max pairwise Pearson correlation (MPPC; Wang et al. 2025, §4.2.2, eq. 8).

For feature i of model A, over the same tokens, ρ_i = max over all features j of all layers of model B of the signed
Pearson correlation of the two activation series. It is not symmetric, so every function here gives both directions.

A feature that is the same on every token, dead ones included, has no correlation: NaN, and it is nobody's match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numba
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from tqdm import tqdm

from lib.mppc.features import SparseFeatures, require_same_text, rolled
from lib.mppc.sparse_pearson import best_matches, transpose, varying_features

Sparse = SparseFeatures | scipy.sparse.sparray | scipy.sparse.spmatrix


@dataclass(frozen=True, eq=False)
class MaxCorrelation:
    """The best match of every feature of one model; the layers' features lie one after the other."""

    value: Float32[np.ndarray, "features"]
    """MPPC; NaN where undefined."""
    layer: Int32[np.ndarray, "features"]
    """Position, in the other model's sequence, of the layer with the best match; -1 where undefined."""
    index: Int32[np.ndarray, "features"]
    """Index of the best match in that layer; -1 where undefined."""
    offsets: Int64[np.ndarray, "layers_and_1"]
    """Layer l has the entries `offsets[l]:offsets[l + 1]`."""

    def of_layer(self, layer: int) -> MaxCorrelation:
        """The part of one layer."""
        start, stop = self.offsets[layer : layer + 2]
        parts = (array[start:stop] for array in (self.value, self.layer, self.index))
        return MaxCorrelation(*parts, np.array([0, stop - start]))

    @classmethod
    def undefined(cls, sizes: Sequence[int]) -> MaxCorrelation:
        """No matches yet, for layers of so many features."""
        offsets = np.cumsum([0, *sizes])
        absent = np.full(offsets[-1], -1, np.int32)
        return cls(np.full(offsets[-1], np.nan, np.float32), absent, absent.copy(), offsets)

    def improve(self, at, value, match_layer, match_index) -> None:
        """Put other matches of the features `at`, counted over all layers, where they are better than what is here."""
        better = ~(value <= self.value[at])  # NaN is nothing yet
        self.value[at[better]] = np.clip(value[better], -1, 1)
        self.layer[at[better]] = np.broadcast_to(match_layer, value.shape)[better]
        self.index[at[better]] = match_index[better]

    def to_frame(self) -> pd.DataFrame:
        """A row per feature: layer, index, mppc, match_layer, match_index."""
        sizes = np.diff(self.offsets)
        layer = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        index = (np.arange(len(layer)) - self.offsets[layer]).astype(np.int32)
        columns = dict(layer=layer, index=index, mppc=self.value)
        return pd.DataFrame(columns | dict(match_layer=self.layer, match_index=self.index))


def max_pairwise_correlation(a: Sequence[Sparse], b: Sequence[Sparse], **options) -> MaxCorrelation:
    """MPPC of every feature of `a` with all features of `b`; see `max_pairwise_correlations`."""
    return max_pairwise_correlations(a, b, **options)[0]


def max_pairwise_correlations(
    a: Sequence[Sparse], b: Sequence[Sparse], *, shift: int = 0, threads: int | None = None,
    device: str | torch.device = "cpu", progress: bool = False,
) -> tuple[MaxCorrelation, MaxCorrelation]:  # fmt: skip
    """MPPC of `a` with `b` and of `b` with `a`, from one pass over each pair of layers.

    `a` and `b` hold one matrix [n_tokens, d_sae] per layer, all of them over the same tokens; values count as float32.
    Equal correlations (in float32) go to the first layer, then to the first feature. Products are summed in float64
    and without cancellation: results agree with the float64 definition to 1e-6.

    Memory: 8 bytes per entry of all of `a`, 6 per entry of one layer of `b` (8 above 65,536 features), 80 bytes per
    feature of `b` and thread; never tokens by features, never features by features. Give the smaller model as `a`.
    Features that fire on more than half of the tokens count as firing on all. With a `shift`, b's tokens come so many
    later, and those that fall off the end first (the null); one layer more of `b` is in memory then.
    With a GPU as `device`, and Triton: the same to 1e-6, by `lib.mppc.gpu`; all of `a` and two layers of `b` lie on it.

    Raises ValueError for an empty sequence, differing numbers of tokens, activations that are not finite, or features
    that are known to be of different texts.
    """
    _check_tokens(a, b)
    to_b, to_a = (MaxCorrelation.undefined([layer.shape[1] for layer in side]) for side in (a, b))
    by_feature, by_token, in_turn, matches = _engine(torch.device(device), threads or numba.get_num_threads())
    transposed = [by_feature(varying_features(_features(layer))) for layer in a]
    layers_b = in_turn(by_token(varying_features(rolled(_features(layer), shift))) for layer in b)
    for layer_b, rows in enumerate(tqdm(layers_b, "MPPC, layers of b", len(b), disable=not progress)):
        for layer_a, columns in enumerate(transposed):
            if len(rows.kept) and len(columns.kept):
                (value_a, match_a), (value_b, match_b) = matches(columns, rows)
                to_b.improve(to_b.offsets[layer_a] + columns.kept, value_a, layer_b, rows.kept[match_a])
                to_a.improve(to_a.offsets[layer_b] + rows.kept, value_b, layer_a, columns.kept[match_b])
    return to_b, to_a


def merge_tiles(
    tiles: Iterable[tuple[tuple[Sequence[int], Sequence[int]], tuple[MaxCorrelation, MaxCorrelation]]],
    sizes_a: Sequence[int], sizes_b: Sequence[int],
) -> tuple[MaxCorrelation, MaxCorrelation]:  # fmt: skip
    """`max_pairwise_correlations` over all layers, ties included, from tiles: some layers of `a` with some of `b`.

    Each tile is given with its layers, tiles in the layers' order; `sizes_…` are each layer's number of features.
    """
    whole = MaxCorrelation.undefined(sizes_a), MaxCorrelation.undefined(sizes_b)
    for layers, tile in tiles:
        for found, part, own, other in zip(whole, tile, layers, layers[::-1]):
            has_match = np.flatnonzero(part.layer >= 0)
            at = found.offsets[own[0]] + has_match
            found.improve(at, part.value[has_match], other[0] + part.layer[has_match], part.index[has_match])
    return whole


def _engine(device: torch.device, threads: int) -> tuple[Callable, Callable, Callable, Callable]:
    """What makes layers of `a` and of `b` ready on a device, gives those of `b` in turn, and matches two of them."""
    if device.type != "cuda" or not find_spec("triton"):
        return transpose, lambda layer: layer, iter, partial(best_matches, threads=threads)
    from lib.mppc import gpu  # where there is one: who computes on the CPU need not read it

    by_feature, by_token = (partial(gpu.place, device=device, by_feature=side) for side in (True, False))
    return by_feature, by_token, gpu.ahead, gpu.best_matches  # `ahead`: the CPU makes the next layer ready


def _features(layer: Sparse) -> SparseFeatures:
    return layer if isinstance(layer, SparseFeatures) else SparseFeatures.from_scipy(layer)


def _check_tokens(a, b) -> None:
    if not len(a) or not len(b):
        raise ValueError("MPPC needs at least one layer of either model.")
    counts = sorted({layer.shape[0] for layer in (*a, *b)})
    if counts[0] == 0:
        raise ValueError("MPPC needs activations over at least one token.")
    if len(counts) > 1:
        raise ValueError(f"MPPC pairs tokens by position, but the layers have {' and '.join(map(str, counts))} tokens.")
    require_same_text(*(layer.text for layer in (*a, *b) if isinstance(layer, SparseFeatures)))


Dense = np.ndarray | torch.Tensor


def dense_max_pairwise_correlations(
    a: Sequence[Dense],
    b: Sequence[Dense],
    *,
    block_tokens: int = 4096,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> tuple[MaxCorrelation, MaxCorrelation]:
    """MPPC of `a` with `b` and of `b` with `a` for dense activations, such as neurons (the neuron baseline of Fig. 3a).

    `a` and `b` hold one array [n_tokens, n_neurons] per layer: NumPy, a memory map, a tensor, or whatever has a shape
    and gives tokens by slicing. Everything is float64: in float32 one large activation swallows the small products
    added to it (errors of 5e-6). Ties, undefined values and errors are those of `max_pairwise_correlations`.

    Memory: some 30 bytes per pair of neurons of one pair of layers, and two blocks of tokens.
    """
    _check_tokens(a, b)
    to_b, to_a = (MaxCorrelation.undefined([layer.shape[1] for layer in side]) for side in (a, b))
    blocks_a, blocks_b = ([_Blocks(layer, block_tokens, device) for layer in layers] for layers in (a, b))
    for layer_a, x in enumerate(tqdm(blocks_a, desc="MPPC, layers of a", disable=not progress)):
        for layer_b, y in enumerate(blocks_b):
            if len(x.kept) and len(y.kept):
                corr = _dense_correlations(x, y)
                match_a, match_b = corr.argmax(1)[x.kept], corr.argmax(0)[y.kept]
                to_b.improve(to_b.offsets[layer_a] + x.kept, corr[x.kept, match_a], layer_b, match_a)
                to_a.improve(to_a.offsets[layer_b] + y.kept, corr[match_b, y.kept], layer_a, match_b)
    return to_b, to_a


class _Blocks:
    """Blocks of tokens of one layer, centred over all tokens, so that products add up to covariances."""

    def __init__(self, layer: Dense, block_tokens: int, device: str | torch.device) -> None:
        self.layer, self.block_tokens, self.device = layer, block_tokens, device
        self.mean, self.norm, self.constant = self._moments()
        self.kept = np.flatnonzero(~self.constant.cpu().numpy())

    def _read(self) -> Iterator[Float64[torch.Tensor, "block neurons"]]:
        for start in range(0, self.layer.shape[0], self.block_tokens):
            block = self.layer[start : start + self.block_tokens]
            tensor = block.detach() if isinstance(block, torch.Tensor) else torch.from_numpy(np.array(block, float))
            yield tensor.to(self.device, torch.float64)

    def _moments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean, norm after centring, and whether constant: blocks are merged as by Chan, Golub and LeVeque (1983)."""
        first, seen = next(self._read())[0].clone(), 0
        mean, square, varies = torch.zeros_like(first), torch.zeros_like(first), first != first
        for block in self._read():
            delta, share = block.mean(0) - mean, len(block) / (seen + len(block))
            square += ((block - block.mean(0)) ** 2).sum(0) + delta**2 * seen * share
            mean += delta * share
            varies |= (block != first).any(0)
            seen += len(block)
        if not square.isfinite().all():
            raise ValueError("an activation is NaN or infinite; check the model that it comes from.")
        return mean, square.sqrt(), ~varies

    def __iter__(self) -> Iterator[Float64[torch.Tensor, "block neurons"]]:
        return (block - self.mean for block in self._read())


def _dense_correlations(x: _Blocks, y: _Blocks) -> Float32[np.ndarray, "x y"]:
    """All correlations of two layers; -inf where one is constant."""
    corr = torch.zeros(len(x.mean), len(y.mean), dtype=torch.float64, device=x.device)
    for u, v in zip(x, y):
        corr.addmm_(u.T, v)
    corr /= x.norm[:, None] * y.norm
    corr[x.constant] = -torch.inf
    corr[:, y.constant] = -torch.inf
    return corr.float().cpu().numpy()
