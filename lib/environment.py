"""What this computer has of what the workbook wants, in lines that start with [ok] or [missing]."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil
import torch

from lib import corpus, models
from lib.profiles import HOME, Profile

GPU_EXTRAS = {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d", "triton": "triton"}


def pinned() -> dict[str, str]:
    """Package → version, from requirements.txt; without what only some machines get."""
    text = (HOME / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)(?!.*;)", text, flags=re.MULTILINE))


def installed(package: str) -> str | None:
    """Installed version without the build's suffix, or None."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def check(profile: Profile) -> list[str]:
    """One line per thing the profile needs, or could use."""
    pins = pinned()
    wrong = [f"{name} {installed(name)} (pinned {pin})" for name, pin in pins.items() if installed(name) != pin]
    names = (profile.pythia, profile.pythia_seed, profile.mamba, profile.rwkv)
    return [
        _line(sys.version_info >= (3, 11), f"Python {platform.python_version()} (3.11 or newer)"),
        _line(not wrong, f"{len(pins)} pinned packages" + (f": {', '.join(wrong)}" if wrong else "")),
        _line(corpus.TOKENIZER.is_dir() or profile.corpus != "docstrings", f"text: {profile.corpus}"),
        *(_line(models.is_available(name), f"model {name}") for name in names),
        _line(True, f"device {models.device_of(profile)}, products in {models.fast_dtype(models.device_of(profile))}"),
        _line(psutil.virtual_memory().available > 6e9, f"{psutil.virtual_memory().available / 1e9:.0f} GB of memory free"),
        _line(shutil.disk_usage(HOME).free > 5e9, f"{shutil.disk_usage(HOME).free / 1e9:.0f} GB of disk free"),
        *(_extra(module, package) for module, package in GPU_EXTRAS.items()),
    ]


def _line(good: bool, text: str) -> str:
    return f"[{'ok' if good else 'missing'}] {text}"


def _extra(module: str, package: str) -> str:
    if find_spec(module):
        return f"[ok] {package}"
    return f"[not needed] {package}: " + ("a GPU would use it" if torch.cuda.is_available() else "only a GPU uses it")
