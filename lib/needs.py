"""What a run needs that can be told before anything heavy is imported: packages, memory, disk."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from lib.profiles import HOME, Profile

REQUIREMENTS = HOME / "requirements.txt"
INSTALL = "run `pip install -r requirements.txt`"
GB = 1e9


def pinned(requirements: Path = REQUIREMENTS) -> dict[str, str]:
    """Package → version, from requirements.txt; without what only some machines get, by a marker."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)(?!.*;)", requirements.read_text(encoding="utf-8"), flags=re.MULTILINE))


def installed(package: str) -> str | None:
    """Installed version without the build's suffix (torch's "+cpu"), or None."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def package_faults(requirements: Path = REQUIREMENTS) -> tuple[list[str], list[str]]:
    """Pinned packages that are not installed; those of another version, as "name found instead of pinned"."""
    pins = pinned(requirements)
    found = {package: installed(package) for package in pins}
    absent = [package for package, got in found.items() if got is None]
    other = [f"{name} {found[name]} instead of {pin}" for name, pin in pins.items() if found[name] not in (None, pin)]
    return absent, other


def room(profile: Profile) -> dict[str, tuple[float, float]]:
    """GB of disk and memory: those free, and a lower bound of those that the profile needs.

    32 active features of 8 bytes per token in each of 24 files of feature activations; torch with one model in 1.5 GB,
    and the shuffle buffer of one layer 768 wide in float32.
    """
    disk = 24 * 32 * 8 * profile.mppc_tokens / GB
    memory = 1.5 + 768 * 4 * profile.buffer_tokens / GB
    free = shutil.disk_usage(existing_folder(profile.cache_dir)).free / GB, psutil.virtual_memory().available / GB
    return {"disk": (free[0], disk), "memory": (free[1], memory)}


def existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return path if path.is_dir() else existing_folder(path.parent)


def writable(folder: Path) -> bool:
    """Whether files can be written there; the folder may still have to be made."""
    place = existing_folder(folder)
    probe = place / f".{os.getpid()}.tmp"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError:
        return False
    return True
