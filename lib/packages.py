"""The packages that `requirements.txt` pins, and which of them are not installed; imports none of them."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
INSTALL = "run `pip install -r requirements.txt`"


def pinned(requirements: Path = REQUIREMENTS) -> dict[str, str]:
    """Package → version, from requirements.txt; without what only some machines get, by a marker."""
    text = requirements.read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)(?!.*;)", text, flags=re.MULTILINE))


def installed(package: str) -> str | None:
    """Installed version without the build's suffix (torch's "+cpu"), or None."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def faults(requirements: Path = REQUIREMENTS) -> tuple[list[str], list[str]]:
    """Pinned packages that are not installed; those of another version, as "name found instead of pinned"."""
    pins = pinned(requirements)
    found = {package: installed(package) for package in pins}
    absent = [package for package, got in found.items() if got is None]
    other = [f"{name} {found[name]} instead of {pin}" for name, pin in pins.items() if found[name] not in (None, pin)]
    return absent, other


def require(requirements: Path = REQUIREMENTS) -> None:
    """Leave with one sentence if a pinned package is not installed: an import of it would end in a traceback."""
    if absent := faults(requirements)[0]:
        sys.exit(f"not installed: {', '.join(absent)}; {INSTALL}.")
