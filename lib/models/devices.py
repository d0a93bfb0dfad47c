"""Where models run, and in which type of numbers."""

from __future__ import annotations

import torch


def resolve(device: str) -> str:
    """The device itself; for "auto", cuda if torch can use a GPU, else cpu. Raises `ValueError` for one not there."""
    there = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if there else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"{device!r} is no device; take auto, cpu or cuda.")
    if device != "cpu" and not there:
        raise ValueError("torch finds no GPU here; take the device auto or cpu.")
    return device


def fast_dtype(device: str) -> torch.dtype:
    """The type in which matrix products are fastest: bf16 on GPUs and on CPUs with bf16 instructions, else fp32.

    A torch told to do without AVX-512 (``ATEN_CPU_CAPABILITY=avx2``) is taken for a CPU without bf16 instructions.
    """
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    allowed = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return torch.bfloat16 if device != "cpu" or (has_bf16 and allowed) else torch.float32


def fast_products(device: torch.device) -> torch.autocast:
    """Context in which products run in `fast_dtype`; sums, norms and the residual stream stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_dtype(device.type) is torch.bfloat16)
