"""How long a model's activations usually are, where a few tokens have vectors of a hundred times the usual length."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib.corpus import Blocks
from lib.models.activations import FAR, iterate_activations

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

log = logging.getLogger("workbook.activations")
TYPICAL_POSITIONS = 4_096  # of a text, over which the median norm is taken


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
