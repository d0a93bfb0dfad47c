"""What a run needs that can be told before anything heavy is imported: packages, folders."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lib.workbook.profiles import HOME

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
