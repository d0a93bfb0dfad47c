"""The neuron baseline: MPPC between neurons instead of SAE features (W §4.3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Float32, Float64, Int
from numpy import ndarray
from tqdm import tqdm

from lib import models
from lib.corpus import Blocks
from lib.models.activations import batches_of, model_device, values_at
from lib.mppc.correlation import dense_max_pairwise_correlations
from lib.mppc.uncertainty import Resampled, bootstrap, null_offset

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@torch.no_grad()
def neuron_activations(
    model: TransformerBridge, blocks: Blocks, layers: Sequence[int], folder: Path, batch_blocks: int = 32
) -> list[Float32[np.memmap, "tokens neurons"]]:
    """Neurons of some layers over the counted tokens of some blocks, as arrays on disk; see `models.neurons`."""
    places = [models.neurons(model, layer) for layer in layers]
    hooks = [hook for place in places for hook in place.hooks]
    arrays: list[np.memmap] = []
    start = 0
    batches = batches_of(blocks, batch_blocks, model_device(model))
    for tokens, mask in tqdm(batches, "neurons", -(-len(blocks) // batch_blocks)):
        cache = values_at(model, tokens, hooks, max(layers))
        values = [place.read(cache)[mask].float().cpu().numpy() for place in places]
        for layer, value in enumerate(values[len(arrays) :], len(arrays)):  # the first batch tells their widths
            shape = (blocks.n_positions, value.shape[1])
            arrays.append(np.lib.format.open_memmap(folder / f"{layer:02d}.npy", "w+", np.float32, shape))
        for array, value in zip(arrays, values, strict=True):
            array[start : start + len(value)] = value
        start += len(values[0])
    return arrays


class Rolled:
    """`np.roll(array, offset, axis=0)` without a copy: tokens are given by slicing."""

    def __init__(self, array: ndarray, offset: int) -> None:
        self.array, self.offset, self.shape = array, offset, array.shape

    def __getitem__(self, tokens: slice) -> ndarray:
        first, end, _ = tokens.indices(len(self.array))
        start = (first - self.offset) % len(self.array)
        found = self.array[start : start + end - first]
        rest = end - first - len(found)  # begins the array again
        return np.concatenate([found, self.array[:rest]]) if rest else found


def matched_sums(
    a: list[ndarray], b: list[ndarray], matches: pd.DataFrame, group: Int[ndarray, " tokens"], block: int = 8_192
) -> Float64[ndarray, "neurons groups 5"]:
    """Σx, Σy, Σx², Σy², Σxy of every neuron of `a` and its match in `b`, over each group's tokens."""
    n_groups = int(group.max()) + 1
    sums = np.full((len(matches), n_groups, 5), np.nan)
    for (own, other), rows in matches[matches["match_layer"] >= 0].groupby(["layer", "match_layer"]):
        total = np.zeros((n_groups, len(rows), 5))
        for start in range(0, len(group), block):
            part = slice(start, start + block)
            x = a[own][part][:, rows["index"]].astype(float)
            y = b[other][part][:, rows["match_index"]].astype(float)
            member = scipy.sparse.csr_array((np.ones(len(x)), (group[part], np.arange(len(x)))), (n_groups, len(x)))
            for k, product in enumerate((x, y, x * x, y * y, x * y)):
                total[:, :, k] += member @ product
        sums[rows.index] = total.transpose(1, 0, 2)
    return sums


def matched(
    x: list[ndarray], y: list[ndarray], group: Int[ndarray, " tokens"], seed: int, device: str = "cpu"
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, Resampled]]:
    """For `x` to `y` and `y` to `x`: MPPC of neurons, its null, and the MPPC in resamples of the documents.

    Frames have the columns layer, index, mppc, match_layer, match_index.
    """
    results = dense_max_pairwise_correlations(x, y, device=device, progress=True)
    shifted = [Rolled(array, null_offset(len(array), seed)) for array in y]
    nulls = dense_max_pairwise_correlations(x, shifted, device=device, progress=True)
    for result, null, own, other in zip(results, nulls, (x, y), (y, x), strict=True):
        frame = result.to_frame()
        sums = matched_sums(own, other, frame, group)
        yield frame, null.to_frame(), bootstrap(sums, np.bincount(group), seed)
