"""MPPC on a GPU, by Triton (on the CPU: `lib.mppc.sparse_pearson`).

It takes what the CPU takes and finds what it finds, to less than 1e-6 in a correlation: activations are scaled to norm
at most √2 in float64 and rounded to float32 once. Sums are not float32: where one feature takes one value, equal
terms are rounded the same way each time, and a few hundred of them lose 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, Int64
from torch import Tensor

from lib.mppc.sparse_pearson import BestMatches, VaryingFeatures, transpose

T = TypeVar("T")
L2_SHARE = 0.5  # of the GPU's L2 cache for the sums of a tile: atomic adds that miss it are several times slower
L2_BYTES = 32 << 20  # where the device does not say


@dataclass(frozen=True, eq=False)
class DeviceFeatures:
    """A layer's varying features on a device, with scaled values: corr(x, y) = Σxy − offset_x·offset_y."""

    indptr: Int64[Tensor, "rows_and_1"]
    indices: Int[Tensor, "nnz"]
    values: Float32[Tensor, "nnz"]
    offset: Float64[Tensor, "varying"]
    kept: Int64[np.ndarray, "varying"]

    @property
    def device(self) -> torch.device:
        return self.values.device

    def chunks(
        self, size: int
    ) -> tuple[Int[Tensor, "chunks"], Int64[Tensor, "chunks"], Int64[np.ndarray, "rows_and_1"]]:
        """Every row cut into chunks of `size` entries: row and first entry of each, and where each row's begin."""
        n_chunks = -(-self.indptr.diff() // size)
        begin = torch.nn.functional.pad(n_chunks.cumsum(0), (1, 0))
        row = torch.repeat_interleave(n_chunks)
        start = self.indptr[row] + (torch.arange(len(row), device=self.device) - begin[row]) * size
        return row.int(), start, begin.cpu().numpy()


def place(x: VaryingFeatures, device: str | torch.device, by_feature: bool) -> DeviceFeatures:
    """A layer on the device: `by_feature` as A is wanted (rows are features), else by token, as B is.

    Raises torch.OutOfMemoryError where the device has too little memory: 8 bytes per activation of A, 6 of B.
    """
    x = transpose(x) if by_feature else x
    arrays = (x.indptr, x.indices, x.values, x.scale, x.offset)
    indptr, indices, values, scale, offset = (torch.from_numpy(array).to(device) for array in arrays)
    feature = torch.repeat_interleave(indptr.diff()) if by_feature else indices.long()
    return DeviceFeatures(indptr, indices, (values * scale[feature]).float(), offset, x.kept)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items; the next is made by a thread while the one before is in use. Memory: one item more."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item


def best_matches(a: DeviceFeatures, b: DeviceFeatures) -> tuple[BestMatches, BestMatches]:
    """What `lib.mppc.sparse_pearson.best_matches` gives; `a` lies by feature, `b` by token, both on the same device.

    By sums of products where both fire, a tile of features of A at a time; the same bits in every run. Memory beside
    them: half of the L2 cache.
    """
    from lib.mppc import triton_kernels as kernels

    n_a, n_b = len(a.kept), len(b.kept)
    l2 = torch.cuda.get_device_properties(a.device).L2_cache_size if a.device.type == "cuda" else L2_BYTES
    rows = min(n_a, max(1, int(L2_SHARE * l2 / (8 * n_b))))
    sums = torch.zeros(rows * n_b, dtype=torch.int64, device=a.device)
    best_a, best_b = (torch.full((n,), torch.iinfo(torch.int64).min, device=a.device) for n in (n_a, n_b))
    chunk_feature, chunk_start, begin = a.chunks(kernels.ENTRIES)
    for first in range(0, n_a, rows):
        last = min(first + rows, n_a)
        kernels.add_products[(int(begin[last] - begin[first]),)](
            first, int(begin[first]), chunk_feature, chunk_start,
            a.indptr, a.indices, a.values, b.indptr, b.indices, b.values, n_b, sums, kernels.ENTRIES,
        )  # fmt: skip
        grid = (last - first, -(-n_b // kernels.COLUMNS))
        kernels.keep_best[grid](first, sums, a.offset, b.offset, n_b, best_a, best_b, kernels.COLUMNS)
    return _decode(best_a), _decode(best_b)


def _decode(keys: Int64[Tensor, "features"]) -> BestMatches:
    """Correlation and match from the keys of `lib.mppc.triton_kernels.keep_best`."""
    order, last = keys >> 32, 0x7FFFFFFF
    bits = torch.where(order < 0, order ^ last, order).int()
    return bits.view(torch.float32).cpu().numpy(), (last - (keys & last)).int().cpu().numpy()
