"""What a machine has to offer: free memory, and the speed of a product."""

from __future__ import annotations

import time

import psutil
import torch


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
