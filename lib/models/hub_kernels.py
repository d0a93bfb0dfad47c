"""No code from the hub: transformers would download compiled kernels, and run them, where `kernels` is installed."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from transformers.integrations import hub_kernels
from transformers.utils import ENV_VARS_TRUE_VALUES

SWITCH = "USE_HUB_KERNELS"  # transformers' own name for it; there it is on unless it is set, and leaves some ways open


def switch_off() -> None:
    """Close every way by which transformers gets kernels from the hub, unless the user has set `USE_HUB_KERNELS=1`.

    The ways: kernels that a layer loads when it is built or first called (`lazy_load_kernel`, RWKV's WKV, attention
    named in a config.json), which end in `get_kernel`; and `use_kernels=True`, which ends in a `LayerRepository`.
    """
    if os.environ.get(SWITCH, "").upper() in ENV_VARS_TRUE_VALUES:
        return
    hub_kernels._kernels_enabled = False
    hub_kernels.get_kernel = hub_kernels.LayerRepository = hub_kernels.kernelize = _refuse


def _refuse(*_: Any, **__: Any) -> NoReturn:
    how = f"set {SWITCH}=1 to have them downloaded and run"
    raise ImportError(f"kernels from the hub are code and stay switched off; {how}.")
