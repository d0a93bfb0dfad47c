"""Sparse features on the disk: a layer is one safetensors file, which is written shard by shard.

The file has the arrays of `lib.mppc.features.SparseFeatures` as `offsets`, `indices` and `values`. Its metadata name
d_sae and the text, as one JSON object, because safetensors writes several entries in a random order. While features
are captured, each shard of the text is such a file by itself. A file gets its name when it is whole, so a capture that
was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lib.mppc.features import FeatureDtype, SparseFeatures, concatenated, index_dtype

log = logging.getLogger("workbook.features")
ABOUT = "features"  # the metadata's only entry


def layer_file(folder: str | Path, layer: int) -> Path:
    """Where a model's features keep one layer."""
    return Path(folder) / f"layer_{layer:02d}.safetensors"


def shard_file(folder: str | Path, layer: int, shard: int) -> Path:
    """Where a layer's shard lies until `join_shards`."""
    return Path(folder) / f"layer_{layer:02d}" / f"shard_{shard:05d}.safetensors"


def save_features(features: SparseFeatures, path: Path) -> None:
    """Write one layer, or one shard of it: a reader, or a power cut, finds the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"offsets": features.indptr, "indices": features.indices, "values": features.stored}
    about = {ABOUT: json.dumps({"d_sae": features.d_sae, "text": features.text})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(arrays, temporary, about)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_layer(path: Path) -> SparseFeatures:
    """Open one layer, memory-mapped. Raises `ValueError` for a file that is missing, cut off or of another kind."""
    if not path.exists():
        raise ValueError(f"{path} is missing; compute the features again.")
    try:
        with safe_open(path, "pt") as file:  # torch maps the file, NumPy's own reader would copy it
            about = json.loads(file.metadata()[ABOUT])
            arrays = [file.get_tensor(name).numpy() for name in ("offsets", "indices", "values")]
        return SparseFeatures(*arrays, (len(arrays[0]) - 1, about["d_sae"]), about["text"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, compute the features again: {str(error).rstrip('.')}.") from None


def open_features(folder: str | Path) -> list[SparseFeatures]:
    """All layers of a model, memory-mapped, over the same tokens.

    Raises ValueError where there are none, one is missing, or they differ in their number of tokens.
    """
    n_layers = len(list(Path(folder).glob("layer_*.safetensors")))
    if n_layers == 0:
        raise ValueError(f"{folder} holds no features (no {layer_file(folder, 0).name}).")
    layers = [open_layer(layer_file(folder, layer)) for layer in range(n_layers)]
    if len({layer.n_tokens for layer in layers}) > 1:
        raise ValueError(f"the layers in {folder} differ in their number of tokens; compute the features again.")
    return layers


def is_whole(path: Path) -> bool:
    """Whether a layer or shard need not be written again."""
    if not path.exists():
        return False
    try:
        open_layer(path)
    except ValueError as error:
        log.warning("%s", error)
        return False
    return True


def join_shards(shards: Path, path: Path, text: str | None = None) -> None:
    """Put a layer's folder of shards together into its file, and delete them. Memory: that of the layer.

    `text` is the digest of all that was read (`corpus.Blocks.digest`).
    """
    parts = [open_layer(shard) for shard in sorted(shards.glob("shard_*.safetensors"))]
    save_features(replace(concatenated(parts), text=text), path)
    shutil.rmtree(shards)


def feature_bytes(n_tokens: int, l0: float, d_sae: int, dtype: FeatureDtype = "float32") -> int:
    """Bytes on the disk of one layer of which `l0` features fire per token, header apart."""
    per_entry = index_dtype(d_sae).itemsize + np.dtype(dtype).itemsize
    return 8 * (n_tokens + 1) + round(n_tokens * l0) * per_entry
