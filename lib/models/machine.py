"""What a machine has to offer: free memory, folders that can be written to, and the speed of a product."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import torch

GB = 1e9


def free_memory(device: str) -> int:
    """Bytes of the device's memory that can still be had."""
    return psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]


def measured_rate(device: str) -> float:
    """Multiply-adds per second of a dense float32 product on a device, measured in a moment."""
    n, repeats = 2_048, 3
    matrix, spent = torch.ones(n, n, device=device), []
    for _ in range(repeats):
        began = time.perf_counter()
        (matrix @ matrix).sum().item()  # `item` waits for a GPU
        spent.append(time.perf_counter() - began)
    return n**3 / min(spent)


def existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return path if path.is_dir() or path == path.parent else existing_folder(path.parent)


def writable(folder: Path) -> bool:
    """Whether files can be written there; the folder may still have to be made."""
    return os.access(existing_folder(folder), os.W_OK)
