"""What a file of weights holds, looked at before anything of it is loaded: sizes, shapes; then the values.

Weights that exist as a pickle only are read once, by torch's reader that executes nothing, and kept as safetensors.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLOATS = ("F64", "F32", "F16", "BF16")
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
BYTES = {name: dtype.itemsize for dtype, name in TYPES.items()}
WIDEST = 8  # bytes of a number of any other type
Shape = tuple[int, ...]


def expected_shapes(config: PretrainedConfig) -> dict[str, Shape]:
    """Name → shape of each weight of a configuration's language model, found without memory for them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_file(path: Path, expected: Mapping[str, Shape], only_known: bool = True) -> None:
    """Raise `ValueError`, in one sentence that names the file, unless it holds tensors of these names and shapes.

    Only the header is read, so that a file that announces terabytes costs nothing. With `only_known`, no other tensor
    may be there and none may lack; without, what else is there must take less than all that is expected does as
    float32.
    """
    _check_shapes(path, read_header(path), expected, only_known)


def _check_shapes(
    path: Path, found: Mapping[str, tuple[str, Shape]], expected: Mapping[str, Shape], only_known: bool
) -> None:
    for name, shape in expected.items():
        if name in found and found[name][1] != shape:
            raise ValueError(f"{path}: {name} has shape {list(found[name][1])}, not {list(shape)}.")
        if name in found and found[name][0] not in FLOATS:
            raise ValueError(f"{path}: {name} holds {found[name][0]}, not floating-point numbers.")
    unknown, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if only_known and (unknown or missing):
        raise ValueError(f"{path} holds {', '.join(sorted(found))}, not {', '.join(sorted(expected))}.")
    more = sum(math.prod(found[name][1]) * BYTES.get(found[name][0], WIDEST) for name in unknown)
    if more > 4 * sum(map(math.prod, expected.values())):  # masks of a byte outnumber a small model's weights
        raise ValueError(
            f"{path} holds more that does not belong to this model than the model itself, {unknown[0]} for one."
        )


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError`, in one sentence that names file and tensor, where a value is NaN or infinite."""
    for name, value in tensors.items():
        if not torch.isfinite(value.detach()).all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values.")


def convert_pickle(source: Path, target: Path, expected: Mapping[str, Shape]) -> None:
    """Write the tensors of a file of `torch.save` as safetensors, of the same names and types.

    Nothing of it is executed. The tensors stay on the disk and pass through memory one by one, if the file is not of
    torch before 1.6. The result is the same byte for byte each time.

    Raises `ValueError`, in one sentence that names the file, where it needs more than tensors, a shape is not the
    expected one, what is not expected is more than what is, or a value is NaN.
    """
    tensors = _read_pickle(source)
    found = {name: (TYPES[value.dtype], tuple(value.shape)) for name, value in tensors.items()}
    _check_shapes(source, found, expected, only_known=False)
    check_values(source, tensors)
    written, storages = {}, set()
    for name, value in tensors.items():  # safetensors holds no tensor twice: tied ones are written out
        place = value.untyped_storage().data_ptr()
        value = value.detach().contiguous()
        written[name] = value.clone() if place in storages and value.untyped_storage().data_ptr() == place else value
        storages.add(place)
    save_file(written, target, metadata={"format": "pt"})


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # whatever a damaged or a foreign file makes the reader raise
        if not str(error).startswith("Weights only load failed"):
            raise ValueError(f"{path} is damaged, or no file of torch.save: download it again.") from None
        raise ValueError(
            f"{path} needs more than tensors ({_wanted(str(error))}), so it is not opened: "
            f"get safetensors of this model."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not tensors by their names.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} needs more than tensors: {str(name)[:100]} is a {type(value).__name__}.")
        if value.layout != torch.strided or value.dtype not in TYPES or value.is_quantized:
            raise ValueError(f"{path}: {name} holds {value.dtype} ({value.layout}), which safetensors does not.")
    return found


def _wanted(refusal: str) -> str:
    """What torch's reader says that a pickle wanted to run."""
    named = re.search(r"GLOBAL (\S+)", refusal) or re.search(r"WeightsUnpickler error:\s*(.+?)\.?$", refusal, re.M)
    return named[1] if named else "an unknown instruction"


def read_header(path: Path) -> dict[str, tuple[str, Shape]]:
    """Name → (type, shape) of each tensor; raises `ValueError` unless the file is just as long as they need."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}
            return {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in tensors.items()}
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        fault = f"is no safetensors file, or is damaged ({reason})"
        raise ValueError(f"{path} {fault}: download or make it again.") from None
