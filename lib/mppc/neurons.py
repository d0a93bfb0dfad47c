"""The neuron baseline: MPPC between neurons instead of SAE features (W §4.3.1)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Float32, Float64, Int
from numpy import ndarray
from tqdm import tqdm

from lib import models
from lib.corpus import Blocks
from lib.models.activations import batches_of, model_device
from lib.mppc import uncertainty
from lib.mppc.correlation import dense_max_pairwise_correlations
from lib.mppc.uncertainty import bootstrap, document_groups, null_offset
from lib.workbook import model_store, texts
from lib.workbook.artifacts import Resampled, layers_of, model_fields
from lib.workbook.profiles import Profile
from lib.workbook.store import Store

DIRECTIONS = ("a_to_b", "b_to_a")


@torch.no_grad()
def neuron_activations(
    name: str, blocks: Blocks, profile: Profile, folder: Path
) -> list[Float32[np.memmap, "tokens neurons"]]:
    """Neurons of every layer over the counted tokens of some blocks, as arrays on disk; see `models.neurons`."""
    model = model_store.load(name, profile)
    layers = layers_of(model, profile)
    arrays: list[np.memmap] = []
    start = 0
    n_batches = -(-len(blocks) // profile.batch_blocks)
    for tokens, mask in tqdm(batches_of(blocks, profile.batch_blocks, model_device(model)), f"neurons of {name}", n_batches):
        where = [models.neurons(model, layer) for layer in layers]
        _, cache = model.run_with_cache(tokens, names_filter=[hook for w in where for hook in w.hooks])
        values = [w.read(cache)[mask].float().cpu().numpy() for w in where]
        for layer, value in enumerate(values[len(arrays) :], len(arrays)):  # the first batch tells their widths
            shape = (blocks.n_positions, value.shape[1])
            arrays.append(np.lib.format.open_memmap(folder / f"{layer:02d}.npy", "w+", np.float32, shape))
        for array, value in zip(arrays, values, strict=True):
            array[start : start + len(value)] = value
        start += len(values[0])
    return arrays


def neuron_mppc(a: str, b: str, profile: Profile) -> dict[str, tuple[pd.DataFrame, pd.DataFrame, Resampled]]:
    """For a → b and b → a: MPPC of neurons, its null, and the MPPC in resamples of the documents.

    Frames have the columns layer, index, mppc, match_layer, match_index.
    """
    fields = {"a": model_fields(a, profile), "b": model_fields(b, profile)}
    fields |= {"layers": profile.layers, "neuron_tokens": profile.neuron_tokens} | uncertainty.constants()
    folder = Store(profile.cache_dir).get("neurons", fields, partial(_compare, a, b, profile), version=2)
    return {
        direction: (
            pd.read_parquet(folder / f"{direction}.parquet"),
            pd.read_parquet(folder / f"{direction}_null.parquet"),
            np.load(folder / f"{direction}.npy", mmap_mode="r"),
        )
        for direction in DIRECTIONS
    }


def _compare(a: str, b: str, profile: Profile, folder: Path) -> None:
    blocks = texts.load_blocks(profile, "held_out", profile.neuron_tokens)  # both models read these
    group = document_groups(blocks, profile.seed)
    places = [folder / side for side in "ab"]
    for place in places:
        place.mkdir(exist_ok=True)
    x, y = (neuron_activations(name, blocks, profile, place) for name, place in zip((a, b), places))
    device = model_store.device_of(profile)
    results = dense_max_pairwise_correlations(x, y, device=device, progress=True)
    for direction, result, own, other in zip(DIRECTIONS, results, (x, y), (y, x)):
        frame = result.to_frame()
        frame.to_parquet(folder / f"{direction}.parquet", index=False)
        sums = matched_sums(own, other, frame, group)
        np.save(folder / f"{direction}.npy", bootstrap(sums, np.bincount(group), profile.seed))
    shifted = [_Rolled(array, null_offset(len(array), profile.seed)) for array in y]
    for direction, result in zip(DIRECTIONS, dense_max_pairwise_correlations(x, shifted, device=device, progress=True)):
        result.to_frame().to_parquet(folder / f"{direction}_null.parquet", index=False)
    del x, y, shifted
    for place in places:  # gigabytes that nobody asks for again
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


class _Rolled:
    """`np.roll(array, offset, axis=0)` without a copy: tokens are given by slicing."""

    def __init__(self, array: ndarray, offset: int) -> None:
        self.array, self.offset, self.shape = array, offset, array.shape

    def __getitem__(self, tokens: slice) -> ndarray:
        places = np.arange(*tokens.indices(len(self.array))) - self.offset
        return self.array[places % len(self.array)]


def matched_sums(
    a: list[ndarray], b: list[ndarray], matches: pd.DataFrame, group: Int[ndarray, " tokens"], block: int = 8_192
) -> Float64[ndarray, "neurons groups 5"]:
    """Σx, Σy, Σx², Σy², Σxy of every neuron of `a` and its match in `b`, over the tokens of each group of documents."""
    n_groups = int(group.max()) + 1
    sums = np.full((len(matches), n_groups, 5), np.nan)
    for (own, other), rows in matches[matches["match_layer"] >= 0].groupby(["layer", "match_layer"]):
        total = np.zeros((n_groups, len(rows), 5))
        for start in range(0, len(group), block):
            part = slice(start, start + block)
            x, y = (values[part].astype(float) for values in (a[own], b[other]))
            x, y = x[:, rows["index"]], y[:, rows["match_index"]]
            member = scipy.sparse.csr_array((np.ones(len(x)), (group[part], np.arange(len(x)))), (n_groups, len(x)))
            for k, product in enumerate((x, y, x * x, y * y, x * y)):
                total[:, :, k] += member @ product
        sums[rows.index] = total.transpose(1, 0, 2)
    return sums
