"""What a safetensors file holds, looked at before anything of it is loaded: sizes, shapes; then the values."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")
Shape = tuple[int, ...]


def check_file(path: Path, expected: Mapping[str, Shape], only_known: bool = True) -> None:
    """Raise `ValueError`, in one sentence that names the file, unless it holds tensors of these names and shapes.

    Only the header is read, so that a file that announces terabytes costs nothing. With `only_known`, no other tensor
    may be there and none may lack; without, what else is there must be smaller than all that is expected.
    """
    found = read_header(path)
    for name, shape in expected.items():
        if name in found and found[name][1] != shape:
            raise ValueError(f"{path}: {name} has shape {list(found[name][1])}, not {list(shape)}.")
        if name in found and found[name][0] not in FLOATS:
            raise ValueError(f"{path}: {name} holds {found[name][0]}, not floating-point numbers.")
    unknown, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if only_known and (unknown or missing):
        raise ValueError(f"{path} holds {', '.join(sorted(found))}, not {', '.join(sorted(expected))}.")
    if sum(math.prod(found[name][1]) for name in unknown) > sum(map(math.prod, expected.values())):
        raise ValueError(f"{path} holds more that does not belong to this model than the model itself, {unknown[0]} for one.")


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError`, in one sentence that names file and tensor, where a value is NaN or infinite."""
    for name, value in tensors.items():
        if not torch.isfinite(value.detach()).all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values.")


def read_header(path: Path) -> dict[str, tuple[str, Shape]]:
    """Name → (type, shape) of each tensor; raises `ValueError` unless the file is as long as they need."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError(f"{path} is no safetensors file, or was cut short: download or make it again.")
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            found = {name: (entry["dtype"], tuple(map(int, entry["shape"]))) for name, entry in entries.items()}
            needed = sum(math.prod(shape) * BYTES[dtype] for dtype, shape in found.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} has a header that is not safetensors' (or an unknown type of number).") from None
    if needed != size - 8 - length:
        raise ValueError(f"{path} has {size:,} bytes where its header announces {8 + length + needed:,}: it is damaged.")
    return found
