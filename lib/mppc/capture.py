"""From a text to sparse features: a model reads it, and SAEs encode what its layers give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lib.corpus import Blocks
from lib.models.activations import iterate_activations
from lib.mppc.features import FeatureDtype, SparseFeatures, concatenated
from lib.sae.autoencoder import SAE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ENCODED_AT_ONCE = 2_048  # tokens; their dense activations take 200 MB at the paper's size


@torch.no_grad()
def capture_features(
    model: TransformerBridge, saes: Sequence[SAE], blocks: Blocks, *, batch_blocks: int,
    dtype: FeatureDtype = "float32", typical: Mapping[int, float] | None = None,
) -> list[SparseFeatures]:  # fmt: skip
    """Feature activations of several SAEs, each of one of the model's layers, over the positions of a text that count.

    The model reads `batch_blocks` blocks at a time. The features keep the blocks' digest: MPPC refuses those of another
    text, and takes those of two tokenizers if their blocks are paired (`lib.pairing`). With `typical`
    (`lib.models.typical_norms`), activations that are far longer are shortened before they are encoded.
    Memory: 6 bytes (float16: 4) per SAE and feature that fires.
    """
    parts: list[list[SparseFeatures]] = [[] for _ in saes]
    for batch in iterate_activations(model, blocks, [sae.info.layer for sae in saes], batch_blocks, typical):
        for sae, own in zip(saes, parts, strict=True):
            own += [
                SparseFeatures.from_dense(sae.encode(x), dtype) for x in batch[sae.info.layer].split(ENCODED_AT_ONCE)
            ]
    return [replace(concatenated(own), text=blocks.digest) for own in parts]
