"""Artifacts on disk, found by what they were made from: built once, resumed after a kill, verified on opening."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from lib.files import atomic_write, sync

log = logging.getLogger("workbook.store")

MANIFEST = "manifest.json"
_OURS = re.compile(r".+-[0-9a-f]{16}(\.partial|\.lock)?")


class Store:
    """A folder of artifacts; each is a folder ``<kind>-<key>`` with a manifest of its files."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def get(self, kind: str, fields: Mapping[str, Any], build: Callable[[Path], Any], version: int = 1) -> Path:
        """Folder of the artifact made from `fields`; `build` makes it where there is no sound one.

        `build(folder)` writes its files into a working folder that outlives a kill: what it finds there, it may go
        on from. Its subfolder ``checkpoint/`` is deleted at the end. Raise `version` when the code's meaning changes.
        Another process that builds the same artifact is waited for.

        Raises `TypeError` if a value of `fields` has no JSON form, and whatever `build` raises.
        """
        key = content_key(fields, version)
        folder = self.root / f"{kind}-{key}"
        self.root.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock")):
            fault = find_fault(folder, key) if folder.exists() else "absent"
            if fault is None:
                return folder
            if fault != "absent":
                log.warning("The artifact %s is damaged (%s); building it again.", folder.name, fault)
                shutil.rmtree(folder)
            work = folder.with_name(folder.name + ".partial")
            work.mkdir(exist_ok=True)
            started = time.monotonic()
            build(work)
            _seal(work, kind=kind, fields=fields, version=version, seconds=round(time.monotonic() - started, 3))
            work.rename(folder)
        return folder

    def clear(self) -> int:
        """Delete artifacts, finished or not, and nothing else that lies in the folder; return how many there were."""
        ours = [p for p in self.root.iterdir() if _OURS.fullmatch(p.name)] if self.root.is_dir() else []
        for path in ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return sum(not path.name.endswith(".lock") for path in ours)


def content_key(fields: Mapping[str, Any], version: int) -> str:
    """16 hexadecimal digits that stand for `fields` (in any order) and `version`."""
    return hashlib.sha256(_canonical({"fields": fields, "version": version}).encode()).hexdigest()[:16]


def find_fault(folder: Path, key: str) -> str | None:
    """What is wrong with an artifact, in a few words, or None: its manifest, key, and each file's size and sha256."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if content_key(manifest["fields"], manifest["version"]) != key:
            return f"{MANIFEST} belongs to another artifact"
        for name, expected in manifest["files"].items():
            if _measure(folder / name) != expected:
                return f"{name} was altered"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{MANIFEST} cannot be read"
    return None


def _seal(work: Path, **about: Any) -> None:
    """Delete what a kill left behind, put every file on the disk, then describe them in the manifest."""
    shutil.rmtree(work / "checkpoint", ignore_errors=True)
    for leftover in [*work.rglob(".*.tmp"), work / MANIFEST]:
        leftover.unlink(missing_ok=True)
    files = sorted(path for path in work.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    about |= {"created": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    about |= {"files": {path.relative_to(work).as_posix(): _measure(path) for path in files}}
    atomic_write(work / MANIFEST, json.dumps(json.loads(_canonical(about)), indent=1))


def _measure(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """sha256 of a file, read once as long as it does not change."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.cache  # a notebook opens an artifact many times; size and time tell whether it changed since
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=os.fspath)
    except (TypeError, ValueError) as error:
        raise TypeError(f"an artifact's fields must be numbers, strings, lists, dicts or paths: {error}.") from None


def _lock(path: Path) -> AcquireReturnProxy:
    """Hold a lock, in a `with`, that the operating system gives back even when this process is killed."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another process is building %s; waiting for it.", path.stem)
        return lock.acquire()
